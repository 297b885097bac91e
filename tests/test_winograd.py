"""Winograd's F(2x2, 3x3), F(4x4, 3x3) and F(6x6, 3x3), forward and input gradient, against the float64 reference, for
every kernel that this CPU can run. The weight gradient is in test_winograd_weight.py."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vggnet import _C

import tolerance
from reference import conv2d as reference
from reference import max_pool2d
from test_conv2d import FUSIONS, backward_input, dense, forward, label, pooled_shape, wide

# n, h, w, c, k: every remainder of height and width by the tiles (and pools over them), of channels by vectors
# (4, 8, 16) and panels (8, 16, 32), of tiles by the microkernels' rows, and of channels by blocks of 128.
SIDES = [(1, h, w, 5, 6) for h in range(1, 10) for w in range(1, 10)] + [(1, 13, 13, 3, 3), (2, 13, 6, 4, 4)]
CHANNELS = [(1, 5, 6, c, 34 - c) for c in range(1, 34)]
BATCHES = [(n, 4, 4, 16, 16) for n in (0, 1, 3, 7, 14, 15)]
DEEP = [(1, 4, 5, c, 20) for c in (127, 128, 129, 200, 257)] + [(1, 4, 5, 20, 300)]
MANY_TILES = [
    (3, 26, 30, 20, 18),
    (1, 50, 41, 5, 40),
    (2, 33, 33, 144, 9),
    (101, 3, 3, 16, 8),
    (101, 4, 4, 8, 150),
]
SHAPES = SIDES + CHANNELS + BATCHES + DEEP + MANY_TILES
WINOGRAD = ("winograd2", "winograd4", "winograd6")
# Worst of several seeds: dense and sparse data, 3 channels being the worst: 2.2 and 16.3, 10.7 and 48.5, 45 and 137.
WORST = {
    "winograd2": {"dense": 4, "sparse": 32},
    "winograd4": {"dense": 16, "sparse": 64},
    "winograd6": {"dense": 64, "sparse": 256},
}


@pytest.fixture(params=WINOGRAD)
def algorithm(request):
    return request.param


def fusions(shape):
    """Two of them by turns; all for maps with every kind of tile. A floor pool needs two rows and columns."""
    turn = sum(shape)
    chosen = FUSIONS if shape in MANY_TILES[:2] else [FUSIONS[turn % 5], FUSIONS[(turn + 2) % 5]]
    return [f for f in chosen if f[2] != "floor" or min(shape[1:3]) > 1]


@functools.cache
def case(shape, fusion):
    """Inputs, the reference's y and index, its gradient g for a random dy, and dx; shared by the ISAs."""
    rng = np.random.default_rng(shape)
    with_bias, relu, pool = fusion
    x, w, b = dense(rng, *shape, 3)
    b = b if with_bias else None
    y = reference.fused(wide(x), wide(w), wide(b), relu, pool)
    y, index = y if pool else (y, None)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    masks = {"y": y.astype(np.float32) if relu else None, "index": index}
    g = reference.fused_gradient(wide(dy), masks["y"], index, x.shape)
    return x, w, b, y, dy, masks, g


@pytest.mark.parametrize("shape", SHAPES, ids=label)
def test_forward(isa, algorithm, shape):
    for fusion in fusions(shape):
        x, w, b, expected, _, _, _ = case(shape, fusion)
        _, relu, pool = fusion
        result = forward(x, w, b, relu=relu, pool=pool, algorithm=algorithm)
        bound = tolerance.conv2d_bound(wide(x), wide(w), wide(b), pool, algorithm)
        tolerance.assert_within(result[0] if pool else result, expected, bound, f"y of {fusion}")
        if pool:
            # The fused pool is max_pool2d of the unfused map, to the bit.
            unfused = forward(x, w, b, relu=relu, algorithm=algorithm)
            y, index = max_pool2d.forward(unfused, pool == "ceil")
            tolerance.assert_exact(result[0], y, f"y of {fusion}")
            tolerance.assert_exact(result[1], index, f"index of {fusion}")


@pytest.mark.parametrize("shape", SHAPES, ids=label)
def test_backward_input(isa, algorithm, shape):
    for fusion in fusions(shape):
        x, w, _, _, dy, masks, g = case(shape, fusion)
        pool = fusion[2]
        shape_of_x = x.shape if pool else None
        result = backward_input(dy, w, **masks, input_shape=shape_of_x, pool=pool, algorithm=algorithm)
        bound = tolerance.conv2d_backward_input_bound(g, wide(w), algorithm)
        tolerance.assert_within(result, reference.backward_input(g, wide(w)), bound, f"dx of {fusion}")


@given(
    shape=st.tuples(
        st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)
    ),
    relu=st.booleans(),
    pool=st.sampled_from([None, "floor", "ceil"]),
    offset=st.sampled_from([0, 1, 3, 8, 15]),
    algorithm=st.sampled_from(WINOGRAD),
)
@settings(derandomize=True, deadline=None, max_examples=150)
def test_any_shape(shape, relu, pool, offset, algorithm):
    pool = "ceil" if pool and min(shape[1:3]) < 2 else pool
    x, w, b, expected, dy, masks, g = case(shape, (True, relu, pool))
    y = forward(x, w, b, relu=relu, pool=pool, algorithm=algorithm, offset=offset)
    bound = tolerance.conv2d_bound(wide(x), wide(w), wide(b), pool, algorithm)
    tolerance.assert_within(y[0] if pool else y, expected, bound, "y")
    dx = backward_input(
        dy, w, **masks, input_shape=x.shape if pool else None, pool=pool, algorithm=algorithm, offset=offset
    )
    bound = tolerance.conv2d_backward_input_bound(g, wide(w), algorithm)
    tolerance.assert_within(dx, reference.backward_input(g, wide(w)), bound, "dx")


@pytest.mark.parametrize("c", [3, 64, 512])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_error(isa, algorithm, c, kind):
    rng = np.random.default_rng([c, len(kind)])
    x, w, _ = dense(rng, 1, 28, 28, c, 16, 3)
    if kind == "sparse":
        x *= ((rng.random(x.shape) < 0.02) * np.exp(2 * rng.standard_normal(x.shape))).astype(np.float32)
    unit = tolerance.conv2d_bound(wide(x), wide(w), algorithm=algorithm) / tolerance.CONV2D[algorithm]
    y = forward(x, w, algorithm=algorithm)
    tolerance.assert_within(y, reference.forward(wide(x), wide(w)), WORST[algorithm][kind] * unit)


# ---------------------------------------------------------------------------------------------- which one ran


@pytest.mark.parametrize("algorithm", ["direct", *WINOGRAD])
def test_what_was_asked_for_is_what_ran(isa, algorithm):
    x, w, _, _, dy, masks, _ = case((2, 9, 6, 5, 6), FUSIONS[2])
    for run in (
        lambda: forward(x, w, relu=True, algorithm=algorithm),
        lambda: backward_input(dy, w, **masks, input_shape=x.shape, pool="floor", algorithm=algorithm),
    ):
        before = {k["name"]: k["uses"] for k in _C.kernels()}
        run()
        used = [k for k in _C.kernels() if k["uses"] > before[k["name"]]]
        stages = [] if algorithm == "direct" else ["input", "weights", "output"]
        assert {k["slot"] for k in used} == {"gemm", *(f"{algorithm}_{stage}" for stage in stages)}
        assert all(k["isa"] == isa and k["selected"] for k in used)


def test_it_needs_three_by_three(algorithm):
    x, w = np.zeros((1, 4, 4, 3), np.float32), np.zeros((8, 1, 1, 3), np.float32)
    for call in (
        lambda: _C.conv2d(x, w, algorithm=algorithm),
        lambda: _C.conv2d_workspace(x.shape, w.shape, algorithm=algorithm),
        lambda: _C.conv2d_backward_input(np.zeros((1, 4, 4, 8), np.float32), w, algorithm=algorithm),
    ):
        with pytest.raises(NotImplementedError, match=f"{algorithm}.*3x3.*1x1"):
            call()


def test_a_workspace_that_is_too_small(algorithm):
    x, w = np.zeros((1, 6, 6, 3), np.float32), np.zeros((8, 3, 3, 3), np.float32)
    need = _C.conv2d_workspace(x.shape, w.shape, algorithm=algorithm)
    small = _C.empty((need // _C.get_num_threads() // 4,), "uint8")
    with pytest.raises(ValueError, match="workspace"):
        _C.conv2d(x, w, algorithm=algorithm, workspace=small)
    huge = 1 << 40
    with pytest.raises(ValueError, match="overflow"):
        _C.conv2d_workspace((1, huge, 8, huge), (huge, 3, 3, huge), algorithm=algorithm)


# ---------------------------------------------------------------------------------------------- transformed weights


@pytest.mark.parametrize("shape", [(1, 7, 6, 5, 150), (3, 9, 9, 300, 40), (2, 41, 45, 19, 33)], ids=label)
def test_weights_transformed_beforehand_give_equal_bits(isa, algorithm, threads, shape):
    x, w, b = dense(np.random.default_rng(shape), *shape, 3)
    expected = forward(x, w, b, relu=True, pool="floor", algorithm=algorithm)
    transformed = _C.conv2d_transform_weights(w, x.shape, algorithm=algorithm)
    assert transformed.nbytes == _C.conv2d_transformed_bytes(x.shape, w.shape, algorithm=algorithm)
    poisoned = np.full_like(w, np.nan)  # only its shape counts
    for count in (1, 3):
        threads(count)
        need = _C.conv2d_workspace(x.shape, w.shape, pool=True, algorithm=algorithm, transformed=True)
        before = {k["name"]: k["uses"] for k in _C.kernels()}
        options = {
            "relu": True,
            "pool": True,
            "algorithm": algorithm,
            "workspace": _C.empty((need,), "uint8"),
        }
        found = _C.conv2d(x, poisoned, b, transformed=transformed, **options)
        used = {k["slot"] for k in _C.kernels() if k["uses"] > before[k["name"]]}
        assert used == {"gemm", f"{algorithm}_input", f"{algorithm}_output"}
        for one, other in zip(found, expected, strict=True):
            assert np.asarray(one).tobytes() == other.tobytes()


def test_transformed_weights_that_do_not_fit():
    x, w = np.zeros((1, 8, 8, 3), np.float32), np.zeros((8, 3, 3, 3), np.float32)
    two, four = (_C.conv2d_transform_weights(w, x.shape, algorithm=name) for name in WINOGRAD[:2])
    _C.conv2d(x, w, algorithm="winograd4", transformed=four)
    with pytest.raises(ValueError, match="transformed has shape .*winograd4"):
        _C.conv2d(x, w, algorithm="winograd4", transformed=two)
    with pytest.raises(ValueError, match="transformed is given; expected None .*direct"):
        _C.conv2d(x, w, algorithm="direct", transformed=four)
    with pytest.raises(NotImplementedError, match="direct"):
        _C.conv2d_transform_weights(w, x.shape, algorithm="direct")
    assert _C.conv2d_transformed_bytes(x.shape, w.shape, algorithm="direct") == 0


# ---------------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("shape", [(3, 13, 11, 24, 40), (5, 26, 21, 16, 40), (2, 4, 4, 136, 130)], ids=label)
def test_threads_give_equal_bits(isa, algorithm, threads, shape):
    for fusion in FUSIONS:
        x, w, b, _, dy, masks, _ = case(shape, fusion)
        _, relu, pool = fusion
        results = []
        for count in (1, 2, 3, 7):
            threads(count)
            y = forward(x, w, b, relu=relu, pool=pool, algorithm=algorithm)
            shape_of_x = x.shape if pool else None
            dx = backward_input(dy, w, **masks, input_shape=shape_of_x, pool=pool, algorithm=algorithm)
            results.append([a.tobytes() for a in [*(y if pool else [y]), dx]])
        assert all(other == results[0] for other in results[1:])


@pytest.mark.parametrize("shape", [(4, 7, 9, 5, 20), (5, 26, 21, 140, 20)], ids=label)
def test_splitting_a_batch_gives_equal_bits(isa, algorithm, shape):
    """Also where the whole has many tiles and a part has few, which run by other paths."""
    x, w, b, _, dy, masks, _ = case(shape, FUSIONS[2])
    whole = forward(x, w, b, relu=True, pool="floor", algorithm=algorithm)
    whole_dx = backward_input(dy, w, **masks, input_shape=x.shape, pool="floor", algorithm=algorithm)
    for part in (slice(0, 1), slice(1, 4), slice(0, 2)):
        results = forward(x[part], w, b, relu=True, pool="floor", algorithm=algorithm)
        assert all(a.tobytes() == b[part].tobytes() for a, b in zip(results, whole, strict=True))
        masked = {name: mask[part] for name, mask in masks.items()}
        dx = backward_input(
            dy[part], w, **masked, input_shape=x[part].shape, pool="floor", algorithm=algorithm
        )
        assert dx.tobytes() == whole_dx[part].tobytes()


# ---------------------------------------------------------------------------------------------- special values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_reach_what_they_must(isa, algorithm, rng, value):
    """And no tile that does not read them."""
    x, w, b = dense(rng, 1, 12, 12, 5, 18, 3)
    x[0, 5, 6, 4] = value
    clean = np.where(np.isfinite(x), x, 0)
    reached = np.zeros((1, 12, 12, 1), bool)
    reached[:, 4:7, 5:8] = True
    tile = tolerance.tile_maximum(reached, tolerance.TILE[algorithm])
    for options in ({}, {"relu": True}, {"pool": "ceil"}) if np.isnan(value) else ({},):
        y = forward(x, w, b, **options, algorithm=algorithm)
        same = forward(clean, w, b, **options, algorithm=algorithm)
        must, may = reached, tile
        if "pool" in options:
            y, same = y[0], same[0]
            must, may = (max_pool2d.forward(m.astype(float), True)[0] > 0 for m in (must, may))
        must, may = np.broadcast_to(must, y.shape), np.broadcast_to(may, y.shape)
        assert not np.isfinite(y[must]).any()
        assert y[~may].tobytes() == same[~may].tobytes()
    dy = rng.standard_normal((1, 12, 12, 18)).astype(np.float32)
    dy[0, 5, 6, 17] = value
    dx = backward_input(dy, w, algorithm=algorithm)
    same = backward_input(np.where(np.isfinite(dy), dy, 0), w, algorithm=algorithm)
    must, may = np.broadcast_to(reached, dx.shape), np.broadcast_to(tile, dx.shape)
    assert not np.isfinite(dx[must]).any()
    assert dx[~may].tobytes() == same[~may].tobytes()


def test_masked_gradients_are_not_read_as_numbers(isa, algorithm):
    """y <= 0 masks dy away, also where dy is NaN: 0 is chosen, not multiplied. So does index."""
    w = np.ones((8, 3, 3, 3), np.float32)
    dy = np.full((1, 4, 4, 8), np.nan, np.float32)
    assert not backward_input(dy, w, np.zeros_like(dy), algorithm=algorithm).any()
    index = np.full((1, 2, 2, 8), 4, np.uint8)  # names no winner
    assert not backward_input(dy[:, :2, :2], w, None, index, (1, 4, 4, 3), "floor", algorithm).any()


@pytest.mark.parametrize("place", [4, 255])
def test_index_out_of_range(isa, algorithm, rng, place):
    x, w, _ = dense(rng, 1, 9, 8, 3, 8, 3)
    dy = rng.standard_normal(pooled_shape(1, 9, 8, 8, "ceil")).astype(np.float32)
    index = rng.integers(0, 2, dy.shape).astype(np.uint8)
    index[0, 1, 0, 5] = index[0, 0, 1, 7] = place
    g = reference.fused_gradient(wide(dy), None, index, x.shape)
    dx = backward_input(dy, w, None, index, x.shape, "ceil", algorithm)
    bound = tolerance.conv2d_backward_input_bound(g, wide(w), algorithm)
    tolerance.assert_within(dx, reference.backward_input(g, wide(w)), bound, "dx")
