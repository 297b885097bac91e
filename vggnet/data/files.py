"""What data sets of image files share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from .._C import ImageError
from ..preprocess import Channels, Pixels, load_image, load_rescaled


class ImageFiles:
    """A data set of image files; a derived class says where each is.

    Attributes
    ----------
    classes, labels
        As of `Dataset`.
    channels : "RGB" or "gray"
        What images are converted to.
    strict : bool
        Let `Loader` stop at the first broken image rather than skip up to 1 % of them.
    """

    classes: list[str]
    labels: npt.NDArray[np.int64]
    channels: Channels
    strict: bool

    def __len__(self) -> int:
        raise NotImplementedError

    def _source(self, i: int) -> str | bytes:
        """Path, or contents, of file `i`."""
        raise NotImplementedError

    def name(self, i: int) -> str:
        """What messages call image `i`."""
        raise NotImplementedError

    def image(self, i: int) -> Pixels:
        """Image `i` as `load_image` reads it, (H, W, C) uint8; ImageError, naming the file, if it is broken."""
        return load_image(self._source(i), self.channels, self.name(i))

    def rescaled_image(self, i: int, short_side: int, filter: str) -> tuple[Pixels, tuple[int, int]]:
        """Image `i` for training, as `load_rescaled` reads it, and its height and width before."""
        return load_rescaled(self._source(i), short_side, filter, self.channels, self.name(i))

    def content(self, i: int) -> bytes:
        """Contents of file `i`; ImageError if it cannot be read."""
        source = self._source(i)
        if isinstance(source, bytes):
            return source
        try:
            return Path(source).read_bytes()
        except OSError as error:
            raise ImageError(f"{self.name(i)}: {error.strerror}") from error
