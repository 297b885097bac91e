"""Direct convolution of inputs of few channels (kernels/first_tile.h), all three directions: every number of channels that it
takes, every remainder of its tiles and blocks, and its long sums."""

import numpy as np
import pytest
from vggnet import _C

import tolerance
from helpers import call
from reference import conv2d as reference
from test_conv2d import (
    FUSIONS,
    _case,
    backward_input,
    backward_weight,
    forward,
    integers,
    label,
    wide,
)

SLOTS = {
    "forward": {"first_forward"},
    "backward_input": {"first_gradient", "first_input"},
    "backward_weight": {"first_gradient", "first_weight"},
}
# n, h, w, c, k. Tiles are 3 or 6 pixels by 16, 32 or 64 channels forward, 12 / c pixels backward; blocks of the weight
# gradient 64 pixels, in one row or several. Bands are 8 rows forward, 16 backward.
SHAPES = [
    (1, h, w, c, 5) for c in range(1, 5) for h, w in [(1, 1), (1, 13), (13, 1), (2, 3), (11, 7), (17, 26)]
]
SHAPES += [
    (2, 3, 5, c, k) for c in range(1, 5) for k in (1, 4, 7, 8, 9, 16, 24, 31, 32, 33, 63, 64, 65, 128, 131)
]
SHAPES += [(1, 3, w, 3, 64) for w in (*range(1, 28), 63, 64, 65, 129)]
SHAPES += [(0, 4, 4, c, 5) for c in range(1, 5)]
SHAPES += [(3, 33, 35, 3, 64), (2, 40, 130, 1, 40), (70, 5, 4, 3, 16)]


def fusions(shape):
    return [f for f in FUSIONS if f[2] != "floor" or min(shape[1:3]) > 1]


@pytest.mark.parametrize("shape", SHAPES, ids=label)
def test_against_the_reference(isa, shape):
    for fusion in fusions(shape):
        with_bias, relu, pool = fusion
        x, w, b, y, index, dy = _case(shape, 3, fusion)
        result = forward(x, w, b, relu=relu, pool=pool)
        bound = tolerance.conv2d_bound(wide(x), wide(w), wide(b), pool)
        tolerance.assert_within(result[0] if pool else result, y, bound, f"y of {fusion}")

        masks = {"y": y.astype(np.float32) if relu else None, "index": index}
        g = reference.fused_gradient(wide(dy), **masks, input_shape=x.shape)
        dx = backward_input(dy, w, **masks, input_shape=x.shape if pool else None, pool=pool)
        bound = tolerance.conv2d_backward_input_bound(g, wide(w))
        tolerance.assert_within(dx, reference.backward_input(g, wide(w)), bound, f"dx of {fusion}")

        before = (w, b) if with_bias else None
        sums = backward_weight(dy, x, 3, **masks, pool=pool, before=before)
        values = reference.backward_weight(g, wide(x), 3)
        bounds = tolerance.conv2d_backward_weight_bound(g, wide(x), 3, before=before or (0, 0))
        for name, got, value, limit, old in zip(
            ("dw", "db"), sums, values, bounds, before or (0, 0), strict=True
        ):
            tolerance.assert_within(got, value + old, limit, f"{name} of {fusion}")


@pytest.mark.parametrize("shape", SHAPES, ids=label)
def test_integers_are_exact(isa, rng, shape):
    """Ties in pooling windows, too."""
    x, w, b = integers(rng, *shape, 3)
    for relu in (False, True):
        for pool in (None, "ceil", "floor") if min(shape[1:3]) > 1 else (None, "ceil"):
            y = forward(x, w, b, relu=relu, pool=pool)
            expected = reference.fused(wide(x), wide(w), wide(b), relu, pool)
            for got, value in zip(y if pool else [y], expected if pool else [expected], strict=True):
                tolerance.assert_exact(got, value, f"forward, {pool}")
            y, index = y if pool else (y, None)
            dy = rng.integers(-3, 4, y.shape).astype(np.float32)
            mask = y if relu else None
            g = reference.fused_gradient(wide(dy), mask, index, x.shape)
            dx = backward_input(dy, w, mask, index, x.shape if pool else None, pool)
            tolerance.assert_exact(dx, reference.backward_input(g, wide(w)), "dx")
            sums = backward_weight(dy, x, 3, mask, index, pool)
            for got, value in zip(sums, reference.backward_weight(g, wide(x)), strict=True):
                tolerance.assert_exact(got, value, "dw or db")


@pytest.mark.parametrize("shape", [(3, 33, 67, 3, 64), (2, 50, 31, 1, 20), (70, 5, 4, 4, 16)], ids=label)
def test_threads_and_alignment_give_equal_bits(isa, threads, shape):
    for fusion in FUSIONS:
        _, relu, pool = fusion
        x, w, b, y, index, dy = _case(shape, 3, fusion)
        masks = {"y": y.astype(np.float32) if relu else None, "index": index, "pool": pool}
        results = []
        for count, offset in ((1, 0), (2, 1), (3, 8), (7, 3)):
            threads(count)
            out = forward(x, w, b, relu=relu, pool=pool, offset=offset)
            dx = backward_input(dy, w, **masks, input_shape=x.shape if pool else None, offset=offset)
            results.append(
                [*(out if pool else [out]), dx, *backward_weight(dy, x, 3, **masks, offset=offset)]
            )
        for other in results[1:]:
            assert all(a.tobytes() == b.tobytes() for a, b in zip(results[0], other, strict=True))


def test_streamed_results_are_the_stored_ones(isa):
    """A map of 26 MB is written past the caches where it is aligned (offset 0 of a tensor's own storage)."""
    x, w, b, _, _, _ = _case((1, 320, 330, 1, 64), 3, FUSIONS[1])
    streamed = _C.conv2d(x, w, b, relu=True).numpy()
    assert streamed.nbytes > 24 << 20
    arena = _C.empty((streamed.nbytes + 64,), "uint8")
    stored = _C.conv2d(x, w, b, relu=True, out=arena.view(4, streamed.shape, "float32")).numpy()
    assert streamed.tobytes() == stored.tobytes()
    part = reference.fused(wide(x[:, :9]), wide(w), wide(b), True)[:, :8]
    bound = tolerance.conv2d_bound(wide(x[:, :9]), wide(w), wide(b))[:, :8]
    tolerance.assert_within(streamed[:, :8], part, bound)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_propagate(isa, rng, channels, value):
    x, w, b = integers(rng, 1, 7, 9, channels, 18, 3)
    x[0, 2, 3, channels - 1] = value
    with np.errstate(invalid="ignore"):
        for relu, pool in ((False, None), (True, None), (True, "ceil"), (False, "floor")):
            y = forward(x, w, b, relu=relu, pool=pool)
            expected = reference.fused(wide(x), wide(w), wide(b), relu, pool)
            for got, wanted in zip(y if pool else [y], expected if pool else [expected], strict=True):
                tolerance.assert_exact(got, wanted)
        dy = rng.integers(-3, 4, (1, 7, 9, 18)).astype(np.float32)
        dy[0, 0, 8, 17] = dy[0, 4, 4, 2] = value
        y = rng.integers(-1, 2, dy.shape).astype(np.float32)
        y[0, 0, 8, 17], y[0, 4, 4, 2] = 1, np.nan  # one that counts; NaN > 0 is false, so this is masked
        y[0, 5, 5] = np.nan
        g = reference.fused_gradient(wide(dy), y)
        tolerance.assert_exact(backward_input(dy, w, y), reference.backward_input(g, wide(w)))
        for got, wanted in zip(
            backward_weight(dy, x, 3, y), reference.backward_weight(g, wide(x)), strict=True
        ):
            tolerance.assert_exact(got, wanted)


@pytest.mark.parametrize("place", [4, 255])
def test_index_out_of_range(isa, place):
    """Such an index names no winner: its gradient goes nowhere."""
    rng = np.random.default_rng(place)
    dy, w, x = (rng.integers(-3, 4, s).astype(np.float32) for s in [(1, 2, 2, 8), (8, 3, 3, 3), (1, 4, 4, 3)])
    index = rng.integers(0, 4, dy.shape).astype(np.uint8)
    index[0, 1, 0, 5] = index[0, 0, 1, 7] = place
    g = reference.fused_gradient(wide(dy), None, index, x.shape)
    dx = backward_input(dy, w, None, index, x.shape, "floor")
    tolerance.assert_exact(dx, reference.backward_input(g, wide(w)))
    sums = backward_weight(dy, x, 3, None, index, "floor")
    for got, wanted in zip(sums, reference.backward_weight(g, wide(x), 3), strict=True):
        tolerance.assert_exact(got, wanted)


@pytest.mark.parametrize("channels", [1, 3])
def test_long_sums_of_positives(isa, channels):
    """320,000 positives stay within the bound of short sums: blocks of 64 are added by 4, then in float64."""
    rng = np.random.default_rng(5)
    x = rng.uniform(0.5, 1, (8, 200, 200, channels)).astype(np.float32)
    dy = rng.uniform(0.5, 1, (8, 200, 200, 2)).astype(np.float32)
    results = call(
        _C.conv2d_backward_weight,
        dy,
        x,
        3,
        algorithm="direct",
        out=[((2, 3, 3, channels), "float32"), ((2,), "float32")],
    )
    values = reference.backward_weight(wide(dy), wide(x), 3)
    for name, got, value in zip(("dw", "db"), results, values, strict=True):
        tolerance.assert_within(got, value, 2 * tolerance.EPS32 * value, name)


def test_very_long_sums(isa):
    """12 million equal terms: rounding that always goes the same way, so that a block of 64 is itself off by 5 eps
    (measured; 6 allows for the last rounding). A task's 1,500 blocks, all added in float32, would be off by 116."""
    n, side, term = 3, 2000, np.float32(0.7)
    x, dy = np.ones((n, side, side, 1), np.float32), np.full((n, side, side, 1), term)
    dw, db = _C.conv2d_backward_weight(dy, x, 3)
    expected = n * side**2 * float(term)
    tolerance.assert_within(dw.numpy()[0, 1, 1, 0], expected, 6 * tolerance.EPS32 * expected)
    tolerance.assert_within(db.numpy()[0], expected, 6 * tolerance.EPS32 * expected)


@pytest.mark.parametrize("shape, size, first", [
    ((2, 9, 7, 1, 70), 3, True), ((2, 9, 7, 4, 64), 3, True), ((2, 9, 7, 5, 70), 3, False), ((2, 9, 7, 3, 70), 1, False),
    ((2, 9, 7, 3, 15), 3, True),
])  # fmt: skip
def test_what_runs(isa, shape, size, first):
    """At most four channels and 3x3 kernels; forward, also a panel of output channels (16 to 64)."""
    x, w, b, _, _, dy = _case(shape, size, FUSIONS[0])
    for algorithm in ("direct", "auto"):
        for direction, run in {
            "forward": lambda a=algorithm: forward(x, w, b, algorithm=a),
            "backward_input": lambda a=algorithm: backward_input(dy, w, algorithm=a),
            "backward_weight": lambda a=algorithm: backward_weight(dy, x, size, algorithm=a),
        }.items():
            before = {k["name"]: k["uses"] for k in _C.kernels()}
            run()
            used = {k["slot"] for k in _C.kernels() if k["uses"] > before[k["name"]]}
            taken = first and (direction != "forward" or shape[4] >= 64)
            assert used == (SLOTS[direction] if taken else {"gemm"}), (direction, used)


def test_sizes_that_overflow_and_workspace_too_small(isa):
    for shape, k in [((1 << 40, 1 << 40, 4, 3), 64), ((1, 4, 1 << 60, 3), 64), ((1, 8, 8, 3), 1 << 61)]:
        for direction in SLOTS:
            with pytest.raises((ValueError, MemoryError, OverflowError)):
                _C.empty((_C.conv2d_workspace(shape, (k, 3, 3, 3), direction),))
    x, w, _, _, _, dy = _case((2, 9, 7, 3, 19), 3, FUSIONS[0])
    for direction, run in {
        "forward": lambda s: _C.conv2d(x, w, workspace=s),
        "backward_input": lambda s: _C.conv2d_backward_input(dy, w, workspace=s),
        "backward_weight": lambda s: _C.conv2d_backward_weight(dy, x, 3, workspace=s),
    }.items():
        with pytest.raises(ValueError, match="workspace"):
            run(_C.empty((64,), "uint8"))
        run(_C.empty((_C.conv2d_workspace(x.shape, w.shape, direction),), "uint8"))
