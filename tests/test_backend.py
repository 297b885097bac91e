"""Everything goes through the backend table: a second backend gives bit-equal results.

Its memory can't be touched by the host, it sees only its own pointers, and all of its memory comes back
(tests/backend/logging_backend.c).
"""

import ctypes
import gc
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from vggnet import _C, VGG, DeviceError, Rng, load, ops

HERE = Path(__file__).parent
SOURCE = HERE / "backend" / "logging_backend.c"
FLAGS = [
    "-std=c11",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-pthread",
]
INVALID_ARGUMENT, UNSUPPORTED, OUT_OF_MEMORY, DEVICE = range(1, 5)  # enum vgg_status

capsule_new = ctypes.pythonapi.PyCapsule_New
capsule_new.restype = ctypes.py_object
capsule_new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
capsule_pointer.restype = ctypes.c_void_p
capsule_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
CAPSULE_NAME = b"vggnet.backend"  # a capsule keeps the pointer to its name


class Backend:
    """The library's exports, and its table as a capsule."""

    def __init__(self, path):
        self.library = library = ctypes.CDLL(path)
        library.logging_backend.restype = ctypes.c_void_p
        library.logging_backend.argtypes = (ctypes.c_void_p,)
        library.logging_backend_entry.restype = ctypes.c_char_p
        for name in ("calls", "logged", "call", "blocks", "violations"):
            getattr(library, f"logging_backend_{name}").restype = ctypes.c_size_t
        for name in ("entry", "calls", "call"):
            getattr(library, f"logging_backend_{name}").argtypes = (ctypes.c_size_t,)
        self.table = library.logging_backend(capsule_pointer(_C.cpu_backend_capsule(), CAPSULE_NAME))
        self.entries = []
        while name := library.logging_backend_entry(len(self.entries)):
            self.entries.append(name.decode())
        self.fail_next = library.logging_backend_plan_failure
        self.blocks = library.logging_backend_blocks

    def capsule(self, table=None):
        return capsule_new(table or self.table, CAPSULE_NAME, None)

    def calls(self):
        """Entry -> how often it was called so far."""
        return {name: self.library.logging_backend_calls(i) for i, name in enumerate(self.entries)}

    def log(self, first):
        """Names of the calls from number `first` on."""
        numbers = range(first, self.library.logging_backend_logged())
        return [self.entries[self.library.logging_backend_call(number)] for number in numbers]

    def violations(self):
        first = ctypes.c_char_p()
        count = self.library.logging_backend_violations(ctypes.byref(first))
        return count, first.value.decode()


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not shutil.which(compiler[0]):
        pytest.skip(f"no C compiler {compiler[0]!r} to build the second backend with")
    path = tmp_path_factory.mktemp("backend") / "logging_backend.so"
    command = [*compiler, *FLAGS, f"-I{HERE.parent / 'csrc'}", SOURCE, "-o", path]
    subprocess.run(command, check=True)
    backend = Backend(path)
    _C.register_backend(backend.capsule())
    return backend


@pytest.fixture
def backend(registered):
    """The backend; afterwards it must have all of its memory back, and nothing to complain of."""
    yield registered
    gc.collect()
    assert registered.violations() == (0, "")
    assert registered.blocks() == 0


# ---------------------------------------------------------------- operations


def _normal(*shape):
    """The same numbers on every call."""
    return np.random.default_rng(sum(shape) + 100 * len(shape)).standard_normal(shape).astype(np.float32)


def _conv(put):
    x, w, b = put(_normal(2, 7, 6, 5)), put(_normal(9, 3, 3, 5)), put(_normal(9))
    y = ops.conv2d(x, w, b, relu=True)
    pooled, index = ops.conv2d(x, w, b, relu=True, pool=True)
    ceil, ceil_index = ops.conv2d(x, w, None, pool="ceil")
    return [y, pooled, index, ceil, ceil_index, ops.conv2d(x, put(_normal(4, 1, 1, 5)))]


def _conv_transformed(put):
    x, w, b = put(_normal(2, 7, 6, 5)), put(_normal(9, 3, 3, 5)), put(_normal(9))
    transformed = ops.conv2d_transform_weights(w, x.shape, algorithm="winograd4")
    return [transformed, ops.conv2d(x, w, b, algorithm="winograd4", transformed=transformed)]


def _conv_backward(put):
    x, w = put(_normal(2, 6, 8, 5)), put(_normal(9, 3, 3, 5))
    y, index = ops.conv2d(x, w, relu=True, pool=True)
    dy, full = put(_normal(2, 3, 4, 9)), put(_normal(2, 6, 8, 9))
    dx = ops.conv2d_backward_input(dy, w, y=y, index=index, input_shape=(2, 6, 8, 5))
    dw, db = ops.conv2d_backward_weight(dy, x, y=y, index=index)
    ops.conv2d_backward_weight(full, x, out=(dw, db), accumulate=True)
    return [dx, dw, db, ops.conv2d_backward_input(full, w)]


def _linear(put):
    x, w, b, dy = put(_normal(3, 17)), put(_normal(5, 17)), put(_normal(5)), put(_normal(3, 5))
    dw, db = ops.linear_backward_weight(dy, x)
    ops.linear_backward_weight(dy, x, out=(dw, db), accumulate=True)
    return [ops.linear(x, w, b, relu=True), ops.linear(x, w), ops.linear_backward_input(dy, w), dw, db]


def _pool(put):
    results = []
    for ceil_mode in (False, True):
        y, index = ops.max_pool2d(put(_normal(2, 5, 7, 3)), ceil_mode=ceil_mode)
        results += [y, index, ops.max_pool2d_backward(put(_normal(*y.shape)), index, (2, 5, 7, 3))]
    return results


def _relu(put):
    x = put(_normal(4, 33))
    y = ops.relu(x)
    in_place = put(_normal(4, 33))
    ops.relu(in_place, out=in_place)
    summed = put(_normal(33))
    ops.add_(summed, put(_normal(33)))
    return [y, ops.relu_backward(put(_normal(2, 66)).reshape((4, 33)), y), in_place, summed]


def _lrn(put):
    x, dy = put(_normal(2, 3, 3, 12)), put(_normal(2, 3, 3, 12))
    return [ops.lrn(x), ops.lrn_backward(dy, x), ops.lrn(x, 3, 0.1, 0.5, 1.0)]


def _loss(put):
    logits = put(_normal(6, 10))
    loss, dlogits = ops.cross_entropy(logits, put(np.arange(6)))
    return [ops.softmax(logits), loss, dlogits]


def _euclidean(put):
    x, target = put(_normal(6, 8)), put(_normal(6, 4))
    one, per_class = (
        ops.euclidean_loss(target, put(_normal(6, 4))),
        ops.euclidean_loss(x, target, put(np.arange(6) % 2)),
    )
    return [*one, *per_class]


def _dropout(put):
    x, rows = put(_normal(4, 30)), put(np.arange(4) << 32)
    return [
        ops.dropout(x, 0.5, 7, rows, 6),
        ops.dropout_backward(x, 0.25, 7, rows),
        ops.dropout(x, 0.0, 7, rows),
    ]


def _sgd(put):
    p, g, v = ([put(_normal(size) * scale) for size in (5, 300)] for scale in (1, 2, 3))
    ops.sgd_(p, g, v, 0.1)
    ops.sgd_(p[0], g[0], v[0], 0.1, momentum=0.5, weight_decay=0.0)
    return [*p, *v]


def _average(put):
    lists = [[put(_normal(size) * scale) for size in (5, 300)] for scale in (1, 2)]
    ops.average_gradients_(lists, weights=[3.0, 1.0])
    return [*lists[0], *lists[1]]


def _augment(put):
    device = put(np.zeros(1, np.float32)).device
    images = [
        np.arange(rows * columns * 3, dtype=np.uint8).reshape(rows, columns, 3)
        for rows, columns in ((5, 6), (4, 9))
    ]
    crops = np.array([[1, 2, 0], [0, 5, 1]])
    shift = _normal(2, 3)
    return [ops.augment(images, crops, 4, (1.5, 2.5, 3.5), shift=shift, device=device)]


def _random(put):
    normal, uniform = put(_normal(1001)), put(_normal(1001))
    ops.random_normal_(normal, 0.01, 5, 1 << 16)
    ops.random_uniform_(uniform, 0.01, 5, 1 << 16)
    return [normal, uniform]


def _memory(put):
    """Tensors' own functions: arenas and views, copies on the device and between devices, conversions there, zeros."""
    x = put(_normal(8, 16))
    arena = put(np.zeros(1024, np.uint8))
    view = arena.view(64, (4, 16), "float32")
    view.copy_(x.view(4 * 64, (4, 16), "float32"))
    zeros = _C.zeros((3, 5), device=x.device)
    narrow = x.to(dtype="bfloat16")
    wide = put(np.zeros((8, 16), np.float32))
    wide.copy_(narrow)
    same = [x.to(x.device), _C.tensor(x, device=x.device), narrow.to(dtype="float32"), wide]
    return [arena, view.reshape((64,)), zeros, *same]


CASES = {
    "conv2d": _conv,
    "conv2d_transformed": _conv_transformed,
    "conv2d_backward": _conv_backward,
    "linear": _linear,
    "max_pool2d": _pool,
    "relu": _relu,
    "lrn": _lrn,
    "cross_entropy": _loss,
    "euclidean_loss": _euclidean,
    "dropout": _dropout,
    "sgd": _sgd,
    "average": _average,
    "augment": _augment,
    "unfold": lambda put: [ops.unfold(put(_normal(2, 5, 4, 3)), 3)],
    "random": _random,
    "memory": _memory,
    "empty": lambda put: [
        ops.relu(put(_normal(0, 3))),
        *ops.cross_entropy(put(_normal(0, 3)), put(np.arange(0))),
    ],
}


def on(device):
    return lambda array: _C.tensor(array, device=device)


def to_host(tensor):
    return tensor.to("cpu").numpy()


def assert_same(cpu, test):
    assert len(cpu) == len(test)
    for a, b in zip(cpu, test, strict=True):
        assert a.device == "cpu"
        assert b.device.startswith("test:")
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert to_host(a).tobytes() == to_host(b).tobytes()


@pytest.mark.parametrize("device", ["test", "test:1"])
@pytest.mark.parametrize("case", CASES)
def test_operations_are_bit_equal(backend, case, device):
    assert_same(CASES[case](on("cpu")), CASES[case](on(device)))


def test_bfloat16_weights_on_a_device(backend):
    """Made on the host, widened and multiplied where they are."""
    x, w = _normal(3, 40), _normal(7, 40)
    there = _C.tensor(w, dtype="bfloat16", device="test")
    assert (there.dtype, there.device) == ("bfloat16", "test:0")
    back = there.to("cpu", "float32")
    assert back.numpy().tobytes() == _C.tensor(w, dtype="bfloat16").to(dtype="float32").numpy().tobytes()
    y = ops.linear(_C.tensor(x, device="test"), there)
    assert y.to("cpu").numpy().tobytes() == ops.linear(x, back).numpy().tobytes()
    assert there.reshape((280,)).view(0, (1,), "bfloat16").item() == back.numpy()[0, 0]


def test_every_entry_is_used(backend):
    before = backend.calls()
    for case in CASES.values():
        to_host(case(on("test"))[0])
    assert "test:0" in _C.devices()
    _C.conv2d_workspace((1, 8, 8, 3), (4, 3, 3, 3), device="test")
    _C.linear_workspace(2, 3, 4, device="test")
    _C.memory_stats("test")
    assert on("test:1")(_normal(3)).__dlpack__(stream=7) is not None
    _C.reset_peak_memory("test")
    idle = [name for name, count in backend.calls().items() if count == before[name]]
    # Nothing waits for a device but a download does, and that is an entry of its own.
    assert set(idle) <= {"synchronize"}


def test_one_call_is_one_entry(backend):
    x = on("test")(_normal(3, 4))
    first = backend.library.logging_backend_logged()
    y = ops.relu(x)
    assert [name for name in backend.log(first) if name != "device_count"] == ["allocate", "relu"]
    del y
    assert backend.log(first)[-1] == "release"


def test_arrays_follow_the_tensors(backend):
    """What is no Tensor goes to the device of those that are."""
    x, w, b = _normal(3, 17), _normal(5, 17), _normal(5)
    assert_same([ops.linear(x, w, b)], [ops.linear(x, on("test")(w), b)])


def test_average_over_two_devices(backend):
    arrays = [_normal(1000), _normal(10, 100).reshape(-1)]
    lists = [[on("test:0")(arrays[0])], [on("test:1")(arrays[1])]]
    ops.average_gradients_(lists)
    expected = ((arrays[0].astype(np.float64) + arrays[1]) / 2).astype(np.float32)
    for device, (tensor,) in enumerate(lists):
        assert tensor.device == f"test:{device}"
        np.testing.assert_array_equal(to_host(tensor), expected)


def test_between_two_devices(backend):
    """Without the host."""
    array = _normal(5, 3)
    x, copy = on("test:0")(array), _C.zeros((5, 3), device="test:1")
    before = _C.memory_stats("cpu")["allocations"]
    copies = (copy.copy_(x), x.to("test:1"), _C.tensor(x, device="test:1"))
    assert _C.memory_stats("cpu")["allocations"] == before
    for tensor in copies:
        assert tensor.device == "test:1"
        np.testing.assert_array_equal(to_host(tensor), array)


# ---------------------------------------------------------------- memory and errors


def test_memory_is_counted_by_device(backend):
    before = _C.memory_stats("cpu")["current"]
    a, b = _C.empty((1000,), device="test:0"), _C.empty((77,), "uint8", device="test:1")
    assert _C.memory_stats("test:0")["current"] == 4000
    assert _C.memory_stats("test:1")["current"] == 77
    assert _C.memory_stats("cpu")["current"] == before
    del a
    assert _C.memory_stats("test:0")["current"] == 0
    assert _C.memory_stats("test:0")["peak"] >= 4000
    _C.reset_peak_memory("test:0")
    assert _C.memory_stats("test:0")["peak"] == 0
    del b


def test_reading_device_memory_is_a_download(backend):
    """numpy() and item() copy; what would read the memory itself is refused."""
    array = _normal(3)
    x = on("test")(array)
    before = backend.calls()["download"]
    np.testing.assert_array_equal(x.numpy(), array)
    np.testing.assert_array_equal(np.asarray(x), array)
    assert on("test")(2.5).item() == 2.5
    assert backend.calls()["download"] == before + 3
    with pytest.raises(BufferError, match="not in host memory"):
        memoryview(x)
    with pytest.raises((BufferError, RuntimeError)):  # NumPy knows no such device
        np.from_dlpack(x)


def test_dlpack_between_libraries(backend):
    """An extension's device: its memory is shared, in the order of its streams, and the capsule holds it."""
    array = _normal(3, 4)
    x = on("test:1")(array)
    assert x.__dlpack_device__() == (12, 1)
    first = backend.library.logging_backend_logged()
    shared = _C.from_dlpack(x.__dlpack__(stream=7, max_version=(1, 0)))
    assert [name for name in backend.log(first) if name != "device_count"] == ["stream", "order"]
    assert shared.device == "test:1"
    del x
    np.testing.assert_array_equal(to_host(shared), array)
    moved = _C.from_dlpack(shared.__dlpack__(dl_device=(12, 0), stream=-1))
    assert moved.device == "test:0"
    np.testing.assert_array_equal(to_host(moved), array)
    backend.fail_next(DEVICE)
    with pytest.raises(DeviceError, match="order: told to fail"):
        shared.__dlpack__()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (INVALID_ARGUMENT, ValueError),
        (UNSUPPORTED, NotImplementedError),
        (OUT_OF_MEMORY, MemoryError),
        (DEVICE, DeviceError),
    ],
)
def test_statuses_become_exceptions(backend, status, error):
    x, out = on("test")(_normal(3)), on("test")(_normal(3))
    backend.fail_next(status)
    with pytest.raises(error, match="test backend: relu: told to fail"):
        ops.relu(x, out=out)
    backend.fail_next(status)
    with pytest.raises(error, match="test backend: allocate: told to fail"):
        ops.relu(x)
    backend.fail_next(status)
    with pytest.raises(error, match="test backend: download: told to fail"):
        x.to("cpu")


def test_devices_do_not_mix(backend):
    a, b = on("test:0")(_normal(2, 3)), on("test:1")(_normal(4, 3))
    with pytest.raises(ValueError, match='"test:1"'):
        ops.linear(a, b)
    with pytest.raises(ValueError, match='"cpu"'):
        ops.linear(a, on("cpu")(_normal(4, 3)))
    with pytest.raises(ValueError, match="test:2"):
        _C.empty((1,), device="test:2")


def test_what_is_no_backend_is_refused(backend):
    with pytest.raises(ValueError, match='"test" is registered already'):
        _C.register_backend(backend.capsule())
    with pytest.raises(TypeError, match="PyCapsule"):
        _C.register_backend(object())
    with pytest.raises(TypeError, match=r"vggnet\.backend"):
        _C.register_backend(capsule_new(backend.table, b"another name", None))
    # name and host, then one pointer an entry, all of them NULL
    holes = ctypes.create_string_buffer(8 * (2 + len(backend.entries)))
    with pytest.raises(ValueError, match="NULL"):
        _C.register_backend(backend.capsule(ctypes.addressof(holes)))


# ---------------------------------------------------------------- models


def _train_and_infer(config, device):
    """Two training steps with dropout, then features and a dense map, of a small net."""
    model = VGG(config, num_classes=3, input_size=32, fc_width=16, seed=1, init="he", device=device)
    x = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32)
    velocity = {name: _C.zeros(tensor.shape, device=device) for name, tensor in model.parameters.items()}
    results = []
    for epoch in range(2):
        rng = Rng(seed=3, rows=np.arange(4) | epoch << 32)
        loss, gradients = model.loss_and_gradients(x, np.array([0, 1, 2, 1]), rng=rng)
        results += [loss, *gradients.values()]
        ops.sgd_(
            list(model.parameters.values()),
            [gradients[name] for name in model.parameters],
            [velocity[name] for name in model.parameters],
            0.01,
        )
    run = model.run(x, training=True, rng=Rng(seed=3, rows=np.arange(4)))
    _, dx = run.backward({"fc8": _normal(4, 3), "relu2_1": _normal(4, 16, 16, 128)}, input=True)
    results += [dx, model.forward(x), *model.features(x, ["relu3_1", "conv4_1", "relu7"]).values()]
    results.append(model.dense(np.random.default_rng(1).standard_normal((1, 64, 96, 3)).astype(np.float32)))
    return [*results, *model.parameters.values()]


def test_a_model_file_knows_no_device(backend, tmp_path):
    model = VGG("A", num_classes=3, input_size=32, fc_width=8, device="test")
    model.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", device="test:1")
    x = _normal(1, 32, 32, 3)
    np.testing.assert_array_equal(model.forward(x).numpy(), again.forward(x).numpy())


@pytest.mark.parametrize("config", ["A-LRN", "C"])
def test_a_net_is_bit_equal(backend, config):
    assert_same(_train_and_infer(config, "cpu"), _train_and_infer(config, "test:1"))
