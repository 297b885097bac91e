"""Labelled images: a folder per class, ILSVRC-2012, PASCAL VOC, Caltech-101 and -256, Fashion-MNIST, the bundled
sample, arrays; and reading them ahead.

Everything that trains or evaluates takes a `Dataset`: anything with `classes`, `labels`, `image(i)` and
`name(i)`. Images are uint8, channels last, of any size; rescaling and cropping come later (paper, sections
3.1 and 3.2).
"""

from __future__ import annotations

from .base import (
    ArrayDataset,
    BoxDataset,
    Dataset,
    DatasetNotFoundError,
    Subset,
    epoch_order,
    rescaled_image,
    split,
)
from .caltech import Caltech101, Caltech256, split_per_class
from .checking import Finding, check
from .fashion_mnist import FASHION_MNIST_CLASSES, FASHION_MNIST_DIR, FashionMNIST, sample
from .files import ImageFiles
from .folder import ImageFolder
from .ilsvrc import ILSVRC2012
from .loader import Batch, Broken, Loader
from .pixels import statistics
from .shards import Shards, prepare
from .voc import VOC

__all__ = [
    "FASHION_MNIST_CLASSES",
    "FASHION_MNIST_DIR",
    "ILSVRC2012",
    "VOC",
    "ArrayDataset",
    "Batch",
    "BoxDataset",
    "Broken",
    "Caltech101",
    "Caltech256",
    "Dataset",
    "DatasetNotFoundError",
    "FashionMNIST",
    "Finding",
    "ImageFiles",
    "ImageFolder",
    "Loader",
    "Shards",
    "Subset",
    "check",
    "epoch_order",
    "prepare",
    "rescaled_image",
    "sample",
    "split",
    "split_per_class",
    "statistics",
]
