"""The random crop, mirror, scale and RGB shift of a training image (paper, section 3.1).

Every draw is a function of (seed, epoch, index of the image) alone, so an image looks the same in an epoch
whatever the batch it falls in, the number of threads, or whether the run was resumed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
    pixels, images : int
        How many were counted.

    Examples
    --------
    >>> import numpy as np
    >>> found = pixel_statistics([np.array([[[0], [255]]], np.uint8)])
    >>> found.mean, found.covariance, found.pixels
    ((127.5,), ((0.25,),), 2)
    >>> PixelStatistics.from_dict(found.to_dict()) == found
    True
    """

    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    pixels: int
    images: int

    @property
    def eigenvalues(self) -> tuple[float, ...]:
        """Variances along the principal directions, the largest first, on the 0..1 scale."""
        return tuple(principal_directions(self.covariance)[0].tolist())

    @property
    def eigenvectors(self) -> tuple[tuple[float, ...], ...]:
        """Their directions, one a column, of length 1; the largest component of each is positive."""
        return tuple(map(tuple, principal_directions(self.covariance)[1].tolist()))

    def to_dict(self) -> dict[str, Any]:
        """The same, with the eigenvalues and eigenvectors, as plain JSON values."""
        return {
            "mean": list(self.mean),
            "covariance": [list(row) for row in self.covariance],
            "eigenvalues": list(self.eigenvalues),
            "eigenvectors": [list(row) for row in self.eigenvectors],
            "pixels": self.pixels,
            "images": self.images,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PixelStatistics:
        """Read what `to_dict` wrote; eigenvalues and eigenvectors follow from the covariance, and may be missing.

        Raises
        ------
        ValueError
            If a field is missing, unknown or out of range; the message names it.
        """
        needed = {"mean", "covariance", "pixels", "images"}
        found = set(values) if isinstance(values, Mapping) else {type(values).__name__}
        if not needed <= found or found - needed - {"eigenvalues", "eigenvectors"}:
            raise ValueError(
                f"pixel statistics have the fields {sorted(map(str, found))}; expected {sorted(needed)}, as "
                "vggnet data stats writes them"
            )
        try:
            mean = np.array(values["mean"], dtype=np.float64)
            covariance = np.array(values["covariance"], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"pixel statistics: mean or covariance are not numbers ({error})") from error
        if mean.ndim != 1 or not len(mean) or not ((mean >= 0) & (mean <= 255)).all():
            raise ValueError(
                f"pixel statistics: mean is {values['mean']}; expected one value in 0..255 a channel"
            )
        # 1/4 is the variance of pixels of which half are black and half are white
        if (
            covariance.shape != (len(mean), len(mean))
            or not (np.abs(covariance) <= 0.25).all()
            or not np.allclose(covariance, covariance.T, rtol=1e-9, atol=0)
            or np.linalg.eigvalsh(covariance)[0] < -1e-9
        ):
            raise ValueError(
                f"pixel statistics: covariance is {values['covariance']}; expected a covariance matrix of "
                f"{len(mean)} channels with pixels on the 0..1 scale"
            )
        for name in ("pixels", "images"):
            if type(values[name]) is not int or values[name] < 1:
                raise ValueError(f"pixel statistics: {name} is {values[name]!r}; expected a positive int")
        rows = tuple(map(tuple, covariance.tolist()))
        return cls(tuple(mean.tolist()), rows, values["pixels"], values["images"])


class PixelSums:
    """Exact sums over the pixels of images, which may come from several threads, in any order.

    The sums of bytes and of their products are whole numbers: exact in float64 for one image (below 2**53),
    and added up as Python integers over the images. So the order of the images does not matter, and no set is
    too large.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._images = self._pixels = 0
        self._total: npt.NDArray[np.object_] = np.zeros(0, dtype=object)
        self._products: npt.NDArray[np.object_] = np.zeros((0, 0), dtype=object)

    def add(self, image: npt.NDArray[np.uint8]) -> None:
        """Count an image, (H, W, C) uint8; ValueError unless it has the channels of the first."""
        channels = image.shape[2]
        x = image.reshape(-1, channels).astype(np.float64)
        total = (np.ones(len(x)) @ x).astype(np.int64).astype(object)
        products = (x.T @ x).astype(np.int64).astype(object)
        with self._lock:
            if not self._images:
                self._total, self._products = np.zeros_like(total), np.zeros_like(products)
            if channels != len(self._total):
                raise ValueError(
                    f"pixel_statistics: an image has {channels} channels, the first had {len(self._total)}"
                )
            self._images += 1
            self._pixels += len(x)
            self._total += total
            self._products += products

    def statistics(self) -> PixelStatistics:
        """Mean and covariance of what was counted; ValueError if that is nothing."""
        n = self._pixels
        if n == 0:
            raise ValueError("pixel_statistics: there are no images")
        # n^2 times the covariance, exactly: the difference of two large numbers is taken before rounding
        scaled = n * self._products - np.outer(self._total, self._total)
        covariance = (scaled / (n * n)).astype(np.float64) / 255.0**2
        mean = (self._total / n).astype(np.float64)
        return PixelStatistics(tuple(mean.tolist()), tuple(map(tuple, covariance.tolist())), n, self._images)


def pixel_statistics(images: Iterable[npt.NDArray[np.uint8]]) -> PixelStatistics:
    """Mean and covariance of the channels over all pixels of some images, in one pass.

    Parameters
    ----------
    images : iterable of (H, W, C) uint8
        Sizes may differ; every pixel counts the same. One image is in memory at a time.

    Returns
    -------
    PixelStatistics
        Correct to the last bits of float64, whatever the order of the images.

    Raises
    ------
    ValueError
        When there are no images, or their numbers of channels differ.
    """
    sums = PixelSums()
    for image in images:
        sums.add(image)
    return sums.statistics()


def principal_directions(
    covariance: Sequence[Sequence[float]],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Eigenvalues (C,), the largest first, and eigenvectors (C, C), one a column, of a covariance matrix.

    The sign of an eigenvector is free: here its largest component is positive, so that every LAPACK gives the
    same.
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance, dtype=np.float64))
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]  # rounding may leave -1e-18
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))]
    return values, vectors * np.sign(largest)


@dataclass(frozen=True)
class Geometry:
    """How some training images became the crops that a net sees: what a task needs to know where things are now.

    Attributes
    ----------
    images : (N,) int64
        Indices in the training set.
    original, rescaled : (N, 2) int64
        Height and width of ``image(i)``, and after rescaling.
    top, left : (N,) int64
        Of the crop, in pixels of the rescaled image.
    mirrored : (N,) bool
    crop : int
        Side of the crop, in pixels.
    """

    images: npt.NDArray[np.int64]
    original: npt.NDArray[np.int64]
    rescaled: npt.NDArray[np.int64]
    top: npt.NDArray[np.int64]
    left: npt.NDArray[np.int64]
    mirrored: npt.NDArray[np.bool_]
    crop: int

    def boxes(self, boxes: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """A box of each image, (N, 4): left, top, right, bottom as edges in pixels of ``image(i)``, in pixels of the crop.

        Where a crop shows a part of a box only, the result reaches beyond 0..crop.

        Examples
        --------
        >>> half = Geometry(*map(np.array, ([0], [[64, 80]], [[32, 40]], [0], [8], [True])), crop=32)
        >>> half.boxes([[20, 10, 40, 30]]).tolist()  # at half the size 10..20; in the crop 2..12; mirrored 20..30
        [[20.0, 5.0, 30.0, 15.0]]
        """
        boxes = np.asarray(boxes, dtype=np.float64)
        sides = (self.rescaled / self.original)[:, ::-1]  # of x, of y
        start = np.stack([self.left, self.top], axis=1)
        low, high = boxes[:, :2] * sides - start, boxes[:, 2:] * sides - start
        flip = self.mirrored
        low[flip, 0], high[flip, 0] = self.crop - high[flip, 0], self.crop - low[flip, 0]
        return np.concatenate([low, high], axis=1)


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

    def geometry(
        self,
        epoch: int,
        images: npt.NDArray[np.int64],
        original: npt.NDArray[np.int64],
        pixels: Sequence[npt.NDArray[np.uint8]],
    ) -> Geometry:
        """Where the crops of `batch` lie.

        Parameters
        ----------
        epoch, images, pixels :
            As in `batch`.
        original : (N, 2) int64
            Height and width of each image before it was rescaled.
        """
        sizes = np.array([image.shape[:2] for image in pixels], dtype=np.int64)
        top, left, mirrored = self.crops(epoch, images, sizes).T
        return Geometry(images, original, sizes, top, left, mirrored.astype(bool), self.crop)

    def shifts(self, epoch: int, images: npt.NDArray[np.int64]) -> npt.NDArray[np.float32] | None:
        """What is added to each channel, (N, C) float32 on the 0..255 scale; None without `rgb_shift`."""
        if self.rgb_shift is None:
            return None
        assert self.covariance is not None  # see __post_init__
        values, vectors = principal_directions(self.covariance)
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
