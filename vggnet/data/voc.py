"""PASCAL VOC's classification task (2007 to 2012), as its development kit lays it out."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .._C import ImageError
from ..preprocess import Channels, Pixels, channel_count, load_image
from .base import DatasetNotFoundError


class VOC:
    """Images of PASCAL VOC with labels for each class: several classes may be in one image.

    Parameters
    ----------
    dir : path
        The folder of a year, such as VOCdevkit/VOC2007: it has ImageSets/Main and JPEGImages.
    part : str
        "train", "val", "trainval", or "test" (of 2007; the labels of later tests are secret): the images in
        ImageSets/Main/PART.txt, in its order, with labels from ImageSets/Main/CLASS_PART.txt.
    channels : "RGB" or "gray"
        What images are converted to: ``model.preprocessing.channels``.

    Attributes
    ----------
    classes : list of str
        The classes of the files, sorted: "aeroplane" to "tvmonitor", 20 of them.
    labels : (N, classes) int8
        1 the class is in the image, -1 it is not, 0 only objects marked difficult: left out when the class is learned
        and when it is tested.
    rule : "11-point" or "area"
        How average precision was defined in this year, see :func:`vggnet.features.average_precision`: the former up to
        2009, the latter from 2010 on, and where the folder's name tells no year.

    Raises
    ------
    DatasetNotFoundError
        If folders or files are missing; the message says what was expected.
    ImageError
        If a file of labels is damaged or does not list the part's images.

    Notes
    -----
    For :func:`vggnet.features.extract`. Training and evaluation of nets take one label an image.

    Source: M. Everingham et al., 2007 to 2012; paper, appendix B.

    Examples
    --------
    >>> voc = VOC("VOCdevkit/VOC2007", "trainval")      # doctest: +SKIP
    >>> len(voc), voc.labels.shape                      # doctest: +SKIP
    (5011, (5011, 20))
    """

    def __init__(
        self, dir: str | os.PathLike[str], part: str = "trainval", *, channels: Channels = "RGB"
    ) -> None:
        channel_count(channels)  # raises for another name
        self.dir = Path(dir)
        self.part = part
        self.channels: Channels = channels
        sets = self.dir / "ImageSets" / "Main"
        if not sets.is_dir() or not (self.dir / "JPEGImages").is_dir():
            years = sorted(path.name for path in self.dir.glob("VOC2*") if path.is_dir())
            hint = f"; it has {', '.join(years)}: give one of these" if years else ""
            raise DatasetNotFoundError(
                f"{self.dir}: no ImageSets/Main and JPEGImages in it; expected the folder of a year of PASCAL VOC, such as "
                f"VOCdevkit/VOC2007{hint}"
            )
        listing = sets / f"{part}.txt"
        if not listing.is_file():
            raise DatasetNotFoundError(f"part is {part!r}, but there is no {listing}")
        self.ids = listing.read_text(encoding="ascii").split()
        files = sorted(sets.glob(f"*_{part}.txt"))
        if not files or not self.ids:
            raise DatasetNotFoundError(
                f"{listing}: {'no CLASS_' + part + '.txt beside it, so its images have no labels' if self.ids else 'empty'}"
            )
        self.classes = [path.name.removesuffix(f"_{part}.txt") for path in files]
        self.labels: npt.NDArray[np.int8] = np.stack([_flags(path, self.ids) for path in files], axis=1)
        self.labels.flags.writeable = False
        year = re.search(r"(\d{4})$", self.dir.resolve().name)
        self.rule = "11-point" if year is not None and int(year[1]) < 2010 else "area"

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, i: int) -> Pixels:
        """Image `i` as `load_image` reads it; ImageError, naming the file, if it is broken."""
        return load_image(self.name(i), self.channels)

    def name(self, i: int) -> str:
        """Path of image `i`."""
        return str(self.dir / "JPEGImages" / f"{self.ids[i]}.jpg")


def _flags(path: Path, ids: list[str]) -> npt.NDArray[np.int8]:
    """Lines "000012 -1" of a class: the flags of `ids`, in their order."""
    flags: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in ("-1", "0", "1"):
            raise ImageError(f"{path}, line {number}: {line!r}; expected an image and -1, 0 or 1")
        flags[words[0]] = int(words[1])
    missing = [name for name in ids if name not in flags]
    if missing:
        raise ImageError(f"{path}: no line for image {missing[0]} ({len(missing)} such images)")
    return np.array([flags[name] for name in ids], np.int8)
