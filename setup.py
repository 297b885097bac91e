"""Builds the extensions vggnet._C and, where nvcc is, vggnet._cuda; everything else is in pyproject.toml.

Environment: CC picks the compiler (gcc or clang); VGGNET_WERROR=1 turns on every warning, as errors;
VGGNET_SANITIZE=address,undefined builds with those sanitizers.
VGGNET_CUDA=0 leaves the CUDA backend out, 1 insists on it, auto (the default) builds it if nvcc and the headers of cuBLAS and
cuDNN are found: nvcc in CUDA_HOME, /usr/local/cuda or on the path; headers in CUDNN_HOME, CUBLAS_HOME, CUDA_HOME or the
nvidia-* wheels of this environment. NCCL's header (NCCL_HOME) may be missing: then several GPUs can't average gradients.
VGGNET_CUDA_ARCHS="80 90" picks the GPUs (default 75, whose PTX every later GPU runs).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
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
    if path.endswith(".cu"):  # random.cu gives the CPU's bits
        return ["-fmad=false"] if Path(path).name == "random.cu" else []
    # Kernels may fuse, but for the average, which has the same bits with every instruction set.
    fused = Path(path).parent.name == "kernels" and not Path(path).name.startswith("average_")
    contract = ["-ffp-contract=fast"] if fused else []
    isa = isa_of(path)
    return contract + (ISA_FLAGS[isa] if isa else [])


def isa_of(path: str | Path) -> str | None:
    return next((suffix for suffix in ISA_FLAGS if str(path).endswith(suffix)), None)


class Cuda:
    """Where nvcc and the headers are, or why there is no CUDA backend."""

    #: A header of each library, and the variable that says where it is.
    HEADERS = (
        ("cuda_runtime_api.h", "CUDA_HOME"),
        ("cublas_v2.h", "CUBLAS_HOME"),
        ("cudnn_graph.h", "CUDNN_HOME"),
    )

    def __init__(self) -> None:
        self.nvcc = ""
        self.home = Path()
        self.include: list[str] = []
        self.has_nccl = False
        self.archs = re.findall(r"\d+", os.environ.get("VGGNET_CUDA_ARCHS", "75"))
        wanted = os.environ.get("VGGNET_CUDA", "auto")
        self.why_not = "VGGNET_CUDA=0" if wanted == "0" else self.find()
        if self.why_not and wanted == "1":
            raise SystemExit(f"vggnet: VGGNET_CUDA=1, but {self.why_not}")

    def find(self) -> str:
        on_path = shutil.which("nvcc")
        homes = [
            os.environ.get("CUDA_HOME"),
            "/usr/local/cuda",
            on_path and Path(on_path).resolve().parents[1],
        ]
        home = next((Path(h) for h in homes if h and Path(h, "bin/nvcc").is_file()), None)
        if home is None:
            return "there is no nvcc (set CUDA_HOME)"
        self.home, self.nvcc = home, str(home / "bin/nvcc")
        for header, variable in self.HEADERS:
            if not self.find_header(header, variable):
                return (
                    f"there is no {header} (pip install nvidia-cublas nvidia-cudnn-cu13, or set {variable})"
                )
        self.has_nccl = self.find_header("nccl.h", "NCCL_HOME")
        return ""

    def find_header(self, header: str, variable: str) -> bool:
        """Whether it is there; then its folder is one of self.include."""
        homes = [Path(os.environ[variable], "include")] if os.environ.get(variable) else []
        wheels = sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("*/include"))
        folders = [*homes, self.home / "include", *wheels]
        found = next((folder for folder in folders if (folder / header).is_file()), None)
        self.include += ["-isystem", str(found)] if found else []
        return found is not None

    def __str__(self) -> str:
        if self.why_not:
            return f"not built: {self.why_not}"
        missing = ", without NCCL: there is no nccl.h (pip install nvidia-nccl-cu13, or set NCCL_HOME)"
        return f"built by {self.nvcc}{'' if self.has_nccl else missing}"

    def flags(self) -> list[str]:
        """Of nvcc: machine code for each architecture, and PTX of the last for those that come."""
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in self.archs]
        ptx = f"-gencode=arch=compute_{self.archs[-1]},code=compute_{self.archs[-1]}"
        host = "-fPIC,-fvisibility=hidden,-Wall,-Wextra" + (
            ",-Werror" if os.environ.get("VGGNET_WERROR") == "1" else ""
        )
        return [
            "-std=c++17",
            "-O3",
            "-lineinfo",
            *codes,
            ptx,
            "-cudart",
            "shared",
            "-Xcompiler",
            host,
            *self.include,
        ]

    def extension(self) -> Extension:
        folder = ROOT / "csrc" / "cuda"
        files = sorted([*folder.glob("*.c"), *folder.glob("*.cu"), ROOT / "csrc" / "core" / "status.c"])
        return Extension(
            "vggnet._cuda",
            [path.relative_to(ROOT).as_posix() for path in files],
            depends=headers("core", "cuda"),
            define_macros=[("Py_LIMITED_API", "0x030B0000")] * LIMITED_API
            + [("VGGNET_NCCL", "1")] * self.has_nccl,
            extra_compile_args=[*self.include, *FLAGS],
            # libcudart is opened by vggnet/cuda.py before the extension that needs it: from wherever it is at run time
            extra_link_args=[
                *LINK,
                "-ldl",
                "-lstdc++",
                f"-L{self.home}/lib64",
                f"-L{self.home}/lib",
                "-lcudart",
            ],
            py_limited_api=LIMITED_API,
        )


class BuildExt(build_ext):
    """Compiles files in parallel, each with its instruction set's flags, and only those that changed."""

    def build_extensions(self) -> None:
        flags = Path(self.build_temp, "flags.txt")
        command = repr(
            (self.compiler.compiler_so, FLAGS, ISA_FLAGS, LIMITED_API, VERSION, CUDA.nvcc, CUDA.flags())
        )
        same = flags.exists() and flags.read_text() == command and not self.force
        self.force = not same
        self.compiler.compile = self.compile_changed
        self.compiler.src_extensions.append(".cu")
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
        newest = max(os.path.getmtime(header) for header in depends or [])

        def compile_one(target: str) -> None:
            source, suffix = build[target]
            changed = max(newest, os.path.getmtime(source))
            if not self.force and os.path.exists(target) and os.path.getmtime(target) > changed:
                return
            if suffix == ".cu":
                self.spawn([CUDA.nvcc, *CUDA.flags(), *flags_of(source), "-c", source, "-o", target])
            else:
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


def headers(*folders: str) -> list[str]:
    """Of csrc and these of its folders: what makes everything be compiled anew."""
    paths = [path for folder in ("", *folders) for path in (ROOT / "csrc" / folder).glob("*.*")]
    return sorted(
        path.relative_to(ROOT).as_posix() for path in paths if path.suffix in (".h", ".cuh", ".def")
    )


CUDA = Cuda()
print(f"vggnet: CUDA backend: {CUDA}", file=sys.stderr)

setup(
    ext_modules=[
        Extension(
            "vggnet._C",
            sources(),
            depends=headers("core", "kernels", "ops", "py"),
            define_macros=[("VGGNET_VERSION", f'"{VERSION}"')]
            + [("Py_LIMITED_API", "0x030B0000")] * LIMITED_API,
            # -isystem: NumPy's inline functions are not ours to warn about
            extra_compile_args=["-isystem", np.get_include(), *FLAGS],
            extra_link_args=LINK,
            py_limited_api=LIMITED_API,
        ),
        *([] if CUDA.why_not else [CUDA.extension()]),
    ],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
