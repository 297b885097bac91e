"""Linear layers and both gradients against the float64 reference, for every kernel that this CPU can run."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vggnet import _C

import tolerance
from helpers import call, ops, raises, survives_failed_allocations, where
from reference import linear as reference

# rows, in, out: every remainder of the tiles (6x16, 14x32 and scalar's) forward (rows x out), backward to the
# input (rows x in) and to the weights (out x in).
SHAPES = (
    [(n, 37, 35) for n in range(1, 16)]
    + [(3, i, 34 - i) for i in range(1, 34)]
    + [(0, 5, 7), (1, 1, 1), (1, 1025, 3), (2, 3, 1025), (17, 260, 131), (64, 64, 64), (1, 4096, 10)]
    # every way of the input gradient: few rows of w at a time, more, and a block of them; on AVX-512 too
    + [(5, 140, 300), (16, 70, 300), (37, 70, 300), (90, 40, 260)]
)


def label(shape):
    return "n{}i{}o{}".format(*shape)


def dense(rng, n, i, o):
    x = np.maximum(rng.standard_normal((n, i)), 0).astype(np.float32)
    w = (rng.standard_normal((o, i)) * (2 / i) ** 0.5).astype(np.float32)
    return (
        x,
        w,
        (0.1 * rng.standard_normal(o)).astype(np.float32),
        rng.standard_normal((n, o)).astype(np.float32),
    )


def integers(rng, n, i, o):
    return tuple(rng.integers(-4, 5, s).astype(np.float32) for s in [(n, i), (o, i), (o,), (n, o)])


def workspace(n, i, o, direction):
    return _C.linear_workspace(n, i, o, direction, device=where())


def forward(x, w, b=None, relu=False, offset=1):
    (n, i), o = x.shape, len(w)
    return call(
        ops.linear, x, w, b, out=(n, o), relu=relu, offset=offset, workspace=workspace(n, i, o, "forward")
    )


def backward_input(dy, w, offset=1):
    (n, o), i = dy.shape, w.shape[1]
    scratch = workspace(n, i, o, "backward_input")
    return call(ops.linear_backward_input, dy, w, out=(n, i), offset=offset, workspace=scratch)


def backward_weight(dy, x, before=None, offset=1):
    (n, o), i = dy.shape, x.shape[1]
    values = before or (None, None)
    return call(
        ops.linear_backward_weight,
        dy,
        x,
        out=[((o, i), "float32", values[0]), ((o,), "float32", values[1])],
        accumulate=before is not None,
        offset=offset,
        workspace=workspace(n, i, o, "backward_weight"),
    )


def wide(*arrays):
    return tuple(a.astype(np.float64) for a in arrays)


@pytest.mark.parametrize("shape", SHAPES, ids=label)
def test_against_reference(kernels, rng, shape):
    x, w, b, dy = dense(rng, *shape)
    x64, w64, b64, dy64 = wide(x, w, b, dy)
    expected = reference.forward(x64, w64, b64)
    bound = tolerance.linear_bound(x64, w64, b64)
    tolerance.assert_within(forward(x, w, b), expected, bound, "y")
    tolerance.assert_within(forward(x, w, b, relu=True), np.maximum(expected, 0), bound, "relu(y)")
    tolerance.assert_within(
        forward(x, w), reference.forward(x64, w64), tolerance.linear_bound(x64, w64), "y without bias"
    )
    tolerance.assert_within(
        backward_input(dy, w),
        reference.backward_input(dy64, w64),
        tolerance.linear_backward_input_bound(dy64, w64),
        "dx",
    )
    for before in (None, (w, b)):
        results = backward_weight(dy, x, before)
        values = reference.backward_weight(dy64, x64)
        bounds = tolerance.linear_backward_weight_bound(dy64, x64, before or (0, 0))
        for name, result, value, added, limit in zip(
            ("dw", "db"), results, values, before or (0, 0), bounds, strict=True
        ):
            tolerance.assert_within(result, value + added, limit, name)


@given(
    shape=st.tuples(st.integers(1, 33), st.integers(1, 150), st.integers(1, 70)),
    offset=st.sampled_from([0, 1, 3, 8, 15]),
)
@settings(derandomize=True, deadline=None, max_examples=80)
def test_integers_are_exact(shape, offset):
    x, w, b, dy = integers(np.random.default_rng(shape), *shape)
    tolerance.assert_exact(forward(x, w, b, offset=offset), reference.forward(*wide(x, w, b)))
    tolerance.assert_exact(backward_input(dy, w, offset=offset), reference.backward_input(*wide(dy, w)))
    for result, value in zip(
        backward_weight(dy, x, offset=offset), reference.backward_weight(*wide(dy, x)), strict=True
    ):
        tolerance.assert_exact(result, value)


@pytest.mark.parametrize("shape", [(1, 300, 200), (13, 129, 77), (64, 512, 48), (3, 3000, 400)], ids=label)
def test_threads_give_equal_bits(isa, rng, threads, shape):
    x, w, b, dy = dense(rng, *shape)
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        results.append([forward(x, w, b), backward_input(dy, w), *backward_weight(dy, x)])
    for other in results[1:]:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("shape", [(29, 70, 33), (8, 1030, 65), (40, 1030, 300), (90, 70, 140)], ids=label)
def test_splitting_a_batch_gives_equal_bits(isa, rng, shape):
    x, w, b, dy = dense(rng, *shape)
    y, dx = forward(x, w, b), backward_input(dy, w)
    for part in (slice(0, 1), slice(1, 4), slice(3, None)):
        assert forward(x[part], w, b).tobytes() == y[part].tobytes()
        assert backward_input(dy[part], w).tobytes() == dx[part].tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_propagate(kernels, rng, value):
    x, w, b, dy = integers(rng, 7, 19, 35)
    x[2, 18] = dy[6, 34] = value
    with np.errstate(invalid="ignore"):
        y = reference.forward(*wide(x, w, b))
        assert not np.isfinite(y[2]).any()
        tolerance.assert_exact(forward(x, w, b), y)
        tolerance.assert_exact(forward(x, w, b, relu=True), np.maximum(y, 0))
        tolerance.assert_exact(backward_input(dy, w), reference.backward_input(*wide(dy, w)))
        for result, expected in zip(
            backward_weight(dy, x), reference.backward_weight(*wide(dy, x)), strict=True
        ):
            tolerance.assert_exact(result, expected)


def test_empty_batch_zeroes_sums(device):
    x, dy = np.zeros((0, 3), np.float32), np.zeros((0, 5), np.float32)
    dw, db = backward_weight(dy, x)
    assert dw.shape == (5, 3) and not dw.any() and not db.any()
    dw, db = backward_weight(dy, x, before=(np.ones((5, 3), np.float32), np.ones(5, np.float32)))
    assert (dw == 1).all() and (db == 1).all()


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda: ops.linear(zeros(2, 3), zeros(5, 4)), ["linear", "w", "(5, 4)", "3"]),
        (lambda: ops.linear(zeros(2, 3), zeros(5, 3), zeros(4)), ["b", "(4,)", "5"]),
        (lambda: ops.linear(zeros(3), zeros(5, 3)), ["x", "(3,)"]),
        (lambda: ops.linear(zeros(2, 3), zeros(5, 3), out=_C.empty((2, 6))), ["out", "(2, 6)", "(2, 5)"]),
        (
            lambda: ops.linear_backward_input(zeros(2, 5), zeros(4, 3)),
            ["linear_backward_input", "(4, 3)", "5"],
        ),
        (
            lambda: ops.linear_backward_weight(zeros(2, 5), zeros(3, 4)),
            ["linear_backward_weight", "(2, 5)", "3 rows"],
        ),
        (
            lambda: ops.linear_backward_weight(zeros(2, 5), zeros(2, 4), accumulate=True),
            ["accumulate", "out"],
        ),
    ],
)
def test_errors(function, words):
    with raises(words):
        function()


def test_failed_allocations(rng):
    x, w, b, dy = dense(rng, 5, 30, 20)
    assert survives_failed_allocations(lambda: ops.linear(x, w, b)) >= 1
    survives_failed_allocations(lambda: ops.linear_backward_input(dy, w))
    survives_failed_allocations(lambda: ops.linear_backward_weight(dy, x))
