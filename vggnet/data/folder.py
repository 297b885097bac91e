"""A folder of images per class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .._C import ImageError
from ..preprocess import Channels, channel_count
from .base import DatasetNotFoundError, read_only
from .files import ImageFiles


class ImageFolder(ImageFiles):
    """A folder with one folder per class, each with JPEG, PNG or WebP files (also in folders below it).

    Classes are the folders' names, sorted; images are in order of class, then of path. Both are sorted by
    code point, so they are the same on every machine. Names that begin with a dot, and files of other types,
    are ignored.

    Parameters
    ----------
    dir : path
    channels : "RGB" or "gray"
        What images are converted to: ``model.preprocessing.channels``.
    strict : bool
        Let `Loader` stop at the first broken image rather than skip up to 1 % of them.

    Raises
    ------
    DatasetNotFoundError
        If `dir` is not a folder.
    ImageError
        If it has no folders, or one of them has no images.

    Notes
    -----
    A broken file stays listed: `image` raises ImageError for it, and error rates divide by `len`, the number
    listed. Only names are read here; each takes about 60 bytes and its length.

    Examples
    --------
    >>> flowers = ImageFolder("flowers/train")      # doctest: +SKIP
    >>> flowers.classes                             # doctest: +SKIP
    ['daisy', 'rose']
    """

    SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

    def __init__(
        self, dir: str | os.PathLike[str], *, channels: Channels = "RGB", strict: bool = False
    ) -> None:
        channel_count(channels)  # raises for another name
        root = Path(dir)
        if not root.is_dir():
            raise DatasetNotFoundError(
                f"{root}: {'not a folder' if root.exists() else 'no such folder'}; expected a folder that "
                "holds one folder of images per class"
            )
        folders = sorted(
            entry for entry in root.iterdir() if not entry.name.startswith(".") and entry.is_dir()
        )
        if not folders:
            loose = any(entry.suffix.lower() in self.SUFFIXES for entry in root.iterdir())
            raise ImageError(
                f"{root}: no folders in it{', but images' if loose else ''}; expected one folder of images "
                f"per class, as in {root / 'cat' / 'photo.jpg'}"
            )
        self.dir = root
        self.channels = channels
        self.strict = strict
        self.classes = [folder.name for folder in folders]
        self._paths: list[str] = []
        counts = []
        for folder in folders:
            paths = sorted(self._images_below(folder))
            if not paths:
                raise ImageError(
                    f"{folder}: no images in this class; expected files ending in {', '.join(self.SUFFIXES)} "
                    "(remove the folder if it is not a class)"
                )
            self._paths += (os.path.join(folder, *path) for path in paths)
            counts.append(len(paths))
        self.labels = read_only(np.repeat(np.arange(len(counts)), counts))

    @classmethod
    def _images_below(cls, folder: Path) -> Iterator[tuple[str, ...]]:
        """Paths of the images below a folder, as their parts; follows links, but enters no folder twice."""
        entered = set()
        for parent, folders, files in os.walk(folder, followlinks=True):
            status = os.stat(parent)
            identity = (status.st_dev, status.st_ino)
            if identity in entered:
                folders.clear()
                continue
            entered.add(identity)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            below = Path(parent).relative_to(folder).parts
            for name in files:
                if name.lower().endswith(cls.SUFFIXES) and not name.startswith("."):
                    yield (*below, name)

    def __len__(self) -> int:
        return len(self._paths)

    def _source(self, i: int) -> str:
        return self._paths[i]

    def name(self, i: int) -> str:
        """Path of image `i`."""
        return self._paths[i]
