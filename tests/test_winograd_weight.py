"""The weight gradient by Winograd's F(3x3, 4x4) and F(3x3, 6x6): their mathematics, and algorithm="winograd4" and
"winograd6" against the reference."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest
from vggnet import _C

import tolerance
from reference import conv2d as reference
from test_conv2d import FUSIONS, _case, backward_weight, dense, label, wide

KERNELS = Path(__file__).parents[1] / "csrc/kernels"
POINTS = {  # and infinity
    "winograd4": (0, 0.75, -0.75, 1.5, -1.5),
    "winograd6": (0, 0.5, -0.5, 1, -1, 2, -2),
}
STAGES = ("input", "gradient", "sums")
# n, h, w, c, k. Tiles are of 4 x 4 or 6 x 6 pixels of g and 6 x 6 or 8 x 8 of x; panels are of 8, 16 or 32 channels of x and of
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


@pytest.fixture(params=POINTS)
def algorithm(request):
    return request.param


def padded_tiles(a, step, before, side):
    """Windows of side x side pixels every `step` pixels, the first `before` pixels above and left of the map:
    (tiles, channels, side, side)."""
    _, h, w, c = a.shape
    ends = [(before, -size % step + side - step - before) for size in (h, w)]
    a = np.pad(a, ((0, 0), *ends, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(a, (side, side), (1, 2))[:, ::step, ::step]
    return windows.reshape(-1, c, side, side)


def bounds_of(algorithm, g, x, before=None):
    """For dw twice eps32 times the sum of the absolute values of all that is added up on the way, which is the
    algorithm on absolute values. A tile mixes all its pixels, also those that a tap does not meet, and where there
    are few tiles and many zeros, those may be all there is. Measured worst: 0.8. For db as tolerance.py has it."""
    bt, g_matrix, at, _ = (np.abs(a) for a in transforms(POINTS[algorithm]))
    side = tolerance.TILE[algorithm]
    u = g_matrix @ padded_tiles(np.abs(g), side, 0, side) @ g_matrix.T
    v = bt @ padded_tiles(np.abs(wide(x)), side, 1, side + 2) @ bt.T
    size = np.einsum(
        "ri,sj,kcij->krsc", at, at, np.einsum("tkij,tcij->kcij", u, v, optimize=True), optimize=True
    )
    db = tolerance.conv2d_backward_weight_bound(g, wide(x), 3, algorithm, before or (0, 0))[1]
    return 2 * tolerance.EPS32 * (size + (0 if before is None else np.abs(before[0]))), db


# ---------------------------------------------------------------------------------------------- mathematics


def constants(algorithm):
    """Name -> value of the header's floats: `A1 = 0.75F`, `C1 = 2`, `N0 = 64.0F / 81`."""
    text = (KERNELS / f"{algorithm}_points.h").read_text()
    found = re.findall(r"\b([A-Z]\w*) = (-?[\d.]+)F?(?: / (\d+))?", text)
    return {name: float(value) / float(divisor or 1) for name, value, divisor in found}


def vandermonde(points, size):
    """Rows 1, p, .., p^(size - 1), and 0, .., 0, 1 for infinity."""
    return np.array([[p**j for j in range(size)] for p in points] + [[0.0] * (size - 1) + [1.0]])


def transforms(points):
    """For n = len(points) + 1: B^T (n x n), whose row p has the coefficients of m(x) / (x - p) and whose last has those
    of m(x); G (n x n-2) and A^T (3 x n) of the weight gradient; and N_p = m'(p)."""
    rows = [np.poly([q for q in points if q != p])[::-1] for p in points]
    bt = np.array([[*row, 0.0] for row in rows] + [np.poly(points)[::-1]])
    n = np.array([np.prod([p - q for q in points if q != p]) for p in points] + [1.0])
    return bt, vandermonde(points, len(points) - 1), (vandermonde(points, 3) / n[:, None]).T, n


def test_constants_of_the_kernels(algorithm):
    c = constants(algorithm)
    points = POINTS[algorithm]
    bt, _, _, n = transforms(points)
    if algorithm == "winograd4":
        assert (0, c["A1"], -c["A1"], c["B1"], -c["B1"]) == points
        assert [c[f"B{power}"] for power in (2, 3)] == [c["B1"] ** power for power in (2, 3)]
        assert np.allclose([c["N0"], c["NA"], c["NB"]], 1 / n[[0, 1, 3]], rtol=1e-15)
        assert np.allclose(bt[-1], [0, c["PRODUCT"], 0, -c["SUM"], 0, 1], rtol=1e-15)
    else:
        assert (0, c["A1"], -c["A1"], 1, -1, c["C1"], -c["C1"]) == points
        assert [c[f"C{power}"] for power in (2, 3, 4, 5)] == [c["C1"] ** power for power in (2, 3, 4, 5)]
        assert np.allclose([-1, c["NA"], c["NB"], c["NC"]], 1 / n[[0, 1, 3, 5]], rtol=1e-15)
        assert np.allclose(bt[-1], [0, -1, 0, c["SUM"], 0, -c["SUM"], 0, 1], rtol=1e-15)
    powers = [int(name[1]) for name in c if re.fullmatch(r"A\d", name)]
    assert [c[f"A{power}"] for power in powers] == [c["A1"] ** power for power in powers]


@pytest.mark.parametrize("points", [*POINTS.values(), (0, 1, -1, 2, -2), (0, 1, -1, 2, -0.5)])
def test_derivation(rng, points):
    """A^T [(G g G^T) * (B^T x B)] A is the 3 x 3 valid correlation of n x n x by m x m g, m = n - 2.

    A product of polynomials of 3 and m coefficients is V(n)^-1 [(V(3) t) * (V(m) g)] with V the Vandermonde
    matrix; it is linear in t, and the transpose of that linear map is the valid correlation of n numbers d by
    g: V(3)^T [(V(m) g) * (V(n)^-T d)]. The rows of B^T are those of V(n)^-T times N.
    """
    bt, g_matrix, at, n = transforms(points)
    size = len(n)
    m = size - 2
    assert np.allclose(bt, n[:, None] * np.linalg.inv(vandermonde(points, size)).T)
    t, g1 = rng.standard_normal(3), rng.standard_normal(m)
    product = np.linalg.solve(
        vandermonde(points, size), (vandermonde(points, 3) @ t) * (vandermonde(points, m) @ g1)
    )
    assert np.allclose(product, np.convolve(t, g1))
    x, g = rng.standard_normal((size, size)), rng.standard_normal((m, m))
    expected = [[(g * x[r : r + m, s : s + m]).sum() for s in range(3)] for r in range(3)]
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
def test_against_the_reference(isa, algorithm, shape):
    for fusion in fusions(shape):
        x, w, b, y, index, dy = _case(shape, 3, fusion)
        masks = masks_of(y, index, fusion)
        g = reference.fused_gradient(wide(dy), masks["y"], index, x.shape)
        before = (w, b) if fusion[0] else None
        results = backward_weight(dy, x, 3, **masks, before=before, algorithm=algorithm)
        expected = reference.backward_weight(g, wide(x), 3)
        if before is not None:
            expected = expected[0] + w, expected[1] + b
        bounds = bounds_of(algorithm, g, x, before)
        for name, result, value, bound in zip(("dw", "db"), results, expected, bounds, strict=True):
            tolerance.assert_within(result, value, bound, f"{name} of {fusion}")


@pytest.mark.parametrize("place", [4, 255])
def test_index_out_of_range(isa, algorithm, place):
    """Such an index names no winner: its gradient goes nowhere."""
    rng = np.random.default_rng(place)
    dy, x = (rng.standard_normal(s).astype(np.float32) for s in [(1, 4, 4, 8), (1, 8, 8, 3)])
    index = rng.integers(0, 4, dy.shape).astype(np.uint8)
    index[0, 1, 0, 5] = index[0, 0, 1, 7] = index[0, 3, 3, 0] = place
    g = reference.fused_gradient(wide(dy), None, index, x.shape)
    results = backward_weight(dy, x, 3, None, index, "floor", algorithm=algorithm)
    expected, bounds = reference.backward_weight(g, wide(x), 3), bounds_of(algorithm, g, x)
    for name, *compare in zip(("dw", "db"), results, expected, bounds, strict=True):
        tolerance.assert_within(*compare, name)


@pytest.mark.parametrize("shape", [(1, 14, 14, 64, 64), (1, 56, 56, 64, 64), (8, 28, 28, 16, 64)], ids=label)
def test_error_on_dense_data(rng, algorithm, shape):
    """By the measure that tolerance.py has for all algorithms: measured worst k 4.6 and 23.3; and relative L2 (1.2e-6,
    3.9e-6)."""
    n, h, w, c, k = shape
    x, _, _ = dense(rng, n, h, w, c, k, 3)
    dy = rng.standard_normal((n, h, w, k)).astype(np.float32)
    dw, db = backward_weight(dy, x, 3, algorithm=algorithm)
    expected = reference.backward_weight(wide(dy), wide(x), 3)
    bounds = tolerance.conv2d_backward_weight_bound(wide(dy), wide(x), 3, algorithm)
    tolerance.assert_within(dw, expected[0], bounds[0], "dw")
    tolerance.assert_within(db, expected[1], bounds[1], "db")
    assert tolerance.relative_l2(dw, expected[0]) <= {"winograd4": 3e-6, "winograd6": 8e-6}[algorithm]


# ---------------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("shape", [(3, 13, 11, 24, 40), (2, 49, 50, 16, 70), (2, 4, 4, 128, 128)], ids=label)
def test_threads_give_equal_bits(isa, algorithm, threads, shape):
    for fusion in FUSIONS:
        x, _, _, y, index, dy = _case(shape, 3, fusion)
        results = []
        for count in (1, 2, 3, 7):
            threads(count)
            masks = masks_of(y, index, fusion)
            results.append([a.tobytes() for a in backward_weight(dy, x, 3, **masks, algorithm=algorithm)])
        assert all(other == results[0] for other in results[1:])


def test_workspace_too_small(isa, algorithm, threads):
    x, _, _, _, _, dy = _case((3, 13, 11, 24, 40), 3, FUSIONS[0])
    threads(1)
    size = _C.conv2d_workspace(x.shape, (40, 3, 3, 24), "backward_weight", algorithm=algorithm)
    short = _C.empty((size - 1,), "uint8")
    with pytest.raises(ValueError, match="workspace"):
        _C.conv2d_backward_weight(dy, x, 3, algorithm=algorithm, workspace=short)


def test_same_call_same_bits_whatever_the_alignment(isa, algorithm):
    x, _, _, y, index, dy = _case((2, 9, 7, 19, 23), 3, FUSIONS[2])
    masks = masks_of(y, index, FUSIONS[2])
    first = backward_weight(dy, x, 3, **masks, offset=0, algorithm=algorithm)
    for offset in (1, 2, 3, 5, 8):
        again = backward_weight(dy, x, 3, **masks, offset=offset, algorithm=algorithm)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(again, first, strict=True))


# ---------------------------------------------------------------------------------------------- special
# values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_reach_what_they_must(isa, algorithm, value):
    """In dw they may spread to the other taps of their channels, and Inf may become NaN; db has what it must."""
    shape = (1, 9, 9, 5, 18)
    for where in ("x", "dy"):
        x, _, _, _, _, dy = (None if a is None else a.copy() for a in _case(shape, 3, FUSIONS[0]))
        (x if where == "x" else dy)[0, 4, 4, 4] = value
        dw, db = backward_weight(dy, x, 3, algorithm=algorithm)
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


def test_no_image(isa, algorithm, rng):
    x, dy = np.zeros((0, 6, 5, 7), np.float32), np.zeros((0, 6, 5, 9), np.float32)
    for result in backward_weight(dy, x, 3, algorithm=algorithm):
        tolerance.assert_exact(result, np.zeros(result.shape))
    before = rng.standard_normal((9, 3, 3, 7)).astype(np.float32), rng.standard_normal(9).astype(np.float32)
    results = backward_weight(dy, x, 3, before=before, algorithm=algorithm)
    for result, value in zip(results, before, strict=True):
        tolerance.assert_exact(result, value)


# ---------------------------------------------------------------------------------------------- what runs


@pytest.mark.parametrize("algorithm", ["direct", *POINTS])
def test_the_algorithm_asked_for_is_the_one_that_runs(isa, algorithm):
    x, _, _, _, _, dy = _case((2, 9, 7, 19, 23), 3, FUSIONS[0])
    before = {k["name"]: k["uses"] for k in _C.kernels()}
    backward_weight(dy, x, 3, algorithm=algorithm)
    used = [k for k in _C.kernels() if k["uses"] > before[k["name"]]]
    stages = [] if algorithm == "direct" else STAGES
    assert {k["slot"] for k in used} == {"gemm", *(f"{algorithm}_{stage}" for stage in stages)}
    assert all(k["isa"] == isa for k in used)


def test_there_is_no_winograd2():
    x, _, _, _, _, dy = _case((1, 4, 4, 16, 16), 3, FUSIONS[0])
    with pytest.raises(NotImplementedError, match="winograd2.*winograd4"):
        _C.conv2d_backward_weight(dy, x, 3, algorithm="winograd2")


def test_needs_3x3(isa, algorithm):
    x, _, _, _, _, dy = _case((1, 4, 4, 16, 16), 1, FUSIONS[0])
    with pytest.raises(NotImplementedError, match="3x3"):
        _C.conv2d_backward_weight(dy, x, 1, algorithm=algorithm)


def test_sizes_that_overflow(algorithm):
    for shape, k in [((1 << 40, 1 << 40, 4, 3), 3), ((1, 8, 8, 1 << 34), 1 << 30), ((1, 4, 1 << 60, 8), 8)]:
        size = functools.partial(_C.conv2d_workspace, shape, (k, 3, 3, shape[3]), "backward_weight")
        with pytest.raises((ValueError, MemoryError, OverflowError)):
            _C.empty((size(algorithm=algorithm),))
