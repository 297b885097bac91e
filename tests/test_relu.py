"""ReLU, its gradient, and the sum of two gradients: exact."""

import numpy as np
import pytest
from vggnet import _C

from helpers import Guarded, call, lay, ops, survives_failed_allocations
from reference import relu as reference
from tolerance import assert_exact

SHAPES = [(), (0,), (1,), (7,), (8,), (9,), (31,), (2, 3, 5, 7), (100_003,), (3, 64, 64, 17)]
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38], np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_reference(device, rng, shape):
    x, dy = rng.standard_normal((2, *shape)).astype(np.float32)
    x, dy = np.asarray(x), np.asarray(dy)
    y = call(ops.relu, x, out=shape)
    assert_exact(y, reference.forward(x))
    assert_exact(call(ops.relu_backward, dy, y, out=shape), reference.backward(dy, y))


def test_special_values(device):
    y = call(ops.relu, SPECIAL, out=SPECIAL.shape)
    assert_exact(y, [np.nan, np.inf, 0, 0, 0, np.float32(1e-45), 0, np.float32(3e38)])
    dy = np.full(SPECIAL.shape, np.nan, np.float32)
    dx = call(ops.relu_backward, dy, SPECIAL, out=SPECIAL.shape)
    assert_exact(dx, [0, np.nan, 0, 0, 0, np.nan, 0, np.nan])


def test_in_place(device, rng):
    """y may be x, dx may be dy (csrc/vgg.h)."""
    x, dy = rng.standard_normal((2, 1000)).astype(np.float32)
    y, dx = Guarded((1000,), value=x), Guarded((1000,), value=dy)
    ops.relu(y.tensor, out=y.tensor)
    ops.relu_backward(dx.tensor, y.tensor, out=dx.tensor)
    assert_exact(y.numpy(), reference.forward(x))
    assert_exact(dx.numpy(), reference.backward(dy, x))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_add(device, rng, shape):
    a, b = rng.standard_normal((2, *shape)).astype(np.float32)
    y = Guarded(shape, value=a)
    assert ops.add_(y.tensor, lay(np.asarray(b))) is None
    assert_exact(y.numpy(), np.asarray(a + b))


def test_threads_give_equal_bits(rng, threads):
    x, dy = rng.standard_normal((2, 300_001)).astype(np.float32)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(ops.relu(x).numpy().tobytes() + ops.relu_backward(dy, x).numpy().tobytes())
    assert len(set(results)) == 1


def test_errors():
    with pytest.raises(ValueError, match=r"relu_backward.*\(4,\)"):
        ops.relu_backward(np.zeros(3, np.float32), np.zeros(4, np.float32))
    with pytest.raises(ValueError, match=r"add.*\(4,\)"):
        ops.add_(_C.zeros((3,)), np.zeros(4, np.float32))
    with pytest.raises(TypeError):
        ops.add_(np.zeros(3, np.float32), np.zeros(3, np.float32))


def test_failed_allocations(rng):
    x = rng.standard_normal(100).astype(np.float32)
    assert survives_failed_allocations(lambda: ops.relu(x)) == 1
    assert survives_failed_allocations(lambda: ops.relu_backward(x, x)) == 1
