"""Philox words, dropout and random tensors against the pure-Python generator of the reference."""

import numpy as np
import pytest
from vggnet import _C

from helpers import Guarded, call, ops, raises, survives_failed_allocations
from reference import dropout as reference
from reference import philox
from tolerance import EPS32, assert_exact, assert_within

SEEDS = [0, 1, 0xFFFFFFFF, 1 << 32, 0xA4093822299F31D0, (1 << 64) - 1]
ROWS = np.array([0, 1, (7 << 32) | 3, (1 << 62) + 12345, (1 << 63) - 1])


def test_known_answers():
    """The first of the authors' vectors through the library; the others prove the reference
    (test_reference.py)."""
    assert _C.random_bits(0, [0], 0, 4).tolist() == [[0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [1, 3, 4, 5, 18])
def test_bits(seed, count):
    for purpose in (0, 6, 1 << 16, 0xFFFFFFFF):
        words = _C.random_bits(seed, ROWS, purpose, count)
        assert words.dtype == np.uint32 and words.shape == (len(ROWS), count)
        assert np.array_equal(words, philox.bits(seed, ROWS, purpose, count))


def test_bits_of_nothing():
    assert _C.random_bits(0, np.zeros(0, np.int64), 0, 4).shape == (0, 4)
    assert _C.random_bits(0, [1, 2], 0, 0).shape == (2, 0)


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_seed_out_of_range(seed):
    with pytest.raises((ValueError, OverflowError)):
        _C.random_bits(seed, [0], 0, 4)


# ---------------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("width", [1, 3, 4, 37, 1030])
def test_dropout(device, rng, p, width):
    x = rng.standard_normal((len(ROWS), width)).astype(np.float32)
    for op in (ops.dropout, ops.dropout_backward):
        y = call(op, x, p, 77, ROWS, 6, out=x.shape)
        # p reaches the library as float32; 1 / (1 - p) and the product round once each.
        expected = x * reference.mask(float(np.float32(p)), 77, ROWS, 6, width)
        assert np.array_equal(y == 0, expected == 0)
        assert_within(y, expected, 2 * EPS32 * np.abs(expected))


def test_dropout_does_not_read_what_it_drops(device, rng):
    x = np.full((1, 4000), np.nan, np.float32)
    y = call(ops.dropout, x, 0.5, 3, np.array([9]), out=x.shape)
    dropped = philox.uniform(philox.bits(3, [9], 0, 4000)) < 0.5
    assert (y[dropped] == 0).all() and np.isnan(y[~dropped]).all()


def test_dropout_of_a_row_does_not_depend_on_the_batch(device, rng, threads):
    x = rng.standard_normal((len(ROWS), 4096)).astype(np.float32)
    threads(1)
    whole = ops.dropout(x, 0.5, 5, ROWS, 7).numpy()
    threads(3)
    assert ops.dropout(x, 0.5, 5, ROWS, 7).numpy().tobytes() == whole.tobytes()
    for i in range(len(ROWS)):
        alone = ops.dropout(x[i : i + 1], 0.5, 5, ROWS[i : i + 1], 7).numpy()
        assert alone.tobytes() == whole[i : i + 1].tobytes()


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_dropout_in_place(device, rng, p):
    x = rng.standard_normal((2, 50)).astype(np.float32)
    y = Guarded(x.shape, value=x)
    ops.dropout(y.tensor, p, 5, ROWS[:2], out=y.tensor)
    assert_exact(y.numpy(), ops.dropout(x, p, 5, ROWS[:2]).numpy())


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((np.zeros((2, 3), np.float32), 1.0, 0, [0, 1]), ["dropout", "p", "1"]),
        ((np.zeros((2, 3), np.float32), -0.1, 0, [0, 1]), ["p", "-0.1"]),
        ((np.zeros((2, 3), np.float32), float("nan"), 0, [0, 1]), ["p", "nan"]),
        ((np.zeros((2, 3), np.float32), 0.5, 0, [0]), ["rows", "(1,)"]),
    ],
)
def test_dropout_errors(arguments, words):
    for op in (ops.dropout, ops.dropout_backward):
        with raises(words):
            op(*arguments)


def test_failed_allocations(rng):
    x = rng.standard_normal((2, 8)).astype(np.float32)
    assert survives_failed_allocations(lambda: ops.dropout(x, 0.5, 1, ROWS[:2])) == 1


# ---------------------------------------------------------------------------------------------- random
# tensors


@pytest.mark.parametrize("count", [0, 1, 2, 5, 1023, 40_001])
def test_uniform(device, count):
    x = Guarded((count,))
    ops.random_uniform_(x.tensor, 0.3, 123, 1 << 16)
    words = philox.bits(123, [0], 1 << 16, count)[0]
    expected = np.float64(np.float32(0.3)) * (2 * philox.uniform(words) - 1)
    # 2 u - 1 is exact, the product rounds once.
    assert_within(x.numpy(), expected, EPS32 * np.abs(expected))


@pytest.mark.parametrize("count", [0, 1, 2, 5, 1023, 40_001])
def test_normal(device, count):
    x = Guarded((count,))
    ops.random_normal_(x.tensor, 0.01, 123, 1 << 16)
    words = philox.words(123, 0, 1 << 16, count + 4)
    pairs = [philox.normal_pair(*words[j : j + 2]) for j in range(0, count + 1, 2)]
    expected = np.float64(np.float32(0.01)) * np.array(pairs).reshape(-1)[:count]
    # A dozen roundings of the logarithm, of the cosine or sine and of their product.
    radius = np.repeat(np.hypot(*np.array(pairs).T), 2)[:count]
    assert_within(x.numpy(), expected, 8 * EPS32 * 0.01 * radius)


def test_random_tensors_look_random(threads):
    x = _C.empty((200_000,))
    ops.random_normal_(x, 2.0, 9, 3)
    v = x.numpy().astype(np.float64) / 2
    n = len(v)
    assert abs(v.mean()) < 4 / n**0.5 and abs(v.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((v**4).mean() - 3) < 4 * (96 / n) ** 0.5  # the variance of x^4 is 105 - 9
    assert abs((v[:-1] * v[1:]).mean()) < 4 / n**0.5
    assert 3.9 < np.abs(v).max() < 6.5
    first = v.tobytes()
    threads(3)
    ops.random_normal_(x, 2.0, 9, 3)
    assert (x.numpy().astype(np.float64) / 2).tobytes() == first
    ops.random_normal_(x, 2.0, 9, 4)
    assert abs(np.corrcoef(v, x.numpy())[0, 1]) < 4 / n**0.5


def test_random_tensor_errors():
    with pytest.raises(ValueError, match="scale"):
        ops.random_normal_(_C.empty((4,)), float("nan"), 0, 0)
    with pytest.raises(ValueError, match="scale"):
        ops.random_uniform_(_C.empty((4,)), -1.0, 0, 0)
    with pytest.raises(TypeError):
        ops.random_normal_(np.zeros(4, np.float32), 1.0, 0, 0)
    with pytest.raises((ValueError, TypeError)):
        ops.random_normal_(_C.empty((4,), "int64"), 1.0, 0, 0)
