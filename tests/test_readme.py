"""README.md: its form, and that its examples run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import vggnet as vgg

from helpers import ENVIRONMENT

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [content for name, content in BLOCKS if name == language]


def test_form():
    """What CI relies on: the first block is the two commands; python and bash blocks are executed here.

    The second installs in place, since tests start Python in the tree, where the sources come first on the path.
    """
    language, commands = BLOCKS[0]
    assert language == "sh"
    assert commands.splitlines() == [
        "pip install . && vggnet quickstart",
        "pip install -e '.[test]' && pytest",
    ]
    assert len(TEXT.splitlines()) < 160
    assert {name for name, _ in BLOCKS[1:]} == {"python", "bash", "text"}
    assert "A combined" in blocks("text")[0], "what quickstart prints"


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_links_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_table_of_nets():
    from vggnet.configs import CONFIGS

    rows = dict(re.findall(r"^\| (A|A-LRN|B|C|D|E) \| \d+ \|.*\| ([\d,]+) \|$", TEXT, flags=re.MULTILINE))
    assert set(rows) == set(CONFIGS)
    for config, parameters in rows.items():
        assert vgg.VGG(config, init=None).num_parameters == int(parameters.replace(",", ""))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory after a very short quickstart."""
    place = tmp_path_factory.mktemp("readme")
    run(place, sys.executable, "-m", "vggnet", "quickstart", "--epochs", "1", "--images", "100")
    return place


def run(place: Path, *command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_examples(place):
    (place / "examples.py").write_text("\n".join(blocks("python")), encoding="utf-8")
    out = run(place, sys.executable, "-W", "error", "examples.py")
    assert "top-1 error" in out
    assert "%" in out
    assert (place / "mine.safetensors").exists()


def test_command_line_examples(place):
    for line in "".join(blocks("bash")).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "vggnet"
        assert run(place, sys.executable, "-m", "vggnet", *arguments)
