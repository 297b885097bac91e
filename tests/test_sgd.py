"""SGD's step (Caffe's rule) and the average over devices against the float64 reference."""

import math

import numpy as np
import pytest
from vggnet import _C

from helpers import Guarded, ops, put, raises, survives_failed_allocations
from reference import average, sgd
from tolerance import EPS32, assert_within, sgd_bound

SIZES = [0, 1, 7, 8, 9, 33, 1000, 70_001]


def guarded(a):
    return Guarded(a.shape, value=a)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", [(0.01, 0.9, 5e-4), (0.1, 0.0, 0.0), (1.0, 0.5, 0.25)], ids=str)
def test_step(device, rng, size, options):
    p, g, v = rng.standard_normal((3, size)).astype(np.float32)
    param, grad, velocity = guarded(p), guarded(g), guarded(v)
    assert ops.sgd_(param.tensor, grad.tensor, velocity.tensor, *options) is None
    exact = [float(np.float32(o)) for o in options]
    new_p, new_v = sgd.step(*(a.astype(np.float64) for a in (p, g, v)), *exact)
    param_bound, velocity_bound = sgd_bound(*(a.astype(np.float64) for a in (p, g, v)), *exact)
    assert_within(velocity.numpy(), new_v, velocity_bound, "velocity")
    assert_within(param.numpy(), new_p, param_bound, "param")
    assert grad.numpy().tobytes() == g.tobytes()


def test_a_list_is_one_pass_of_the_same_steps(device, rng, threads):
    shapes = [(3, 5), (1,), (0,), (64, 3, 3, 3), (100_003,)]
    arrays = [[rng.standard_normal(s).astype(np.float32) for s in shapes] for _ in range(3)]
    results = []
    for count in (1, 3):
        threads(count)
        p, g, v = ([put(a) for a in group] for group in arrays)
        ops.sgd_(p, g, v, 0.05, 0.9, 1e-3)
        results.append([t.numpy().tobytes() for t in p + v])
    p, g, v = ([put(a) for a in group] for group in arrays)
    for one in zip(p, g, v, strict=True):
        ops.sgd_(*one, 0.05, 0.9, 1e-3)
    results.append([t.numpy().tobytes() for t in p + v])
    assert results[0] == results[1] == results[2]


def test_ten_steps_follow_the_reference(device, rng):
    p, v = rng.standard_normal((2, 50)).astype(np.float32)
    param, velocity = put(p), put(v)
    p, v = p.astype(np.float64), v.astype(np.float64)
    for _ in range(10):
        g = rng.standard_normal(50).astype(np.float32)
        ops.sgd_(param, put(g), velocity, 0.1, 0.9, 5e-4)
        p, v = sgd.step(p, g.astype(np.float64), v, *(float(np.float32(o)) for o in (0.1, 0.9, 5e-4)))
    assert np.abs(param.numpy() - p).max() < 100 * EPS32


def test_a_step_bumps_the_version(device, rng):
    """Whoever cached something made from the weights can see that they changed."""
    p, g, v = (put(a) for a in rng.standard_normal((3, 4)).astype(np.float32))
    before = p.storage.version, g.storage.version
    ops.sgd_(p, g, v, 0.1)
    assert p.storage.version > before[0] and g.storage.version == before[1]


def test_sgd_errors():
    a, b = _C.zeros((3,)), _C.zeros((4,))
    for function, kind, words in [
        (lambda: ops.sgd_(a, b, a, 0.1), ValueError, ["sgd_", "grad", "(4,)", "(3,)"]),
        (lambda: ops.sgd_(a, a, b, 0.1), ValueError, ["velocity", "(4,)"]),
        (lambda: ops.sgd_([a, b], [a], [a, b], 0.1), ValueError, ["grad", "2", "1"]),
        (lambda: ops.sgd_(np.zeros(3, np.float32), a, a, 0.1), TypeError, ["param"]),
        (lambda: ops.sgd_([], [], [], math.nan), ValueError, ["sgd_", "lr is nan"]),
        (lambda: ops.sgd_(a, a, a, 0.1, math.inf), ValueError, ["momentum is inf"]),
        (lambda: ops.sgd_(a, a, a, 0.1, 0.9, -math.inf), ValueError, ["weight_decay is -inf"]),
        (
            lambda: ops.sgd_(a, a, _C.zeros((3,), "int64"), 0.1),
            (ValueError, TypeError),
            ["velocity", "int64"],
        ),
    ]:
        with raises(words, kind):
            function()


# ---------------------------------------------------------------------------------------------- average


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("devices", [1, 2, 3, 5])
def test_average(device, rng, size, devices):
    arrays = rng.standard_normal((devices, size)).astype(np.float32)
    for weights in (None, list(rng.uniform(0.1, 3, devices))):
        tensors = [guarded(a) for a in arrays]
        ops.average_gradients_([[t.tensor] for t in tensors], weights=weights)
        expected = average.weighted_mean(arrays.astype(np.float64), weights)
        # Summed in float64, so what is left is the one rounding of the result.
        total = average.weighted_mean(np.abs(arrays.astype(np.float64)), weights)
        bound = 0.5001 * EPS32 * np.abs(expected) + 1e-14 * total
        for t in tensors:
            assert_within(t.numpy(), expected, bound)
        assert len({t.numpy().tobytes() for t in tensors}) == 1


def test_average_has_the_bits_of_its_formula_with_every_isa(isa, rng):
    """Sums in float64, in the order of the devices, nothing fused, one division: also of Inf, NaN and subnormals."""
    for size in (
        1,
        31,
        32,
        33,
        1000,
        40_003,
    ):  # of 4 vectors of up to 8: a remainder, none, many; several tasks
        arrays = (rng.standard_normal((3, size)) * 10.0 ** rng.integers(-44, 38, (3, size))).astype(
            np.float32
        )
        arrays[rng.random(arrays.shape) < 0.05] = np.inf
        arrays[rng.random(arrays.shape) < 0.05] = -np.inf
        arrays[rng.random(arrays.shape) < 0.05] = np.nan
        weights = rng.uniform(0.1, 3, 3)
        weights[1] = weights[0]  # and what is 0 shows whether a product was rounded
        arrays[1, ::3], arrays[2, ::3] = -arrays[0, ::3], 0
        total, divisor = np.zeros(size), 0.0
        with np.errstate(invalid="ignore", over="ignore"):
            for weight, array in zip(weights, arrays.astype(np.float64), strict=True):
                total += weight * array
                divisor += weight
            expected = (total / divisor).astype(np.float32)
        tensors = [put(a) for a in arrays]
        ops.average_gradients_([[t] for t in tensors], weights=list(weights))
        for t in tensors:
            np.testing.assert_array_equal(t.numpy(), expected)


def test_average_of_lists(device, rng, threads):
    shapes = [(3, 5), (0,), (70_001,)]
    arrays = [[rng.standard_normal(s).astype(np.float32) for s in shapes] for _ in range(3)]
    results = []
    for count in (1, 3):
        threads(count)
        lists = [[put(a) for a in group] for group in arrays]
        ops.average_gradients_(lists, weights=[1, 2, 3])
        results.append([t.numpy().tobytes() for group in lists for t in group])
    assert results[0] == results[1]
    assert results[0][:3] == results[0][3:6]


def test_average_errors():
    a, b = _C.zeros((3,)), _C.zeros((4,))
    for function, kind, word in [
        (lambda: ops.average_gradients_([]), ValueError, "lists"),
        (lambda: ops.average_gradients_([[a], [b]]), ValueError, "(4,)"),
        (lambda: ops.average_gradients_([[a], [a, a]]), ValueError, "2"),
        (lambda: ops.average_gradients_([[a], [_C.zeros((3,))]], weights=[1.0]), ValueError, "weights"),
        (
            lambda: ops.average_gradients_([[a], [_C.zeros((3,))]], weights=[1.0, -1.0]),
            ValueError,
            "weights[1]",
        ),
        (
            lambda: ops.average_gradients_([[a], [_C.zeros((3,))]], weights=[math.nan, 1.0]),
            ValueError,
            "weights[0]",
        ),
        (lambda: ops.average_gradients_([[a], [_C.zeros((3,))]], weights=[1e308] * 2), ValueError, "inf"),
        (lambda: ops.average_gradients_([[a], [_C.zeros((3,))]], weights=[0.0, 0.0]), ValueError, "weights"),
        (lambda: ops.average_gradients_([[np.zeros(3, np.float32)]]), TypeError, "Tensor"),
    ]:
        with pytest.raises(kind) as error:
            function()
        assert word in str(error.value), str(error.value)


def test_failed_allocations(rng):
    p, g, v = (put(a) for a in rng.standard_normal((3, 4)).astype(np.float32))
    survives_failed_allocations(lambda: ops.sgd_(p, g, v, 0.1))
    survives_failed_allocations(lambda: ops.average_gradients_([[p], [g]]))
