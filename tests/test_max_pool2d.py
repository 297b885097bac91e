"""Max pooling and its gradient: exact, with set winners."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import Guarded, call, ops, raises, survives_failed_allocations
from reference import max_pool2d as reference
from tolerance import assert_exact

SHAPES = [
    (1, 1, 1, 1),
    (1, 2, 2, 1),
    (1, 1, 5, 3),
    (2, 5, 1, 3),
    (0, 4, 4, 8),
    (2, 4, 6, 64),
    (3, 5, 7, 67),
    (1, 3, 3, 129),
    (2, 14, 13, 16),
    (1, 8, 2, 300),
]


def forward(x, ceil_mode):
    n, h, w, c = x.shape
    shape = (n, reference.pooled(h, ceil_mode), reference.pooled(w, ceil_mode), c)
    return call(ops.max_pool2d, x, out=[(shape, "float32"), (shape, "uint8")], ceil_mode=ceil_mode)


def backward(dy, index, input_shape):
    return call(ops.max_pool2d_backward, dy, index, input_shape, out=input_shape)


def check(x, ceil_mode, dy_rng):
    y, index = forward(x, ceil_mode)
    expected_y, expected_index = reference.forward(x, ceil_mode)
    assert_exact(y, expected_y, "y")
    assert_exact(index, expected_index, "index")
    zeros = expected_y == 0
    assert np.array_equal(np.signbit(y[zeros]), np.signbit(expected_y[zeros])), "the sign of a zero"
    dy = dy_rng.standard_normal(y.shape).astype(np.float32)
    assert_exact(backward(dy, index, x.shape), reference.backward(dy, index, x.shape), "dx")


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_reference(device, rng, shape, ceil_mode):
    check(rng.standard_normal(shape).astype(np.float32), ceil_mode, rng)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ties_and_special_values(device, rng, shape, ceil_mode):
    """Few distinct values: almost every window has ties, NaNs (also nothing else), infinities, zeros of both
    signs."""
    values = np.array([-np.inf, -1, -0.0, 0.0, 1, np.inf, np.nan], np.float32)
    check(rng.choice(values, shape), ceil_mode, rng)


def test_every_window_of_a_few_values(device):
    values = [-np.inf, 0.0, 1.0, np.nan]
    windows = np.array(list(itertools.product(values, repeat=4)), np.float32)
    # (256 windows as channels of one 2x2 image)
    x = np.ascontiguousarray(windows.T.reshape(1, 2, 2, -1))
    y, index = forward(x, False)
    expected_y, expected_index = reference.forward(x)
    assert_exact(y, expected_y)
    assert_exact(index, expected_index)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 70)),
    ceil_mode=st.booleans(),
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_any_shape(shape, ceil_mode):
    rng = np.random.default_rng(shape)
    check(rng.integers(-2, 3, shape).astype(np.float32), ceil_mode, rng)


def test_threads_give_equal_bits(rng, threads):
    x = rng.integers(-3, 3, (3, 33, 65, 48)).astype(np.float32)
    results = []
    for count in (1, 2, 3):
        threads(count)
        y, index = forward(x, True)
        results.append([y, index, backward(y, index, x.shape)])
    for other in results[1:]:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("place", [4, 7, 255])
def test_index_out_of_range_is_an_error(place):
    dy = np.ones((1, 2, 2, 5), np.float32)
    index = np.zeros(dy.shape, np.uint8)
    index[0, 1, 0, 3] = place
    dx = Guarded((1, 4, 4, 5))
    with pytest.raises(ValueError, match="index"):
        ops.max_pool2d_backward(dy, index, (1, 4, 4, 5), out=dx.tensor)
    dx.check()


@pytest.mark.parametrize("place, fine", [(0, True), (1, False), (2, True), (3, False)])
def test_index_beyond_the_edge_is_an_error(place, fine):
    """The last window of a ceil pooling of width 3 has the places 0 and 2 only."""
    dy = np.ones((1, 1, 2, 4), np.float32)
    index = np.zeros(dy.shape, np.uint8)
    index[0, 0, 1] = place
    dx = Guarded((1, 2, 3, 4))
    if fine:
        ops.max_pool2d_backward(dy, index, (1, 2, 3, 4), out=dx.tensor)
    else:
        with pytest.raises(ValueError, match="index"):
            ops.max_pool2d_backward(dy, index, (1, 2, 3, 4), out=dx.tensor)
    dx.check()


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda: ops.max_pool2d(zeros(4, 4, 3)), ["max_pool2d", "x", "(4, 4, 3)"]),
        (
            lambda: ops.max_pool2d_backward(
                zeros(1, 2, 2, 3), np.zeros((1, 2, 2, 4), np.uint8), (1, 4, 4, 3)
            ),
            ["max_pool2d_backward", "index", "(1, 2, 2, 4)"],
        ),
        (
            lambda: ops.max_pool2d_backward(
                zeros(1, 2, 2, 3), np.zeros((1, 2, 2, 3), np.uint8), (1, 6, 4, 3)
            ),
            ["dy", "(1, 2, 2, 3)", "(1, 6, 4, 3)"],
        ),
        (
            lambda: ops.max_pool2d_backward(zeros(1, 2, 2, 3), np.zeros((1, 2, 2, 3), np.uint8), (4, 4, 3)),
            ["input_shape"],
        ),
        (
            lambda: ops.max_pool2d_backward(zeros(1, 2, 2, 3), zeros(1, 2, 2, 3), (1, 4, 4, 3)),
            ["index", "uint8"],
        ),
    ],
)
def test_errors(function, words):
    with raises(words, (ValueError, TypeError)):
        function()


def test_failed_allocations(rng):
    x = rng.standard_normal((1, 4, 4, 3)).astype(np.float32)
    y, index = forward(x, False)
    assert survives_failed_allocations(lambda: ops.max_pool2d(x)) == 2
    assert survives_failed_allocations(lambda: ops.max_pool2d_backward(y, index, x.shape)) == 1
