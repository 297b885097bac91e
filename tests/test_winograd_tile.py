"""The transforms of F(2x2, 3x3), F(4x4, 3x3) and F(6x6, 3x3) from their sources, lowered to the baseline instruction
set: those of AVX-512 are tested here where the CPU has none. Input, weights and output transform of a whole map, with
NumPy's product between, are a convolution."""

import ctypes
from typing import Any, NamedTuple

import numpy as np
import pytest

import tolerance
from helpers import BYTES, FLOATS, kernel_library, pointer, sizes
from reference import conv2d as reference

KERNELS = {"scalar": 4, "avx2": 8, "avx512": 16}
GUARD = np.float32(-12345.0)


class Input(ctypes.Structure):
    """struct vgg_winograd_input of csrc/vgg_internal.h."""

    _fields_ = (
        *[("x", FLOATS), ("y", FLOATS), ("index", BYTES)],
        *sizes("h", "w", "c", "oh", "ow", "row", "column", "tiles"),
        *[("v", FLOATS), *sizes("v_element", "v_panel", "v_tile", "width")],
    )


class Weights(ctypes.Structure):
    """struct vgg_winograd_weights."""

    _fields_ = [("taps", FLOATS), *sizes("tap", "count"), ("u", FLOATS), *sizes("u_element")]


class Output(ctypes.Structure):
    """struct vgg_winograd_output."""

    _fields_ = (
        *[("m", FLOATS), *sizes("m_element", "m_tile"), ("bias", FLOATS)],
        *[("relu", ctypes.c_bool), ("pool", ctypes.c_bool), ("y", FLOATS), ("index", BYTES)],
        *sizes("h", "w", "k", "oh", "ow", "channels", "row", "column", "tiles"),
    )


class Sums(ctypes.Structure):
    """struct vgg_winograd_sums."""

    _fields_ = (
        *[("m", FLOATS), *sizes("m_element", "m_row"), ("dw", FLOATS)],
        *[*sizes("dw_row", "dw_tap", "rows", "columns"), ("beta", ctypes.c_bool)],
    )


class Kernels(NamedTuple):
    """The kernels for one size of tile and one ISA; the weight gradient's two are None for 2."""

    side: int  # outputs of a tile's row and column
    elements: int
    lanes: int
    input: Any
    weights: Any
    output: Any
    gradient: Any
    sums: Any


@pytest.fixture(scope="module", params=[(side, isa) for side in (2, 4, 6) for isa in KERNELS], ids=str)
def kernels(request, tmp_path_factory):
    side, isa = request.param
    loaded = kernel_library(f"winograd{side}_{isa}.c", tmp_path_factory.mktemp("winograd"))
    names = ("input", "weights", "output", "gradient", "sums")
    found = [getattr(loaded, f"vgg_winograd{side}_{name}__{isa}", None) for name in names]
    assert [name for name, function in zip(names, found, strict=True) if function is None] == (
        ["gradient", "sums"] if side == 2 else []
    )
    for function in found:
        if function is not None:
            function.restype = None
    return Kernels(side, (side + 2) ** 2, KERNELS[isa], *found)


def ceil(size, unit):
    return -(-size // unit)


def transformed_input(kernels, c, x, y, index, h, w):
    return transformed(kernels, kernels.input, kernels.elements, c, x, y, index, h, w)


def transformed(kernels, run, elements, c, x, y, index, h, w):
    """v[e][tile][c] of one image, from panels of `width` channels."""
    lanes = kernels.lanes
    rows, columns, width = ceil(h, kernels.side), ceil(w, kernels.side), 2 * lanes
    v = np.full((elements, ceil(c, width), rows * columns, width), GUARD)
    for row in range(rows):
        for column in (0, 1):  # a run of one tile, and a run of the rest
            tiles = 1 if column == 0 else columns - 1
            at = v[:, :, row * columns + column :]
            call = Input(
                pointer(x),
                pointer(y),
                pointer(index, BYTES),
                h,
                w,
                c,
                x.shape[0],
                x.shape[1],
                row,
                column,
                tiles,
            )
            call.v, call.v_element, call.v_panel = pointer(at), v[0].size, v[0, 0].size
            call.v_tile = call.width = width
            run(ctypes.byref(call))
    v = np.moveaxis(v, 1, 2).reshape(elements, rows * columns, -1)
    assert (v[:, :, ceil(c, lanes) * lanes :] == GUARD).all(), "written beyond the last vector"
    assert not v[:, :, c : ceil(c, lanes) * lanes].any(), (
        "the last vector's lanes without a channel are not 0"
    )
    return v[:, :, :c]


@pytest.mark.parametrize("h, w, c, k", [(9, 6, 19, 21), (4, 8, 16, 3), (13, 7, 33, 16), (2, 5, 1, 40)])
@pytest.mark.parametrize("pooled", [False, True])
def test_transforms_of_the_weight_gradient(kernels, h, w, c, k, pooled):
    if kernels.gradient is None:
        return
    elements, lanes = kernels.elements, kernels.lanes
    rng = np.random.default_rng([h, w, c, k, 1])
    x = rng.standard_normal((h, w, c), np.float32)
    dy, y = (rng.standard_normal((h // 2, w // 2, k) if pooled else (h, w, k), np.float32) for _ in range(2))
    index = rng.integers(0, 4, dy.shape, np.uint8) if pooled else None
    g = reference.fused_gradient(
        dy[None].astype(np.float64), y[None], None if index is None else index[None], (1, h, w, c)
    )
    u = transformed(kernels, kernels.gradient, elements + 1, k, dy, y, index, h, w)
    v = transformed_input(kernels, c, x, None, None, h, w)
    assert np.allclose(u[elements].sum(axis=0), g.sum(axis=(0, 1, 2)), atol=1e-4)

    width = ceil(c, lanes) * lanes
    m = np.zeros((elements, k, width), np.float32)
    m[:, :, :c] = np.moveaxis(u[:elements], 1, 2) @ v
    dw = np.full((k, 9, c + 2), GUARD)
    dw[..., :c] = 1
    call = Sums(pointer(m), k * width, width, pointer(dw), 9 * (c + 2), c + 2, k, c, True)
    kernels.sums(ctypes.byref(call))
    assert (dw[..., c:] == GUARD).all()
    expected = reference.backward_weight(g, x[None].astype(np.float64), 3)[0]
    bound = tolerance.conv2d_backward_weight_bound(
        g, x[None].astype(np.float64), 3, f"winograd{kernels.side}", (1, 0)
    )[0]
    tolerance.assert_within(dw[..., :c].reshape(expected.shape), expected + 1, bound)


@pytest.mark.parametrize("h, w, c, k", [(9, 6, 19, 21), (4, 8, 16, 3), (13, 7, 33, 16), (2, 5, 1, 40)])
def test_transforms(kernels, h, w, c, k):
    elements, lanes = kernels.elements, kernels.lanes
    rng = np.random.default_rng([h, w, c, k])
    x = rng.standard_normal((h, w, c), np.float32)
    filters = rng.standard_normal((k, 3, 3, c), np.float32)
    bias = rng.standard_normal(k, np.float32)
    v = transformed_input(kernels, c, x, None, None, h, w)

    width = ceil(k, lanes) * lanes
    taps = np.zeros((9, c, width), np.float32)
    taps[:, :, :k] = filters.reshape(k, 9, c).transpose(1, 2, 0)
    u = np.full((elements, c * width), GUARD)
    kernels.weights(ctypes.byref(Weights(pointer(taps), c * width, c * width, pointer(u), c * width)))
    m = v @ u.reshape(elements, c, width)

    rows, columns = ceil(h, kernels.side), ceil(w, kernels.side)
    for relu, pool in ((False, None), (True, None), (True, "ceil"), (False, "floor")):
        shape = {None: (h, w), "ceil": (ceil(h, 2), ceil(w, 2)), "floor": (h // 2, w // 2)}[pool]
        y = np.full((*shape, k + 2), GUARD)
        index = np.full(y.shape, 9, np.uint8)
        for row in range(rows):
            at = np.ascontiguousarray(m[:, row * columns : (row + 1) * columns])
            call = Output(pointer(at), at[0].size, width, pointer(bias), relu, pool is not None, pointer(y))
            call.index = pointer(index, BYTES)
            call.h, call.w, call.k, call.oh, call.ow, call.channels = h, w, k + 2, *shape, k
            call.row, call.column, call.tiles = row, 0, columns
            kernels.output(ctypes.byref(call))
        wide = [a.astype(np.float64) for a in (x[None], filters, bias)]
        expected = reference.fused(*wide, relu, pool)
        bound = tolerance.conv2d_bound(*wide, pool, f"winograd{kernels.side}")
        assert (y[..., k:] == GUARD).all() and (index[..., k:] == 9).all()
        tolerance.assert_within(y[None, ..., :k], expected[0] if pool else expected, bound)
        if pool:
            assert np.mean(index[None, ..., :k] == expected[1]) > 0.99  # rounding may tip a tie
        else:
            assert (index == 9).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", [None, "floor", "ceil"])
def test_gradient_is_read_where_it_lies(kernels, masked, mode):
    """Masked and un-pooled while it is loaded: the same bits as the gradient written out."""
    h, w, c = 11, 13, 19
    rng = np.random.default_rng([masked, len(mode or "")])
    shape = {None: (h, w), "ceil": (ceil(h, 2), ceil(w, 2)), "floor": (h // 2, w // 2)}[mode] + (c,)
    dy, y = (rng.standard_normal(shape, np.float32) for _ in range(2))
    y = y if masked else None
    index = rng.integers(0, 4, shape).astype(np.uint8) if mode else None
    if mode == "ceil":  # a window over the edge has no winner beyond it
        index[-1] &= 1
        index[:, -1] &= 2
    g = reference.fused_gradient(dy[None], None if y is None else y[None], None if index is None else index[None],
                                 (1, h, w, c))[0]  # fmt: skip
    found = transformed_input(kernels, c, dy, y, index, h, w)
    expected = transformed_input(kernels, c, np.ascontiguousarray(g, np.float32), None, None, h, w)
    assert np.array_equal(found, expected)
