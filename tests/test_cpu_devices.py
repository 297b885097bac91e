"""CPU devices: cpu:1 and up share the memory of cpu but have threads of their own."""

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import vggnet as vgg
from vggnet import _C, ops
from vggnet.rng import Rng
from vggnet.run import Plan

from helpers import raises

SMALL = {"num_classes": 10, "input_size": 32, "fc_width": 24}


@pytest.fixture
def shares():
    """set_num_threads, put back afterwards: setting every device's takes back every share."""
    before = _C.get_num_threads()
    yield _C.set_num_threads
    _C.set_num_threads(before)


# ---- names


def test_names():
    assert vgg.empty(2, device="cpu:0").device == "cpu"
    for name in ("cpu:1", "cpu:3", "cpu:63"):
        t = vgg.zeros((2, 3), device=name)
        assert t.device == t.storage.device == name
        assert repr(t) == f'Tensor(shape=(2, 3), dtype="float32", device="{name}")'
    assert [name for name in _C.devices() if name.startswith("cpu")] == ["cpu"]
    with raises(["cpu:64", "['cpu'", '"cpu:N" with N below 64'], ValueError):
        vgg.empty(2, device="cpu:64")


def test_an_operation_has_one_device():
    a, b = vgg.zeros((2, 3)), vgg.zeros((4, 3), device="cpu:1")
    with raises(["linear", "x", '"cpu"', "w", '"cpu:1"', "one device"], ValueError):
        ops.linear(a, b)
    with raises(["out", '"cpu:2"', '"cpu:1"'], ValueError):
        ops.relu(b, out=vgg.zeros((4, 3), device="cpu:2"))
    with raises(["sgd_", "device"], ValueError):
        ops.sgd_(b, vgg.zeros((4, 3)), vgg.zeros((4, 3), device="cpu:1"), 0.1)
    assert ops.linear(np.ones((2, 3), np.float32), b).device == "cpu:1"  # arrays lie in host memory


# ---- memory


def test_one_memory(rng):
    a = rng.standard_normal((3, 5)).astype(np.float32)
    before = _C.memory_stats()["current"]
    t = vgg.tensor(a, device="cpu:1")
    stats = [_C.memory_stats(name) for name in ("cpu", "cpu:1", "cpu:2")]
    assert stats[0] == stats[1] == stats[2] and stats[0]["current"] == before + a.nbytes
    for shared in (np.asarray(t), np.asarray(memoryview(t)), np.from_dlpack(t)):
        assert np.shares_memory(shared, np.asarray(t)) and (shared == a).all()
    moved = t.to("cpu:2")
    assert moved.device == "cpu:2" and not np.shares_memory(moved, t) and (moved.numpy() == a).all()
    assert t.to("cpu:1") is t
    u = vgg.zeros((3, 5), device="cpu:3")
    u.copy_(t)
    assert (u.numpy() == a).all() and u.storage.version == 1


def test_dlpack(rng):
    t = vgg.tensor(rng.standard_normal(5).astype(np.float32), device="cpu:1")
    assert t.__dlpack_device__() == (1, 0)  # DLPack's host memory is one device
    assert vgg.from_dlpack(t).device == "cpu:1"
    same = vgg.from_dlpack(np.from_dlpack(t))  # the array does not know where it comes from
    assert same.device == "cpu" and np.shares_memory(same, t)
    t.__dlpack__(max_version=(1, 0), dl_device=(1, 0), copy=False)
    with pytest.raises(BufferError, match=r"\(1, 1\) is none"):
        t.__dlpack__(dl_device=(1, 1))
    t.copy_(same)  # onto itself
    with raises(["overlaps"], ValueError):
        t.view(0, (4,), "float32").copy_(same.view(4, (4,), "float32"))
    with raises(["overlaps"], ValueError):
        ops.average_gradients_([[t], [same]])


# ---- shares


def test_shares(shares):
    shares(3)
    shares(1, "cpu:1")
    shares(2, device="cpu:0")
    assert [_C.get_num_threads(name) for name in (None, "cpu", "cpu:0", "cpu:1", "cpu:2")] == [3, 2, 2, 1, 3]
    shares(4)
    assert [_C.get_num_threads(name) for name in (None, "cpu", "cpu:1", "cpu:63")] == [4, 4, 4, 4]
    for call in (lambda: shares(1, "cpu:64"), lambda: _C.get_num_threads("cpu:64"), lambda: shares(1, "gpu")):
        with raises(["device is", "cpu"], ValueError):
            call()
    with raises(["n is 0"], ValueError):
        shares(0, "cpu:1")
    assert _C.get_num_threads("cpu:1") == 4


def test_plans_and_workspaces_are_for_the_device_s_share(shares):
    def sizes(device):
        plan = Plan(
            vgg.VGG("A", **SMALL).layers,
            (8, 32, 32, 3),
            [],
            pool_rounding="floor",
            dropout=False,
            keep=False,
            device=device,
        )
        return (
            plan.chunk,
            plan.forward.size,
            ops.conv2d_workspace((2, 32, 32, 16), (8, 3, 3, 16), device=device),
            ops.linear_workspace(16, 300, 200, "backward_weight", device=device),
        )

    expected = []
    for count in (1, 4):
        shares(count)
        expected.append(sizes("cpu"))
    assert all(one != four for one, four in list(zip(*expected, strict=True))[:3])
    shares(2)
    shares(1, "cpu:1")
    shares(4, "cpu:2")
    assert [sizes("cpu:1"), sizes("cpu:2")] == expected


# ---- the same bits


def train(devices):
    """A step of replicas that take 3 images each: bits of losses, gradients and weights of every replica."""
    rng = np.random.default_rng(5)
    models = [vgg.VGG("A", **SMALL, device=device) for device in devices]
    names = list(models[0].parameters)
    velocities = [
        {name: vgg.zeros(p.shape, device=model.device) for name, p in model.parameters.items()}
        for model in models
    ]
    bits, gradients = [], []
    for replica, model in enumerate(models):
        x = (60 * rng.standard_normal((3, 32, 32, 3))).astype(np.float32)
        random = Rng(1, np.arange(3) + 3 * replica)
        loss, grads = model.loss_and_gradients(x, rng.integers(0, 10, 3), rng=random)
        gradients.append([grads[name] for name in names])
        bits += [loss.numpy().tobytes(), *(g.numpy().tobytes() for g in gradients[-1])]
    ops.average_gradients_(gradients, weights=[3] * len(models))
    for model, grads, velocity in zip(models, gradients, velocities, strict=True):
        assert grads[0].device == model.device
        ops.sgd_([model.parameters[n] for n in names], grads, [velocity[n] for n in names], 0.01)
    return bits + [[model.parameters[n].numpy().tobytes() for n in names] for model in models]


def test_replicas_on_cpu_devices(shares):
    """What data-parallel training calls, on three devices of unlike shares: the bits of one device."""
    expected = train(["cpu"] * 3)
    shares(1, "cpu:1")
    shares(3, "cpu:2")
    assert train(["cpu", "cpu:1", "cpu:2"]) == expected
    assert expected[-1] == expected[-2] == expected[-3]


def test_two_devices_at_once(shares):
    expected = [train(["cpu"]), train(["cpu:1"] * 2)]
    for share in (1, 2):
        shares(share)
        with ThreadPoolExecutor(2) as executor:
            results = executor.map(train, (["cpu"], ["cpu:1"] * 2))
        assert list(results) == expected


# ---- threads


def python(code):
    """Runs code that prints the number of the process's threads, and more."""
    begin = """
    import os, threading
    import numpy as np
    from vggnet import _C, ops
    x, w = np.ones((16, 512), np.float32), np.ones((1000, 512), np.float32)
    begin = len(os.listdir("/proc/self/task"))

    def linear(device):
        return ops.linear(_C.tensor(x, device=device), w).numpy().tobytes()

    def started():
        return len(os.listdir("/proc/self/task")) - begin

    """
    env = {**os.environ, "PYTHONPATH": str(Path(vgg.__file__).parents[1])}
    code = textwrap.dedent(begin) + textwrap.dedent(code)
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")


@needs_proc
def test_threads_are_started_when_a_device_needs_them():
    python(
        """
        _C.set_num_threads(1)
        linear("cpu"), linear("cpu:1")
        assert started() == 0
        _C.set_num_threads(3)
        linear("cpu")
        assert started() == 2
        linear("cpu"), linear("cpu:0")
        assert started() == 2
        _C.set_num_threads(2, "cpu:1")
        linear("cpu:1"), linear("cpu:1")
        assert started() == 3
        linear("cpu:63")
        assert started() == 5
        """
    )


@needs_proc
def test_fork():
    """A child starts threads of its own for every device, also if its parent's were at work."""
    python(
        """
        _C.set_num_threads(2)
        expected = linear("cpu"), linear("cpu:1")
        stop = threading.Event()

        def busy():
            while not stop.is_set():
                linear("cpu:1")

        worker = threading.Thread(target=busy, daemon=True)
        worker.start()
        for _ in range(10):
            child = os.fork()
            if child == 0:
                begin = len(os.listdir("/proc/self/task"))
                right = (linear("cpu"), linear("cpu:1")) == expected and started() == 2
                os._exit(0 if right else 1)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        worker.join()
        """
    )
