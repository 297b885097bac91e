"""The GEMM microkernels by their contract (struct vgg_gemm), each tile from its source alone.

A kernel whose ISA this machine lacks cannot run, but its source can: the tiles come from one template in
vectors of the compiler, which lowers 512-bit ones to whatever the baseline has. So the tile, its tails and
its epilogue are tested everywhere; only the instructions are not.
"""

import ctypes
import itertools

import numpy as np
import pytest

from helpers import FLOATS, kernel_library, pointer

KERNELS = {  # source: entry, MR, NR
    "gemm_scalar.c": ("vgg_sgemm_4x8__scalar", 4, 8),
    "gemm_avx2.c": ("vgg_sgemm_6x16__avx2", 6, 16),
    "gemm_avx512.c": ("vgg_sgemm_14x32__avx512", 14, 32),
}
GUARD = np.float32(-12345.0)


class Tile(ctypes.Structure):
    """struct vgg_gemm of csrc/vgg_internal.h."""

    _fields_ = (
        ("rows", ctypes.c_size_t),
        ("nr", ctypes.c_size_t),
        ("runs", ctypes.c_size_t),
        ("k", ctypes.c_size_t),
        ("a", FLOATS),
        ("a_run", ctypes.c_size_t),
        ("a_row", ctypes.c_size_t),
        ("a_col", ctypes.c_size_t),
        ("b", FLOATS),
        ("b_run", ctypes.c_size_t),
        ("c", FLOATS),
        ("c_row", ctypes.c_size_t),
        ("bias", FLOATS),
        ("beta", ctypes.c_bool),
        ("relu", ctypes.c_bool),
        ("next", FLOATS),
        ("next_lines", ctypes.c_size_t),
    )


@pytest.fixture(scope="module", params=KERNELS)
def kernel(request, tmp_path_factory):
    entry, mr, nr = KERNELS[request.param]
    function = getattr(kernel_library(request.param, tmp_path_factory.mktemp("gemm")), entry)
    function.argtypes, function.restype = [ctypes.POINTER(Tile)], None
    return function, mr, nr


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_strip(kernel, layout):
    """One tile of each size, and strips of two and three; every nr, with runs, strides, beta, bias and ReLU; nothing is
    written beside the strip."""
    run, most_rows, width = kernel
    random = np.random.Generator(np.random.Philox(7))
    runs, k = 3, 5
    for (rows, nr), options in zip(
        itertools.product([*range(1, 2 * most_rows + 2), 3 * most_rows - 1], range(1, width + 1)),
        itertools.cycle(itertools.product([False, True], repeat=3)),
        strict=False,
    ):
        beta, bias, relu = options
        a = random.standard_normal(
            (runs, rows + 1, k + 2) if layout == "rows" else (runs, k + 2, rows + 1), np.float32
        )
        b = random.standard_normal((runs, k + 1, width), np.float32)
        c = np.full((rows + 1, nr + 3), GUARD)
        c[:rows, :nr] = random.standard_normal((rows, nr), np.float32) if beta else np.nan
        offset = random.standard_normal(nr, np.float32)
        terms = (a if layout == "rows" else a.transpose(0, 2, 1))[:, :rows, :k].astype(np.float64)
        panel = b[:, :k, :nr].astype(np.float64)
        exact = np.einsum("tik,tkj->ij", terms, panel)
        bound = np.einsum("tik,tkj->ij", np.abs(terms), np.abs(panel))
        for used, extra in ((beta, c[:rows, :nr].astype(np.float64)), (bias, offset.astype(np.float64))):
            if used:
                exact, bound = exact + extra, bound + np.abs(extra)
        tile = Tile(
            rows=rows, nr=nr, runs=runs, k=k, a=pointer(a), a_run=a[0].size, b=pointer(b), b_run=b[0].size
        )
        tile.a_row, tile.a_col = (k + 2, 1) if layout == "rows" else (1, rows + 1)
        tile.c, tile.c_row, tile.beta, tile.relu = pointer(c), nr + 3, beta, relu
        tile.next, tile.next_lines = pointer(b), b.nbytes // 64
        if bias:
            tile.bias = pointer(offset)
        run(ctypes.byref(tile))
        if relu:
            exact = np.maximum(exact, 0)
        error = np.abs(c[:rows, :nr] - exact)
        assert (error <= 4 * np.finfo(np.float32).eps * bound).all(), (rows, nr, options)
        assert (c[rows:] == GUARD).all() and (c[:, nr:] == GUARD).all(), (rows, nr, options)


def test_row_does_not_depend_on_its_tile(kernel):
    """A sum has the same bits in any row of any tile: what makes results independent of batch and bands."""
    run, most_rows, width = kernel
    random = np.random.Generator(np.random.Philox(8))
    rows = 2 * most_rows + 1
    a, b = (random.standard_normal(shape, np.float32) for shape in [(rows, 40), (40, width)])

    def product(rows):
        c = np.empty((len(rows), width), np.float32)
        tile = Tile(rows=len(rows), nr=width, runs=1, k=40, a=pointer(rows), a_row=40, a_col=1, b=pointer(b))
        tile.c, tile.c_row = pointer(c), width
        run(ctypes.byref(tile))
        return c

    whole = product(a)
    for first, last in itertools.combinations(range(rows + 1), 2):
        assert np.array_equal(product(np.ascontiguousarray(a[first:last])), whole[first:last])


@pytest.mark.parametrize("relu", [False, True])
def test_nan_and_infinity(kernel, relu):
    run, most_rows, width = kernel
    a = np.ones((most_rows, 1), np.float32)
    b = np.resize(np.array([np.nan, np.inf, -np.inf, -1, 2], np.float32), width)
    c = np.empty((most_rows, width), np.float32)
    tile = Tile(rows=most_rows, nr=width, runs=1, k=1, a=pointer(a), a_row=1, a_col=1, b=pointer(b))
    tile.c, tile.c_row, tile.relu = pointer(c), width, relu
    run(ctypes.byref(tile))
    assert np.array_equal(c, np.broadcast_to(np.where(b < 0, 0, b) if relu else b, c.shape), equal_nan=True)
