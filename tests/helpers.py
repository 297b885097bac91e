"""What tests share. Kernel calls go through `call`: poisoned outputs and workspace, guard bytes, inputs left alone."""

import contextlib
import ctypes
import gc
import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import vggnet
from vggnet import _C

# Processes run the package that the tests run, not whatever the working directory holds.
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(vggnet.__file__).resolve().parents[1]),
    "PYTHONSAFEPATH": "1",
}

GUARD_BYTES = 256
GUARD = 0xA5
SCRATCH = 0xFF  # four of them are a NaN; 0xA5A5A5A5 would be -3e-16, which no tolerance sees


# Where tests put tensors: the fixtures `device` and `kernels` choose, as `isa` chooses the CPU's kernels for all.
_device = "cpu"


def where():
    """Where the running test's tensors are: "cpu", or "cuda"."""
    return _device


def use_device(name):
    """-> the one before."""
    global _device
    before, _device = _device, name
    return before


class Operations:
    """`ops.relu(x)` is `vggnet._C.relu(x)` on the tests' device: arrays become its tensors."""

    def __getattr__(self, name):
        function = getattr(_C, name)
        if _device == "cpu":
            return function
        return lambda *inputs, **options: function(
            *map(_moved, inputs), **{name: _moved(value) for name, value in options.items()}
        )


ops = Operations()


def put(array):
    """A tensor of the tests' device."""
    return _C.tensor(array, device=_device)


def _moved(value):
    return put(value) if isinstance(value, np.ndarray) else value


class Guarded:
    """A tensor in the middle of an arena whose other bytes are 0xA5, up to the byte after the tensor's last.

    float32 is filled with NaN, which shows in the result if it is read; other types with 0xA5 or `value`.
    """

    def __init__(self, shape, dtype="float32", value=None, start=GUARD_BYTES):
        item = {"float32": 4, "int64": 8, "uint8": 1}[dtype]
        self.start, self.nbytes = start, int(np.prod(shape, dtype=np.int64)) * item
        arena = np.full(start + self.nbytes + GUARD_BYTES, GUARD, np.uint8)
        if value is None and dtype == "float32":
            value = np.nan
        if value is not None:
            arena[start : start + self.nbytes].view(dtype)[...] = np.broadcast_to(value, shape).reshape(-1)
        self.arena = _C.tensor(arena, device=_device)
        self.tensor = self.arena.view(start, shape, dtype)

    def check(self, what="output"):
        around = self.arena.numpy()
        assert (around[: self.start] == GUARD).all(), f"{what}: written below its first byte"
        assert (around[self.start + self.nbytes :] == GUARD).all(), f"{what}: written beyond its last byte"

    def numpy(self):
        """A copy, after looking at the guards."""
        self.check()
        return self.tensor.numpy().copy()


def unaligned(a, items=1):
    """A C-contiguous copy whose first byte is so many items off a 64-byte boundary."""
    a = np.asarray(a, order="C")
    buffer = np.empty(a.nbytes + 192, np.uint8)
    start = -buffer.ctypes.data % 64 + items * a.itemsize
    out = buffer[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


def lay(a, items=1):
    """`unaligned`, on the tests' device: an array, or a tensor."""
    if _device == "cpu":
        return unaligned(a, items)
    return Guarded(a.shape, a.dtype.name, a, GUARD_BYTES + items * a.itemsize).tensor


def call(op, *inputs, out, workspace=None, offset=1, **options):
    """op(*inputs, **options) into guarded, poisoned outputs, with poisoned guarded workspace; -> NumPy
    copies.

    inputs, and options that are arrays, are laid `offset` items off alignment and must come back unchanged.
    out: a shape, or a list of (shape, dtype) or (shape, dtype, value) for a tuple. workspace: bytes.
    """
    single = not isinstance(out, list)
    guarded = [Guarded(out)] if single else [Guarded(*spec) for spec in out]
    laid = [lay(a, offset) if isinstance(a, np.ndarray) else a for a in inputs]
    laid_options = {k: lay(v, offset) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    if workspace is not None:
        scratch = Guarded((workspace,), "uint8", value=SCRATCH)
        laid_options["workspace"] = scratch.tensor
    tensors = tuple(g.tensor for g in guarded)
    result = op(*laid, out=tensors[0] if single else tensors, **laid_options)
    for got, tensor in zip((result,) if single else result, tensors, strict=True):
        assert got.shape == tensor.shape and got.dtype == tensor.dtype
        assert got.storage is tensor.storage or not got.nbytes
    if workspace is not None:
        scratch.check("workspace")
    before = [a for a in inputs if isinstance(a, np.ndarray)]
    before += [v for v in options.values() if isinstance(v, np.ndarray)]
    after = [b for a, b in zip(inputs, laid, strict=True) if isinstance(a, np.ndarray)]
    after += [laid_options[k] for k, v in options.items() if isinstance(v, np.ndarray)]
    for a, b in zip(before, after, strict=True):
        assert a.tobytes() == np.asarray(b).tobytes(), "an input was written to"
    return guarded[0].numpy() if single else tuple(g.numpy() for g in guarded)


@contextlib.contextmanager
def raises(words, kind=ValueError):
    """pytest.raises, with all of the words in the message."""
    with pytest.raises(kind) as error:
        yield
    for word in words:
        assert word in str(error.value), str(error.value)


# Of the structs that kernels take, as ctypes has them.
FLOATS, BYTES = ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_uint8)


def sizes(*names):
    """Fields of type size_t."""
    return [(name, ctypes.c_size_t) for name in names]


def pointer(array, kind=FLOATS):
    return None if array is None else array.ctypes.data_as(kind)


def kernel_library(source, folder):
    """One file of csrc/kernels as a library, lowered to the baseline instruction set: so it runs on any x86-64."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("no C compiler")
    if platform.machine() != "x86_64" and "scalar" not in source:
        pytest.skip("the source is empty on this architecture")
    csrc, library = Path(__file__).parents[1] / "csrc", folder / f"{source}.so"
    flags = ["-std=c11", "-O1", "-ffp-contract=fast", "-Wno-psabi", "-shared", "-fPIC", f"-I{csrc}"]
    subprocess.run([compiler, *flags, str(csrc / "kernels" / source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def available_isas():
    return list(_C.build_info()["isa_available"])


def survives_failed_allocations(function, most=200):
    """function() with its first, second, ... allocation made to fail, until it runs through: MemoryError each
    time before, and nothing leaked. -> how many allocations it makes."""
    function()
    gc.collect()  # what earlier tests left must not go in between
    for n in range(1, most):
        before = _C.memory_stats()["current"]
        _C._fail_allocation(n)
        failed = False
        try:
            function()
        except MemoryError:
            failed = True  # outside of this block the traceback no longer holds what the function had
        finally:
            _C._fail_allocation(0)
        if not failed:
            return n - 1
        assert _C.memory_stats()["current"] == before, f"allocation {n} failed and bytes leaked"
    raise AssertionError(f"still failing after {most} allocations")


def photos():
    """Two real photos, 427 x 640 uint8 RGB: a temple under the sky, a flower before leaves (scikit-learn's)."""
    return pytest.importorskip("sklearn.datasets").load_sample_images().images
