"""Tensor and Storage: making, converting, sharing memory, and the rules of what may be written."""

import copy
import gc
import pickle
import struct
import sys

import numpy as np
import pytest
import vggnet as vgg
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from vggnet import _C

from helpers import survives_failed_allocations

DTYPES = ["float32", "int64", "uint8"]
needs_dlpack_1 = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.1.0", reason="NumPy's own DLPack is older than 1.0"
)


def current():
    """Bytes in use, without what only the garbage collector has yet to find."""
    gc.collect()
    return _C.memory_stats()["current"]


# ---- making


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3), (1,) * 8])
def test_properties(shape, dtype):
    t = vgg.zeros(shape, dtype)
    n = int(np.prod(shape))
    assert (t.shape, t.dtype, t.device, t.ndim, t.size) == (shape, dtype, "cpu", len(shape), n)
    assert t.nbytes == n * np.dtype(dtype).itemsize == t.storage.nbytes
    assert t.storage.device == "cpu"
    assert t.storage.version == 0
    assert not t.readonly
    array = t.numpy()
    assert array.dtype == dtype
    assert array.shape == shape
    assert not array.any()
    assert repr(t) == f'Tensor(shape={shape}, dtype="{dtype}", device="cpu")'
    assert repr(t.storage) == f'Storage(nbytes={t.nbytes}, device="cpu", version=0)'


def test_int_shape():
    assert vgg.empty(3).shape == (3,)
    assert vgg.empty(np.int64(3)).shape == (3,)
    assert vgg.empty([2, 3], "uint8", "cpu:0").device == "cpu"


def test_storages_are_aligned():
    assert all(vgg.empty(n).numpy().ctypes.data % 64 == 0 for n in range(1, 40))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: vgg.empty((2, -1)), ValueError, r"empty: shape is \(2, -1\); expected sizes of 0 or more"),
        (lambda: vgg.zeros("ab"), TypeError, "zeros: shape is"),
        (lambda: vgg.zeros(2.5), TypeError, "zeros: shape is 2.5; expected a sequence of ints"),
        (lambda: vgg.empty((1,) * 9), ValueError, "9 dimensions; expected at most 8"),
        (lambda: vgg.empty((1 << 40, 1 << 40)), ValueError, "larger than any memory"),
        (lambda: vgg.empty((1 << 62,)), ValueError, "larger than any memory"),
        (lambda: vgg.empty((1 << 52,), "uint8"), MemoryError, "cpu|memory|bytes"),
        (lambda: vgg.empty(2, "float64"), ValueError, "dtype is 'float64'; expected one of \"float32\""),
        (lambda: vgg.empty(2, np.float32), TypeError, 'expected one of "float32", "int64", "uint8"'),
        (lambda: vgg.empty(2, device="gpu"), ValueError, r"device is \"gpu\"; expected one of \['cpu'"),
        (lambda: vgg.empty(2, device="cpu:64"), ValueError, "device is"),
        (lambda: vgg.empty(2, device="cpu:"), ValueError, "device is"),
        (lambda: vgg.empty(2, device="cpu:-0"), ValueError, "device is"),
        (lambda: vgg.empty(2, device="cpu: 0"), ValueError, "device is"),
        (lambda: vgg.empty(2, device=""), ValueError, "device is"),
    ],
)
def test_bad_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.skipif(vgg.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_no_cuda(device):
    text = 'no CUDA device: built without CUDA. Use device="cpu", or see: vggnet info'
    with pytest.raises(vgg.DeviceError, match="no CUDA device") as info:
        vgg.empty(2, device=device)
    assert str(info.value) == text == vgg.cuda.why_not()
    assert isinstance(info.value, RuntimeError)
    with pytest.raises(vgg.DeviceError):
        vgg.zeros(2).to(device)


def test_types_are_final_and_made_by_functions():
    for cls in (vgg.Tensor, vgg.Storage):
        with pytest.raises(TypeError, match="cannot create"):
            cls()
        with pytest.raises(TypeError, match="not an acceptable base"):
            type("Sub", (cls,), {})
        with pytest.raises(TypeError, match="immutable"):
            cls.shape = 1
    t = vgg.zeros(2)
    with pytest.raises(AttributeError):
        t.shape = (1, 2)
    for attempt in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="pickle"):
            attempt(t)


# ---- conversions

NATURAL = {
    np.float16: "float32",
    np.float32: "float32",
    np.float64: "float32",
    np.longdouble: "float32",
    np.bool_: "uint8",
    np.uint8: "uint8",
    np.int8: "int64",
    np.int16: "int64",
    np.uint16: "int64",
    np.int32: "int64",
    np.uint32: "int64",
    np.int64: "int64",
    np.uint64: "int64",
}


@pytest.mark.parametrize("source", NATURAL, ids=lambda t: t.__name__)
@pytest.mark.parametrize("order", ["=", ">", "<"])
def test_tensor_from_any_dtype(source, order):
    a = np.array([[0, 1, 2], [100, 3, 1]]).astype(source)
    a = a.astype(a.dtype.newbyteorder(order))
    t = vgg.tensor(a)
    assert t.dtype == NATURAL[source]
    np.testing.assert_array_equal(t.numpy(), a)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", NATURAL, ids=lambda t: t.__name__)
def test_tensor_with_dtype(source, dtype):
    a = np.array([0, 1, 100]).astype(source)
    t = vgg.tensor(a, dtype=dtype)
    assert t.dtype == dtype
    np.testing.assert_array_equal(t.numpy(), a.astype(dtype))


def test_tensor_from_python():
    assert vgg.tensor(1.5).item() == 1.5
    assert vgg.tensor(True).dtype == "uint8"
    assert (vgg.tensor(3).dtype, vgg.tensor(3).shape) == ("int64", ())
    assert vgg.tensor([[1, 2], [3, 4]]).dtype == "int64"
    assert vgg.tensor([[1, 2.0]]).dtype == "float32"
    assert vgg.tensor([]).shape == (0,)
    assert vgg.tensor([vgg.zeros(3), vgg.zeros(3)]).shape == (2, 3)
    assert vgg.tensor(bytearray(b"abc")).numpy().tolist() == [97, 98, 99]
    assert vgg.tensor(memoryview(np.arange(4.0))).dtype == "float32"


def test_tensor_copies():
    a = np.ones(3, np.float32)
    t = vgg.tensor(a)
    u = vgg.tensor(t)
    a[:] = 2
    t.numpy()[:] = 3
    assert t.numpy().tolist() == [3, 3, 3]
    assert u.numpy().tolist() == [1, 1, 1]
    assert u.storage is not t.storage


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ("text", TypeError, "tensor: obj has dtype <U4; expected floats, integers or bool"),
        (1j, TypeError, "complex128"),
        (object(), TypeError, "object"),
        (None, TypeError, "object"),
        (np.zeros(2, "M8[s]"), TypeError, "datetime64"),
        (np.zeros(2, [("a", "f4")]), TypeError, "expected floats"),
        ([[1, 2], [3]], ValueError, "inhomogeneous"),
        (np.uint64(2**63), ValueError, r"tensor: obj has a number above 2\*\*63 - 1"),
        (2**70, TypeError, "object"),
        (np.zeros((1,) * 9), ValueError, "tensor: obj has 9 dimensions; expected at most 8"),
    ],
)
def test_not_convertible(value, error, text):
    with pytest.raises(error, match=text):
        vgg.tensor(value)


def noncontiguous(rng):
    a = rng.standard_normal((4, 6, 5)).astype(np.float32)
    return [
        a.T,
        a[::2],
        a[:, ::-1],
        a[..., 1:3],
        np.asfortranarray(a),
        np.broadcast_to(a[:1], a.shape),
        a[:0],
    ]


def test_strides(rng):
    for a in noncontiguous(rng):
        np.testing.assert_array_equal(vgg.tensor(a).numpy(), a)
        np.testing.assert_array_equal(vgg.ops.relu(a).numpy(), np.maximum(a, 0))
        np.testing.assert_array_equal(vgg.zeros(a.shape).copy_(a).numpy(), a)


@given(
    hnp.arrays(
        st.sampled_from(["<f4", ">f4", "<i8", ">i4", "u1", "?"]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ),
    st.randoms(use_true_random=False),
)
def test_any_array_survives(a, random):
    view = a.transpose(random.sample(range(a.ndim), a.ndim))
    view = view[tuple(slice(None, None, random.choice([1, 2, -1])) for _ in range(view.ndim))]
    before = a.tobytes()
    expected = view.astype(NATURAL[view.dtype.newbyteorder("=").type])
    np.testing.assert_array_equal(vgg.tensor(view).numpy(), expected)
    assert a.tobytes() == before


def test_contiguous_float32_is_borrowed(rng):
    """No bytes are taken from the allocator but the result's."""
    x = rng.standard_normal((64, 64)).astype(np.float32)
    x.flags.writeable = False
    before = _C.memory_stats()["allocations"]
    y = vgg.ops.relu(x)
    assert _C.memory_stats()["allocations"] == before + 1
    assert not np.shares_memory(y.numpy(), x)


def test_wrong_dtype_is_not_converted_silently():
    with pytest.raises(ValueError, match="relu: x has dtype int64; expected float32"):
        vgg.ops.relu([[1, 2]])
    with pytest.raises(ValueError, match="relu: x has dtype uint8; expected float32"):
        vgg.ops.relu(np.zeros((2, 2), np.uint8))
    with pytest.raises(TypeError, match="relu: x has dtype complex64"):
        vgg.ops.relu(np.zeros(2, np.complex64))
    with pytest.raises(TypeError, match="relu: x is None; expected an array"):
        vgg.ops.relu(None)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint16, np.bool_, ">i4"])
def test_labels_of_any_integer(dtype):
    labels = np.array([0, 1, 1]).astype(dtype)
    loss, _ = vgg.ops.cross_entropy(np.zeros((3, 2), np.float32), labels)
    assert float(loss) == pytest.approx(np.log(2))


def test_float_labels_are_refused():
    with pytest.raises(ValueError, match="labels has dtype float32; expected int64"):
        vgg.ops.cross_entropy(np.zeros((3, 2), np.float32), np.zeros(3))


# ---- to, copy_, reshape, view, item


def test_to():
    t = vgg.tensor([1.0, 2.7, 255.0])
    assert t.to() is t
    assert t.to("cpu:0", "float32") is t
    assert t.to(device=None, dtype=None) is t
    assert t.to(dtype="uint8").numpy().tolist() == [1, 2, 255]
    assert t.to(dtype="int64").numpy().tolist() == [1, 2, 255]
    assert t.to(dtype="int64").to(dtype="float32").dtype == "float32"


@pytest.mark.parametrize(
    "source", [[[1, 2], [3, 4]], np.arange(1.0, 5).reshape(2, 2), np.array([[1, 2], [3, 4]], "u1")]
)
def test_copy_(source):
    t = vgg.zeros((2, 2))
    version = t.storage.version
    assert t.copy_(source) is t
    assert t.numpy().tolist() == [[1, 2], [3, 4]]
    assert t.storage.version == version + 1
    assert t.copy_(vgg.tensor(source)).copy_(t) is t
    assert t.numpy().tolist() == [[1, 2], [3, 4]]


def test_copy_errors():
    arena = vgg.zeros(64)
    a = arena.view(0, (20,), "float32")
    b = arena.view(64, (20,), "float32")
    with pytest.raises(ValueError, match="copy_: obj overlaps the tensor"):
        a.copy_(b)
    with pytest.raises(ValueError, match="copy_: obj overlaps the tensor"):
        a.copy_(b.numpy())
    with pytest.raises(ValueError, match=r"copy_: obj has shape \(2, 2\); expected \(2, 3\)"):
        vgg.zeros((2, 3)).copy_(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"copy_: obj has shape \(3,\); expected \(1, 3\)"):
        vgg.zeros((1, 3)).copy_([1, 2, 3])
    with pytest.raises(TypeError, match="copy_: obj has dtype"):
        vgg.zeros(1).copy_(["a"])


def test_reshape():
    t = vgg.tensor(np.arange(24.0))
    for shape in [(2, 3, 4), (4, -1), (-1,), (-1, 24, 1), [24]]:
        r = t.reshape(shape)
        assert r.shape == np.zeros(24).reshape(shape).shape
        assert r.storage is t.storage
        assert np.shares_memory(r.numpy(), t.numpy())
    assert t.reshape(-1).shape == (24,)
    assert vgg.zeros(1).reshape(()).shape == ()
    assert vgg.zeros((0, 3)).reshape((3, 0, 5)).shape == (3, 0, 5)
    for shape in [(5, -1), (23,), (0, -1), (25, 0), (1 << 40, 1 << 40)]:
        with pytest.raises(ValueError, match="the tensor has 24 elements"):
            t.reshape(shape)
    with pytest.raises(ValueError, match="-1 at most once"):
        t.reshape((-1, -1))
    with pytest.raises(TypeError, match=r"reshape: shape is \('a',\); expected ints"):
        t.reshape("a")
    with pytest.raises(ValueError, match="at most 8"):
        t.reshape((1,) * 9)
    with pytest.raises(ValueError, match=r"\(0, -1\)"):
        vgg.zeros(0).reshape((0, -1))


def test_view():
    arena = vgg.zeros(256, "uint8")
    v = arena.view(64, (4, 8), "float32")
    assert (v.shape, v.dtype, v.storage is arena.storage) == ((4, 8), "float32", True)
    v.copy_(np.full((4, 8), 1.0))
    assert arena.numpy()[64:192].view(np.float32).tolist() == [1.0] * 32
    assert not arena.numpy()[:64].any()
    assert not arena.numpy()[192:].any()
    inner = v.view(64, (16,), dtype="float32")  # from the view's own start
    inner.copy_(np.full(16, 2.0))
    assert arena.numpy()[128:192].view(np.float32).tolist() == [2.0] * 16
    assert arena.view(256, (0,), "int64").size == 0
    assert arena.view(0, (), "int64").item() == 0
    for offset, shape, dtype in [
        (64, (49,), "float32"),
        (320, (0,), "uint8"),
        (0, (1 << 62, 4), "float32"),
        (192, (9,), "int64"),
    ]:
        with pytest.raises(ValueError, match="ends outside the tensor's 256 bytes"):
            arena.view(offset, shape, dtype)
    with pytest.raises(ValueError, match="outside the tensor's 128 bytes"):
        v.view(64, (17,), "float32")
    assert arena.view(33, (1,), "uint8").size == 1
    with pytest.raises(ValueError, match="view: offset is 36.*int64"):
        arena.view(36, (1,), "int64")
    with pytest.raises(ValueError, match="view: offset is -64"):
        arena.view(-64, (1,), "uint8")
    with pytest.raises(ValueError, match="dtype"):
        arena.view(0, (1,), "int32")


def test_item_and_float():
    assert vgg.tensor(2.5).item() == 2.5
    assert isinstance(vgg.tensor([[7]]).item(), int)
    assert vgg.tensor(np.uint8(255)).item() == 255
    assert vgg.tensor(-(2**63)).item() == -(2**63)
    assert float(vgg.tensor([3])) == 3.0
    assert np.isnan(float(vgg.tensor(np.nan)))
    for shape in [(0,), (2,), (1, 3)]:
        with pytest.raises(ValueError, match="item: the tensor has . elements; expected 1"):
            vgg.zeros(shape).item()
        with pytest.raises(ValueError, match="expected 1"):
            float(vgg.zeros(shape))


# ---- memory shared with NumPy and buffers


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_is_zero_copy_and_keeps_memory(dtype):
    before = current()
    t = vgg.zeros((2, 3), dtype)
    a = t.numpy()
    a[1, 2] = 5
    assert t.numpy()[1, 2] == 5
    assert np.shares_memory(a, np.asarray(t))
    assert a.base is t
    del t
    assert current() == before + a.nbytes
    assert a[1, 2] == 5
    del a
    assert current() == before


def test_array_protocol():
    t = vgg.tensor([1.0, 2.0])
    assert np.shares_memory(np.asarray(t), t.numpy())
    assert not np.shares_memory(np.array(t), t.numpy())
    assert np.asarray(t, dtype=np.float64).dtype == np.float64
    assert np.shares_memory(t.__array__(np.float32, copy=False), t.numpy())
    assert np.shares_memory(t.__array__(), t.numpy())
    assert not np.shares_memory(t.__array__(copy=True), t.numpy())
    assert np.asarray(t, ">f4").dtype == t.__array__(">f4").dtype == ">f4"
    assert t.__array__(">f4").tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="copy=False"):
        t.__array__(np.int8, copy=False)
    with pytest.raises(TypeError):
        t.__array__("no such type")
    assert np.add(t, 1).tolist() == [2.0, 3.0]


@pytest.mark.parametrize(("dtype", "format_"), [("float32", "f"), ("int64", "l"), ("uint8", "B")])
def test_buffer(dtype, format_):
    t = vgg.zeros((2, 3), dtype)
    m = memoryview(t)
    assert (m.format, m.shape, m.ndim, m.readonly, m.c_contiguous) == (format_, (2, 3), 2, False, True)
    assert m.strides == t.numpy().strides
    assert m.nbytes == t.nbytes
    m[1, 2] = 7
    assert t.numpy()[1, 2] == 7
    count = sys.getrefcount(t)
    m.release()
    assert sys.getrefcount(t) == count - 1


def test_buffer_outlives_tensor():
    before = current()
    m = memoryview(vgg.tensor([1.0, 2.0]))
    gc.collect()
    assert m.tolist() == [1.0, 2.0]
    m.release()
    assert current() == before


def test_empty_and_scalar_buffers():
    assert memoryview(vgg.zeros((0, 3))).shape == (0, 3)
    assert memoryview(vgg.zeros((0, 3))).tobytes() == b""
    assert memoryview(vgg.zeros(())).tobytes() == bytes(4)
    assert vgg.zeros((2, 0)).numpy().shape == (2, 0)


def test_file_io(tmp_path):
    """A tensor is a bytes-like object for the standard library, read into as well as written from."""
    t = vgg.tensor(np.arange(6.0))
    (tmp_path / "t").write_bytes(t)
    u = vgg.zeros(6)
    with open(tmp_path / "t", "rb") as file:
        assert file.readinto(u) == u.nbytes
    assert u.numpy().tolist() == t.numpy().tolist()


# ---- frozen views, read-only imports, versions


@needs_dlpack_1
def test_freeze_views():
    t = vgg.zeros((2, 3))
    early = t.numpy()
    assert t.freeze_views() is t
    assert not t.readonly
    for view in (t.numpy(), np.asarray(t), np.from_dlpack(t), np.asarray(memoryview(t))):
        assert not view.flags.writeable
        assert np.shares_memory(view, early)
    with pytest.raises(ValueError, match="WRITEABLE"):
        t.numpy().flags.writeable = True
    assert memoryview(t).readonly
    with pytest.raises(BufferError, match="read-only"):
        t.__dlpack__()
    for derived in (t.reshape((6,)), t.view(0, (3,), "float32"), vgg.from_dlpack(t)):
        assert not derived.numpy().flags.writeable
    assert t.to(dtype="int64").numpy().flags.writeable
    assert vgg.tensor(t).numpy().flags.writeable
    version = t.storage.version
    t.copy_(np.ones((2, 3)))
    vgg.ops.sgd_(t, vgg.zeros((2, 3)), vgg.zeros((2, 3)), lr=0.1)
    _C.random_normal_(t, 1.0, 0, 0)
    vgg.ops.relu(np.ones((2, 3), np.float32), out=t)
    vgg.ops.add_(t, np.ones((2, 3), np.float32))
    assert t.storage.version == version + 5
    assert t.numpy().tolist() == [[2.0] * 3] * 2


def test_frozen_memory_cannot_be_reopened():
    """memoryview and NumPy both refuse to make a writable view of a read-only one."""
    t = vgg.zeros(4).freeze_views()
    with pytest.raises((TypeError, ValueError)):
        np.frombuffer(memoryview(t), np.float32)[0] = 1
    with pytest.raises(TypeError):
        memoryview(t).cast("B")[0] = 1
    with pytest.raises(TypeError, match="read-write"):
        struct.pack_into("f", t, 0, 1.0)


IN_PLACE = {
    "copy_": lambda t: t.copy_(np.zeros(4)),
    "add_": lambda t: vgg.ops.add_(t, np.zeros(4, np.float32)),
    "relu": lambda t: vgg.ops.relu(np.zeros(4, np.float32), out=t),
    "sgd_": lambda t: vgg.ops.sgd_(t, vgg.zeros(4), vgg.zeros(4), lr=1.0),
    "sgd_ ": lambda t: vgg.ops.sgd_(vgg.zeros(4), vgg.zeros(4), t, lr=1.0),
    "average_gradients_": lambda t: vgg.ops.average_gradients_([[t], [vgg.zeros(4)]]),
    "random_normal_": lambda t: _C.random_normal_(t, 1.0, 0, 0),
    "random_uniform_": lambda t: _C.random_uniform_(t, 1.0, 0, 0),
}


@needs_dlpack_1
@pytest.mark.parametrize("name", IN_PLACE)
def test_readonly_imports_refuse_in_place_operations(name):
    a = np.zeros(4, np.float32)
    a.flags.writeable = False
    t = vgg.from_dlpack(a)
    assert t.readonly
    assert not t.numpy().flags.writeable
    with pytest.raises(ValueError, match=rf"{name.strip()}: .* is read-only"):
        IN_PLACE[name](t)
    assert not a.any()


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_operations_bump_the_version(name):
    t = vgg.zeros(64)
    part = t.view(64, (4,), "float32")
    assert t.storage.version == 0
    IN_PLACE[name](part)
    assert t.storage.version == part.storage.version == 1


@pytest.mark.parametrize(
    "name", [name for name in IN_PLACE if name.strip().endswith("_") and name != "copy_"]
)
def test_in_place_names_take_tensors_only(name):
    with pytest.raises(TypeError, match=rf"{name.strip()}: .*expected a .*Tensor"):
        IN_PLACE[name](np.zeros(4, np.float32))


def test_failed_check_bumps_nothing():
    t = vgg.zeros((2, 3))
    with pytest.raises(ValueError, match="relu: out is float32 of shape"):
        vgg.ops.relu(np.zeros((3, 2), np.float32), out=t)
    assert t.storage.version == 0


# ---- out= and workspace=


def test_out_rules():
    x = np.ones((2, 3), np.float32)
    out = vgg.zeros((2, 3))
    assert vgg.ops.relu(x, out=out) is out
    with pytest.raises(TypeError, match="relu: out is <class 'numpy.ndarray'>; expected a Tensor"):
        vgg.ops.relu(x, out=x)
    with pytest.raises(
        ValueError, match=r"out is int64 of shape \(2, 3\); expected float32 of shape \(2, 3\)"
    ):
        vgg.ops.relu(x, out=vgg.zeros((2, 3), "int64"))
    with pytest.raises(ValueError, match="expected float32 of shape"):
        vgg.ops.relu(x, out=vgg.zeros((2, 3, 1)))
    logits = vgg.zeros((2, 3))
    with pytest.raises(ValueError, match="softmax: out overlaps x"):
        vgg.ops.softmax(logits, out=logits)
    assert vgg.ops.relu(out, out=out) is out  # may alias
    arena = vgg.zeros(64)
    a, b = arena.view(0, (20,), "float32"), arena.view(64, (20,), "float32")
    with pytest.raises(ValueError, match="relu: out overlaps x"):
        vgg.ops.relu(a, out=b)
    maps = np.zeros((1, 4, 4, 1), np.float32)
    with pytest.raises(TypeError, match="max_pool2d: out is .*; expected a tuple of two Tensors"):
        vgg.ops.max_pool2d(maps, out=vgg.zeros((1, 2, 2, 1)))
    with pytest.raises(TypeError, match=r"max_pool2d: out\[1\] is None"):
        vgg.ops.max_pool2d(maps, out=(vgg.zeros((1, 2, 2, 1)), None))
    both = vgg.zeros(64, "uint8")
    with pytest.raises(ValueError, match=r"max_pool2d: out\[1\] overlaps another output"):
        vgg.ops.max_pool2d(
            maps, out=(both.view(0, (1, 2, 2, 1), "float32"), both.view(0, (1, 2, 2, 1), "uint8"))
        )
    with pytest.raises(ValueError, match="accumulate=True adds to out, which is None"):
        vgg.ops.linear_backward_weight(x, x, accumulate=True)


def test_workspace_rules(rng, threads):
    threads(1)
    x = rng.standard_normal((3, 40)).astype(np.float32)
    w = rng.standard_normal((50, 40)).astype(np.float32)
    need = vgg.ops.linear_workspace(3, 40, 50, "backward_weight")
    dy = rng.standard_normal((3, 50)).astype(np.float32)
    expected = vgg.ops.linear_backward_weight(dy, x)[0].numpy()
    exact = vgg.empty(need, "uint8")
    got = vgg.ops.linear_backward_weight(dy, x, workspace=exact)[0].numpy()
    np.testing.assert_array_equal(got, expected)
    need = max(vgg.ops.conv2d_workspace((1, 8, 8, 16), (16, 3, 3, 16)), 1)
    maps, kernels = np.zeros((1, 8, 8, 16), np.float32), np.zeros((16, 3, 3, 16), np.float32)
    with pytest.raises(ValueError, match=f"workspace has {need - 1} bytes; expected at least {need}"):
        vgg.ops.conv2d(maps, kernels, workspace=vgg.empty(need - 1, "uint8"))
    with pytest.raises(ValueError, match="workspace is float32; expected a uint8 Tensor"):
        vgg.ops.conv2d(maps, kernels, workspace=vgg.empty(need))
    with pytest.raises(TypeError, match="workspace is <class 'numpy.ndarray'>; expected a Tensor"):
        vgg.ops.conv2d(maps, kernels, workspace=np.zeros(need, np.uint8))
    arena = vgg.zeros(need + 4 * 3 * 40 + 64, "uint8")
    with pytest.raises(ValueError, match="linear: workspace overlaps x"):
        vgg.ops.linear(arena.view(0, (3, 40), "float32"), w, workspace=arena)
    before = _C.memory_stats()["allocations"]
    vgg.ops.conv2d(maps, kernels, workspace=vgg.empty(need, "uint8"), out=vgg.empty((1, 8, 8, 16)))
    assert _C.memory_stats()["allocations"] == before + 2  # the workspace and out, both made here


# ---- memory


def test_every_failed_allocation_is_a_memory_error(rng):
    x = rng.standard_normal((2, 8, 8, 3)).astype(np.float32)
    w = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    dy, index = rng.standard_normal((2, 4, 4, 4)).astype(np.float32), np.zeros((2, 4, 4, 4), np.uint8)
    flat, v = x.reshape(2, -1), rng.standard_normal((5, 192)).astype(np.float32)
    t = vgg.tensor(x)
    calls = [
        lambda: vgg.tensor(x),
        lambda: vgg.empty(3),
        lambda: vgg.zeros(3),
        lambda: t.to(dtype="int64"),
        lambda: vgg.tensor(t),
        lambda: t.__dlpack__(copy=True),
        lambda: vgg.ops.conv2d(x, w, relu=True, pool=True),
        lambda: vgg.ops.conv2d_backward_input(dy, w, y=dy, index=index, input_shape=x.shape),
        lambda: vgg.ops.conv2d_backward_weight(dy, x, y=dy, index=index),
        lambda: vgg.ops.max_pool2d(x),
        lambda: vgg.ops.max_pool2d_backward(dy, index, (2, 8, 8, 4)),
        lambda: vgg.ops.relu(x),
        lambda: vgg.ops.relu_backward(x, x),
        lambda: vgg.ops.lrn(x),
        lambda: vgg.ops.lrn_backward(x, x),
        lambda: vgg.ops.linear(flat, v),
        lambda: vgg.ops.linear_backward_input(np.zeros((2, 5), np.float32), v),
        lambda: vgg.ops.linear_backward_weight(np.zeros((2, 5), np.float32), flat),
        lambda: vgg.ops.dropout(flat, 0.5, 1, [1, 2]),
        lambda: vgg.ops.dropout_backward(flat, 0.5, 1, [1, 2]),
        lambda: vgg.ops.softmax(flat),
        lambda: vgg.ops.cross_entropy(flat, [0, 1]),
        lambda: vgg.ops.unfold(x, 3),
        lambda: vgg.ops.augment([np.zeros((9, 9, 3), np.uint8)], [[0, 1, 1]], 8, (0, 0, 0)),
    ]
    for call in calls:
        assert survives_failed_allocations(call) >= 1


def test_memory_stats():
    _C.reset_peak_memory()
    start = _C.memory_stats()
    assert set(start) == {"current", "peak", "allocations"}
    assert start["peak"] == start["current"]
    t = vgg.empty(1001)
    del t
    end = _C.memory_stats("cpu:0")
    assert end["peak"] == start["current"] + 4004
    assert end["current"] == start["current"]
    assert end["allocations"] == start["allocations"] + 1
    with pytest.raises(ValueError, match="device is"):
        _C.memory_stats("nowhere")
