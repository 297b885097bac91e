"""The emulator that VGGNET_CUDA_LIBS may name: a stand-in for the CUDA libraries that runs our kernels on the CPU and checks
every memory access. On a GPU, and where there is no CUDA at all, these functions say so."""

import ctypes
import functools
import os


@functools.cache
def library():
    """Its libcudart, as it is loaded, or None."""
    folder = os.environ.get("VGGNET_CUDA_LIBS")
    if not folder:
        return None
    runtime = ctypes.CDLL(os.path.join(folder, "libcudart.so.13"))
    if not hasattr(runtime, "ptxemu_errors"):
        return None
    runtime.ptxemu_errors.restype = runtime.ptxemu_calls.restype = ctypes.c_long
    runtime.ptxemu_errors.argtypes = runtime.ptxemu_calls.argtypes = runtime.ptxemu_fail.argtypes = (
        ctypes.c_char_p,
    )
    return runtime


def findings(kind=None):
    """How many accesses it has complained of so far; of one kind, or of all."""
    runtime = library()
    return runtime.ptxemu_errors(kind and kind.encode()) if runtime else 0


def fail(rules=""):
    """Calls that fail from now on, "cudaMallocAsync:3" (the third one), separated by commas; "" none. Counts begin anew."""
    assert library().ptxemu_fail(rules.encode()) == 0, rules


def calls(name):
    """How often a function was called since `fail`."""
    return library().ptxemu_calls(name.encode())
