"""CUDA graphs: a replay gives the bits of the passes that were captured, whatever they read has become meanwhile."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import vggnet as vgg
from vggnet import DeviceError, cuda, ops

import emulator
from helpers import ENVIRONMENT
from launcher import NARROW
from test_cuda_faults import fails_cleanly, in_use
from test_train import SMALL, assert_equal_weights, fit, net, patterns, same_rows

needs_emulator = pytest.mark.skipif(emulator.library() is None, reason="VGGNET_CUDA_LIBS names no emulator")
pytestmark = [
    pytest.mark.skipif(not cuda.is_available(), reason=f"{cuda.why_not()}"),
    pytest.mark.usefixtures("narrow"),
]

TWO_BATCHES = dataclasses.replace(SMALL, batch=4, iterations=5, epochs=None, holdout=0)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model_of(config="A", **changes):
    return vgg.VGG(
        config, num_classes=4, input_size=32, fc_width=16, device="cuda", **{"init": "he", **changes}
    )


def assert_same(ours, expected):
    np.testing.assert_array_equal(ours.numpy(), expected.numpy())


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("config", ["A-LRN", "C"])
def test_a_replay_is_the_pass(config, precision):
    """Of the input and the weights that there are now, not of those that were there before."""
    model = model_of(config, precision=precision)
    x = vgg.tensor(normal(2, 32, 32, 3), device="cuda")
    before = model.forward(x).numpy()
    graph = cuda.Graph(lambda: model.forward(x))
    np.testing.assert_array_equal(graph().numpy(), before)
    x.copy_(normal(2, 32, 32, 3, seed=1))
    assert_same(graph(), model.forward(x))
    weight = model.parameters["conv1_1.weight"]
    weight.copy_(2 * weight.numpy())
    after = graph().numpy()
    assert_same(model.forward(x), graph.result)
    assert not np.array_equal(before, after)


def test_dense_evaluation():
    """In bands, whose memory is taken, given back and taken again."""
    model = model_of("B")
    x = vgg.tensor(normal(1, 96, 64, 3), device="cuda")
    expected = model.dense(x, memory=1 << 17).numpy()
    graph = cuda.Graph(lambda: model.dense(x, memory=1 << 17))
    np.testing.assert_array_equal(graph().numpy(), expected)


def test_what_cannot_be_captured():
    model = model_of()
    other, other_gradient, velocity = (vgg.zeros((2, 3), device="cuda") for _ in range(3))
    x = vgg.tensor(normal(1, 32, 32, 3), device="cuda")
    ready = cuda.Graph(lambda: ops.relu(other))
    pixels = [np.zeros((4, 4, 3), np.uint8)]
    crops = np.zeros((1, 3), np.int64)

    def within():
        with cuda.stream(0):
            return model.forward(x)

    cases = [
        ("a value is read", lambda: model.forward(x).numpy()),
        ("an upload", lambda: model.forward(normal(1, 32, 32, 3))),
        ("an upload", lambda: ops.augment(pixels, crops, 4, (0.0,) * 3, device="cuda")),
        ("one stream waits for another", within),
        ("weights are updated", lambda: ops.sgd_([other], [other_gradient], [velocity], 0.1)),
        ("another capture", lambda: cuda.Graph(lambda: ops.relu(other))),
        ("a replay", ready),
    ]
    before, expected = in_use(), model.forward(x).numpy()
    for words, function in cases:
        with pytest.raises(
            (ValueError, DeviceError), match=f"cuda:0: {words} while a CUDA graph is captured"
        ):
            cuda.Graph(function)
        assert not cuda.capturing()
        np.testing.assert_array_equal(model.forward(x).numpy(), expected)
    assert in_use() == before
    with pytest.raises(ZeroDivisionError):
        cuda.Graph(lambda: 1 // 0)
    np.testing.assert_array_equal(model.forward(x).numpy(), expected)


def test_memory_is_the_graphs_while_it_lives():
    """Not even a tensor that nobody holds any more gives it away; a result outlives its graph."""
    x = vgg.tensor(normal(1000), device="cuda")
    before = in_use()

    def function():
        hidden = ops.relu(x)
        ops.add_(hidden, x)
        return ops.relu(hidden)

    graph = cuda.Graph(function)
    held = in_use() - before
    assert held == 2 * x.nbytes
    taken = [vgg.tensor(np.full(1000, 7, np.float32), device="cuda") for _ in range(4)]
    expected = np.maximum(np.maximum(x.numpy(), 0) + x.numpy(), 0)
    np.testing.assert_array_equal(graph().numpy(), expected)
    assert all((tensor.numpy() == 7).all() for tensor in taken)
    result = graph.result
    del graph, taken
    assert in_use() == before + result.nbytes
    np.testing.assert_array_equal(result.numpy(), expected)
    del result
    assert in_use() == before


def test_memory_that_is_given_back_within_is_taken_again():
    x = vgg.tensor(normal(1000), device="cuda")
    before = in_use()

    def function():
        y = x
        for _ in range(10):
            y = ops.relu(y)
        return y

    graph = cuda.Graph(function)
    assert in_use() - before == 2 * x.nbytes
    np.testing.assert_array_equal(graph().numpy(), np.maximum(x.numpy(), 0))


@needs_emulator
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training(precision, tmp_path):
    """The bits of training without graphs: dropout, a last batch that is smaller, held-out images, a run that goes on. Two
    launches for each whole batch, and none for the other."""
    recipe = dataclasses.replace(SMALL, batch=8, epochs=2, iterations=None)
    models, histories = [], []
    for captured in (False, True):
        model = net(device="cuda", fc_width=16, precision=precision)
        emulator.fail()
        history = fit(model, patterns(28), recipe=recipe, progress=False, cuda_graph=captured)
        launches = emulator.calls("cudaGraphLaunch")
        models.append(model)
        histories.append(history)
        # 21 images are trained on: two whole batches and one of five. One launch more when a pass is captured, once an epoch.
        assert launches == (2 * (2 * 2 + 1) if captured else 0)
    same_rows(*histories)
    assert_equal_weights(*models)
    for epochs in (1, 2):
        model = net(device="cuda", fc_width=16, precision=precision)
        fit(model, patterns(28), recipe=dataclasses.replace(recipe, epochs=epochs), checkpoint=tmp_path, resume=epochs > 1,
            progress=False, cuda_graph=True)  # fmt: skip
    assert_equal_weights(model, models[0])


def test_training_gives_its_memory_back():
    model = net(device="cuda", fc_width=16)
    fit(model, patterns(8), recipe=TWO_BATCHES, progress=False, cuda_graph=True)
    before = in_use()
    fit(model, patterns(8), recipe=TWO_BATCHES, progress=False, cuda_graph=True)
    assert in_use() == before


def test_where_it_can_not_be_had():
    with pytest.raises(ValueError, match="cuda_graph=True needs a CUDA device; the model is on cpu"):
        fit(net(), patterns(8), recipe=TWO_BATCHES, cuda_graph=True)
    model, recipe = net(device="cuda"), dataclasses.replace(TWO_BATCHES, micro_batch=2)
    with pytest.raises(
        ValueError, match="the 4 images of a device go in parts of 2; expected them to fit at once"
    ):
        fit(model, patterns(8), recipe=recipe, cuda_graph=True)


PROGRAM = (
    NARROW
    + """
import dataclasses
from vggnet import parallel
from test_cuda_graph import TWO_BATCHES
from test_train import assert_equal_weights, fit, net, patterns, same_rows
parallel.replicas.plan_buckets = lambda p, layers: parallel.plan_buckets(p, layers, 1000)

def trained(captured):
    model = net(device="cuda:0", fc_width=8)
    recipe = dataclasses.replace(TWO_BATCHES, batch=5)
    return model, fit(
        model, patterns(10), recipe=recipe, devices=["cuda:0", "cuda:1"], progress=False, cuda_graph=captured
    )

(plain, rows), (ours, own_rows) = trained(False), trained(True)
same_rows(rows, own_rows)
assert_equal_weights(plain, ours)
"""
)


@needs_emulator
def test_two_devices_in_lazy_order():
    """Parts of three and two images, averaged by NCCL after the replays; nothing is done before something waits for it."""
    settings = {"PTXEMU_EXIT": "99", "PTXEMU_DEVICES": "2", "PTXEMU_LAZY": "1", "PTXEMU_NCCL_TIMEOUT": "20"}
    path = f"{ENVIRONMENT['PYTHONPATH']}:{Path(__file__).parent}"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=ENVIRONMENT | settings | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_emulator
@pytest.mark.parametrize(
    "name",
    [
        "cudaStreamCreateWithFlags",
        "cudaEventCreateWithFlags",
        "cudaStreamBeginCapture",
        "cudaMallocAsync",
        "cudaLaunchKernel",
        "cublasSgemm",
        "cublasSetWorkspace",
        "cudnnBackendExecute",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaStreamWaitEvent",
        "cudaGraphLaunch",
        "cudaEventRecord",
    ],
)
def test_each_call_fails_in_turn(name):
    """A clean error, nothing leaked, and the same graph is captured and replayed afterwards."""
    model = model_of(init="xavier")
    x = vgg.tensor(normal(1, 32, 32, 3), device="cuda")
    expected = model.forward(x).numpy()

    def use():
        graph = cuda.Graph(lambda: model.forward(x))
        graph()
        return graph().numpy()

    emulator.fail()
    use()
    count, failures = emulator.calls(name), 0
    assert count
    for number in sorted({1, 2, count // 2, count} - {0}):
        emulator.fail(f"{name}:{number}")
        failures += fails_cleanly(lambda: np.testing.assert_array_equal(use(), expected))
        emulator.fail()
        assert not cuda.capturing()
        np.testing.assert_array_equal(use(), expected)
    assert failures or name == "cudaMallocAsync"
