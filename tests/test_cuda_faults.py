"""Every call into CUDA, cuBLAS and cuDNN made to fail in turn, by the emulator: a clean error, nothing leaked, and everything
works afterwards. And every cuDNN graph refused, so that its twins run."""

import gc
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import vggnet as vgg
from vggnet import _C, DeviceError

import emulator
import tolerance
from helpers import ENVIRONMENT, ops
from reference import conv2d
from test_backend import CASES, on, to_host
from test_cuda_build import CUDART
from tolerance import assert_within

if emulator.library() is None:
    pytest.skip("VGGNET_CUDA_LIBS names no emulator", allow_module_level=True)

CLEAN = (MemoryError, DeviceError, NotImplementedError)
# A second try, nothing that a result needs, or not called here (what copies between devices).
HARMLESS = {
    "cudnnBackendDestroyDescriptor",
    "cudaDeviceSynchronize",
    "cudaEventDestroy",
    "cudaFreeAsync",
    "cudaGetDevice",
    "cudaMallocAsync",
    "cudaMemGetInfo",
    "cudaMemcpyPeerAsync",
    "cudaStreamWaitEvent",
}
LIBRARIES = {
    *(f"cublas{what}" for what in ("GemmEx", "SetMathMode", "SetStream", "Sgemm")),
    "cudnnSetStream",
    *(
        f"cudnnBackend{what}"
        for what in ("CreateDescriptor", "DestroyDescriptor", "Execute", "Finalize", "SetAttribute")
    ),
}
SILENT = {"cudaGetErrorName", "cudaGetErrorString", "cudaGetLastError"}  # give no status
# Called once a process, which has a test of its own, or for the bench (`properties`, `record`), NCCL (test_nccl.py) or
# CUDA graphs (test_cuda_graph.py), and not by the operations below.
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
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
    "cudaGraphInstantiate",
    "cudaGraphLaunch",
    "cudaHostAlloc",
    "cudaMemPoolSetAttribute",
    "cudaMemPoolTrimTo",
    "cudaRuntimeGetVersion",
    "cudaStreamBeginCapture",
    "cudaStreamCreateWithFlags",
    "cudaStreamDestroy",
    "cudaStreamEndCapture",
    "cudaStreamQuery",
}


@pytest.fixture(autouse=True)
def _no_faults():
    """None is left for the next test, whatever happens. `in_use`, which is called often, collects the test's own alone."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    emulator.fail()


def rule(name, number):
    """A failure that goes away: by default a wait fails with an error that breaks the context."""
    return f"{name}:{number}:999" if name.endswith("Synchronize") else f"{name}:{number}"


def cases():
    """Small calls of every operation; a CUDA device takes weights as they are."""
    return [case for name, case in CASES.items() if name != "conv2d_transformed"]


EVERY = pytest.mark.parametrize(
    "every", [pytest.param(False, id="some"), pytest.param(True, id="every", marks=pytest.mark.nightly)]
)
PRECISIONS = pytest.mark.parametrize("precision", ["float32", "bf16"])


def numbers(count, every):
    """Which of so many calls fail: every one, or the first, one in the middle and the last."""
    return range(1, count + 1) if every else sorted({1, (count + 1) // 2, count}) if count else ()


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


@EVERY
@pytest.mark.parametrize(
    "name", [*sorted(CUDART - SILENT - ELSEWHERE), "cublasSetStream", "cublasSgemm", "cudnnSetStream"]
)
def test_each_call_fails_in_turn(name, every):
    """Of all operations, one after the other, when handles and plans are there."""
    failures = 0
    for case in cases():
        expected = [to_host(tensor) for tensor in case(on("cuda"))]
        emulator.fail()
        for tensor in case(on("cuda")):
            to_host(tensor)
        for number in numbers(emulator.calls(name), every):
            emulator.fail(rule(name, number))
            failures += fails_cleanly(lambda case=case: [to_host(tensor) for tensor in case(on("cuda"))])
            emulator.fail()
        again = [to_host(tensor) for tensor in case(on("cuda"))]
        assert all(a.tobytes() == b.tobytes() for a, b in zip(expected, again, strict=True))
    assert failures > 0 or name in HARMLESS


sides = itertools.count(3)


def as_map(array, precision):
    """A tensor of the precision's dtype on the device, and what it holds."""
    tensor = on("cuda")(np.asarray(array, np.float32))
    tensor = tensor.to(dtype="bfloat16") if precision == "bf16" else tensor
    return tensor, held(tensor)


def held(tensor):
    return to_host(tensor.to(dtype="float32")).astype(np.float64)


def stored(bound, value, precision):
    """The bound of a value once it is stored as a map is: in bf16 it is rounded to 8 bits."""
    return bound + (2.0**-8 * (np.abs(value) + bound) if precision == "bf16" else 0)


def convolution(rng, precision):
    """All three directions of a map of a size that no plan was made for, each in whatever form an engine takes."""
    side = next(sides)
    shapes = {"x": (1, side, 2, 3), "w": (5, 3, 3, 3), "dy": (1, side, 2, 5)}
    (x, x64), (w, w64), (dy, dy64) = (as_map(rng.standard_normal(s), precision) for s in shapes.values())
    b64 = rng.standard_normal(5).astype(np.float32).astype(np.float64)
    b = on("cuda")(b64.astype(np.float32))
    z, dx64, (dw64, db64) = (
        conv2d.forward(x64, w64, b64),
        conv2d.backward_input(dy64, w64),
        conv2d.backward_weight(dy64, x64),
    )
    apart = stored(tolerance.conv2d_bound(x64, w64, b64), conv2d.forward(x64, w64), precision)
    dw_bound, db_bound = tolerance.conv2d_backward_weight_bound(dy64, x64)
    expected = [
        (np.maximum(z, 0), stored(apart, z, precision)),
        (dx64, stored(tolerance.conv2d_backward_input_bound(dy64, w64), dx64, precision)),
        (dw64, stored(dw_bound, dw64, precision)),
        (db64, db_bound),
    ]

    def run():
        results = [
            ops.conv2d(x, w, b, relu=True, precision=precision),
            ops.conv2d_backward_input(dy, w, precision=precision),
            *ops.conv2d_backward_weight(dy, x, precision=precision),
        ]
        for got, (value, bound) in zip(results, expected, strict=True):
            assert_within(held(got), value, bound)

    return run


@EVERY
@PRECISIONS
@pytest.mark.parametrize("name", [f"cudnnBackend{what}" for what in ("CreateDescriptor", "DestroyDescriptor", "Finalize",
                                  "SetAttribute", "GetAttribute", "Execute")])  # fmt: skip
def test_each_call_that_makes_a_plan_fails_in_turn(rng, name, precision, every):
    """Then it fails, or another engine or form of the graph gives the result; later it works in any case."""
    emulator.fail()
    convolution(rng, precision)()
    count, failures = emulator.calls(name), 0
    assert count
    for number in range(1, count + 1, 1 if every else max(1, count // 12)):
        run = convolution(rng, precision)
        emulator.fail(rule(name, number))
        failures += fails_cleanly(run)
        emulator.fail()
        run()
    assert failures or name not in (
        "cudnnBackendCreateDescriptor",
        "cudnnBackendSetAttribute",
        "cudnnBackendExecute",
    )


def refuse_forms(count, code=3000):
    """No engine takes the next `count` graphs: cuDNN says so when the first descriptor of each is finalized."""
    emulator.fail(",".join(f"cudnnBackendFinalize:{i + 1}:{code}" for i in range(count)))


@pytest.mark.parametrize("refused", [0, 1, 2, 3])
@pytest.mark.parametrize("bias, relu", [(True, True), (True, False), (False, True), (False, False)])
@PRECISIONS
def test_refused_graphs_have_twins(rng, precision, bias, relu, refused):
    """With 3 channels: fused; bias and ReLU apart; channels filled up to 16 bytes; both. The first `refused` are refused."""
    n, h, w, c, k = 2, next(sides), 3, 3, 5
    (x, x64), (weight, w64) = (
        as_map(rng.standard_normal(s), precision) for s in [(n, h, w, c), (k, 3, 3, c)]
    )
    b64 = rng.standard_normal(k).astype(np.float32).astype(np.float64) if bias else None
    b = on("cuda")(b64.astype(np.float32)) if bias else None
    apart, padded = refused % 2, refused > 1
    refuse_forms(refused)
    y = ops.conv2d(x, weight, b, relu=relu, precision=precision)
    assert emulator.calls("cudaLaunchKernel") == 2 * padded + (apart and (bias or relu)), "another form ran"
    z, bound = conv2d.forward(x64, w64, b64), tolerance.conv2d_bound(x64, w64, b64)
    if apart:
        bound = stored(bound, conv2d.forward(x64, w64), precision)
    assert_within(held(y), np.maximum(z, 0) if relu else z, stored(bound, z, precision))
    emulator.fail()
    again = ops.conv2d(x, weight, b, relu=relu, precision=precision)
    assert emulator.calls("cudnnBackendFinalize") == 1, "the choice was not kept"
    assert held(again).tobytes() == held(y).tobytes()


@pytest.mark.parametrize("code", [2000, 3000])  # cuDNN may call such a graph wrong, or not supported
@PRECISIONS
def test_refused_input_gradients_are_padded(rng, precision, code):
    side = next(sides)
    (w, w64), (dy, dy64) = (
        as_map(rng.standard_normal(s), precision) for s in [(5, 3, 3, 3), (2, side, 3, 5)]
    )
    refuse_forms(1, code)
    dx = ops.conv2d_backward_input(dy, w, precision=precision)
    assert emulator.calls("cudaLaunchKernel") == 2, "another form ran"
    expected, bound = conv2d.backward_input(dy64, w64), tolerance.conv2d_backward_input_bound(dy64, w64)
    assert_within(held(dx), expected, stored(bound, expected, precision))


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    "precision, refused", [("float32", 0), ("float32", 1), ("bf16", 0), ("bf16", 1), ("bf16", 2), ("bf16", 3)]
)
def test_refused_weight_gradients_have_twins(rng, precision, refused, accumulate):
    """Sums come as float32; in bf16 also rounded to bfloat16; with channels filled up; both."""
    side = next(sides)
    rounded, padded = (refused % 2, refused > 1) if precision == "bf16" else (False, refused > 0)
    (x, x64), (dy, dy64) = (
        as_map(rng.standard_normal(s), precision) for s in [(2, side, 3, 3), (2, side, 3, 5)]
    )
    before = [rng.standard_normal(s).astype(np.float32) for s in [(5, 3, 3, 3), (5,)]]
    out = tuple(map(on("cuda"), before))
    refuse_forms(refused)
    ops.conv2d_backward_weight(dy, x, out=out, accumulate=accumulate, precision=precision)
    assert emulator.calls("cudaLaunchKernel") == 2 + 2 * padded + rounded + accumulate, "another form ran"
    before = [accumulate * array.astype(np.float64) for array in before]
    expected = conv2d.backward_weight(dy64, x64)
    bounds = list(tolerance.conv2d_backward_weight_bound(dy64, x64, before=before))
    if rounded:
        bounds[0] = stored(bounds[0], expected[0], precision)
    for got, old, value, bound in zip(out, before, expected, bounds, strict=True):
        assert_within(held(got), old + value, bound)


@pytest.mark.parametrize("code", [2000, 3000, 4000, 4001])  # wrong, not supported, internal, not compiled
@PRECISIONS
def test_engines_refuse_when_their_plans_are_made(rng, precision, code):
    """The plans of all three heuristics, as engines do that do not take a shape or fail to compile: the twin is taken."""
    (w, w64) = as_map(rng.standard_normal((4, 3, 3, 8)), precision)
    b64 = rng.standard_normal(4).astype(np.float32).astype(np.float64)
    b = on("cuda")(b64.astype(np.float32))

    def run(*rules):
        x, x64 = as_map(rng.standard_normal((1, next(sides), 2, 8)), precision)
        emulator.fail(",".join(f"cudnnBackendFinalize:{number}:{code}" for number in rules))
        y = ops.conv2d(x, w, b, precision=precision)
        calls = emulator.calls("cudnnBackendFinalize") - 1, emulator.calls("cudaLaunchKernel")
        z, bound = conv2d.forward(x64, w64, b64), tolerance.conv2d_bound(x64, w64, b64)
        bound = stored(bound, conv2d.forward(x64, w64), precision)  # where bias is apart
        assert_within(held(y), z, stored(bound, z, precision))
        return calls

    last, launches = (
        run()
    )  # the first heuristic's plan; each of the others takes two more, of its own and of its plan
    assert launches == 0
    for rules, apart in (((last,), 0), ((last, last + 2), 0), ((last, last + 2, last + 4), 1)):
        assert run(*rules)[1] == apart


@PRECISIONS
def test_a_graph_that_nothing_takes_is_tried_again(rng, precision):
    run = convolution(rng, precision)
    emulator.fail("cudnnBackendFinalize:1+")
    assert fails_cleanly(run)
    emulator.fail()
    run()


def test_a_small_workspace_is_enough_for_our_own_parts():
    """cuDNN's part is taken beside it: the graph for tensors that are not aligned may ask for more than the planned one."""
    rng = np.random.default_rng(0)
    x, w = (on("cuda")(rng.standard_normal(s).astype(np.float32)) for s in [(1, 6, 6, 4), (5, 3, 3, 4)])
    expected = to_host(ops.conv2d(x, w))
    assert (
        to_host(ops.conv2d(x, w, workspace=_C.empty((256,), "uint8", "cuda"))).tobytes() == expected.tobytes()
    )
    with pytest.raises(ValueError, match="workspace"):
        ops.conv2d(x, w, pool=True, workspace=_C.empty((256,), "uint8", "cuda"))


def training_step(model):
    loss, grads = model.loss_and_gradients(
        np.ones((1, 32, 32, 3), np.float32), np.zeros(1, np.int64), rng=vgg.Rng(0, np.arange(1))
    )
    moved = [_C.tensor(p, device="cuda") for p in model.parameters.values()]
    velocities = [vgg.zeros(p.shape, device="cuda") for p in moved]
    ops.sgd_(moved, [grads[name] for name in model.parameters], velocities, 0.1)
    return [loss, *moved]


WORK = {
    "step": training_step,
    "forward": lambda model: [model.forward(np.ones((1, 32, 32, 3), np.float32))],
    "dense": lambda model: [model.dense(np.ones((1, 32, 64, 3), np.float32))],
}


@EVERY
@pytest.mark.parametrize("work", WORK)
@PRECISIONS
def test_a_model_works_after_each_failure(narrow, precision, work, every):
    """Every function that it calls. The weights have just changed, so that bf16's copies are made among the calls."""
    model = vgg.VGG(
        "A-LRN", num_classes=3, input_size=32, fc_width=4, init="he", device="cuda", precision=precision
    )
    values = [p.numpy().copy() for p in model.parameters.values()]

    def change_weights():
        for factor in (2, 1):
            for parameter, array in zip(model.parameters.values(), values, strict=True):
                parameter.copy_(factor * array)
            if factor == 2:
                model.forward(np.zeros((1, 32, 32, 3), np.float32))

    def run():
        return [to_host(tensor).tobytes() for tensor in WORK[work](model)]

    expected, failed = run(), set()
    change_weights()
    emulator.fail()
    assert run() == expected
    counts = {name: emulator.calls(name) for name in (CUDART | LIBRARIES) - SILENT}
    for name, count in counts.items():
        for number in numbers(count, every):
            change_weights()
            emulator.fail(rule(name, number))
            if fails_cleanly(run):
                failed.add(name)
            emulator.fail()
            assert run() == expected, (name, number)
    assert failed >= {name for name, count in counts.items() if count} - HARMLESS


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


def test_a_failed_wait_leaves_what_is_on_its_way():
    """Uploads that still lie in pinned memory, as they do where nothing runs before it is waited for, keep their bytes."""
    code = """
import emulator, numpy as np
from vggnet import _C, DeviceError
for name in ("cudaEventSynchronize", "cudaEventRecord"):
    before = [_C.tensor(np.full(5, i, np.float32), device="cuda") for i in range(8)]
    emulator.fail(f"{name}:1:999")
    try:
        _C.tensor(np.full(5, 8, np.float32), device="cuda")
    except DeviceError:
        emulator.fail()
    after = [_C.tensor(np.full(5, 10 + i, np.float32), device="cuda") for i in range(4)]
    assert [t.numpy()[0] for t in before + after] == [*range(8), 10, 11, 12, 13], name
"""
    path = f"{ENVIRONMENT['PYTHONPATH']}:{Path(__file__).parent}"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=ENVIRONMENT | {"PTXEMU_LAZY": "1", "PTXEMU_EXIT": "99", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


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
