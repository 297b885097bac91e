"""Mean and covariance of the pixels of a data set."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ..augment import PixelStatistics, PixelSums
from ..preprocess import Pixels
from .base import Dataset
from .loader import Loader


def statistics(
    dataset: Dataset,
    *,
    workers: int | None = None,
    strict: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PixelStatistics:
    """Mean and covariance of the channels over all pixels of a data set, for the mean subtraction and the RGB shift.

    Parameters
    ----------
    dataset : Dataset
        The training images (paper, sections 2.1 and 3.1).
    workers, strict
        As of `Loader`.
    progress : callable, optional
        ``progress(done, images)``.

    Returns
    -------
    PixelStatistics
        The same to the bit for any number of threads: the sums are exact.

    Raises
    ------
    ImageError
        When more than 1 % of the images are broken, or one with `strict`.
    ValueError
        When images have other numbers of channels than the first.

    Examples
    --------
    >>> from vggnet import data
    >>> found = data.statistics(data.sample(train=False))
    >>> found.images, round(found.mean[0], 1)
    (1000, 73.3)
    """
    sums = PixelSums()

    def add(image: Pixels, _: int) -> Pixels:
        sums.add(image)
        return image[:0]  # the pixels are done with

    loader = Loader(dataset, 256, transform=add, workers=workers, strict=strict)
    with contextlib.closing(loader.batches()) as batches:
        for indices, _, _ in batches:
            if progress is not None:
                progress(int(indices[-1]) + 1, len(dataset))
    return sums.statistics()
