"""The random choices of a training image: what they are drawn from, and what they depend on."""

import dataclasses
import json

import numpy as np
import pytest
import vggnet as vgg
from vggnet.augment import Augmentation, PixelStatistics, pixel_statistics

from helpers import photos

COVARIANCE = ((0.08, 0.07, 0.06), (0.07, 0.08, 0.07), (0.06, 0.07, 0.09))
MEAN = (123.68, 116.779, 103.939)


def picture(rng, height, width, channels=3):
    return rng.integers(0, 256, (height, width, channels), np.uint8)


# ---- statistics


def test_statistics_are_those_of_all_pixels(rng):
    images = [picture(rng, h, w) // (i + 1) for i, (h, w) in enumerate([(5, 7), (1, 1), (40, 3)])]
    found = pixel_statistics(iter(images))
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]).astype(np.float64)
    assert found.pixels == len(pixels)
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(pixels.T / 255, bias=True), rtol=1e-12)
    assert found.images == 3
    assert pixel_statistics(reversed(images)) == found  # exact sums: no order


def test_statistics_keep_a_small_variance_on_a_large_mean():
    image = np.full((500, 500, 1), 255, np.uint8)
    image[0, 0] = 254
    n = image.size
    assert pixel_statistics([image] * 3).covariance[0][0] == pytest.approx((n - 1) / n**2 / 255**2, rel=1e-14)


def test_statistics_of_no_images_or_of_mixed_channels(rng):
    with pytest.raises(ValueError, match="no images"):
        pixel_statistics([])
    with pytest.raises(ValueError, match="has 1 channels, the first had 3"):
        pixel_statistics([picture(rng, 2, 2), picture(rng, 2, 2, 1)])


def test_principal_directions_rebuild_the_covariance(rng):
    found = pixel_statistics([picture(rng, 9, 9) // np.array([1, 2, 5], np.uint8)])
    values, vectors = np.array(found.eigenvalues), np.array(found.eigenvectors)
    assert (np.diff(values) < 0).all() and values[-1] > 0
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, found.covariance, rtol=1e-12)
    assert (vectors[np.abs(vectors).argmax(axis=0), range(3)] > 0).all()


def test_statistics_survive_json(rng):
    found = pixel_statistics([picture(rng, 5, 7), picture(rng, 3, 2)])
    written = json.loads(json.dumps(found.to_dict()))
    assert PixelStatistics.from_dict(written) == found
    np.testing.assert_array_equal(written["eigenvectors"], found.eigenvectors)
    del written["eigenvalues"], written["eigenvectors"]
    assert PixelStatistics.from_dict(written) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, "mean"),
        ({"mean": [1, 2]}, "2 channels"),
        ({"mean": [300, 0, 0]}, r"0\.\.255"),
        ({"mean": [float("nan"), 0, 0]}, r"0\.\.255"),
        ({"mean": []}, "one value"),
        ({"covariance": [[1, 0], [0, 1]]}, "3 channels"),
        ({"covariance": [[5000, 0, 0], [0, 5000, 0], [0, 0, 5000]]}, "0..1 scale"),
        ({"covariance": [[0.1, 0.05, 0], [0, 0.1, 0], [0, 0, 0.1]]}, "covariance matrix"),
        ({"covariance": [[0.1, 0.2, 0], [0.2, 0.1, 0], [0, 0, 0.1]]}, "covariance matrix"),
        ({"covariance": "x"}, "not numbers"),
        ({"pixels": 0}, "pixels is 0"),
        ({"images": 1.5}, "images is 1.5"),
        ({"std": [1, 1, 1]}, "'std'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_statistics_of_others_are_checked(rng, change, message):
    values = pixel_statistics([picture(rng, 5, 7)]).to_dict() | change
    with pytest.raises(ValueError, match=message):
        PixelStatistics.from_dict(values)
    for bad in ([], {"mean": [1]}):
        with pytest.raises(ValueError, match="expected .*covariance"):
            PixelStatistics.from_dict(bad)


# ---- draws


def test_scales_cover_the_range_evenly_and_differ_by_epoch():
    augmentation = Augmentation(crop=224, scale=(256, 512), seed=3)
    images = np.arange(257 * 100)
    sides = augmentation.short_sides(0, images)
    counts = np.bincount(sides, minlength=513)[256:]
    assert len(counts) == 257
    assert counts.sum() == len(images)
    assert ((counts - 100) ** 2 / 100).sum() < 257 + 5 * np.sqrt(2 * 257)  # chi-squared, 5 deviations
    assert (sides != augmentation.short_sides(1, images)).mean() > 0.9
    assert (Augmentation(crop=224, scale=384).short_sides(0, images) == 384).all()


def test_crops_reach_every_position_and_half_are_mirrored():
    augmentation = Augmentation(crop=32, scale=34, seed=1)
    n = 20_000
    crops = augmentation.crops(5, np.arange(n), np.tile([34, 36], (n, 1)))
    counts = np.zeros((3, 5, 2))
    np.add.at(counts, tuple(crops.T), 1)
    expected = n / counts.size
    assert ((counts - expected) ** 2 / expected).sum() < 29 + 5 * np.sqrt(2 * 29)  # 29 degrees of freedom
    straight = Augmentation(crop=32, scale=34, mirror=False, seed=1).crops(
        5, np.arange(n), np.tile([34, 36], (n, 1))
    )
    assert (straight[:, 2] == 0).all()
    assert (straight[:, :2] == crops[:, :2]).all()


def test_an_image_that_fits_the_crop_exactly_and_one_that_is_too_small():
    augmentation = Augmentation(crop=32, scale=32)
    assert (augmentation.crops(0, np.arange(9), np.full((9, 2), 32))[:, :2] == 0).all()
    with pytest.raises(ValueError, match="40 x 31 is smaller than the crop of 32"):
        augmentation.crops(0, np.arange(2), np.array([[32, 32], [40, 31]]))


@pytest.mark.parametrize("kind", ["eigenvalue", "deviation"])
def test_shifts_follow_krizhevsky(kind):
    augmentation = Augmentation(crop=224, scale=256, rgb_shift=kind, covariance=COVARIANCE, seed=2)
    n = 40_000
    shifts = augmentation.shifts(0, np.arange(n))
    assert shifts.shape == (n, 3)
    assert shifts.dtype == np.float32
    values, vectors = np.linalg.eigh(COVARIANCE)
    lengths = values if kind == "eigenvalue" else np.sqrt(values)
    expected = 255**2 * 0.01 * vectors @ np.diag(lengths**2) @ vectors.T
    tolerance = 6 * np.sqrt(2 / n) * expected.diagonal().max()
    np.testing.assert_allclose(np.cov(shifts.T), expected, atol=tolerance)
    np.testing.assert_allclose(shifts.mean(axis=0), 0, atol=6 * np.sqrt(expected.diagonal() / n).max())
    typical = np.abs(shifts).mean()
    assert (1 < typical < 30) if kind == "eigenvalue" else (5 < typical < 30)


@pytest.mark.parametrize("kind", ["eigenvalue", "deviation"])
def test_the_shift_of_real_photos_is_between_2_and_30_grey_levels(kind):
    statistics = pixel_statistics(photos())
    augmentation = Augmentation(crop=224, scale=256, rgb_shift=kind, covariance=statistics.covariance)
    shifts = np.abs(augmentation.shifts(0, np.arange(10_000)))
    assert 2 < shifts.mean() < 30
    assert shifts.max() < 100
    wrong = dataclasses.replace(augmentation, covariance=np.array(statistics.covariance) * 255**2)
    assert np.abs(wrong.shifts(0, np.arange(100))).mean() > 1000  # on the 0..255 scale, the formula explodes


def test_gray_images_have_a_shift_of_one_channel():
    augmentation = Augmentation(crop=32, scale=32, rgb_shift="deviation", covariance=((0.09,),), seed=2)
    shifts = augmentation.shifts(0, np.arange(10_000))
    assert shifts.shape == (10_000, 1)
    assert shifts.std() == pytest.approx(255 * 0.1 * 0.3, rel=0.05)


def test_a_shift_needs_the_covariance():
    with pytest.raises(ValueError, match="covariance"):
        Augmentation(crop=32, scale=32, rgb_shift="eigenvalue")
    assert Augmentation(crop=32, scale=32).shifts(0, np.arange(3)) is None


# ---- batches


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_the_same_in_any_batch(rng, channels):
    covariance = ((0.09,),) if channels == 1 else COVARIANCE
    augmentation = Augmentation(
        crop=32, scale=(32, 48), rgb_shift="eigenvalue", covariance=covariance, seed=1 << 40
    )
    images = np.array([5, 0, 1 << 20, 77])
    pixels = [picture(rng, 40 + i, 50 - i, channels) for i in range(4)]
    mean = MEAN[:channels]
    together = augmentation.batch(pixels, 3, images, mean).numpy()
    assert together.shape == (4, 32, 32, channels)
    for i in range(4):
        alone = augmentation.batch(pixels[i : i + 1], 3, images[i : i + 1], mean).numpy()
        np.testing.assert_array_equal(alone[0], together[i])
    order = [2, 3, 1, 0]
    out = vgg.empty((4, 32, 32, channels))
    result = augmentation.batch([pixels[i] for i in order], 3, images[order], mean, out=out)
    np.testing.assert_array_equal(out.numpy(), together[order])
    np.testing.assert_array_equal(result.numpy(), out.numpy())
    other_epoch = augmentation.batch(pixels, 4, images, mean).numpy()
    assert all((a != b).any() for a, b in zip(other_epoch, together, strict=True))


def test_a_batch_is_crop_mirror_shift_and_mean(rng):
    augmentation = Augmentation(crop=32, scale=36, rgb_shift="eigenvalue", covariance=COVARIANCE, seed=9)
    images = np.arange(12)
    pixels = [picture(rng, 36, 41) for _ in images]
    x = augmentation.batch(pixels, 1, images, MEAN).numpy()
    crops = augmentation.crops(1, images, np.tile([36, 41], (12, 1)))
    shifts = augmentation.shifts(1, images).astype(np.float64)
    assert set(crops[:, 2]) == {0, 1}
    for i, (top, left, mirrored) in enumerate(crops):
        expected = pixels[i][top : top + 32, left : left + 32].astype(np.float64)
        if mirrored:
            expected = expected[:, ::-1]
        np.testing.assert_allclose(x[i], expected + shifts[i] - MEAN, atol=1e-4)
