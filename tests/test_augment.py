"""Crop, mirror, shift and mean subtraction; and unfolding, which makes fc6 a convolution."""

import functools

import numpy as np
import pytest
from vggnet import _C

from helpers import call, ops, raises, survives_failed_allocations, unaligned
from reference import augment, unfold
from tolerance import EPS32, assert_exact, assert_within

RGB = (123.68, 116.779, 103.939)


def draw(rng, n, size, channels):
    images = [
        rng.integers(0, 256, (size + int(dh), size + int(dw), channels), np.uint8)
        for dh, dw in rng.integers(0, 9, (n, 2))
    ]
    crops = np.array(
        [
            [rng.integers(0, a.shape[0] - size + 1), rng.integers(0, a.shape[1] - size + 1), i % 2]
            for i, a in enumerate(images)
        ],
        np.int64,
    ).reshape(n, 3)
    return images, crops


def augmented(device, images, crops, size, mean, shift=None):
    """Into a guarded output; images, crops and shifts are always the host's."""
    options = {"device": device} if shift is None else {"device": device, "shift": unaligned(shift)}
    shape = (len(images), size, size, len(mean))
    return call(functools.partial(_C.augment, images, unaligned(crops), size, mean, **options), out=shape)


@pytest.mark.parametrize(
    "channels, mean", [(3, RGB), (1, (72.5,)), (3, (0, 0, 0)), (2, (1, 2)), (4, (1, 2, 3, 4))]
)
@pytest.mark.parametrize("n, size", [(0, 4), (1, 1), (5, 3), (4, 32), (2, 33)])
@pytest.mark.parametrize("shifted", [False, True])
def test_augment(device, rng, n, size, channels, mean, shifted):
    images, crops = draw(rng, n, size, channels)
    shift = (10 * rng.standard_normal((n, channels))).astype(np.float32) if shifted else None
    given = [*images, crops, shift] if shifted else [*images, crops]
    before = [a.copy() for a in given]
    x = augmented(device, images, crops, size, mean, shift)
    expected = augment.forward(images, crops, size, [float(np.float32(m)) for m in mean], shift)
    # Two additions of numbers up to 255, the mean and the shift.
    bound = EPS32 * (255 + max(map(abs, mean)) + (0 if shift is None or not n else np.abs(shift).max()))
    assert_within(x, expected, bound)
    assert all(np.array_equal(a, b) for a, b in zip(before, given, strict=True)), "an input was written to"


def test_integer_means_are_exact(device, rng):
    images, crops = draw(rng, 6, 8, 3)
    x = augmented(device, images, crops, 8, (120, 110, 100))
    assert_exact(x, augment.forward(images, crops, 8, (120, 110, 100)))


def test_threads_give_equal_bits(rng, threads):
    images, crops = draw(rng, 9, 64, 3)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(_C.augment(images, crops, 64, RGB).numpy().tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize(
    "images, crops, size, mean, shift, words",
    [
        ([(5, 5, 3)], [[2, 0, 0]], 4, RGB, None, ["augment", "crops[0]", "(2, 0)", "images[0]", "5 by 5"]),
        ([(5, 5, 3)], [[0, 2, 0]], 4, RGB, None, ["crops[0]", "(0, 2)"]),
        ([(5, 5, 3)], [[-1, 0, 0]], 4, RGB, None, ["crops[0]", "(-1, 0)"]),
        ([(5, 5, 3)], [[0, 0, 2]], 4, RGB, None, ["crops", "2"]),
        ([(5, 5, 3)], [[1 << 62, 0, 0]], 4, RGB, None, ["crops[0]", f"({1 << 62}, 0)"]),
        ([(5, 5, 3)], [[0, 0, 0]], 6, RGB, None, ["5 by 5"]),
        ([(9, 9, 3), (5, 9, 3)], [[2, 2, 0]] * 2, 4, RGB, None, ["crops[1]", "images[1]", "5 by 9"]),
        ([(5, 5, 3)], [[0, 0, 0]], 0, RGB, None, ["size", "0"]),
        ([(5, 5, 3)], [[0, 0, 0], [0, 0, 0]], 4, RGB, None, ["crops", "(2, 3)"]),
        ([(5, 5, 3), (5, 5, 1)], [[0, 0, 0]] * 2, 4, RGB, None, ["images[1]", "1 channels", "3"]),
        ([(5, 5)], [[0, 0, 0]], 4, RGB, None, ["images", "(5, 5)"]),
        ([(5, 5, 3)], [[0, 0, 0]], 4, RGB, (2, 3), ["shift", "(2, 3)"]),
        ([(5, 5, 3)], [[0, 0, 0]], 4, (1.0,) * 5, None, ["mean", "5"]),
    ],
)
def test_augment_errors(images, crops, size, mean, shift, words):
    images = [np.zeros(shape, np.uint8) for shape in images]
    shift = None if shift is None else np.zeros(shift, np.float32)
    with raises(words):
        _C.augment(images, np.array(crops), size, mean, shift=shift)


def test_float_images_are_refused():
    with pytest.raises((TypeError, ValueError), match="uint8"):
        _C.augment([np.zeros((5, 5, 3), np.float32)], np.zeros((1, 3), np.int64), 4, RGB)


# ---------------------------------------------------------------------------------------------- unfold


@pytest.mark.parametrize(
    "shape, size",
    [
        ((1, 1, 1, 1), 1),
        ((2, 7, 7, 5), 7),
        ((1, 8, 11, 6), 7),
        ((3, 4, 2, 3), 2),
        ((0, 4, 4, 3), 2),
        ((1, 3, 5, 67), 1),
    ],
    ids=str,
)
def test_unfold(device, rng, shape, size):
    x = rng.standard_normal(shape).astype(np.float32)
    expected = unfold.forward(x, size)
    assert_exact(call(ops.unfold, x, size, out=expected.shape), expected)


@pytest.mark.parametrize("size", [0, 5, -1, 1 << 40])
def test_unfold_errors(size):
    with pytest.raises(ValueError, match=r"unfold.*size"):
        ops.unfold(np.zeros((1, 4, 6, 3), np.float32), size)


def test_failed_allocations(rng):
    images, crops = draw(rng, 2, 8, 3)
    assert survives_failed_allocations(lambda: _C.augment(images, crops, 8, RGB)) >= 1
    assert survives_failed_allocations(lambda: ops.unfold(np.zeros((1, 4, 4, 3), np.float32), 2)) == 1
