"""Fashion-MNIST: the original files, and the sample that ships in the package."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import os
import struct
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np

from .._C import ImageError
from ..preprocess import Pixels
from .base import ArrayDataset, DatasetNotFoundError

#: Where Debian's package dataset-fashion-mnist puts the four files.
FASHION_MNIST_DIR = "/usr/share/datasets/fashion-mnist"

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class FashionMNIST(ArrayDataset):
    """Fashion-MNIST from its original files: 60,000 training and 10,000 test images, gray, 28 x 28.

    Parameters
    ----------
    dir : path, optional
        The folder of the four gzip files; by default where Debian's package puts them.
    train : bool
        The training part, or the test part.

    Raises
    ------
    DatasetNotFoundError
        If files are missing; the message says how to get them.
    ImageError
        If a file is damaged, or is not Fashion-MNIST's.

    Notes
    -----
    Takes 47 MB for the training part. Source: H. Xiao, K. Rasul, R. Vollgraf, 2017, MIT licence, Zalando SE.
    """

    FILES: ClassVar = {
        True: ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        False: ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
    }

    def __init__(self, dir: str | os.PathLike[str] | None = None, train: bool = True) -> None:
        folder = Path(FASHION_MNIST_DIR if dir is None else dir)
        images_path, labels_path = (folder / name for name in self.FILES[bool(train)])
        missing = [path.name for path in (images_path, labels_path) if not path.is_file()]
        if missing:
            every = ", ".join(itertools.chain(*self.FILES.values()))
            raise DatasetNotFoundError(
                f"Fashion-MNIST: {folder} has no {' and no '.join(missing)}. On Debian and Ubuntu: "
                f"apt install dataset-fashion-mnist; otherwise put the original files ({every}) from "
                "github.com/zalandoresearch/fashion-mnist into one folder and pass it as dir"
            )
        images = _read_idx(images_path, dimensions=3)
        labels = _read_idx(labels_path, dimensions=1)
        if images.shape[1:] != (28, 28):
            raise ImageError(f"{images_path}: images of {images.shape[1:]} pixels; expected (28, 28)")
        if len(images) == 0 or len(labels) != len(images):
            raise ImageError(
                f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path.name}"
            )
        if labels.max() >= len(FASHION_MNIST_CLASSES):
            raise ImageError(f"{labels_path}: label {labels.max()}; expected 0..9")
        super().__init__(images[..., None], labels, FASHION_MNIST_CLASSES)
        self._part = "train" if train else "test"

    def name(self, i: int) -> str:
        """As in "Fashion-MNIST train 17": the part, and the number in its original file."""
        return f"Fashion-MNIST {self._part} {i}"


def _read_idx(path: Path, dimensions: int) -> Pixels:
    """Bytes of a gzip file in the IDX format: 0, 0, type (8 = byte), dimensions; big-endian sizes; values."""
    try:
        with gzip.open(path, "rb") as file:
            head = file.read(4 + 4 * dimensions)
            magic = bytes((0, 0, 8, dimensions))
            if head[:4] != magic:
                raise ImageError(
                    f"{path}: begins with {head[:4].hex() or 'nothing'}; expected {magic.hex()}, an IDX "
                    f"file of bytes in {dimensions} dimension(s)"
                )
            if len(head) < 4 + 4 * dimensions:
                raise ImageError(f"{path}: truncated within its header")
            shape = struct.unpack(f">{dimensions}I", head[4:])
            size = int(np.prod(shape, dtype=object))
            content = file.read(size + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ImageError(f"{path}: damaged or truncated gzip file ({error})") from error
    if len(content) != size:
        found = "more" if len(content) > size else f"only {len(content)}"
        raise ImageError(f"{path}: its header announces {shape} = {size} bytes, but {found} follow")
    return np.frombuffer(content, np.uint8).reshape(shape)


_SAMPLE = Path(__file__).parent.parent / "sample" / "fashion_mnist.npz"
_SAMPLE_SHA256 = "420c8a32cfa46715cc1a0fc45c9a0b1bfd155de2163aeb530b2956c6f3961b46"


def sample(train: bool = True) -> ArrayDataset:
    """The real images that ship with the package: 4,000 for training, 1,000 for testing, of Fashion-MNIST.

    Every class has equally many; training images are of the original training part, test images of the
    original test part; vggnet/sample/README.md says how they were selected. Gray, 28 x 28. MIT licence,
    Zalando SE.

    Parameters
    ----------
    train : bool
        The training part, or the test part.

    Raises
    ------
    ImageError
        If the bundled file is damaged (it is checked against its SHA-256 every time).

    Examples
    --------
    >>> train, test = sample(), sample(train=False)
    >>> len(train), len(test), train.image(0).shape
    (4000, 1000, (28, 28, 1))
    """
    content = _SAMPLE.read_bytes()
    if hashlib.sha256(content).hexdigest() != _SAMPLE_SHA256:
        raise ImageError(f"{_SAMPLE}: the bundled sample is damaged (its SHA-256 differs); reinstall vggnet")
    part = "train" if train else "test"
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        images, labels, origins = (file[f"{part}_{what}"] for what in ("images", "labels", "index"))
    names = [f"Fashion-MNIST {part} {i}" for i in origins]
    return ArrayDataset(images[..., None], labels, FASHION_MNIST_CLASSES, names)
