"""The kernels of kernels/first_tile.h by their contracts (vgg_internal.h), from their sources, lowered to the baseline
instruction set: those of AVX-512 are tested here where the CPU has none. Only their intrinsics are not."""

import ctypes

import numpy as np
import pytest

from helpers import BYTES, FLOATS, kernel_library, pointer, sizes
from reference import conv2d as reference

KERNELS = {"scalar": (4, 3), "avx2": (8, 3), "avx512": (16, 6)}  # floats of a vector, pixels of a tile
GUARD = np.float32(-12345.0)


class Forward(ctypes.Structure):
    """struct vgg_first_forward."""

    _fields_ = (
        *[("x", FLOATS), *sizes("x_row", "c"), ("panels", FLOATS)],
        *[(name, ctypes.c_bool) for name in ("relu", "pool", "stream")],
        *[("y", FLOATS), ("index", BYTES), *sizes("rows", "w", "k", "oh", "ow")],
    )


class Gradient(ctypes.Structure):
    """struct vgg_first_gradient."""

    _fields_ = (
        *[
            ("dy", FLOATS),
            ("y", FLOATS),
            ("index", BYTES),
            *sizes("oh", "ow", "k", "row", "column", "columns"),
        ],
        *[("g", FLOATS), *sizes("g_pixel")],
    )


class Input(ctypes.Structure):
    """struct vgg_first_input."""

    _fields_ = (
        *[("g", FLOATS * 3), *sizes("g_pixel"), ("weights", FLOATS), ("dx", FLOATS)],
        *sizes("w", "c"),
    )


class Weight(ctypes.Structure):
    """struct vgg_first_weight."""

    _fields_ = (
        *[("x", FLOATS), *sizes("x_row", "c"), ("g", FLOATS), *sizes("g_pixel", "rows", "columns")],
        *[("sums", FLOATS), ("ahead", FLOATS * 2), *sizes("ahead_bytes")],
    )


@pytest.fixture(scope="module", params=KERNELS)
def kernels(request, tmp_path_factory):
    loaded = kernel_library(f"first_{request.param}.c", tmp_path_factory.mktemp("first"))
    names = ("forward", "gradient", "input", "weight")
    found = {n: getattr(loaded, f"vgg_first_{n}__{request.param}") for n in names}
    for function in found.values():
        function.restype = None
    return found, *KERNELS[request.param]


def ceil(size, unit):
    return -(-size // unit) * unit


def integers(rng, *shape):
    return rng.integers(-4, 5, shape).astype(np.float32)


@pytest.mark.parametrize("k", [5, 16, 64, 67])
@pytest.mark.parametrize("c", [1, 2, 3, 4])
def test_forward(kernels, c, k):
    run, vl, pixels = kernels[0]["forward"], kernels[1], kernels[2]
    rng = np.random.default_rng([c, k])
    nr, h, w = 4 * vl, 5, 15
    x, weights, bias = integers(rng, 1, h, w, c), integers(rng, k, 3, 3, c), integers(rng, k)
    staged = np.zeros((h + 2, w + 2 + 2 * pixels, c), np.float32)
    staged[1:-1, 1 : w + 1] = x[0]
    panels = np.zeros((ceil(k, nr), 1 + 9 * c), np.float32)
    panels[:k, 0], panels[:k, 1:] = bias, weights.reshape(k, -1)
    panels = np.ascontiguousarray(panels.reshape(-1, nr, 1 + 9 * c).transpose(0, 2, 1))
    for relu in (False, True):
        for pool in (None, "floor", "ceil"):
            expected = reference.fused(x, weights, bias, relu, pool)
            y, index = (expected[0][0], expected[1][0]) if pool else (expected[0], None)
            oh, ow = y.shape[:2]
            got, got_index = np.full(y.size + 1, GUARD), np.full(y.size + 1, 77, np.uint8)
            call = Forward(pointer(staged), staged[0].size, c, pointer(panels), relu, pool is not None, False)
            call.y, call.index = pointer(got), pointer(got_index, BYTES)
            call.rows, call.w, call.k, call.oh, call.ow = h, w, k, oh, ow
            run(ctypes.byref(call))
            assert np.array_equal(got[:-1].reshape(y.shape), y) and got[-1] == GUARD
            if pool:
                assert np.array_equal(got_index[:-1].reshape(y.shape), index) and got_index[-1] == 77


@pytest.mark.parametrize("k", [5, 16, 64, 67])
def test_gradient(kernels, k):
    run, vl = kernels[0]["gradient"], kernels[1]
    rng = np.random.default_rng(k)
    h, w, g_pixel = 5, 7, ceil(k, vl)
    for pooled in (False, True):
        oh, ow = (h // 2, w // 2) if pooled else (h, w)
        dy, y = integers(rng, 1, oh, ow, k), integers(rng, 1, oh, ow, k)
        index = rng.integers(0, 4, dy.shape).astype(np.uint8) if pooled else None
        for mask in (None, y):
            expected = np.zeros((h, w, g_pixel), np.float32)
            expected[..., :k] = reference.fused_gradient(dy, mask, index, (1, h, w, 1))[0]
            for row in range(h):
                for column, columns in ((0, w), (1, 4), (w - 1, 1)):
                    g = np.full(columns * g_pixel + 1, GUARD)
                    call = Gradient(
                        pointer(dy), pointer(mask), pointer(index, BYTES), oh, ow, k, row, column, columns
                    )
                    call.g, call.g_pixel = pointer(g), g_pixel
                    run(ctypes.byref(call))
                    part = expected[row, column : column + columns]
                    assert np.array_equal(g[:-1].reshape(part.shape), part) and g[-1] == GUARD


@pytest.mark.parametrize("k", [5, 16, 64, 67])
@pytest.mark.parametrize("c", [1, 2, 3, 4])
def test_input(kernels, c, k):
    run, vl = kernels[0]["input"], kernels[1]
    rng = np.random.default_rng([c, k])
    g_pixel, w = ceil(k, vl), 29
    g, weights = integers(rng, 1, 3, w, k), integers(rng, k, 3, 3, c)
    staged = np.zeros((3, w + 2 + 12, g_pixel), np.float32)
    staged[:, 1 : w + 1, :k] = g[0]
    turned = np.zeros((9, c, g_pixel), np.float32)
    turned[..., :k] = weights[:, ::-1, ::-1].reshape(k, 9, c).transpose(1, 2, 0)
    turned = np.ascontiguousarray(turned.reshape(9, c, -1, vl).transpose(0, 2, 1, 3))
    dx = np.full(w * c + 1, GUARD)
    call = Input((FLOATS * 3)(*(pointer(row) for row in staged)), g_pixel, pointer(turned), pointer(dx), w, c)
    run(ctypes.byref(call))
    expected = reference.backward_input(g, weights)[0, 1]
    assert np.array_equal(dx[:-1].reshape(w, c), expected) and dx[-1] == GUARD


@pytest.mark.parametrize("k", [5, 16, 64, 67])
@pytest.mark.parametrize("c", [1, 2, 3, 4])
def test_weight(kernels, c, k):
    run, vl = kernels[0]["weight"], kernels[1]
    rng = np.random.default_rng([c, k])
    g_pixel, rows, columns = ceil(k, vl), 3, 7
    x, g = integers(rng, 1, rows, columns, c), integers(rng, 1, rows, columns, k)
    staged = np.zeros((rows + 2, columns + 2, c), np.float32)
    staged[1:-1, 1:-1] = x[0]
    padded = np.zeros((rows, columns, g_pixel), np.float32)
    padded[..., :k] = g[0]
    dw, db = reference.backward_weight(g, x)
    expected = np.ones((9 * c + 1, g_pixel))
    expected[:-1, :k] += dw.reshape(k, -1).T
    expected[-1, :k] += db
    for ahead_bytes in (0, g.nbytes):
        sums = np.full(expected.size + 1, GUARD)
        sums[:-1] = 1
        call = Weight(
            pointer(staged), staged[0].size, c, pointer(padded), g_pixel, rows, columns, pointer(sums)
        )
        call.ahead, call.ahead_bytes = (FLOATS * 2)(pointer(g), pointer(g)), ahead_bytes
        run(ctypes.byref(call))
        assert np.array_equal(sums[:-1].reshape(expected.shape), expected) and sums[-1] == GUARD
