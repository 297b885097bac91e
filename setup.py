"""Builds the extension vggnet._C; everything else is in pyproject.toml.

Environment: CC picks the compiler (gcc or clang); VGGNET_WERROR=1 turns on every warning, as errors;
VGGNET_SANITIZE=address,undefined builds with those sanitizers.
"""

from __future__ import annotations

import os
import platform
import re
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
VERSION = re.search(r'"(.+)"', (ROOT / "vggnet/_version.py").read_text())[1]  # type: ignore[index]
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")  # free-threaded Pythons have none yet
X86 = platform.machine().lower() in ("x86_64", "amd64")

# A file that may use an instruction set says so by its name; the others stay at the platform's baseline.
ISA_FLAGS = {
    "_avx2.c": ["-mavx2", "-mfma"],
    "_avx512.c": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma"],
}
FLAGS = [
    "-std=c11",
    "-O3",
    "-ffp-contract=off",  # random.c gives the same bits everywhere; kernels ask for fused multiply-adds below
    "-fno-math-errno",  # square roots in vectors; nobody reads errno
    "-fvisibility=hidden",
    "-pthread",
    "-g0",
    "-Wall",
    "-Wextra",
]
LINK = ["-pthread", "-lm"]
if os.environ.get("VGGNET_WERROR") == "1":
    FLAGS += ["-Wconversion", "-Werror"]
if sanitizers := os.environ.get("VGGNET_SANITIZE"):
    FLAGS += [
        f"-fsanitize={sanitizers}",
        "-fno-sanitize-recover=undefined",
        "-fno-omit-frame-pointer",
        "-O1",
        "-g",
    ]
    LINK += [f"-fsanitize={sanitizers}"]


def flags_of(path: str) -> list[str]:
    """What one file is compiled with beyond FLAGS."""
    contract = ["-ffp-contract=fast"] if Path(path).parent.name == "kernels" else []
    isa = isa_of(path)
    return contract + (ISA_FLAGS[isa] if isa else [])


def isa_of(path: str | Path) -> str | None:
    return next((suffix for suffix in ISA_FLAGS if str(path).endswith(suffix)), None)


class BuildExt(build_ext):
    """Compiles files in parallel, each with its instruction set's flags, and only those that changed."""

    def build_extensions(self) -> None:
        flags = Path(self.build_temp, "flags.txt")
        command = repr((self.compiler.compiler_so, FLAGS, ISA_FLAGS, LIMITED_API, VERSION))
        same = flags.exists() and flags.read_text() == command and not self.force
        self.force = not same
        self.compiler.compile = self.compile_changed
        super().build_extensions()
        flags.parent.mkdir(parents=True, exist_ok=True)
        flags.write_text(command)

    def compile_changed(
        self,
        sources: list[str],
        output_dir: str | None = None,
        macros: list[Any] | None = None,
        include_dirs: list[str] | None = None,
        debug: bool = False,
        extra_preargs: list[str] | None = None,
        extra_postargs: list[str] | None = None,
        depends: list[str] | None = None,
    ) -> list[str]:
        compiler = self.compiler
        macros, objects, postargs, pp_opts, build = compiler._setup_compile(
            output_dir, macros, include_dirs, sources, depends, extra_postargs
        )
        cc_args = compiler._get_cc_args(pp_opts, debug, extra_preargs)
        headers = max(os.path.getmtime(header) for header in depends or [])

        def compile_one(target: str) -> None:
            source, suffix = build[target]
            changed = max(headers, os.path.getmtime(source))
            if self.force or not os.path.exists(target) or os.path.getmtime(target) <= changed:
                compiler._compile(target, source, suffix, cc_args, postargs + flags_of(source), pp_opts)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, objects))
        return list(objects)


def sources() -> list[str]:
    folders = ("core", "kernels", "ops", "py")
    files = sorted(
        path.relative_to(ROOT) for folder in folders for path in (ROOT / "csrc" / folder).glob("*.c")
    )
    return [path.as_posix() for path in files if X86 or not isa_of(path)]


setup(
    ext_modules=[
        Extension(
            "vggnet._C",
            sources(),
            depends=[
                path.relative_to(ROOT).as_posix()
                for pattern in ("*.h", "*.def")
                for path in sorted((ROOT / "csrc").rglob(pattern))
            ],
            define_macros=[("VGGNET_VERSION", f'"{VERSION}"')]
            + [("Py_LIMITED_API", "0x030B0000")] * LIMITED_API,
            # -isystem: NumPy's inline functions are not ours to warn about
            extra_compile_args=["-isystem", np.get_include(), *FLAGS],
            extra_link_args=LINK,
            py_limited_api=LIMITED_API,
        )
    ],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
