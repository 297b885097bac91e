"""DLPack both ways: what is shared, what is refused, and lifetimes when either side goes first."""

import ctypes
import gc
import sys
import threading

import numpy as np
import pytest
import vggnet as vgg
from vggnet import _C

try:
    import torch
except ImportError:
    torch = None

if np.lib.NumpyVersion(np.__version__) < "2.1.0":
    pytest.skip("NumPy's own DLPack is older than 1.0", allow_module_level=True)
needs_torch = pytest.mark.skipif(torch is None, reason="torch, an optional second opinion, is not installed")
DTYPES = ["float32", "int64", "uint8"]
VERSIONED = {"max_version": (1, 0)}


def current():
    """Bytes in use, without what only the garbage collector has yet to find."""
    gc.collect()
    return _C.memory_stats()["current"]


capsule_name = ctypes.pythonapi.PyCapsule_GetName
capsule_name.restype, capsule_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
capsule_pointer.restype, capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Legacy(ctypes.Structure):
    _fields_ = [("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    ]


def contents(capsule):
    name = capsule_name(capsule)
    struct = Versioned if name == b"dltensor_versioned" else Legacy
    return struct.from_address(capsule_pointer(capsule, name))


class Producer:
    """Exports another object's memory in a chosen way, as a library of its own would."""

    def __init__(self, base, edit=None, **options):
        self.base, self.edit, self.options = base, edit, options

    def __dlpack__(self, **options):
        capsule = self.base.__dlpack__(**(self.options or options))
        if self.edit:
            self.edit(contents(capsule))
        return capsule

    def __dlpack_device__(self):
        return self.base.__dlpack_device__()


class Old:
    """From before DLPack 1.0: does not know max_version."""

    def __init__(self, base):
        self.base = base

    def __dlpack__(self, stream=None):
        return self.base.__dlpack__()

    def __dlpack_device__(self):
        return (1, 0)


# ---- what a capsule says


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, VERSIONED, {"max_version": (2, 5)}, {"max_version": (0, 8)}])
def test_capsule(dtype, options):
    t = vgg.zeros((2, 3, 4), dtype)
    capsule = t.__dlpack__(**options)
    versioned = options.get("max_version", (0, 0))[0] >= 1
    assert capsule_name(capsule) == (b"dltensor_versioned" if versioned else b"dltensor")
    managed = contents(capsule)
    if versioned:
        assert (managed.major, managed.minor, managed.flags) == (1, 0, 0)
    d = managed.tensor
    code = {"float32": 2, "int64": 0, "uint8": 1}[dtype]
    assert (d.code, d.bits, d.lanes) == (code, 8 * np.dtype(dtype).itemsize, 1)
    assert (d.device_type, d.device_id, d.byte_offset) == (1, 0, 0)
    assert d.shape[: d.ndim] == [2, 3, 4]
    assert d.strides[: d.ndim] == [12, 4, 1]
    assert d.data == t.numpy().ctypes.data
    assert t.__dlpack_device__() == (1, 0)


def test_flags():
    frozen = vgg.zeros(3).freeze_views()
    assert contents(frozen.__dlpack__(**VERSIONED)).flags == 1
    assert contents(frozen.__dlpack__(**VERSIONED, copy=True)).flags == 2
    assert contents(frozen.__dlpack__(copy=True)).tensor.ndim == 1
    assert contents(frozen.__dlpack__(**VERSIONED, copy=False)).flags == 1
    with pytest.raises(BufferError, match=r"read-only.*max_version=\(1, 0\) or copy=True"):
        frozen.__dlpack__()


def test_copy_is_a_copy():
    t = vgg.tensor([1.0, 2.0])
    a = np.from_dlpack(Producer(t, copy=True, max_version=(1, 0)))
    t.copy_([3.0, 4.0])
    assert a.tolist() == [1.0, 2.0]


def test_export_errors():
    t = vgg.zeros(2)
    with pytest.raises(BufferError, match="stream is 1; the CPU has none"):
        t.__dlpack__(stream=1)
    with pytest.raises(BufferError, match=r"DLPack device \(8, 0\)"):  # Metal's
        t.__dlpack__(dl_device=(8, 0))
    assert t.__dlpack__(dl_device=(1, 0), copy=None, stream=None) is not None
    for bad in ({"max_version": 1}, {"max_version": (1,)}, {"dl_device": "cpu"}, {"max_version": ("a", "b")}):
        with pytest.raises(TypeError):
            t.__dlpack__(**bad)
    with pytest.raises(TypeError):
        t.__dlpack__(None)


# ---- sharing with NumPy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0), (2, 3, 4)])
def test_round_trip(dtype, shape):
    a = np.zeros(shape, dtype)
    t = vgg.from_dlpack(a)
    assert (t.shape, t.dtype) == (shape, dtype)
    back = np.from_dlpack(t)
    assert (back.shape, back.dtype) == (shape, dtype)
    if a.size:
        back[...] = 7
        assert (a == 7).all()
        t.copy_(np.full(shape, 9))
        assert (a == 9).all()


def test_bool_is_uint8():
    a = np.array([True, False])
    t = vgg.from_dlpack(a)
    assert t.dtype == "uint8"
    t.copy_(np.array([0, 1]))
    assert a.tolist() == [False, True]


def test_own_tensors_share_the_storage():
    t = vgg.zeros(3)
    u = vgg.from_dlpack(t)
    assert u is not t
    assert u.storage is t.storage


def test_size_one_dimensions_have_any_stride():
    a = np.zeros((4, 1, 3), np.float32)[:1]
    assert vgg.from_dlpack(a).shape == (1, 1, 3)
    assert vgg.from_dlpack(np.zeros((3, 0, 2), np.float32).T).shape == (2, 0, 3)


def test_null_strides_and_byte_offset():
    a = np.arange(8, dtype=np.float32)

    def edit(managed):
        managed.tensor.strides = ctypes.POINTER(ctypes.c_int64)()
        managed.tensor.byte_offset = 8
        managed.tensor.shape[0] = 6

    t = vgg.from_dlpack(Producer(a, edit))
    assert t.numpy().tolist() == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("view", [lambda a: a.T, lambda a: a[:, :2], lambda a: a[::2], lambda a: a[::-1]])
def test_noncontiguous_is_refused(view):
    a = view(np.zeros((4, 3), np.float32))
    with pytest.raises(BufferError, match="not C-contiguous.*vggnet.tensor"):
        vgg.from_dlpack(a)
    assert vgg.tensor(a).shape == a.shape


def set_field(**fields):
    def edit(managed):
        for name, value in fields.items():
            setattr(managed if hasattr(managed, name) else managed.tensor, name, value)

    return edit


@pytest.mark.parametrize(
    ("array", "edit", "text"),
    [
        (np.zeros(2), None, "not float32, int64, uint8 or bfloat16; use vggnet.tensor"),
        (np.zeros(2, np.int32), None, "not float32"),
        (np.zeros(2, np.complex64), None, "not float32"),
        (np.zeros(2, np.float32), set_field(lanes=2), "2 lanes"),
        (np.zeros(2, np.float32), set_field(device_type=8), r"device \(8, 0\)"),
        (np.zeros(2, np.float32), set_field(ndim=9), "9 dimensions"),
        (np.zeros(2, np.float32), set_field(ndim=-1), "-1 dimensions"),
        (np.zeros(4, np.float32), set_field(byte_offset=2), "not aligned"),
        (np.zeros(2, np.float32), set_field(major=2), "speaks DLPack 2"),
    ],
)
def test_import_errors(array, edit, text):
    before = sys.getrefcount(array)
    with pytest.raises(BufferError, match=text):
        vgg.from_dlpack(Producer(array, edit, max_version=(1, 0)))
    gc.collect()
    assert sys.getrefcount(array) == before  # the producer's capsule was left to delete what it owns


def test_import_of_other_things():
    for thing in (3, [1.0], object(), b"bytes"):
        with pytest.raises(TypeError, match="expected an object with __dlpack__"):
            vgg.from_dlpack(thing)

    class Wrong:
        def __dlpack__(self, **options):
            return 3

    class Failing:
        def __dlpack__(self, **options):
            raise ZeroDivisionError

    with pytest.raises(TypeError, match="expected a fresh DLPack capsule"):
        vgg.from_dlpack(Wrong())
    with pytest.raises(ZeroDivisionError):
        vgg.from_dlpack(Failing())


@pytest.mark.parametrize("options", [{}, VERSIONED])
def test_a_capsule_is_used_once(options):
    a = np.arange(3, dtype=np.float32)
    capsule = a.__dlpack__(**options)
    t = vgg.from_dlpack(capsule)
    assert capsule_name(capsule).startswith(b"used_dltensor")
    with pytest.raises(TypeError, match="each can be used once"):
        vgg.from_dlpack(capsule)
    del capsule
    gc.collect()
    assert t.numpy().tolist() == [0, 1, 2]


def test_old_producers():
    t = vgg.from_dlpack(Old(np.arange(3, dtype=np.float32)))
    assert t.numpy().tolist() == [0, 1, 2]
    assert not t.readonly


def test_operations_take_producers():
    class Only(Producer):
        pass

    y = vgg.ops.relu(Only(np.array([-1.0, 2.0], np.float32)))
    assert y.numpy().tolist() == [0.0, 2.0]
    assert vgg.tensor(Only(np.array([[1, 2], [3, 4]]).T)).numpy().tolist() == [[1, 3], [2, 4]]


# ---- lifetimes


@pytest.mark.parametrize("options", [{}, VERSIONED])
def test_export_outlives_the_tensor(options):
    before = current()
    t = vgg.tensor([1.0, 2.0, 3.0])
    a = np.from_dlpack(Producer(t, **options)) if options else np.from_dlpack(Old(t))
    del t
    gc.collect()
    assert current() == before + 12
    assert a.tolist() == [1.0, 2.0, 3.0]
    del a
    gc.collect()
    assert current() == before


@pytest.mark.parametrize("options", [{}, VERSIONED])
def test_tensor_outlives_the_export(options):
    t = vgg.tensor([1.0, 2.0, 3.0])
    count = sys.getrefcount(t)
    a = np.from_dlpack(Producer(t, **(options or {"max_version": None})))
    assert sys.getrefcount(t) == count + 1
    del a
    gc.collect()
    assert sys.getrefcount(t) == count
    assert t.numpy().tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("options", [{}, VERSIONED])
def test_unconsumed_capsules_free_what_they_hold(options):
    before = current()
    capsule = vgg.zeros(100).__dlpack__(**options)
    assert current() == before + 400
    del capsule
    assert current() == before


@pytest.mark.parametrize("wrap", [Old, lambda a: a])
def test_import_outlives_the_producer(wrap):
    a = np.arange(1000, dtype=np.float32)
    count = sys.getrefcount(a)
    t = vgg.from_dlpack(wrap(a))
    held = t.reshape((10, 100))
    view = held.numpy()
    assert sys.getrefcount(a) == count + 1
    del t, held
    gc.collect()
    assert sys.getrefcount(a) == count + 1
    assert view[9, 99] == 999
    del view
    gc.collect()
    assert sys.getrefcount(a) == count


def test_imports_are_not_counted_as_allocations():
    gc.collect()
    before = _C.memory_stats()
    t = vgg.from_dlpack(np.zeros(1000, np.float32))
    assert _C.memory_stats() == before
    del t
    assert _C.memory_stats() == before


@pytest.mark.parametrize("options", [{}, VERSIONED])
def test_deleter_runs_on_a_thread_without_the_gil(options):
    """A consumer may let go from any thread of its own; ctypes' CFUNCTYPE drops the GIL for the call."""
    before = current()
    capsule = vgg.zeros(100).__dlpack__(**options)
    name = capsule_name(capsule)
    address = capsule_pointer(capsule, name)
    deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(contents(capsule).deleter)
    used = b"used_" + name
    ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), used)
    thread = threading.Thread(target=deleter, args=(address,))
    thread.start()
    thread.join()
    assert current() == before
    del capsule


def test_capsules_with_a_null_deleter():
    a = np.zeros(3, np.float32)
    t = vgg.from_dlpack(Producer(a, set_field(deleter=None)))
    del t
    gc.collect()


# ---- torch


@needs_torch
def test_torch_both_ways():
    t = vgg.tensor(np.arange(6.0).reshape(2, 3))
    u = torch.from_dlpack(t)
    u[0, 0] = 5
    assert t.numpy()[0, 0] == 5
    back = vgg.from_dlpack(u)
    back.copy_(np.zeros((2, 3)))
    assert not u.any()
    del t, back
    gc.collect()
    assert u.sum() == 0
    with pytest.raises(BufferError, match="not C-contiguous"):
        vgg.from_dlpack(torch.zeros(2, 3).T)
    weights = torch.ones(3, requires_grad=True)
    with pytest.raises((BufferError, RuntimeError)):
        vgg.from_dlpack(weights)
    assert vgg.ops.relu(torch.tensor([-1.0, 1.0])).numpy().tolist() == [0.0, 1.0]


@needs_torch
def test_channels_last_is_shared():
    """NHWC here is torch's channels_last: the same memory, permuted."""
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    t = vgg.from_dlpack(x.permute(0, 2, 3, 1))
    assert t.shape == (2, 4, 5, 3)
    assert t.numpy().ctypes.data == x.data_ptr()
