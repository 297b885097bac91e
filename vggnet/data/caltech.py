"""Caltech-101 and Caltech-256, and the random splits with so many images a class that they are used with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .._C import ImageError
from ..preprocess import Channels, Pixels, channel_count, load_image
from ..rng import Purpose, permutation
from .base import DatasetNotFoundError, Subset, read_only

Rows = npt.NDArray[np.int64]


def split_per_class(labels: npt.ArrayLike, train: int, test: int | None, seed: int) -> tuple[Rows, Rows]:
    """A random split with equally many training images of each class.

    Parameters
    ----------
    labels : (N,) integers
    train : int
        Training images of each class.
    test : int or None
        Test images of each class, at most, of those that are left; None: all of them.
    seed : int
        The same seed splits the same labels the same way, everywhere and always (Philox).

    Returns
    -------
    (train, test) : (M,) int64, (K,) int64
        Row numbers, ascending; no row is in both.

    Raises
    ------
    ValueError
        If a class that occurs has no image left to test.

    Examples
    --------
    >>> train, test = split_per_class([0, 0, 0, 1, 1, 1, 1], train=2, test=1, seed=0)
    >>> len(train), len(test)
    (4, 2)
    """
    values = np.asarray(labels)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(f"labels is {values.dtype} of shape {values.shape}; expected integers of shape (N,)")
    for name, count in (("train", train), ("test", test)):
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}; expected at least 1")
    order = permutation(seed, 0, len(values), Purpose.SPLIT)
    parts: tuple[list[Any], list[Any]] = ([], [])
    for label in np.unique(values):
        rows = order[values[order] == label]
        if len(rows) <= train:
            raise ValueError(
                f"label {label} has {len(rows)} images; expected more than train = {train}, so that some are left to test"
            )
        parts[0].append(rows[:train])
        parts[1].append(rows[train:] if test is None else rows[train : train + test])
    return np.sort(np.concatenate(parts[0])), np.sort(np.concatenate(parts[1]))


class Caltech101:
    """Caltech-101: a folder of JPEG files for each of 101 classes.

    Parameters
    ----------
    dir : path
        The folder 101_ObjectCategories.
    background : bool
        Take BACKGROUND_Google as a class too. The paper does not say; we leave it out.
    channels : "RGB" or "gray"
        What images are converted to; some files are gray.

    Attributes
    ----------
    classes : list of str
        The folders' names, sorted by code point.
    labels : (N,) int64

    Raises
    ------
    DatasetNotFoundError
        If `dir` is no folder.
    ImageError
        If it has no folders of images, or one is empty.

    Notes
    -----
    `split` takes 30 training images a class and up to 50 others to test; the paper's figure is the mean class recall over three
    random splits (appendix B). Only files ending in .jpg directly in a class's folder count: the original archives have strays.

    Examples
    --------
    >>> caltech = Caltech101("101_ObjectCategories")       # doctest: +SKIP
    >>> train, test = caltech.split(seed=0)                # doctest: +SKIP
    >>> len(caltech), len(caltech.classes), len(train)     # doctest: +SKIP
    (8677, 101, 3030)
    """

    CLUTTER: ClassVar[str] = "BACKGROUND_Google"
    TRAIN: ClassVar[int] = 30
    TEST: ClassVar[int | None] = 50

    def __init__(
        self, dir: str | os.PathLike[str], *, background: bool = False, channels: Channels = "RGB"
    ) -> None:
        channel_count(channels)  # raises for another name
        self.dir = Path(dir)
        self.channels: Channels = channels
        if not self.dir.is_dir():
            raise DatasetNotFoundError(
                f"{self.dir}: no such folder; expected the one that holds a folder of images for each class of "
                f"{type(self).__name__}"
            )
        folders = sorted(
            path for path in self.dir.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
        folders = [path for path in folders if background or path.name != self.CLUTTER]
        if not folders:
            raise ImageError(f"{self.dir}: no folders of classes in it")
        self.classes = [path.name for path in folders]
        self._paths: list[str] = []
        counts = []
        for folder in folders:
            files = sorted(
                path for path in folder.iterdir() if path.suffix.lower() == ".jpg" and path.is_file()
            )
            if not files:
                raise ImageError(f"{folder}: no .jpg files in this class")
            self._paths += map(str, files)
            counts.append(len(files))
        self.labels = read_only(np.repeat(np.arange(len(counts)), counts))

    def split(self, seed: int) -> tuple[Subset, Subset]:
        """A random split by the data set's rule: training and test images. For rows of extracted features see
        `split_per_class`."""
        train, test = split_per_class(self.labels, self.TRAIN, self.TEST, seed)
        return Subset(self, train), Subset(self, test)

    def __len__(self) -> int:
        return len(self._paths)

    def image(self, i: int) -> Pixels:
        """Image `i` as `load_image` reads it; ImageError, naming the file, if it is broken."""
        return load_image(self._paths[i], self.channels)

    def name(self, i: int) -> str:
        """Path of image `i`."""
        return self._paths[i]


class Caltech256(Caltech101):
    """Caltech-256: as `Caltech101`, in the folder 256_ObjectCategories with classes "001.ak47" to "256.toad".

    "257.clutter" is left out unless ``background=True``. `split` takes 60 training images a class and all others to test
    (paper, appendix B).
    """

    CLUTTER = "257.clutter"
    TRAIN = 60
    TEST = None
