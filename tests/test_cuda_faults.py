"""Every call into CUDA, cuBLAS and cuDNN made to fail in turn, by the emulator: a clean error, nothing leaked, and everything
works afterwards. And every cuDNN graph refused, so that its twins run."""

import gc
import itertools
import subprocess
import sys

import numpy as np
import pytest
import vggnet as vgg
from vggnet import _C, DeviceError

import emulator
from helpers import ENVIRONMENT, ops
from test_backend import CASES, on, to_host
from test_cuda_build import CUDART
from tolerance import relative_l2

pytestmark = pytest.mark.skipif(emulator.library() is None, reason="VGGNET_CUDA_LIBS names no emulator")

CLEAN = (MemoryError, DeviceError, NotImplementedError)
# A second try, nothing that a result needs, or not called here (what copies between devices).
HARMLESS = {
    "cudaDeviceSynchronize",
    "cudaEventDestroy",
    "cudaFreeAsync",
    "cudaGetDevice",
    "cudaMallocAsync",
    "cudaMemGetInfo",
    "cudaMemcpyPeerAsync",
    "cudaStreamWaitEvent",
}
SILENT = {"cudaGetErrorName", "cudaGetErrorString", "cudaGetLastError"}  # give no status
# Called once a process, which has a test of its own, or for the bench (`properties`, `record`) or NCCL (test_nccl.py), and
# not by operations.
ELSEWHERE = {
    "cudaDeviceGetAttribute",
    "cudaDeviceGetDefaultMemPool",
    "cudaDriverGetVersion",
    "cudaEventCreate",
    "cudaEventCreateWithFlags",
    "cudaEventElapsedTime",
    "cudaEventQuery",
    "cudaGetDeviceCount",
    "cudaGetDeviceProperties",
    "cudaHostAlloc",
    "cudaMemPoolSetAttribute",
    "cudaMemPoolTrimTo",
    "cudaRuntimeGetVersion",
    "cudaStreamCreateWithFlags",
    "cudaStreamDestroy",
    "cudaStreamQuery",
}


@pytest.fixture(autouse=True)
def _no_faults():
    """None is left for the next test, whatever happens."""
    yield
    emulator.fail()


def rule(name, number):
    """A failure that goes away: by default a wait fails with an error that breaks the context."""
    return f"{name}:{number}:999" if name.endswith("Synchronize") else f"{name}:{number}"


def cases():
    """Small calls of every operation; a CUDA device takes weights as they are."""
    return [case for name, case in CASES.items() if name != "conv2d_transformed"]


def in_use():
    gc.collect()
    return _C.memory_stats("cuda")["current"]


def fails_cleanly(function):
    """Whether it failed; nothing may be leaked then."""
    before, words = in_use(), "cuda"
    try:
        function()
    except CLEAN as error:
        words = f"failed: {error}"
    assert in_use() == before, "bytes leaked"
    assert "cuda" in words
    return words != "cuda"


@pytest.mark.parametrize(
    "name", [*sorted(CUDART - SILENT - ELSEWHERE), "cublasSetStream", "cublasSgemm", "cudnnSetStream"]
)
def test_each_call_fails_in_turn(name):
    """Of all operations, one after the other, when handles and plans are there."""
    failures = 0
    for case in cases():
        expected = [to_host(tensor) for tensor in case(on("cuda"))]
        emulator.fail()
        for tensor in case(on("cuda")):
            to_host(tensor)
        for number in range(1, emulator.calls(name) + 1):
            emulator.fail(rule(name, number))
            failures += fails_cleanly(lambda case=case: [to_host(tensor) for tensor in case(on("cuda"))])
            emulator.fail()
        again = [to_host(tensor) for tensor in case(on("cuda"))]
        assert all(a.tobytes() == b.tobytes() for a, b in zip(expected, again, strict=True))
    assert failures > 0 or name in HARMLESS


sides = itertools.count(3)


def convolution(side):
    """All three directions of a map of a size that no plan was made for; on the CPU and on the device."""
    rng = np.random.default_rng(side)
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in [(1, side, 2, 3), (5, 3, 3, 3), (5,)])
    dy = rng.standard_normal((1, side, 2, 5)).astype(np.float32)

    def run(device):
        x_, w_, b_, dy_ = map(on(device), (x, w, b, dy))
        return [
            ops.conv2d(x_, w_, b_, relu=True),
            ops.conv2d_backward_input(dy_, w_),
            *ops.conv2d_backward_weight(dy_, x_),
        ]

    return run


def assert_right(results, expected):
    for a, b in zip(results, expected, strict=True):
        assert relative_l2(to_host(a), to_host(b)) < 1e-6


@pytest.mark.parametrize("name", [f"cudnnBackend{what}" for what in ("CreateDescriptor", "DestroyDescriptor", "Finalize",
                                  "SetAttribute", "GetAttribute", "Execute")])  # fmt: skip
def test_each_call_that_makes_a_plan_fails_in_turn(name):
    """Then it fails, or another engine or form of the graph gives the result; later it works in any case."""
    emulator.fail()
    convolution(next(sides))("cuda")
    count, failures = emulator.calls(name), 0
    assert count
    step = max(1, count // 60)  # attributes are many, and alike
    for number in range(1, count + 1, step):
        run = convolution(next(sides))
        expected = run("cpu")
        emulator.fail(rule(name, number))
        failures += fails_cleanly(lambda run=run, expected=expected: assert_right(run("cuda"), expected))
        emulator.fail()
        assert_right(run("cuda"), expected)
    assert failures or name not in (
        "cudnnBackendCreateDescriptor",
        "cudnnBackendSetAttribute",
        "cudnnBackendExecute",
    )


@pytest.mark.parametrize("refused", [1, 2, 3])
@pytest.mark.parametrize("bias, relu", [(True, True), (True, False), (False, True), (False, False)])
def test_refused_graphs_have_twins(refused, bias, relu):
    """With 3 channels: fused, bias and ReLU apart, channels filled up to 4, both. The first `refused` of them are refused."""
    rng = np.random.default_rng(refused)
    side = next(sides)
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in [(2, side, 3, 3), (5, 3, 3, 3), (5,)])
    run = lambda device: ops.conv2d(*map(on(device), (x, w)), on(device)(b) if bias else None, relu=relu)  # noqa: E731
    expected = to_host(run("cpu"))
    forms = ["fused", "apart", "fused padded", "apart padded"] if bias or relu else ["fused", "fused padded"]
    # Planned are bias and no ReLU (csrc/py), then the call's own: whichever comes first meets the refusals.
    emulator.fail(",".join(f"cudnnBackendFinalize:{i + 1}" for i in range(min(refused, len(forms) - 1))))
    assert relative_l2(to_host(run("cuda")), expected) < 1e-6
    emulator.fail()
    assert relative_l2(to_host(run("cuda")), expected) < 1e-6


@pytest.mark.parametrize("direction", ["input", "weight"])
def test_refused_gradients_are_padded(direction):
    rng = np.random.default_rng(0)
    side = next(sides)
    x, w, dy = (
        rng.standard_normal(s).astype(np.float32) for s in [(2, side, 3, 3), (5, 3, 3, 3), (2, side, 3, 5)]
    )

    def run(device):
        x_, w_, dy_ = map(on(device), (x, w, dy))
        if direction == "input":
            return [ops.conv2d_backward_input(dy_, w_)]
        before = tuple(map(on(device), (w, w[:, 0, 0, 0].copy())))
        ops.conv2d_backward_weight(dy_, x_, out=before, accumulate=True)
        return before

    expected = run("cpu")
    emulator.fail("cudnnBackendFinalize:1")
    launches = emulator.calls("cudaLaunchKernel")
    assert_right(run("cuda"), expected)
    assert emulator.calls("cudaLaunchKernel") - launches >= 2, "nothing was padded"


def test_a_graph_that_nothing_takes_is_tried_again():
    run = convolution(next(sides))
    emulator.fail("cudnnBackendFinalize:1+")
    assert fails_cleanly(lambda: run("cuda"))
    emulator.fail()
    assert_right(run("cuda"), run("cpu"))


def test_a_small_workspace_is_enough_for_our_own_parts():
    """cuDNN's part is taken beside it: another graph than the planned one may ask for more."""
    rng = np.random.default_rng(0)
    x, w = (on("cuda")(rng.standard_normal(s).astype(np.float32)) for s in [(1, 6, 6, 4), (5, 3, 3, 4)])
    expected = to_host(ops.conv2d(x, w))
    assert (
        to_host(ops.conv2d(x, w, workspace=_C.empty((0,), "uint8", "cuda"))).tobytes() == expected.tobytes()
    )
    with pytest.raises(ValueError, match="workspace"):
        ops.conv2d(x, w, pool=True, workspace=_C.empty((256,), "uint8", "cuda"))


def test_a_model_works_after_each_failure(narrow):
    """A training step with every call that it makes failing, at the beginning, in the middle and at the end."""
    model = vgg.VGG("A-LRN", num_classes=3, input_size=32, fc_width=4, init="he", device="cuda")
    x, labels = on("cuda")(np.ones((1, 32, 32, 3), np.float32)), on("cuda")(np.zeros(1, np.int64))

    def step():
        loss, gradients = model.loss_and_gradients(x, labels, rng=vgg.Rng(0, np.arange(1)))
        return float(loss), float(np.abs(gradients["conv1_1.weight"].numpy()).sum())

    expected = step()
    for name in [
        "cudaMallocAsync",
        "cudaLaunchKernel",
        "cudaMemcpyAsync",
        "cudnnBackendExecute",
        "cublasSgemm",
    ]:
        emulator.fail()
        step()
        count = emulator.calls(name)
        for number in sorted({1, (count + 1) // 2, count} - {0}):
            emulator.fail(rule(name, number))
            again = name == "cudaMallocAsync"  # is tried a second time after waiting for the device
            assert fails_cleanly(step) or again
            emulator.fail()
            assert step() == expected


def test_out_of_memory_says_how_much_is_free():
    emulator.fail("cudaMallocAsync:1+")
    with pytest.raises(
        MemoryError, match=r"cannot allocate 4000 bytes on device cuda:0: \d+ of its \d+ are free"
    ):
        _C.empty((1000,), device="cuda")


FIRST_CALLS = """
import numpy as np
import vggnet as vgg
from vggnet import _C, ops

def work():
    x, w = (vgg.tensor(np.ones(s, np.float32), device="cuda") for s in [(1, 4, 4, 4), (4, 3, 3, 4)])
    y = ops.linear(ops.conv2d(x, w).reshape((1, 64)), vgg.tensor(np.ones((2, 64), np.float32), device="cuda"))
    batch = ops.augment([np.ones((2, 2, 3), np.uint8)], np.zeros((1, 3), np.int64), 2, (0.0, 0.0, 0.0), device="cuda")
    assert (batch.numpy() == 1).all()
    return y.numpy().tolist()

try:
    work()
except (MemoryError, vgg.DeviceError) as error:
    print(type(error).__name__, error)
else:
    raise SystemExit("it did not fail")
assert _C.memory_stats("cuda")["current"] == 0
assert work() == [[1600.0] * 2]
"""


@pytest.mark.parametrize(
    "name, words",
    [
        ("cudaHostAlloc:1", "MemoryError cuda:0"),
        ("cudaEventCreateWithFlags:8", "MemoryError cuda:0"),
        ("cudaEventCreateWithFlags:9", "MemoryError cuda:0"),
        ("cudaEventCreateWithFlags:10", "MemoryError cuda:0"),
        ("cudaStreamCreateWithFlags:1", "MemoryError cuda:0"),
        ("cublasCreate:1", "MemoryError cuda:0: cuBLAS"),
        ("cublasSetMathMode:1", "DeviceError cuda:0: cuBLAS"),
        ("cudnnCreate:1", "DeviceError cuda:0: cuDNN"),
    ],
)
def test_first_calls_of_a_process(name, words):
    run = subprocess.run(
        [sys.executable, "-c", FIRST_CALLS],
        env=ENVIRONMENT | {"PTXEMU_FAIL": name, "PTXEMU_EXIT": "99"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(words), run.stdout


def test_a_broken_device_says_so_and_counts_its_memory():
    """An error that stays (a launch that failed) is a DeviceError at every call; what tensors held is counted as given back."""
    code = """
import numpy as np, vggnet as vgg
from vggnet import _C, ops
x = vgg.tensor(np.ones(5, np.float32), device="cuda")
for _ in range(3):
    try:
        ops.relu(x).numpy()
    except vgg.DeviceError as error:
        print(error)
del x
assert _C.memory_stats("cuda")["current"] == 0
assert ops.relu(np.ones(3, np.float32)).numpy().sum() == 3
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=ENVIRONMENT | {"PTXEMU_FAIL": "cudaLaunchKernel:1:719"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("cudaErrorLaunchFailure") == 3
