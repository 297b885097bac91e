"""Convolution and both gradients against the float64 reference, for every kernel that this CPU can run."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vggnet import _C

import tolerance
from helpers import call, ops, raises, survives_failed_allocations, where
from reference import conv2d as reference
from reference import max_pool2d, net

# n, h, w, c, k. The GEMM tiles are 6x16 and 14x32, and 4x8 for scalar; pixels are their rows, k their columns forward
# and c their columns backward, so every remainder of each is here. Maps narrower than 12 are gathered, wider ones are
# read in place: both meet every remainder.
PIXELS = [(1, 2, w, 5, 17) for w in range(1, 29)] + [(1, h, 1, 5, 16) for h in (1, 2, 13, 29)]
CHANNELS = [(2, 3, 5, c, 34 - c) for c in range(1, 34)] + [(1, 2, 13, c, 34 - c) for c in range(1, 34)]
SMOKE = [
    (0, 4, 4, 3, 5),
    (1, 1, 1, 1, 1),
    (1, 1, 1, 3, 64),
    (1, 1, 37, 7, 11),
    (1, 37, 1, 11, 7),
    (5, 3, 2, 4, 3),
    (1, 13, 11, 13, 17),
    (2, 14, 14, 32, 64),
    (1, 7, 9, 64, 48),
    (1, 6, 5, 131, 67),
    (3, 32, 32, 3, 64),
    (1, 5, 70, 67, 96),
    (1, 4, 6, 600, 40),
    (1, 4, 6, 40, 600),
]
# Several bands of rows forward and backward; several images, or several parts of one, in a chunk of the weight gradient.
LARGE = [(3, 45, 33, 64, 40), (1, 61, 40, 160, 64)]
SHAPES = SMOKE + PIXELS + CHANNELS + LARGE
FUSIONS = [
    (False, False, None),
    (True, True, None),
    (True, True, "floor"),
    (False, True, "ceil"),
    (True, False, "ceil"),
]


def fusions(shape):
    """All for the smoke shapes, two or three for the many. A floor pool needs two rows and columns."""
    chosen = FUSIONS if shape in SMOKE else FUSIONS[1:3] if shape in LARGE else FUSIONS[:2]
    return [f for f in chosen if f[2] != "floor" or min(shape[1:3]) > 1]


def label(shape):
    return "n{}h{}w{}c{}k{}".format(*shape)


def dense(rng, n, h, w, c, k, size):
    """What a VGG layer sees: ReLU-normal x, He weights."""
    x = np.maximum(rng.standard_normal((n, h, w, c)), 0).astype(np.float32)
    weights = (rng.standard_normal((k, size, size, c)) * (2 / (size * size * c)) ** 0.5).astype(np.float32)
    return x, weights, (0.1 * rng.standard_normal(k)).astype(np.float32)


def integers(rng, n, h, w, c, k, size):
    """Small integers: every sum is exact in float32 in any order, so results must be equal."""
    return tuple(
        rng.integers(-4, 5, shape).astype(np.float32) for shape in [(n, h, w, c), (k, size, size, c), (k,)]
    )


def wide(a):
    return None if a is None else a.astype(np.float64)


def pooled_shape(n, h, w, k, pool):
    ceil = pool == "ceil"
    return (n, max_pool2d.pooled(h, ceil), max_pool2d.pooled(w, ceil), k)


def workspace_for(x_shape, w_shape, direction, pool, algorithm):
    """Options of a call: the algorithm (a CUDA device has its own alone) and the bytes that it asks for."""
    algorithm = algorithm or ("direct" if where() == "cpu" else "auto")
    size = _C.conv2d_workspace(
        x_shape, w_shape, direction, pool=pool or False, algorithm=algorithm, device=where()
    )
    return {"algorithm": algorithm, "workspace": size}


def forward(x, w, b=None, *, relu=False, pool=None, algorithm=None, offset=1):
    n, h, width, _ = x.shape
    k = w.shape[0]
    options = {
        "relu": relu,
        "pool": pool or False,
        "offset": offset,
        **workspace_for(x.shape, w.shape, "forward", pool, algorithm),
    }
    if pool:
        shape = pooled_shape(n, h, width, k, pool)
        return call(ops.conv2d, x, w, b, out=[(shape, "float32"), (shape, "uint8")], **options)
    return call(ops.conv2d, x, w, b, out=(n, h, width, k), **options)


def backward_input(dy, w, y=None, index=None, input_shape=None, pool=None, algorithm=None, offset=1):
    shape = input_shape if input_shape is not None else (*dy.shape[:3], w.shape[3])
    options = {k: v for k, v in {"y": y, "index": index, "input_shape": input_shape}.items() if v is not None}
    options |= workspace_for(shape, w.shape, "backward_input", pool, algorithm)
    return call(
        ops.conv2d_backward_input,
        dy,
        w,
        out=shape,
        offset=offset,
        **options,
    )


def backward_weight(dy, x, size, y=None, index=None, pool=None, before=None, algorithm=None, offset=1):
    """before: (dw, db) to accumulate on."""
    w_shape = (dy.shape[3], size, size, x.shape[3])
    options = {k: v for k, v in {"y": y, "index": index}.items() if v is not None}
    options |= workspace_for(x.shape, w_shape, "backward_weight", pool, algorithm)
    values = (None, None) if before is None else before
    return call(
        ops.conv2d_backward_weight,
        dy,
        x,
        size,
        out=[(w_shape, "float32", values[0]), ((dy.shape[3],), "float32", values[1])],
        accumulate=before is not None,
        offset=offset,
        **options,
    )


@functools.cache
def _case(shape, size, fusion):
    """Inputs, a forward pass' y and index, and a random upstream gradient: x, w, b, y, index, dy."""
    rng = np.random.default_rng([*shape, size])
    with_bias, relu, pool = fusion
    x, w, b = dense(rng, *shape, size)
    b = b if with_bias else None
    y = reference.fused(wide(x), wide(w), wide(b), relu, pool)
    y, index = y if pool else (y, None)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    return x, w, b, y, index, dy


def _masks(shape, size, fusion):
    _, _, _, y, index, _ = _case(shape, size, fusion)
    return {"y": y.astype(np.float32) if fusion[1] else None, "index": index}


# What the reference says, once for all ISAs: values and bounds.


@functools.cache
def _forward_bound(shape, size, fusion):
    x, w, b, _, _, _ = _case(shape, size, fusion)
    return tolerance.conv2d_bound(wide(x), wide(w), wide(b), fusion[2])


@functools.cache
def _backward_input(shape, size, fusion):
    x, w, _, _, _, dy = _case(shape, size, fusion)
    g = reference.fused_gradient(wide(dy), **_masks(shape, size, fusion), input_shape=x.shape)
    return reference.backward_input(g, wide(w)), tolerance.conv2d_backward_input_bound(g, wide(w))


@functools.cache
def _backward_weight(shape, size, fusion):
    """Accumulated on w and b where the fusion has a bias."""
    x, w, b, _, _, dy = _case(shape, size, fusion)
    g = reference.fused_gradient(wide(dy), **_masks(shape, size, fusion), input_shape=x.shape)
    dw, db = reference.backward_weight(g, wide(x), size)
    before = (0, 0) if b is None else (w, b)
    bounds = tolerance.conv2d_backward_weight_bound(g, wide(x), size, before=before)
    return (dw + before[0], db + before[1]), bounds


@pytest.fixture(scope="module", autouse=True)
def _forget():
    yield
    for function in (_case, _forward_bound, _backward_input, _backward_weight):
        function.cache_clear()


# ---------------------------------------------------------------------------------------------- against the reference


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=label)
def test_forward(kernels, shape, size):
    for fusion in fusions(shape):
        x, w, b, expected, _, _ = _case(shape, size, fusion)
        _, relu, pool = fusion
        result = forward(x, w, b, relu=relu, pool=pool)
        bound = _forward_bound(shape, size, fusion)
        tolerance.assert_within(result[0] if pool else result, expected, bound, f"y of {fusion}")
        if pool:
            # The fused pool is max_pool2d of the unfused map, to the bit.
            y, index = max_pool2d.forward(forward(x, w, b, relu=relu), pool == "ceil")
            tolerance.assert_exact(result[0], y, f"y of {fusion}")
            tolerance.assert_exact(result[1], index, f"index of {fusion}")


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=label)
def test_backward_input(kernels, shape, size):
    for fusion in fusions(shape):
        x, w, _, _, _, dy = _case(shape, size, fusion)
        pool = fusion[2]
        masks = _masks(shape, size, fusion)
        result = backward_input(dy, w, **masks, input_shape=x.shape if pool else None, pool=pool)
        tolerance.assert_within(result, *_backward_input(shape, size, fusion), f"dx of {fusion}")


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=label)
def test_backward_weight(kernels, shape, size):
    for fusion in fusions(shape):
        x, w, b, _, _, dy = _case(shape, size, fusion)
        before = None if b is None else (w, b)
        masks = _masks(shape, size, fusion)
        results = backward_weight(dy, x, size, **masks, pool=fusion[2], before=before)
        values, bounds = _backward_weight(shape, size, fusion)
        for name, result, value, bound in zip(("dw", "db"), results, values, bounds, strict=True):
            tolerance.assert_within(result, value, bound, f"{name} of {fusion}")


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=label)
def test_integers_are_exact(kernels, rng, shape, size):
    x, w, b = integers(rng, *shape, size)
    offset = shape[3] % 2  # in floats
    pools = (None, "ceil", "floor") if shape in SMOKE else (None, "ceil")
    for pool in pools[: 2 if min(shape[1:3]) < 2 else 3]:
        y = forward(x, w, b, relu=True, pool=pool, offset=offset)
        expected = reference.fused(wide(x), wide(w), wide(b), True, pool)
        index = None
        if pool:
            (y, index), (expected, expected_index) = y, expected
            tolerance.assert_exact(index, expected_index, "index")
        tolerance.assert_exact(y, expected, "y")
        dy = rng.integers(-3, 4, y.shape).astype(np.float32)
        g = reference.fused_gradient(wide(dy), y, index, x.shape)
        dx = backward_input(dy, w, y, index, x.shape if pool else None, pool, offset=offset)
        tolerance.assert_exact(dx, reference.backward_input(g, wide(w)), "dx")
        dw, db = backward_weight(dy, x, size, y, index, pool, offset=offset)
        expected_dw, expected_db = reference.backward_weight(g, wide(x), size)
        tolerance.assert_exact(dw, expected_dw, "dw")
        tolerance.assert_exact(db, expected_db, "db")


@given(
    shape=st.tuples(
        st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.integers(1, 40), st.integers(1, 70)
    ),
    size=st.sampled_from([1, 3]),
    relu=st.booleans(),
    pool=st.sampled_from([None, "floor", "ceil"]),
    offset=st.sampled_from([0, 1, 3, 8, 15]),
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_any_shape_is_exact_on_integers(shape, size, relu, pool, offset):
    pool = "ceil" if pool and min(shape[1:3]) < 2 else pool
    x, w, b = integers(np.random.default_rng([*shape, size]), *shape, size)
    y = forward(x, w, b, relu=relu, pool=pool, offset=offset)
    expected = reference.fused(wide(x), wide(w), wide(b), relu, pool)
    for result, value in zip(y if pool else [y], expected if pool else [expected], strict=True):
        tolerance.assert_exact(result, value)


@pytest.mark.parametrize("algorithm", ["auto", "direct", "winograd2", "winograd4", "winograd6"])
@pytest.mark.parametrize("shape", [(2, 14, 13, 16, 24), (1, 8, 8, 3, 64)], ids=label)
def test_algorithms(isa, shape, algorithm):
    """Each runs within its own tolerance in all three directions, or says that it does not exist."""
    x, w, b, expected, _, dy = _case(shape, 3, FUSIONS[1])
    y32 = expected.astype(np.float32)
    g = reference.fused_gradient(wide(dy), y32)
    for direction, run in {
        "forward": lambda: (forward(x, w, b, relu=True, algorithm=algorithm),),
        "backward_input": lambda: (backward_input(dy, w, y32, algorithm=algorithm),),
        "backward_weight": lambda: backward_weight(dy, x, 3, y32, algorithm=algorithm),
    }.items():
        taken = _C.conv2d_algorithm(x.shape, w.shape, direction) if algorithm == "auto" else algorithm
        try:
            results = run()
        except NotImplementedError:
            assert algorithm.startswith("winograd")
            continue
        if direction == "forward":
            values, bounds = [expected], [tolerance.conv2d_bound(wide(x), wide(w), wide(b), algorithm=taken)]
        elif direction == "backward_input":
            values = [reference.backward_input(g, wide(w))]
            bounds = [tolerance.conv2d_backward_input_bound(g, wide(w), taken)]
        else:
            values = reference.backward_weight(g, wide(x))
            bounds = tolerance.conv2d_backward_weight_bound(g, wide(x), 3, taken)
        for result, value, bound in zip(results, values, bounds, strict=True):
            tolerance.assert_within(result, value, bound, f"{direction} by {taken}")


# ---------------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    "shape", [(3, 13, 11, 24, 40), (4, 32, 32, 3, 64), (2, 4, 4, 128, 128), (2, 28, 28, 40, 72)], ids=label
)
def test_threads_give_equal_bits(isa, threads, shape, size):
    for fusion in FUSIONS:
        x, w, b, y, index, dy = _case(shape, size, fusion)
        _, relu, pool = fusion
        masks = {"y": y.astype(np.float32) if relu else None, "index": index, "pool": pool}
        results = []
        for count in (1, 2, 3, 7):
            threads(count)
            out = forward(x, w, b, relu=relu, pool=pool)
            results.append(
                [
                    *(out if pool else [out]),
                    backward_input(dy, w, **masks, input_shape=x.shape if pool else None),
                    *backward_weight(dy, x, size, **masks),
                ]
            )
        for other in results[1:]:
            assert all(a.tobytes() == b.tobytes() for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("shape", [(4, 7, 9, 5, 20), (4, 16, 16, 32, 64), (5, 3, 2, 40, 24)], ids=label)
def test_splitting_a_batch_gives_equal_bits(isa, shape, size):
    x, w, b, y, index, dy = _case(shape, size, FUSIONS[2])
    y = y.astype(np.float32)
    whole, whole_index = forward(x, w, b, relu=True, pool="floor")
    whole_dx = backward_input(dy, w, y, index, x.shape, "floor")
    for part in (slice(0, 1), slice(1, 4), slice(0, 2)):
        z, i = forward(x[part], w, b, relu=True, pool="floor")
        assert z.tobytes() == whole[part].tobytes() and i.tobytes() == whole_index[part].tobytes()
        dx = backward_input(dy[part], w, y[part], index[part], x[part].shape, "floor")
        assert dx.tobytes() == whole_dx[part].tobytes()


def test_same_call_same_bits_whatever_the_alignment(isa):
    x, w, b, _, _, _ = _case((2, 9, 7, 19, 23), 3, FUSIONS[1])
    first = forward(x, w, b, relu=True, offset=0)
    for offset in (1, 2, 3, 5, 8):
        assert forward(x, w, b, relu=True, offset=offset).tobytes() == first.tobytes()


# ---------------------------------------------------------------------------------------------- special
# values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_propagate(isa, rng, value):
    x, w, b = integers(rng, 1, 6, 7, 5, 18, 3)
    x[0, 2, 3, 4] = value
    with np.errstate(invalid="ignore"):
        expected = reference.forward(wide(x), wide(w), wide(b))
        assert not np.isfinite(expected[0, 1:4, 2:5]).any()
        tolerance.assert_exact(forward(x, w, b), expected)
        tolerance.assert_exact(forward(x, w, b, relu=True), np.maximum(expected, 0))
        y, index = forward(x, w, b, relu=True, pool="ceil")
        expected_y, expected_index = max_pool2d.forward(np.maximum(expected, 0), True)
        tolerance.assert_exact(y, expected_y)
        tolerance.assert_exact(index, expected_index)
        dy = rng.integers(-3, 4, (1, 6, 7, 18)).astype(np.float32)
        dy[0, 0, 6, 17] = value
        tolerance.assert_exact(backward_input(dy, w), reference.backward_input(wide(dy), wide(w)))
        for result, expected in zip(
            backward_weight(dy, x, 3), reference.backward_weight(wide(dy), wide(x)), strict=True
        ):
            tolerance.assert_exact(result, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_not_lost(device, rng, value):
    """Whatever the algorithm: what they are a term of is not finite; a NaN stays one through a fused ReLU and a pool."""
    x, w, b = integers(rng, 1, 6, 7, 5, 18, 3)
    dy = rng.integers(-3, 4, (1, 6, 7, 18)).astype(np.float32)
    x[0, 2, 3, 4] = dy[0, 0, 6, 17] = value
    in_x, in_dy, ones = wide(~np.isfinite(x)), wide(~np.isfinite(dy)), np.ones(w.shape)
    reached = reference.forward(in_x, ones) > 0
    assert reached.any() and not np.isfinite(forward(x, w, b)[reached]).any()
    if np.isnan(value):
        assert np.isnan(forward(x, w, b, relu=True)[reached]).all()
        y, _ = forward(x, w, b, relu=True, pool="ceil")
        assert np.isnan(y[max_pool2d.forward(wide(reached), True)[0] > 0]).all()
    reached = reference.backward_input(in_dy, ones) > 0
    assert reached.any() and not np.isfinite(backward_input(dy, w)[reached]).any()
    dw, db = backward_weight(dy, x, 3)
    by_dy, by_x = (
        reference.backward_weight(in_dy, np.ones(x.shape)),
        reference.backward_weight(np.ones(dy.shape), in_x),
    )
    assert not np.isfinite(dw[by_dy[0] + by_x[0] > 0]).any() and not np.isfinite(db[by_dy[1] > 0]).any()


def test_masked_gradients_are_not_read_as_numbers(kernels, rng):
    """y <= 0 masks dy away, also where dy is NaN: 0 is chosen, not multiplied."""
    x, w, _ = integers(rng, 1, 4, 4, 3, 8, 3)
    dy = np.full((1, 4, 4, 8), np.nan, np.float32)
    y = np.zeros_like(dy)
    assert not backward_input(dy, w, y).any()
    dw, db = backward_weight(dy, x, 3, y)
    assert not dw.any() and not db.any()


def test_empty_batch_zeroes_sums(device):
    x, dy = np.zeros((0, 4, 4, 3), np.float32), np.zeros((0, 4, 4, 5), np.float32)
    dw, db = backward_weight(dy, x, 3)
    assert dw.shape == (5, 3, 3, 3) and not dw.any() and not db.any()
    ones = np.ones_like(dw), np.ones_like(db)
    dw, db = backward_weight(dy, x, 3, before=ones)
    assert (dw == 1).all() and (db == 1).all()


def test_long_sums_of_positives(device):
    """320,000 positives: a sequential float32 sum is off by 5e-5, blocked ones by parts of a million."""
    n, h, w = 8, 200, 200
    rng = np.random.default_rng(5)
    x = rng.uniform(0.5, 1, (n, h, w, 1)).astype(np.float32)
    dy = rng.uniform(0.5, 1, (n, h, w, 2)).astype(np.float32)
    results = ops.conv2d_backward_weight(dy, x, 1)
    expected = reference.backward_weight(wide(dy), wide(x), 1)
    for name, result, value in zip(("dw", "db"), results, expected, strict=True):
        tolerance.assert_within(result.numpy(), value, tolerance.long_sum_bound(value, n * h * w), name)


# ---------------------------------------------------------------------------------------------- arguments


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    "arguments, options, words",
    [
        ((zeros(1, 4, 4, 3), zeros(8, 3, 3, 4)), {}, ["conv2d", "w", "(8, 3, 3, 4)", "3 channels"]),
        ((zeros(1, 4, 4, 3), zeros(8, 2, 2, 3)), {}, ["w", "(8, 2, 2, 3)"]),
        ((zeros(1, 4, 4, 3), zeros(8, 3, 1, 3)), {}, ["w", "(8, 3, 1, 3)"]),
        ((zeros(1, 4, 4, 3), zeros(8, 5, 5, 3)), {}, ["w", "(8, 5, 5, 3)"]),
        ((zeros(4, 4, 3), zeros(8, 3, 3, 3)), {}, ["x", "(4, 4, 3)", "4"]),
        ((zeros(1, 4, 4, 3), zeros(8, 27)), {}, ["w", "(8, 27)"]),
        ((zeros(1, 4, 4, 3), zeros(8, 3, 3, 3), zeros(7)), {}, ["b", "(7,)", "8"]),
        ((zeros(1, 4, 4, 3), zeros(8, 3, 3, 3)), {"algorithm": "fft"}, ["algorithm", "fft", "direct"]),
        ((zeros(1, 1, 4, 3), zeros(8, 3, 3, 3)), {"pool": True}, ["1 x 4", "2 x 2", "pool"]),
        ((zeros(1, 4, 4, 3), zeros(8, 3, 3, 3)), {"pool": "up"}, ["pool", "up", "ceil"]),
        (
            (zeros(1, 4, 4, 3), zeros(8, 3, 3, 3)),
            {"out": _C.empty((1, 4, 4, 7))},
            ["out", "(1, 4, 4, 7)", "8"],
        ),
    ],
)
def test_forward_errors(arguments, options, words):
    with raises(words):
        ops.conv2d(*arguments, **options)


def test_backward_errors():
    dy, w, x = zeros(1, 4, 4, 8), zeros(8, 3, 3, 3), zeros(1, 4, 4, 3)
    index = np.zeros((1, 2, 2, 8), np.uint8)
    for function, words in [
        (
            lambda: ops.conv2d_backward_input(dy, zeros(7, 3, 3, 3)),
            ["conv2d_backward_input", "(7, 3, 3, 3)", "8"],
        ),
        (lambda: ops.conv2d_backward_input(dy, w, y=zeros(1, 4, 4, 7)), ["y", "(1, 4, 4, 7)"]),
        (lambda: ops.conv2d_backward_input(zeros(1, 2, 2, 8), w, index=index), ["input_shape"]),
        (
            lambda: ops.conv2d_backward_input(zeros(1, 2, 2, 8), w, index=index, input_shape=(1, 7, 4, 3)),
            ["dy", "(1, 2, 2, 8)", "7 x 4"],
        ),
        (
            lambda: ops.conv2d_backward_input(zeros(1, 2, 2, 8), w, index=index[:, :1], input_shape=x.shape),
            ["index", "(1, 1, 2, 8)"],
        ),
        (
            lambda: ops.conv2d_backward_weight(dy, zeros(1, 5, 4, 3)),
            ["conv2d_backward_weight", "dy", "(1, 4, 4, 8)", "5 x 4"],
        ),
        (lambda: ops.conv2d_backward_weight(dy, x, 2), ["kernel_size", "2"]),
        (
            lambda: ops.conv2d_backward_weight(dy, x, 3, out=(_C.empty((8, 3, 3, 3)), _C.empty((9,)))),
            ["out", "(9,)"],
        ),
        (lambda: ops.conv2d_backward_weight(dy, x, 3, accumulate=True), ["accumulate", "out"]),
    ]:
        with raises(words):
            function()


def test_wrong_types():
    x, w = zeros(1, 4, 4, 3), zeros(8, 3, 3, 3)
    with pytest.raises(TypeError):
        ops.conv2d(x, w, out=np.zeros((1, 4, 4, 8), np.float32))  # out= takes Tensors
    with pytest.raises((TypeError, ValueError)):
        ops.conv2d(np.zeros((1, 4, 4, 3), np.complex64), w)
    with pytest.raises((TypeError, ValueError)):
        ops.conv2d("image", w)


@pytest.mark.parametrize("place", [4, 255])
def test_index_out_of_range(device, place):
    """An index that no pooling makes names no winner: its gradient goes nowhere, least of all out of bounds."""
    rng = np.random.default_rng(place)
    dy, w, x = (rng.standard_normal(s).astype(np.float32) for s in [(1, 2, 2, 8), (8, 3, 3, 3), (1, 4, 4, 3)])
    index = rng.integers(0, 4, dy.shape).astype(np.uint8)
    index[0, 1, 0, 5] = index[0, 0, 1, 7] = place
    g = reference.fused_gradient(wide(dy), None, index, x.shape)
    dx = backward_input(dy, w, None, index, x.shape, "floor")
    bound = tolerance.conv2d_backward_input_bound(g, wide(w))
    tolerance.assert_within(dx, reference.backward_input(g, wide(w)), bound, "dx")
    results = backward_weight(dy, x, 3, None, index, "floor")
    expected = reference.backward_weight(g, wide(x), 3)
    bounds = tolerance.conv2d_backward_weight_bound(g, wide(x), 3)
    for name, result, value, bound in zip(("dw", "db"), results, expected, bounds, strict=True):
        tolerance.assert_within(result, value, bound, name)


def test_sizes_that_overflow():
    huge = 1 << 40
    with pytest.raises((ValueError, MemoryError, OverflowError)):
        _C.conv2d_workspace((huge, huge, huge, 3), (64, 3, 3, 3))
    with pytest.raises((ValueError, MemoryError, OverflowError)):
        _C.empty((huge, huge))


def test_algorithm_is_a_pure_function(threads):
    asked = [((n, h, h, c, k), d) for n in (1, 2, 8) for h, c, k in [(14, 512, 512), (224, 3, 64)] for d in
             ("forward", "backward_input", "backward_weight")]  # fmt: skip
    answers = []
    for count in (1, 2):
        threads(count)
        answers.append([_C.conv2d_algorithm((n, h, w, c), (k, 3, 3, c), d) for (n, h, w, c, k), d in asked])
    assert answers[0] == answers[1]
    assert answers[0][6:12] == answers[0][12:18], "batch 2 and 8 differ"
    assert set(answers[0]) <= {"direct", "winograd2", "winograd4", "winograd6"}


def test_failed_allocations():
    x, w, b, y, index, dy = _case((2, 6, 5, 4, 9), 3, FUSIONS[2])
    y = y.astype(np.float32)
    assert survives_failed_allocations(lambda: ops.conv2d(x, w, b, relu=True, pool=True)) >= 2
    survives_failed_allocations(
        lambda: ops.conv2d_backward_input(dy, w, y=y, index=index, input_shape=x.shape)
    )
    survives_failed_allocations(lambda: ops.conv2d_backward_weight(dy, x, 3, y=y, index=index))


# ---------------------------------------------------------------------------------------------- the real
# layers


def real_layers():
    """Every distinct convolution of the six nets at 224 x 224: side, in, out, kernel."""
    found = {}
    for config in net.CONFIGS:
        shapes = net.parameter_shapes(config)
        for kind, name in net.layers(config):
            if kind == "conv":
                k, size, _, c = shapes[f"{name}.weight"]
                found.setdefault((224 >> int(name[4]) - 1, c, k, size), name)
    return [pytest.param(*layer, id=f"{name}-{layer[3]}x{layer[3]}") for layer, name in found.items()]


@pytest.mark.nightly
@pytest.mark.parametrize("side, c, k, size", real_layers())
def test_real_layers(side, c, k, size):
    for n in (1, 2):
        rng = np.random.default_rng([n, side, c, k])
        x, w, b = dense(rng, n, side, side, c, k, size)
        dy = rng.standard_normal((n, side, side, k)).astype(np.float32)
        y = ops.conv2d(x, w, b, algorithm="direct").numpy()
        bound = tolerance.conv2d_bound(wide(x), wide(w), wide(b))
        tolerance.assert_within(y, reference.forward(wide(x), wide(w), wide(b)), bound, "y")
        dx = ops.conv2d_backward_input(dy, w, algorithm="direct").numpy()
        bound = tolerance.conv2d_backward_input_bound(wide(dy), wide(w))
        tolerance.assert_within(dx, reference.backward_input(wide(dy), wide(w)), bound, "dx")
        results = ops.conv2d_backward_weight(dy, x, size, algorithm="direct")
        expected = reference.backward_weight(wide(dy), wide(x), size)
        bounds = tolerance.conv2d_backward_weight_bound(wide(dy), wide(x), size)
        for name, result, value, bound in zip(("dw", "db"), results, expected, bounds, strict=True):
            tolerance.assert_within(result.numpy(), value, bound, name)
