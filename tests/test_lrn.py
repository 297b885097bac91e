"""Local response normalisation and its gradient against the float64 reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import call, ops, raises, survives_failed_allocations
from reference import lrn as reference
from tolerance import assert_within, lrn_backward_bound, lrn_bound

PAPER = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}
STRONG = {"size": 5, "alpha": 0.5, "beta": 0.75, "k": 1.0}
OTHER = {"size": 3, "alpha": 0.25, "beta": 0.5, "k": 0.125}
WIDE = {"size": 131, "alpha": 0.01, "beta": 1.25, "k": 2.0}
ONE = {"size": 1, "alpha": 1.0, "beta": 0.75, "k": 1.0}
SHAPES = [
    (0, 3, 3, 8),
    (1, 1, 1, 1),
    (2, 3, 1, 2),
    (3, 5),
    (7,),
    (2, 3, 5, 63),
    (2, 4, 4, 64),
    (1, 3, 5, 65),
    (1, 2, 3, 300),
]


def check(x, dy, options):
    x64, dy64 = x.astype(np.float64), dy.astype(np.float64)
    # The library gets its options as float32.
    exact = {k: v if k == "size" else float(np.float32(v)) for k, v in options.items()}
    y = reference.forward(x64, **exact)
    assert_within(call(ops.lrn, x, out=x.shape, **options), y, lrn_bound(y), "y")
    dx = reference.backward(dy64, x64, **exact)
    bound = lrn_backward_bound(dy64, x64, **exact)
    assert_within(call(ops.lrn_backward, dy, x, out=x.shape, **options), dx, bound, "dx")


@pytest.mark.parametrize(
    "options", [PAPER, STRONG, OTHER, WIDE, ONE], ids=["paper", "strong", "other", "wide", "one"]
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_reference(device, rng, shape, options):
    x, dy = rng.standard_normal((2, *shape)).astype(np.float32)
    check(x, dy, options)
    check(100 * x, dy, options)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 200)), size=st.sampled_from([1, 3, 5, 7, 9, 65, 129])
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_any_shape(shape, size):
    x, dy = np.random.default_rng([*shape, size]).standard_normal((2, *shape)).astype(np.float32)
    check(x, dy, {**STRONG, "size": size})


def test_defaults_are_the_papers(device, rng):
    x = 50 * rng.standard_normal((2, 3, 3, 16)).astype(np.float32)
    assert ops.lrn(x).numpy().tobytes() == ops.lrn(x, **PAPER).numpy().tobytes()
    assert ops.lrn_backward(x, x).numpy().tobytes() == ops.lrn_backward(x, x, **PAPER).numpy().tobytes()


def test_nan_stays_in_its_window(device, rng):
    x = rng.standard_normal((1, 20)).astype(np.float32)
    x[0, 10] = np.nan
    y = call(ops.lrn, x, out=x.shape, **PAPER)
    assert np.isnan(y[0, 8:13]).all() and np.isfinite(np.delete(y[0], range(8, 13))).all()


def test_threads_give_equal_bits(rng, threads):
    x, dy = rng.standard_normal((2, 5, 50, 50, 64)).astype(np.float32)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(ops.lrn(x).numpy().tobytes() + ops.lrn_backward(dy, x).numpy().tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize(
    "options, words",
    [
        ({"size": 4}, ["lrn", "size", "4", "odd"]),
        ({"size": 0}, ["size", "0"]),
        ({"size": -1}, ["size", "-1"]),
        ({"alpha": float("nan")}, ["alpha", "nan"]),
        ({"k": 0.0}, ["k", "0"]),
    ],
)
def test_errors(options, words):
    x = np.zeros((2, 8), np.float32)
    for function in (lambda: ops.lrn(x, **options), lambda: ops.lrn_backward(x, x, **options)):
        with raises(words):
            function()
    with pytest.raises(ValueError, match=r"dy.*\(2, 7\)"):
        ops.lrn_backward(np.zeros((2, 7), np.float32), x)


def test_failed_allocations(rng):
    x = rng.standard_normal((3, 8)).astype(np.float32)
    assert survives_failed_allocations(lambda: ops.lrn(x)) == 1
    assert survives_failed_allocations(lambda: ops.lrn_backward(x, x)) == 1
