"""The fully connected layer's kernels by their contracts (vgg_internal.h), each from its source alone, lowered to the
baseline instruction set: those of AVX-512 are tested here where the CPU has none."""

import ctypes
import itertools

import numpy as np
import pytest

from helpers import FLOATS, kernel_library, pointer, sizes

KERNELS = {"scalar": (4, 4), "avx2": (6, 8), "avx512": (14, 16)}  # rows of the gradient's tile, vector
FEW = 8
GUARD = np.float32(-12345.0)
EPS = np.finfo(np.float32).eps


class Forward(ctypes.Structure):
    """struct vgg_linear_forward of csrc/vgg_internal.h."""

    _fields_ = (
        *sizes("rows", "outputs", "inputs", "block"),
        *[("w", ctypes.c_void_p), ("bfloat16", ctypes.c_bool), *sizes("w_row")],
        *[("x", FLOATS), *sizes("x_row"), ("bias", FLOATS), ("relu", ctypes.c_bool)],
        *[("y", FLOATS), *sizes("y_row")],
    )


class Gradient(ctypes.Structure):
    """struct vgg_linear_gradient."""

    _fields_ = (
        *sizes("rows", "tile", "k", "columns"),
        *[("a", FLOATS), *sizes("a_tile"), ("b", FLOATS), ("next", FLOATS), *sizes("b_row", "b_panel")],
        *[("packed", FLOATS), ("carry", FLOATS), *sizes("carry_row")],
        *[("c", FLOATS), *sizes("c_row"), ("beta", ctypes.c_bool)],
    )


@pytest.fixture(scope="module", params=KERNELS)
def kernels(request, tmp_path_factory):
    loaded = kernel_library(f"linear_{request.param}.c", tmp_path_factory.mktemp("linear"))
    functions = []
    for what in ("forward", "gradient"):
        function = getattr(loaded, f"vgg_linear_{what}__{request.param}")
        function.restype = None
        functions.append(function)
    return (*functions, *KERNELS[request.param])


def generator(seed):
    return np.random.Generator(np.random.Philox(seed))


def forward(run, x, w, bias, relu, block, y=None):
    """y of the kernel, in the middle of guards; w float32, or uint16: bfloat16."""
    rows, outputs = len(x), len(w)
    y = np.full((rows + 1, outputs + 3), GUARD)
    call = Forward(rows=rows, outputs=outputs, inputs=x.shape[1], block=block)
    call.w, call.bfloat16, call.w_row = w.ctypes.data, w.dtype == np.uint16, w.strides[0] // w.itemsize
    call.x, call.x_row, call.bias, call.relu = pointer(x), x.strides[0] // 4, pointer(bias), relu
    call.y, call.y_row = pointer(y), outputs + 3
    run(ctypes.byref(call))
    assert (y[rows:] == GUARD).all() and (y[:, outputs:] == GUARD).all()
    return y[:rows, :outputs]


def halves(w):
    """The upper halves of floats, and the floats that they stand for."""
    bits = w.view(np.uint32) >> 16
    return bits.astype(np.uint16), (bits << 16).view(np.float32)


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
def test_forward(kernels, narrow):
    """Every number of rows and of outputs in a vector, and every rest of a quad; blocks, strides, bias and ReLU."""
    run, _, _, vl = kernels
    random = generator(1)
    options = itertools.cycle(itertools.product([False, True], repeat=2))
    cases = itertools.product(range(1, FEW + 1), (1, 2, vl - 1, vl, vl + 1, 2 * vl + 3), (1, 3, 8, 15, 37))
    for (rows, outputs, inputs), (bias, relu) in zip(cases, options, strict=False):
        x = random.standard_normal((rows, inputs + 3), np.float32)[:, :inputs]
        w = random.standard_normal((outputs, inputs + 1), np.float32)
        stored = w
        if narrow:
            stored, w = halves(w)
        stored, w = stored[:, :inputs], w[:, :inputs].astype(np.float64)
        b = random.standard_normal(outputs, np.float32) if bias else None
        exact = x.astype(np.float64) @ w.T + (0 if b is None else b)
        bound = np.abs(x) @ np.abs(w).T + (0 if b is None else np.abs(b))
        y = forward(run, x, stored, b, relu, 16)
        exact = np.maximum(exact, 0) if relu else exact
        assert (np.abs(y - exact) <= 4 * EPS * bound).all(), (rows, outputs, inputs, bias, relu)


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
def test_forward_row_does_not_depend_on_the_others(kernels, narrow):
    run, _, _, vl = kernels
    random = generator(2)
    x, w = random.standard_normal((FEW, 45), np.float32), random.standard_normal((vl + 3, 45), np.float32)
    stored = halves(w)[0] if narrow else w
    whole = forward(run, x, stored, None, False, 16)
    for first, last in itertools.combinations(range(FEW + 1), 2):
        assert np.array_equal(forward(run, x[first:last], stored, None, False, 16), whole[first:last])


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
def test_forward_nan_and_infinity(kernels, narrow):
    run, _, _, vl = kernels
    w = np.resize(np.array([np.nan, np.inf, -np.inf, -1, 2], np.float32), (2 * vl + 1, 1))
    x = np.ones((3, 1), np.float32)
    for relu in (False, True):
        expected = np.where(w[:, 0] < 0, 0, w[:, 0]) if relu else w[:, 0]
        y = forward(run, x, halves(w)[0] if narrow else w, None, relu, 8)
        assert np.array_equal(y, np.broadcast_to(expected, y.shape), equal_nan=True)


def gradient(run, a, b, tile, nr, *, panels=False, carry=None, before=None):
    """carry + a b + before by the kernel: a (rows, k), b (k, columns), in place or in panels, in the middle of guards."""
    (rows, k), columns = a.shape, b.shape[1]
    tiles = -(-rows // tile)
    packed_a = np.full((tiles, k + 1, tile), np.nan, np.float32)
    for i in range(rows):
        packed_a[i // tile, :k, i % tile] = a[i]
    c = np.full((rows + 1, columns + 3), GUARD)
    c[:rows, :columns] = np.nan if before is None else before
    call = Gradient(rows=rows, tile=tile, k=k, columns=columns, a=pointer(packed_a), a_tile=(k + 1) * tile)
    if panels:
        count = -(-columns // nr)
        wide = np.zeros((k, count * nr), np.float32)
        wide[:, :columns] = b
        laid = np.ascontiguousarray(wide.reshape(k, count, nr).transpose(1, 0, 2))
        call.b_row, call.b_panel = nr, k * nr
    else:  # the last row ends with the array, so that a sanitizer or a guard page would see what is read beyond
        laid = np.ascontiguousarray(b)
        call.b_row, call.b_panel = columns, nr
        scratch = np.full((k + 1, nr), GUARD)
        call.packed = pointer(scratch)
    call.b = call.next = pointer(laid)
    if carry is not None:
        room = np.full((rows, -(-columns // nr) * nr), np.nan, np.float32)
        room[:, :columns] = carry
        call.carry, call.carry_row = pointer(room), room.shape[1]
    call.c, call.c_row, call.beta = pointer(c), columns + 3, before is not None
    run(ctypes.byref(call))
    assert (c[rows:] == GUARD).all() and (c[:, columns:] == GUARD).all()
    assert panels or (scratch[k] == GUARD).all()
    return c[:rows, :columns]


def test_gradient(kernels):
    """Every number of rows up to several tiles, every rest of columns; in place and in panels, carry and beta."""
    _, run, mr, vl = kernels
    nr = 2 * vl
    random = generator(3)
    options = itertools.cycle(itertools.product([False, True], repeat=3))
    rows_and_columns = [(rows, nr + 1) for rows in range(1, 2 * mr + 2)]
    rows_and_columns += [(mr + 1, columns) for columns in range(1, 2 * nr + 2)]
    for ((rows, columns), k), (panels, carried, beta) in zip(
        itertools.product(rows_and_columns, (1, 5)), options, strict=False
    ):
        a, b = random.standard_normal((rows, k), np.float32), random.standard_normal((k, columns), np.float32)
        more = [
            random.standard_normal((rows, columns), np.float32) if used else None for used in (carried, beta)
        ]
        result = gradient(
            run, a, b, -(-rows // -(-rows // mr)), nr, panels=panels, carry=more[0], before=more[1]
        )
        exact, bound = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)
        for term in more:
            if term is not None:
                exact, bound = exact + term, bound + np.abs(term)
        assert (np.abs(result - exact) <= 4 * EPS * bound).all(), (rows, columns, k, panels, carried, beta)


def test_gradient_has_the_same_bits_however_it_is_cut(kernels):
    """A row in any tile, in place or in panels, at once or in parts that carry on."""
    _, run, mr, vl = kernels
    random, nr, rows = generator(4), 2 * vl, 2 * mr + 1
    a, b = random.standard_normal((rows, 21), np.float32), random.standard_normal((21, nr + 5), np.float32)
    whole = gradient(run, a, b, mr, nr)
    assert np.array_equal(gradient(run, a, b, mr, nr, panels=True), whole)
    first = gradient(run, a[:, :9], b[:9], mr, nr)
    assert np.array_equal(gradient(run, a[:, 9:], b[9:], mr, nr, carry=first), whole)
    for tile in range(1, mr + 1):
        assert np.array_equal(gradient(run, a, b, tile, nr), whole)
        assert np.array_equal(gradient(run, a[tile:], b, tile, nr), whole[tile:])


def test_gradient_nan_and_infinity(kernels):
    _, run, mr, vl = kernels
    b = np.resize(np.array([np.nan, np.inf, -np.inf, -1], np.float32), (1, 2 * vl + 3))
    result = gradient(run, np.ones((mr, 1), np.float32), b, mr, 2 * vl)
    assert np.array_equal(result, np.broadcast_to(b, result.shape), equal_nan=True)
