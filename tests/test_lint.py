"""Style, types and stubs, by the tools that the extra `test` pins. The rules that no tool knows are in test_lint_c.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from vggnet import cuda

ROOT = Path(__file__).parent.parent
PYTHON_FILES = ["vggnet", "tests", "benchmarks", "notebooks", "tools", "setup.py"]
C_FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("csrc", "tests/backend")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".c", ".h", ".cu", ".cuh"}
)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "check", *PYTHON_FILES], id="ruff"),
        pytest.param(["ruff", "format", "--check", *PYTHON_FILES], id="format"),
        pytest.param(["clang-format", "--dry-run", "-Werror", *C_FILES], id="clang-format"),
        pytest.param(["mypy"], id="mypy"),
        pytest.param(
            ["stubtest", "vggnet._C", *(["vggnet._cuda"] if cuda.is_available() else [])], id="stubtest"
        ),
    ],
)
def test_lint(command: list[str]) -> None:
    tool = Path(sys.executable).with_name(command[0])  # of this environment, whatever PATH says
    environment = os.environ | {
        "LD_LIBRARY_PATH": os.environ.get("VGGNET_CUDA_LIBS", "")
    }  # _cuda needs libcudart at once
    done = subprocess.run(
        [tool, *command[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "path", ["Makefile", *(p.relative_to(ROOT).as_posix() for p in (ROOT / "tools").glob("*.sh"))]
)
def test_scripts_name_files_that_exist(path: str) -> None:
    for name in re.findall(r"\b(?:tests|tools)/\w+\.\w+", (ROOT / path).read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name
