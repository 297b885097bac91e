"""A workspace sized for another number of threads serves as many as it has room for, and the result is the same."""

import numpy as np
import pytest
import vggnet as vgg
from vggnet import _C
from vggnet.run import Run

from helpers import call

ALGORITHMS = ("direct", "winograd4")
# x and K: a few tiles of 4x4 pixels; 400, in 5 blocks or more, which Winograd deals out to threads; and the image itself
MAPS = (((1, 12, 10, 64), 48), ((4, 40, 40, 16), 20), ((2, 40, 40, 3), 16))
ROWS, IN, OUT = 9, 300, 200
CHANGES = ((1, 4), (4, 1), (4, 3), (2, 5))  # threads when the workspace is sized, and when it is used


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def conv2d(x, k, algorithm):
    """For each direction, what sizes the workspace, and the call with one of so many bytes."""
    n, h, w, c = x
    y, weights = (n, h, w, k), (k, 3, 3, c)

    def case(direction, op, inputs, out):
        def need():
            return _C.conv2d_workspace(x, weights, direction, algorithm=algorithm)

        arrays = [normal(*shape) for shape in inputs]
        return need, lambda size: call(op, *arrays, out=out, workspace=size, algorithm=algorithm)

    return {
        "forward": case("forward", _C.conv2d, (x, weights), y),
        "backward_input": case("backward_input", _C.conv2d_backward_input, (y, weights), x),
        "backward_weight": case(
            "backward_weight", _C.conv2d_backward_weight, (y, x), [(weights, "float32"), ((k,), "float32")]
        ),
    }


def linear():
    x, w, y = (ROWS, IN), (OUT, IN), (ROWS, OUT)

    def case(direction, op, inputs, out):
        def need():
            return _C.linear_workspace(ROWS, IN, OUT, direction)

        arrays = [normal(*shape) for shape in inputs]
        return need, lambda size: call(op, *arrays, out=out, workspace=size)

    return {
        "forward": case("forward", _C.linear, (x, w), y),
        "backward_input": case("backward_input", _C.linear_backward_input, (y, w), x),
        "backward_weight": case(
            "backward_weight", _C.linear_backward_weight, (y, x), [(w, "float32"), ((OUT,), "float32")]
        ),
    }


CASES = {
    f"{algorithm} {x} {direction}": case
    for algorithm in ALGORITHMS
    for x, k in MAPS
    for direction, case in conv2d(x, k, algorithm).items()
} | {f"linear {direction}": case for direction, case in linear().items()}


@pytest.mark.parametrize("name", CASES)
def test_other_threads_than_it_was_sized_for(threads, name):
    need, run = CASES[name]
    for planned, used in CHANGES:
        threads(planned)
        size = need()
        expected = run(size)
        threads(used)
        np.testing.assert_equal(run(size), expected)


@pytest.mark.parametrize("name", CASES)
def test_too_small_for_even_one_thread(threads, name):
    need, run = CASES[name]
    threads(1)
    size = need()
    for used in (1, 3):
        threads(used)
        with pytest.raises(ValueError, match=rf"workspace has {size // 2} bytes; expected at least \d+"):
            run(size // 2)


@pytest.mark.parametrize("config", ["A-LRN", "C"])
def test_threads_change_within_a_pass(threads, config):
    """Forward and backward each size one workspace; their layers then run on 1, 4, 3, 5, 2, 1, ... threads."""
    model = vgg.VGG(config, num_classes=10, input_size=64, fc_width=64, dropout=0.0, init="he")
    x, labels = vgg.tensor(normal(2, 64, 64, 3)), np.array([3, 7])
    plan = model._plan(x.shape, None, training=True, keep=True)
    counts = []

    def gradients(change):
        def watch(layer, direction):
            counts.append((1, 4, 3, 5, 2)[len(counts) % 5])
            if change:
                threads(counts[-1])

        threads(1)
        run = Run(model, plan, x, None, watch)
        loss, d = vgg.ops.cross_entropy(run.logits, labels)
        grads, dx = run.backward({"fc8": d}, input=True)
        return [float(loss), dx.numpy().tobytes(), *(g.numpy().tobytes() for g in grads.values())]

    assert gradients(True) == gradients(False)
    assert len(counts) > 20
