"""The random crop, mirror, scale and RGB shift of a training image (paper, section 3.1).

Every draw is a function of (seed, epoch, index of the image) alone, so an image looks the same in an epoch
whatever the batch it falls in, the number of threads, or whether the run was resumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from . import _C, rng
from .rng import Purpose

RgbShift = Literal["eigenvalue", "deviation"]

SHIFT_DEVIATION = 0.1  # of Krizhevsky's a ~ N(0, 0.1^2), which the paper's section 3.1 refers to


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and covariance of the channels of a set of images.

    Attributes
    ----------
    mean : tuple of C floats
        On the 0..255 scale, as `Preprocessing.mean`.
    covariance : tuple of C tuples of C floats
        On the 0..1 scale.
    pixels : int
        How many pixels were counted.
    """

    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    pixels: int


def pixel_statistics(images: Iterable[npt.NDArray[np.uint8]]) -> PixelStatistics:
    """Mean and covariance of the channels over all pixels of some images, in one pass.

    Parameters
    ----------
    images : iterable of (H, W, C) uint8
        Sizes may differ; every pixel counts the same. One image is in memory at a time.

    Returns
    -------
    PixelStatistics

    Raises
    ------
    ValueError
        When there are no images, or their numbers of channels differ.

    Notes
    -----
    The sums of bytes and of their products are whole numbers: exact in float64 for one image (below 2**53),
    and added up as Python integers over the images. So the order of the images does not matter, and no set is
    too large.
    """
    pixels = 0
    total: npt.NDArray[np.object_] | None = None
    products: npt.NDArray[np.object_] | None = None
    for image in images:
        channels = image.shape[2]
        if total is None or products is None:
            total = np.zeros(channels, dtype=object)
            products = np.zeros((channels, channels), dtype=object)
        if channels != total.shape[0]:
            raise ValueError(
                f"pixel_statistics: an image has {channels} channels, the first had {total.shape[0]}"
            )
        x = image.reshape(-1, channels).astype(np.float64)
        pixels += x.shape[0]
        total += x.sum(axis=0).astype(np.int64).astype(object)
        products += (x.T @ x).astype(np.int64).astype(object)
    if total is None or products is None or pixels == 0:
        raise ValueError("pixel_statistics: there are no images")
    # pixels^2 times the covariance, exactly: the difference of two large numbers is taken before rounding
    scaled = pixels * products - np.outer(total, total)
    covariance = (scaled / (pixels * pixels)).astype(np.float64) / 255.0**2
    mean = (total / pixels).astype(np.float64)
    return PixelStatistics(tuple(mean.tolist()), tuple(map(tuple, covariance.tolist())), pixels)


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied, and the key of the random draws.

    Attributes
    ----------
    crop : int
        Side of the square crop, in pixels.
    scale : int or (int, int)
        The smallest side S that images are rescaled to before the crop: fixed, or drawn per image and epoch
        from [lowest, highest], both included (scale jittering).
    mirror : bool
        Mirror half of the images.
    rgb_shift : "eigenvalue" | "deviation" | None
        Add the vector P (a * l) to each pixel, a ~ N(0, 0.1^2) drawn once per image, P the eigenvectors and l
        the eigenvalues of `covariance` ("eigenvalue", Krizhevsky et al. 2012) or their square roots
        ("deviation", MatConvNet).
    covariance : C tuples of C floats, or None
        Of the channels over the training set, pixels on the 0..1 scale (see `pixel_statistics`); needed by
        `rgb_shift`.
    seed : int
    """

    crop: int
    scale: int | tuple[int, int]
    mirror: bool = True
    rgb_shift: RgbShift | None = None
    covariance: tuple[tuple[float, ...], ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rgb_shift is not None and self.covariance is None:
            raise ValueError(
                "Augmentation: rgb_shift needs the covariance of the channels; see pixel_statistics"
            )

    def short_sides(self, epoch: int, images: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The smallest side that each image is rescaled to, (N,) int64 pixels."""
        low, high = (self.scale, self.scale) if isinstance(self.scale, int) else self.scale
        if low == high:
            return np.full(len(images), low, dtype=np.int64)
        u = rng.uniform(self.seed, rng.rows_of(epoch, images), Purpose.SCALE)[:, 0]
        return low + np.floor(u * (high - low + 1)).astype(np.int64)

    def crops(
        self, epoch: int, images: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Where each crop lies: top, left, and whether it is mirrored, (N, 3) int64.

        Parameters
        ----------
        epoch : int
        images : (N,) int64
            Indices in the training set.
        sizes : (N, 2) int64
            Height and width of each rescaled image.
        """
        rows = rng.rows_of(epoch, images)
        room = sizes - self.crop + 1  # positions on each axis
        if (room < 1).any():
            small = tuple(int(side) for side in sizes[(room < 1).any(axis=1)][0])
            raise ValueError(f"an image of {small[0]} x {small[1]} is smaller than the crop of {self.crop}")
        result = np.empty((len(images), 3), dtype=np.int64)
        result[:, :2] = np.floor(rng.uniform(self.seed, rows, Purpose.CROP, 2) * room)
        result[:, 2] = rng.uniform(self.seed, rows, Purpose.MIRROR)[:, 0] < 0.5 if self.mirror else 0
        return result

    def shifts(self, epoch: int, images: npt.NDArray[np.int64]) -> npt.NDArray[np.float32] | None:
        """What is added to each channel, (N, C) float32 on the 0..255 scale; None without `rgb_shift`."""
        if self.rgb_shift is None:
            return None
        values, vectors = np.linalg.eigh(np.asarray(self.covariance, dtype=np.float64))
        values = np.maximum(values, 0.0)  # rounding may leave -1e-18
        largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))]
        vectors = vectors * np.sign(
            largest
        )  # the sign of an eigenvector is free: one choice for every LAPACK
        lengths = values if self.rgb_shift == "eigenvalue" else np.sqrt(values)
        a = SHIFT_DEVIATION * rng.normal(self.seed, rng.rows_of(epoch, images), Purpose.SHIFT, len(values))
        shifts: npt.NDArray[np.float64] = 255.0 * (a * lengths) @ vectors.T
        return shifts.astype(np.float32)

    def batch(
        self,
        pixels: Sequence[npt.NDArray[np.uint8]],
        epoch: int,
        images: npt.NDArray[np.int64],
        mean: Sequence[float],
        *,
        out: _C.Tensor | None = None,
        device: str = "cpu",
    ) -> _C.Tensor:
        """The training input of some images.

        Parameters
        ----------
        pixels : N arrays (H, W, C) uint8
            Already rescaled: the smallest side is `short_sides`; sizes may differ.
        epoch : int
        images : (N,) int64
            Their indices in the training set.
        mean : C floats
            Subtracted; on the 0..255 scale.
        out : (N, crop, crop, C) float32 Tensor, optional

        Returns
        -------
        (N, crop, crop, C) float32 Tensor
            Mean-subtracted, on the 0..255 scale.
        """
        sizes = np.array([image.shape[:2] for image in pixels], dtype=np.int64)
        shift = self.shifts(epoch, images)
        device = out.device if out is not None else device
        crops = self.crops(epoch, images, sizes)
        return _C.augment(list(pixels), crops, self.crop, list(mean), shift=shift, device=device, out=out)
