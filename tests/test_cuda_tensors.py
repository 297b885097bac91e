"""CUDA tensors beside other libraries: DLPack and the CUDA array interface, streams, copies between devices.

The other library is made of ctypes here: it allocates on the device and owns streams through libcudart, as CuPy or torch do.
"""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest
import vggnet as vgg
from vggnet import _C

from helpers import ENVIRONMENT
from test_dlpack import Producer, capsule_name, contents

pytestmark = pytest.mark.skipif(not vgg.cuda.is_available(), reason=f"{vgg.cuda.why_not()}")

CUDA = 2  # DLPack's number
VERSIONED = {"max_version": (1, 0)}


@pytest.fixture(scope="module")
def runtime():
    """The runtime library that vggnet has opened."""
    library = ctypes.CDLL("libcudart.so.13")
    library.cudaStreamCreateWithFlags.argtypes = (ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint)
    library.cudaStreamDestroy.argtypes = (ctypes.c_void_p,)
    library.cudaStreamSynchronize.argtypes = (ctypes.c_void_p,)
    library.cudaMemcpyAsync.argtypes = (
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_void_p,
    )
    return library


@pytest.fixture
def side_stream(runtime):
    """A stream of another library, which does not wait for the default stream by itself."""
    stream = ctypes.c_void_p()
    assert runtime.cudaStreamCreateWithFlags(ctypes.byref(stream), 1) == 0
    yield stream.value
    assert runtime.cudaStreamSynchronize(stream) == 0
    assert runtime.cudaStreamDestroy(stream) == 0


def read(runtime, pointer, array, stream):
    """What another library does with a pointer it was given: a copy queued on its own stream."""
    assert runtime.cudaMemcpyAsync(array.ctypes.data, pointer, array.nbytes, 2, stream) == 0
    assert runtime.cudaStreamSynchronize(stream) == 0
    return array


def told(t, **options):
    """What a capsule of the tensor says, after it has gone."""
    capsule = t.__dlpack__(**options)
    managed = contents(capsule)
    return type(managed).from_buffer_copy(managed)


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


# ---- the CUDA array interface


@pytest.mark.parametrize(("dtype", "typestr"), [("float32", "<f4"), ("int64", "<i8"), ("uint8", "|u1")])
def test_cuda_array_interface(runtime, dtype, typestr):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    t = vgg.tensor(array, device="cuda")
    said = t.__cuda_array_interface__
    pointer, readonly = said.pop("data")
    assert said == {"shape": (2, 3, 4), "typestr": typestr, "strides": None, "version": 3, "stream": 1}
    assert not readonly
    np.testing.assert_array_equal(read(runtime, pointer, np.empty_like(array), 1), array)
    assert vgg.tensor(array, device="cuda").freeze_views().__cuda_array_interface__["data"][1]


def test_cuda_array_interface_tells_the_stream(side_stream):
    t = vgg.zeros((3,), device="cuda")
    with vgg.cuda.stream(side_stream):
        assert t.__cuda_array_interface__["stream"] == side_stream
    assert t.__cuda_array_interface__["stream"] == 1


def test_cuda_array_interface_is_cudas():
    with pytest.raises(AttributeError, match="on no CUDA device"):
        _ = vgg.zeros((3,)).__cuda_array_interface__
    assert not hasattr(vgg.zeros((3,)), "__cuda_array_interface__")
    with pytest.raises(AttributeError, match="bfloat16"):
        _ = vgg.zeros((3,), "bfloat16", device="cuda").__cuda_array_interface__


# ---- DLPack, to another library


@pytest.mark.parametrize("options", [{}, VERSIONED])
def test_capsule(options):
    t = vgg.zeros((2, 3, 4), device="cuda")
    assert t.__dlpack_device__() == (CUDA, 0)
    capsule = t.__dlpack__(**options)
    assert capsule_name(capsule) == (b"dltensor_versioned" if options else b"dltensor")
    d = contents(capsule).tensor
    assert (d.device_type, d.device_id, d.code, d.bits) == (CUDA, 0, 2, 32)
    assert d.data == t.__cuda_array_interface__["data"][0]
    assert (d.shape[:3], d.strides[:3]) == ([2, 3, 4], [12, 4, 1])


def test_the_consumers_stream_waits(runtime, side_stream):
    """In the lazy order of the emulator the copy would read what the kernel before it has not written yet."""
    x = vgg.tensor(normal(1000), device="cuda")
    y = vgg.ops.relu(x)
    pointer = told(y, stream=side_stream).tensor.data
    got = read(runtime, pointer, np.empty(1000, np.float32), side_stream)
    np.testing.assert_array_equal(got, np.maximum(normal(1000), 0))


# To the emulator 2 is the default stream too, which in the lazy order then seems to wait for itself.
STREAMS = [None, 1, -1] + [2] * (os.environ.get("PTXEMU_LAZY") != "1")


@pytest.mark.parametrize("stream", STREAMS)
def test_numbers_of_streams(stream):
    t = vgg.zeros((3,), device="cuda")
    assert told(t, stream=stream).tensor.device_type == CUDA


@pytest.mark.parametrize(("stream", "error"), [(0, BufferError), (-2, BufferError), ("a", TypeError)])
def test_what_is_no_stream(stream, error):
    with pytest.raises(error):
        vgg.zeros((3,), device="cuda").__dlpack__(stream=stream)


def test_to_the_host():
    """Where the consumer asks for host memory, it gets a copy, or an error where it forbids one."""
    array = normal(3, 5)
    t = vgg.tensor(array, device="cuda")
    managed = contents(capsule := t.__dlpack__(dl_device=(1, 0), **VERSIONED))
    assert (managed.tensor.device_type, managed.flags) == (1, 2)
    np.testing.assert_array_equal(vgg.from_dlpack(capsule).numpy(), array)
    with pytest.raises(BufferError, match="forbids"):
        t.__dlpack__(dl_device=(1, 0), copy=False)
    with pytest.raises(BufferError, match="the CPU has none"):
        t.__dlpack__(dl_device=(1, 0), stream=1)
    with pytest.raises(BufferError, match=r"\(13, 0\)"):
        t.__dlpack__(dl_device=(13, 0))


def test_from_the_host():
    array = normal(3, 5)
    capsule = vgg.tensor(array).__dlpack__(dl_device=(CUDA, 0), stream=1, **VERSIONED)
    t = vgg.from_dlpack(capsule)
    assert t.device == "cuda:0"
    np.testing.assert_array_equal(t.numpy(), array)


def test_a_copy_on_the_device():
    t = vgg.zeros((3,), device="cuda")
    managed = told(t, copy=True, **VERSIONED)
    assert managed.flags == 2
    assert managed.tensor.data != t.__cuda_array_interface__["data"][0]


def test_read_only():
    t = vgg.zeros((3,), device="cuda").freeze_views()
    assert told(t, **VERSIONED).flags == 1
    with pytest.raises(BufferError, match="read-only"):
        t.__dlpack__()


def test_capsules_hold_memory():
    before = _C.memory_stats("cuda")["current"]
    capsule = vgg.zeros((100,), device="cuda").__dlpack__()
    assert _C.memory_stats("cuda")["current"] == before + 400
    del capsule
    assert _C.memory_stats("cuda")["current"] == before


# ---- DLPack, from another library


class Library(Producer):
    """Notes what the consumer asked for."""

    def __dlpack__(self, **options):
        self.asked = options
        return super().__dlpack__(**options)


def test_from_another_library(side_stream):
    base = vgg.tensor(normal(4, 5), device="cuda")
    producer = Library(base)
    t = vgg.from_dlpack(producer)
    assert producer.asked == {"max_version": (1, 0), "stream": 1}
    assert (t.device, t.shape) == ("cuda:0", (4, 5))
    assert t.__cuda_array_interface__["data"] == base.__cuda_array_interface__["data"]
    with vgg.cuda.stream(side_stream):
        vgg.from_dlpack(producer)
    assert producer.asked["stream"] == side_stream


def test_from_before_versions():
    class Old(Producer):
        def __dlpack__(self, stream=None):
            assert stream == 1
            return self.base.__dlpack__(stream=stream)

    array = normal(4, 5)
    t = vgg.from_dlpack(Old(vgg.tensor(array, device="cuda")))
    np.testing.assert_array_equal(t.numpy(), array)


def test_imports_hold_memory():
    before = _C.memory_stats("cuda")["current"]
    t = vgg.from_dlpack(Producer(vgg.zeros((100,), device="cuda")))
    assert _C.memory_stats("cuda")["current"] == before + 400
    del t
    assert _C.memory_stats("cuda")["current"] == before


def test_copies_of_other_libraries_arrays():
    array = normal(4, 5)
    producer = Producer(vgg.tensor(array, device="cuda"))
    for device in ("cpu", "cuda"):
        t = vgg.tensor(producer, device=device)
        assert t.device.startswith(device)
        np.testing.assert_array_equal(t.numpy(), array)
    y = vgg.tensor(producer, dtype="int64", device="cuda")
    np.testing.assert_array_equal(y.numpy(), array.astype(np.int64))


def test_devices_that_are_not_there():
    def far(managed):
        managed.tensor.device_id = 63

    with pytest.raises(BufferError, match=r"\(2, 63\)"):
        vgg.from_dlpack(Producer(vgg.zeros((3,), device="cuda"), far).__dlpack__())


# ---- streams


def test_streams_are_ordered(side_stream):
    """Memory and results pass between the default stream and one that does not wait for it, without a word from the caller."""
    array = normal(300, 7)
    expected = np.maximum(array, 0)
    x = vgg.tensor(array, device="cuda")
    with vgg.cuda.stream(side_stream):
        y = vgg.ops.relu(x)
        for _ in range(3):  # memory that comes back is used again at once
            z = vgg.ops.relu(y)
            del z
        inside = vgg.ops.relu(vgg.tensor(array, device="cuda"))
    outside = vgg.ops.relu(y)
    for t in (y, inside, outside):
        np.testing.assert_array_equal(t.numpy(), expected)


def test_streams_end_with_their_block(side_stream):
    with pytest.raises(ZeroDivisionError), vgg.cuda.stream(side_stream):
        raise ZeroDivisionError
    assert vgg.zeros((1,), device="cuda").__cuda_array_interface__["stream"] == 1
    with pytest.raises(ValueError, match="device is 63"), vgg.cuda.stream(side_stream, device="cuda:63"):
        pass


# ---- memory


def test_memory_stats():
    before = vgg.cuda.memory_stats()
    t = vgg.empty((1000,), device="cuda")
    after = vgg.cuda.memory_stats("cuda:0")
    assert after["current"] == before["current"] + 4000
    assert after["allocations"] == before["allocations"] + 1
    assert after["free"] <= before["free"]
    assert 0 < after["free"] < after["total"] == before["total"]
    del t
    assert vgg.cuda.memory_stats()["current"] == before["current"]


def test_too_much_memory():
    vgg.zeros((1,), device="cuda").item()  # what others gave back has come back
    free = vgg.cuda.memory_stats()["free"]
    with pytest.raises(MemoryError, match=rf"{1 << 50} bytes on device cuda:0: {free} of its \d+ are free"):
        vgg.empty((1 << 50,), "uint8", device="cuda")


# ---- several devices: more than the emulator shows by default, so in a process of their own

DEVICES = """
import numpy as np
import vggnet as vgg
from vggnet import _C
assert vgg.cuda.device_count() == 2, vgg.cuda.device_count()
array = np.arange(600, dtype=np.float32).reshape(20, 30) - 300
first = vgg.ops.relu(vgg.tensor(array, device="cuda:0"))
host = _C.memory_stats("cpu")["allocations"]
second = first.to("cuda:1")
back = vgg.empty((20, 30), device="cuda:0").copy_(vgg.ops.relu(second))
third = vgg.from_dlpack(first.__dlpack__(dl_device=(2, 1), stream=1))
assert _C.memory_stats("cpu")["allocations"] == host  # not by way of the host
assert (second.device, third.device, third.__dlpack_device__()) == ("cuda:1", "cuda:1", (2, 1))
for t in (second, third, back):
    np.testing.assert_array_equal(t.numpy(), np.maximum(array, 0))
del first, second, third, back, t
for device in ("cuda:0", "cuda:1"):
    assert vgg.cuda.memory_stats(device)["current"] == 0
"""


@pytest.mark.parametrize("lazy", ["0", "1"])
def test_between_devices(lazy):
    if vgg.cuda.device_count() < 2 and "VGGNET_CUDA_LIBS" not in os.environ:
        pytest.skip("one CUDA device is there")
    settings = {"PTXEMU_DEVICES": "2", "PTXEMU_LAZY": lazy, "PTXEMU_EXIT": "99"}
    done = subprocess.run(
        [sys.executable, "-c", DEVICES],
        env=ENVIRONMENT | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
