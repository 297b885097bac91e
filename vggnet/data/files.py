"""What data sets of image files share."""

from __future__ import annotations

from pathlib import Path

from .._C import ImageError
from ..preprocess import Channels, Pixels, load_image


class ImageFiles:
    """A data set of image files; a derived class says where each is.

    Attributes
    ----------
    channels : "RGB" or "gray"
        What images are converted to.
    strict : bool
        Let `Loader` stop at the first broken image rather than skip up to 1 % of them.
    """

    channels: Channels
    strict: bool

    def _source(self, i: int) -> str | bytes:
        """Path, or contents, of file `i`."""
        raise NotImplementedError

    def name(self, i: int) -> str:
        """What messages call image `i`."""
        raise NotImplementedError

    def image(self, i: int) -> Pixels:
        """Image `i` as `load_image` reads it, (H, W, C) uint8; ImageError, naming the file, if it is broken."""
        return load_image(self._source(i), self.channels, self.name(i))

    def reduced_image(self, i: int, short_side: int) -> Pixels:
        """Image `i`, for training: a JPEG file may be decoded at a half, a quarter or an eighth of its size if
        no side gets shorter than `short_side`; see `load_image`."""
        return load_image(self._source(i), self.channels, self.name(i), short_side=short_side)

    def content(self, i: int) -> bytes:
        """Contents of file `i`; ImageError if it cannot be read."""
        source = self._source(i)
        if isinstance(source, bytes):
            return source
        try:
            return Path(source).read_bytes()
        except OSError as error:
            raise ImageError(f"{self.name(i)}: {error.strerror}") from error
