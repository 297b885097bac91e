"""The weight gradient by Winograd's F(3x3, 4x4): its mathematics, and algorithm="winograd4" against the
reference."""

import re
from pathlib import Path

import numpy as np
import pytest
from vggnet import _C

import tolerance
from reference import conv2d as reference
from test_conv2d import FUSIONS, _case, backward_weight, dense, label, wide

HEADER = Path(__file__).parents[1] / "csrc/kernels/winograd4_points.h"
POINTS = (0, 0.75, -0.75, 1.5, -1.5)  # and infinity
SLOTS = ("winograd4_input", "winograd4_gradient", "winograd4_sums")
# n, h, w, c, k. Tiles are of 4 x 4 pixels of g and 6 x 6 of x; panels are of 8, 16 or 32 channels of x and of
# 4, 24 or 112 of g, in vectors of 4, 8 or 16 and tiles of 4, 6 or 14.
SIDES = [(1, h, w, 3, 5) for h in (*range(1, 10), 13) for w in (1, 2, 3, 4, 5, 7, 8, 9, 13)]
CHANNELS = [(2, 5, 6, c, 7) for c in (*range(1, 34), 47, 48, 49, 63, 64, 65)]
CHANNELS += [(2, 5, 6, 7, k) for k in (*range(1, 34), 47, 48, 49, 111, 112, 113, 126, 127)]
SMOKE = [
    (0, 4, 4, 3, 5),
    (1, 1, 1, 1, 1),
    (3, 7, 9, 20, 13),
    (1, 14, 14, 64, 96),
    (4, 28, 28, 16, 24),
    (5, 3, 2, 4, 3),
    (1, 6, 5, 131, 67),
]
SEVERAL_CHUNKS = [
    (2, 49, 50, 16, 16),  # rows of tiles of two images in a chunk
    (1, 3, 1100, 5, 9),  # a row of more tiles than a chunk wants
    (300, 2, 2, 17, 33),  # an image is a tile
    (1, 48, 40, 150, 330),  # the panels of an element are split
]
SHAPES = SMOKE + SEVERAL_CHUNKS + SIDES + CHANNELS


def winograd(*arguments, **options):
    return backward_weight(*arguments, **options, algorithm="winograd4")


def padded_tiles(a, before, side):
    """Windows of side x side pixels every four pixels, the first `before` pixels above and left of the map:
    (tiles, channels, side, side)."""
    _, h, w, c = a.shape
    ends = [(before, -size % 4 + side - 4 - before) for size in (h, w)]
    a = np.pad(a, ((0, 0), *ends, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(a, (side, side), (1, 2))[:, ::4, ::4]
    return windows.reshape(-1, c, side, side)


def bounds_of(g, x, before=None):
    """For dw twice eps32 times the sum of the absolute values of all that is added up on the way, which is the
    algorithm on absolute values. A tile mixes all its pixels, also those that a tap does not meet, and where there
    are few tiles and many zeros, those may be all there is. Measured worst: 0.8. For db as tolerance.py has it."""
    bt, g_matrix, at, _ = (np.abs(a) for a in transforms(POINTS))
    u = g_matrix @ padded_tiles(np.abs(g), 0, 4) @ g_matrix.T
    v = bt @ padded_tiles(np.abs(wide(x)), 1, 6) @ bt.T
    size = np.einsum(
        "ri,sj,kcij->krsc", at, at, np.einsum("tkij,tcij->kcij", u, v, optimize=True), optimize=True
    )
    db = tolerance.conv2d_backward_weight_bound(g, wide(x), 3, "winograd4", before or (0, 0))[1]
    return 2 * tolerance.EPS32 * (size + (0 if before is None else np.abs(before[0]))), db


# ---------------------------------------------------------------------------------------------- mathematics


def constants():
    """Name -> value of the header's floats: `A1 = 0.75F`, `N0 = 64.0F / 81`."""
    found = re.findall(r"\b([A-Z]\w*) = (-?[\d.]+)F(?: / (\d+))?", HEADER.read_text())
    return {name: float(value) / float(divisor or 1) for name, value, divisor in found}


def vandermonde(points, size):
    """Rows 1, p, .., p^(size - 1), and 0, .., 0, 1 for infinity."""
    return np.array([[p**j for j in range(size)] for p in points] + [[0.0] * (size - 1) + [1.0]])


def transforms(points):
    """B^T (6 x 6), whose row p has the coefficients of m(x) / (x - p) and whose last has those of m(x); G (6 x 4)
    and A^T (3 x 6) of the weight gradient; and N_p = m'(p)."""
    rows = [np.poly([q for q in points if q != p])[::-1] for p in points]
    bt = np.array([[*row, 0.0] for row in rows] + [np.poly(points)[::-1]])
    n = np.array([np.prod([p - q for q in points if q != p]) for p in points] + [1.0])
    return bt, vandermonde(points, 4), (vandermonde(points, 3) / n[:, None]).T, n


def test_constants_of_the_kernels():
    c = constants()
    a, b = c["A1"], c["B1"]
    assert (0, a, -a, b, -b) == POINTS
    bt, _, _, n = transforms(POINTS)
    assert [c["A2"], c["A3"], c["B2"], c["B3"]] == [a**2, a**3, b**2, b**3]
    assert np.allclose([c["N0"], c["NA"], c["NA"], c["NB"], c["NB"]], 1 / n[:5], rtol=1e-15)
    assert np.allclose(bt[5], [0, c["PRODUCT"], 0, -c["SUM"], 0, 1], rtol=1e-15)


@pytest.mark.parametrize("points", [POINTS, (0, 1, -1, 2, -2), (0, 1, -1, 2, -0.5)])
def test_derivation(rng, points):
    """A^T [(G g G^T) * (B^T x B)] A is the 3 x 3 valid correlation of 6 x 6 x by 4 x 4 g.

    A product of polynomials of 3 and 4 coefficients is V(6)^-1 [(V(3) t) * (V(4) g)] with V(m) the Vandermonde
    matrix; it is linear in t, and the transpose of that linear map is the valid correlation of six numbers d by
    g: V(3)^T [(V(4) g) * (V(6)^-T d)]. The rows of B^T are those of V(6)^-T times N.
    """
    bt, g_matrix, at, n = transforms(points)
    assert np.allclose(bt, n[:, None] * np.linalg.inv(vandermonde(points, 6)).T)
    t, g1 = rng.standard_normal(3), rng.standard_normal(4)
    product = np.linalg.solve(
        vandermonde(points, 6), (vandermonde(points, 3) @ t) * (vandermonde(points, 4) @ g1)
    )
    assert np.allclose(product, np.convolve(t, g1))
    x, g = rng.standard_normal((6, 6)), rng.standard_normal((4, 4))
    expected = [[(g * x[r : r + 4, s : s + 4]).sum() for s in range(3)] for r in range(3)]
    assert np.allclose(at @ ((g_matrix @ g @ g_matrix.T) * (bt @ x @ bt.T)) @ at.T, expected)


# ---------------------------------------------------------------------------------------------- against the
# reference


def fusions(shape):
    chosen = (
        FUSIONS if shape in SMOKE else [FUSIONS[0], FUSIONS[3]] if shape in SEVERAL_CHUNKS else FUSIONS[1:4]
    )
    return [f for f in chosen if f[2] != "floor" or min(shape[1:3]) > 1]


def masks_of(y, index, fusion):
    return {"y": y.astype(np.float32) if fusion[1] else None, "index": index, "pool": fusion[2]}


@pytest.mark.parametrize("shape", SHAPES, ids=label)
def test_against_the_reference(isa, shape):
    for fusion in fusions(shape):
        x, w, b, y, index, dy = _case(shape, 3, fusion)
        masks = masks_of(y, index, fusion)
        g = reference.fused_gradient(wide(dy), masks["y"], index, x.shape)
        before = (w, b) if fusion[0] else None
        results = winograd(dy, x, 3, **masks, before=before)
        expected = reference.backward_weight(g, wide(x), 3)
        if before is not None:
            expected = expected[0] + w, expected[1] + b
        bounds = bounds_of(g, x, before)
        for name, result, value, bound in zip(("dw", "db"), results, expected, bounds, strict=True):
            tolerance.assert_within(result, value, bound, f"{name} of {fusion}")


@pytest.mark.parametrize("place", [4, 255])
def test_index_out_of_range(isa, place):
    """Such an index names no winner: its gradient goes nowhere."""
    rng = np.random.default_rng(place)
    dy, x = (rng.standard_normal(s).astype(np.float32) for s in [(1, 4, 4, 8), (1, 8, 8, 3)])
    index = rng.integers(0, 4, dy.shape).astype(np.uint8)
    index[0, 1, 0, 5] = index[0, 0, 1, 7] = index[0, 3, 3, 0] = place
    g = reference.fused_gradient(wide(dy), None, index, x.shape)
    results = winograd(dy, x, 3, None, index, "floor")
    for name, *compare in zip(
        ("dw", "db"), results, reference.backward_weight(g, wide(x), 3), bounds_of(g, x), strict=True
    ):
        tolerance.assert_within(*compare, name)


@pytest.mark.parametrize("shape", [(1, 14, 14, 64, 64), (1, 56, 56, 64, 64), (8, 28, 28, 16, 64)], ids=label)
def test_error_on_dense_data(rng, shape):
    """By the measure that tolerance.py has for all algorithms: measured worst k 4.6; and relative L2 (1.2e-6)."""
    n, h, w, c, k = shape
    x, _, _ = dense(rng, n, h, w, c, k, 3)
    dy = rng.standard_normal((n, h, w, k)).astype(np.float32)
    dw, db = winograd(dy, x, 3)
    expected = reference.backward_weight(wide(dy), wide(x), 3)
    bounds = tolerance.conv2d_backward_weight_bound(wide(dy), wide(x), 3, "winograd4")
    tolerance.assert_within(dw, expected[0], bounds[0], "dw")
    tolerance.assert_within(db, expected[1], bounds[1], "db")
    assert tolerance.relative_l2(dw, expected[0]) <= 3e-6


# ---------------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("shape", [(3, 13, 11, 24, 40), (2, 49, 50, 16, 70), (2, 4, 4, 128, 128)], ids=label)
def test_threads_give_equal_bits(isa, threads, shape):
    for fusion in FUSIONS:
        x, _, _, y, index, dy = _case(shape, 3, fusion)
        results = []
        for count in (1, 2, 3, 7):
            threads(count)
            results.append([a.tobytes() for a in winograd(dy, x, 3, **masks_of(y, index, fusion))])
        assert all(other == results[0] for other in results[1:])


def test_workspace_too_small(isa, threads):
    x, _, _, _, _, dy = _case((3, 13, 11, 24, 40), 3, FUSIONS[0])
    threads(1)
    size = _C.conv2d_workspace(x.shape, (40, 3, 3, 24), "backward_weight", algorithm="winograd4")
    short = _C.empty((size - 1,), "uint8")
    with pytest.raises(ValueError, match="workspace"):
        _C.conv2d_backward_weight(dy, x, 3, algorithm="winograd4", workspace=short)


def test_same_call_same_bits_whatever_the_alignment(isa):
    x, _, _, y, index, dy = _case((2, 9, 7, 19, 23), 3, FUSIONS[2])
    masks = masks_of(y, index, FUSIONS[2])
    first = winograd(dy, x, 3, **masks, offset=0)
    for offset in (1, 2, 3, 5, 8):
        assert all(
            a.tobytes() == b.tobytes()
            for a, b in zip(winograd(dy, x, 3, **masks, offset=offset), first, strict=True)
        )


# ---------------------------------------------------------------------------------------------- special
# values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_reach_what_they_must(isa, value):
    """In dw they may spread to the other taps of their channels, and Inf may become NaN; db has what it must."""
    shape = (1, 9, 9, 5, 18)
    for where in ("x", "dy"):
        x, _, _, _, _, dy = (None if a is None else a.copy() for a in _case(shape, 3, FUSIONS[0]))
        (x if where == "x" else dy)[0, 4, 4, 4] = value
        dw, db = winograd(dy, x, 3)
        with np.errstate(invalid="ignore"):
            expected_dw, expected_db = reference.backward_weight(wide(dy), wide(x), 3)
        assert not np.isfinite(dw[~np.isfinite(expected_dw)]).any()
        touched = np.zeros(dw.shape, bool)
        touched[..., 4] = where == "x"
        touched[4] |= where == "dy"
        assert np.isfinite(dw[~touched]).all()
        special = ~np.isfinite(expected_db)
        assert np.array_equal(db[special], expected_db[special].astype(np.float32), equal_nan=True)
        assert np.isfinite(db[~special]).all()


def test_no_image(isa, rng):
    x, dy = np.zeros((0, 6, 5, 7), np.float32), np.zeros((0, 6, 5, 9), np.float32)
    for result in winograd(dy, x, 3):
        tolerance.assert_exact(result, np.zeros(result.shape))
    before = rng.standard_normal((9, 3, 3, 7)).astype(np.float32), rng.standard_normal(9).astype(np.float32)
    for result, value in zip(winograd(dy, x, 3, before=before), before, strict=True):
        tolerance.assert_exact(result, value)


# ---------------------------------------------------------------------------------------------- what runs


def uses(isa):
    return {k["slot"]: k["uses"] for k in _C.kernels() if k["isa"] == isa and k["slot"] in (*SLOTS, "gemm")}


def test_the_algorithm_asked_for_is_the_one_that_runs(isa):
    x, _, _, _, _, dy = _case((2, 9, 7, 19, 23), 3, FUSIONS[0])
    for algorithm, slots in {"winograd4": (*SLOTS, "gemm"), "direct": ("gemm",)}.items():
        before = uses(isa)
        backward_weight(dy, x, 3, algorithm=algorithm)
        after = uses(isa)
        assert {slot for slot in after if after[slot] != before[slot]} == set(slots)


def test_needs_3x3(isa):
    x, _, _, _, _, dy = _case((1, 4, 4, 16, 16), 1, FUSIONS[0])
    with pytest.raises(NotImplementedError, match="3x3"):
        _C.conv2d_backward_weight(dy, x, 1, algorithm="winograd4")


def test_sizes_that_overflow():
    for n, h, w, c, k in [(1 << 40, 1 << 40, 4, 3, 3), (1, 8, 8, 1 << 34, 1 << 30), (1, 4, 1 << 60, 8, 8)]:
        with pytest.raises((ValueError, MemoryError, OverflowError)):
            _C.empty(
                (_C.conv2d_workspace((n, h, w, c), (k, 3, 3, c), "backward_weight", algorithm="winograd4"),)
            )
