"""What nvcc made of csrc/cuda: functions that the real libraries have, kernels whose registers are known and never spill."""

import functools
import json
import os
import re
import runpy
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import setuptools
import vggnet

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
TABLE = Path(__file__).with_name("cuda_kernels.json")
BUILT = next(Path(vggnet.__file__).parent.glob("_cuda*.so"), None)
needs_cuda = pytest.mark.skipif(not vggnet.cuda.is_available(), reason="there is no CUDA device")

# Functions of the runtime; test_cuda_faults.py makes each fail.
CUDART = {
    "cudaDeviceGetAttribute",
    "cudaDeviceGetDefaultMemPool",
    "cudaDeviceSynchronize",
    "cudaDriverGetVersion",
    "cudaEventCreate",
    "cudaEventCreateWithFlags",
    "cudaEventDestroy",
    "cudaEventElapsedTime",
    "cudaEventQuery",
    "cudaEventRecord",
    "cudaEventSynchronize",
    "cudaFreeAsync",
    "cudaGetDevice",
    "cudaGetDeviceCount",
    "cudaGetDeviceProperties",
    "cudaGetErrorName",
    "cudaGetErrorString",
    "cudaGetLastError",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
    "cudaGraphInstantiate",
    "cudaGraphLaunch",
    "cudaHostAlloc",
    "cudaLaunchKernel",
    "cudaMallocAsync",
    "cudaMemGetInfo",
    "cudaMemPoolSetAttribute",
    "cudaMemPoolTrimTo",
    "cudaMemcpyAsync",
    "cudaMemcpyPeerAsync",
    "cudaMemsetAsync",
    "cudaRuntimeGetVersion",
    "cudaSetDevice",
    "cudaStreamBeginCapture",
    "cudaStreamCreateWithFlags",
    "cudaStreamDestroy",
    "cudaStreamEndCapture",
    "cudaStreamQuery",
    "cudaStreamSynchronize",
    "cudaStreamWaitEvent",
}


@functools.cache
def toolkit():
    """setup.py's finding: nvcc, its flags, where headers are."""
    setup, setuptools.setup = setuptools.setup, lambda **options: None
    try:
        found = runpy.run_path(str(ROOT / "setup.py"))
    finally:
        setuptools.setup = setup
    if found["CUDA"].why_not:
        pytest.skip("there is no nvcc, or headers of CUDA are missing")
    return found["CUDA"], found["flags_of"]


def dynamic_symbols(path, which):
    """Names in a library's table, without versions."""
    done = subprocess.run(["nm", "-D", f"--{which}-only", path], capture_output=True, text=True, check=True)
    return {line.split()[-1].split("@")[0] for line in done.stdout.splitlines()}


# ---------------------------------------------------------------------------------------------- symbols


def needed_of_runtime():
    return {name for name in dynamic_symbols(BUILT, "undefined") if re.match(r"(__)?cuda[A-Z]", name)}


@needs_cuda
def test_the_runtimes_functions_are_known():
    """Those that nvcc's own code calls aside: they begin with two underscores."""
    assert {name for name in needed_of_runtime() if not name.startswith("__")} | {
        "cudaLaunchKernel"
    } == CUDART


@needs_cuda
@pytest.mark.skipif(
    "VGGNET_CUDA_REAL" not in os.environ, reason="VGGNET_CUDA_REAL does not name the real libraries"
)
@pytest.mark.parametrize("library", ["cudart", "cublas", "cudnn", "nccl"])
def test_the_real_libraries_have_every_function(library):
    """VGGNET_CUDA_REAL: folders below which the libraries are, as a path list; they are read, not opened."""
    files = [
        file
        for folder in os.environ["VGGNET_CUDA_REAL"].split(os.pathsep)
        for file in Path(folder).rglob(f"lib{library}*.so.*")
    ]
    assert files, "none is there"
    has = set().union(*(dynamic_symbols(file, "defined") for file in files))
    wanted = {name for owner, name in vggnet.cuda._backend.symbols() if owner == library}
    wanted |= needed_of_runtime() if library == "cudart" else set()
    assert wanted and wanted <= has, wanted - has


# ---------------------------------------------------------------------------------------------- registers


def kernel_name(symbol):
    """Of a kernel that is no template, or one of types of maps: "relu_kernel<bfloat16>"."""
    length, rest = re.match(r"_Z(\d+)(\w+)", symbol).groups()
    name, rest = rest[: int(length)], rest[int(length) :]
    types = {"f": "float", "8bfloat16": "bfloat16", "S0_": "bfloat16"}  # S0_: the first type once more
    arguments = re.match(r"I((?:f|8bfloat16|S0_)+)E", rest)
    if not arguments:
        return name
    return f"{name}<{', '.join(types[t] for t in re.findall('f|8bfloat16|S0_', arguments[1]))}>"


def resources(source, folder):
    """Kernel -> what ptxas says of it, for the default architecture."""
    cuda, flags_of = toolkit()
    flags = [flag for flag in cuda.flags() if not flag.startswith("-gencode")]
    command = [
        cuda.nvcc,
        *flags,
        *flags_of(str(source)),
        f"-arch=sm_{cuda.archs[0]}",
        "-cubin",
        "-Xptxas",
        "-v",
    ]
    target = folder / f"{source.stem}.cubin"
    done = subprocess.run([*command, source, "-o", target], capture_output=True, text=True, check=True)
    found, name = {}, None
    for line in done.stderr.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name = kernel_name(match[1])
            found[name] = {"registers": 0, "shared": 0, "spilled": 0, "stack": 0}
        elif match := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            found[name] |= {"stack": int(match[1]), "spilled": int(match[2]) + int(match[3])}
        elif match := re.search(r"Used (\d+) registers", line):
            found[name]["registers"] = int(match[1])
            if shared := re.search(r"(\d+) bytes smem", line):
                found[name]["shared"] = int(shared[1])
    return found


def test_registers_are_those_of_the_table(tmp_path):
    """ptxas of the release that the table names gives the same; of another one, at least nothing is spilled."""
    cuda, _ = toolkit()
    version = subprocess.run([cuda.nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    table = json.loads(TABLE.read_text())
    with ThreadPoolExecutor(2) as pool:
        parts = pool.map(lambda source: resources(source, tmp_path), SOURCES)
        found = {name: numbers for part in parts for name, numbers in part.items()}
    written = {
        name for source in SOURCES for name in re.findall(r"__global__ static void (\w+)", source.read_text())
    }
    assert {name.split("<")[0] for name in found} == written
    assert {name for name, numbers in found.items() if numbers["spilled"]} == set()
    if table["release"] in version and table["architecture"] == f"sm_{cuda.archs[0]}":
        changed = {name: n for name, n in found.items() if table["kernels"].get(name) != n}
        rows = (f"  {json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
        assert not changed and set(found) == set(table["kernels"]), "the kernels are now:\n" + ",\n".join(
            rows
        )
