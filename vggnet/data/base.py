"""What a data set is, and those made of others: arrays, subsets, held-out parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from .._C import VggError
from ..preprocess import Channels, Pixels, check_image, rescale
from ..rng import Purpose, permutation

Indices: TypeAlias = "Sequence[int] | npt.NDArray[np.integer[Any]]"
Boxes: TypeAlias = npt.NDArray[np.float64]  # (M, 4)


class DatasetNotFoundError(VggError, FileNotFoundError):
    """A data set's folder or files are not there; the message says how to get them."""


@runtime_checkable
class Dataset(Protocol):
    """What training and evaluation need of a data set; yours may be any class with these members.

    Attributes
    ----------
    classes : list of str
        Names of the classes; a label is an index into it.
    labels : (N,) int64
    """

    @property
    def classes(self) -> list[str]: ...
    @property
    def labels(self) -> npt.NDArray[np.int64]: ...
    def __len__(self) -> int: ...
    def image(self, i: int) -> Pixels:
        """Image `i`, (H, W, C) uint8. Called from several threads; raises ImageError if it is broken."""
        ...

    def name(self, i: int) -> str:
        """What messages and tables call image `i`."""
        ...


@runtime_checkable
class BoxDataset(Dataset, Protocol):
    """A data set that knows where things are: what `vggnet.localize` trains on and is tested with."""

    def boxes(self, i: int) -> Boxes:
        """Boxes of image `i`, (M, 4) float64: left, top, right, bottom in pixels of ``image(i)``, as edges, so that right -
        left is the width. All are of the image's class; M may be 0."""
        ...


class ArrayDataset:
    """Images in memory.

    Parameters
    ----------
    images : (N, H, W, C) uint8 array, or sequence of (H, W, C) uint8 arrays
        C is 3 (RGB) or 1 (gray). Kept, not copied, and never written to.
    labels : (N,) integers
    classes : sequence of str
        Names of the classes; 0 <= label < len(classes).
    names : sequence of str, optional
        One for each image, for messages; "image 0", "image 1", ... otherwise.

    Raises
    ------
    ValueError
        If shapes, types, counts or labels do not fit; the message says how to convert images.

    Examples
    --------
    >>> import numpy as np
    >>> pets = ArrayDataset(np.zeros((2, 32, 48, 3), np.uint8), [1, 0], ["cat", "dog"])
    >>> len(pets), pets.image(0).shape, pets.classes[pets.labels[0]]
    (2, (32, 48, 3), 'dog')
    """

    def __init__(
        self,
        images: Pixels | Sequence[Pixels],
        labels: Indices,
        classes: Sequence[str],
        names: Sequence[str] | None = None,
    ) -> None:
        if len(images) == 0:
            raise ValueError("images is empty; expected at least one image")
        one_shape = isinstance(images, np.ndarray) and images.ndim == 4
        first = np.asarray(images[0])
        channels: Channels = "gray" if first.ndim == 2 or first.shape[-1] == 1 else "RGB"
        for i, image in enumerate(images[:1] if one_shape else images):
            check_image(np.asarray(image), channels, "images" if one_shape else f"images[{i}]")
        if names is not None and len(names) != len(images):
            raise ValueError(f"names has {len(names)} entries for {len(images)} images")
        self.classes = check_class_names(classes)
        self.labels = check_labels(labels, len(images), len(self.classes))
        self._images = images
        self._names = names

    def __len__(self) -> int:
        return len(self._images)

    def image(self, i: int) -> Pixels:
        """Image `i`, (H, W, C) uint8, C-contiguous, read-only; a view of what was given, if that is so."""
        view = np.ascontiguousarray(self._images[i]).view()
        view.flags.writeable = False
        return view

    def name(self, i: int) -> str:
        """Return the given name of image `i`, or "image i"."""
        return f"image {i}" if self._names is None else self._names[i]


class Subset:
    """Some images of another data set, in a given order.

    Parameters
    ----------
    dataset : Dataset
    indices : (M,) integers
        Which of its images; may repeat.
    """

    def __init__(self, dataset: Dataset, indices: Indices) -> None:
        self.dataset = dataset
        self.indices = check_indices(indices, len(dataset))
        self.labels = read_only(np.asarray(dataset.labels)[self.indices])

    @property
    def classes(self) -> list[str]:
        """All classes of the data set, also those of which no image was taken."""
        return self.dataset.classes

    @property
    def strict(self) -> bool:
        """As of the data set."""
        return bool(getattr(self.dataset, "strict", False))

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, i: int) -> Pixels:
        """Image ``indices[i]`` of the data set."""
        return self.dataset.image(int(self.indices[i]))

    def rescaled_image(self, i: int, short_side: int, filter: str) -> tuple[Pixels, tuple[int, int]]:
        """As the data set reads it for training."""
        return rescaled_image(self.dataset, int(self.indices[i]), short_side, filter)

    def epoch_order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """As the data set orders its images, if it does."""
        if not hasattr(self.dataset, "epoch_order"):
            return permutation(seed, epoch, len(self))
        place = np.empty(len(self.dataset), np.int64)
        place[epoch_order(self.dataset, seed, epoch)] = np.arange(len(place))
        return np.argsort(place[self.indices], kind="stable")

    def name(self, i: int) -> str:
        """Its name there."""
        return self.dataset.name(int(self.indices[i]))

    def boxes(self, i: int) -> Boxes:
        """Its boxes there (`BoxDataset`); TypeError when that data set has none."""
        if not isinstance(self.dataset, BoxDataset):
            raise TypeError(
                f"boxes: {type(self.dataset).__name__} has no boxes; expected a data set with boxes(i), see data.BoxDataset"
            )
        return self.dataset.boxes(int(self.indices[i]))


def rescaled_image(dataset: Dataset, i: int, short_side: int, filter: str) -> tuple[Pixels, tuple[int, int]]:
    """Image `i` for training, rescaled to a smallest side; and its height and width before.

    A data set may have a faster way, ``rescaled_image(i, short_side, filter)``, as those of files have
    (`preprocess.load_rescaled`); otherwise `image` is read and rescaled.
    """
    own = getattr(dataset, "rescaled_image", None)
    if own is not None:
        return own(i, short_side, filter)  # type: ignore[no-any-return]
    image = dataset.image(i)
    check_image(image, "gray" if image.ndim == 3 and image.shape[2] == 1 else "RGB", dataset.name(i))
    return rescale(image, short_side, filter), image.shape[:2]


def epoch_order(dataset: Dataset, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order in which an epoch of training takes the images, (N,) int64: a permutation.

    It is a function of the seed and the epoch. A data set may have its own, ``epoch_order(seed, epoch)``, that suits
    where its images lie (see `Shards`); otherwise every order is equally likely.
    """
    order = getattr(dataset, "epoch_order", None)
    return permutation(seed, epoch, len(dataset)) if order is None else order(seed, epoch)


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """Hold out a part of a training set, class by class, for the plateau rule to watch (paper, section 3.1).

    Parameters
    ----------
    dataset : Dataset
    fraction : float
        Share of each class that is held out, 0 < fraction < 1; floor(n * fraction + 0.5) of its n images, but
        never all of them.
    seed : int
        The same seed holds out the same images, everywhere and always (Philox).

    Returns
    -------
    (train, held_out) : Subset, Subset
        In the order of `dataset`; `indices` of each says which images.

    Raises
    ------
    ValueError
        If nothing would be held out.

    Examples
    --------
    >>> from vggnet import data
    >>> train, held_out = data.split(data.sample(), 0.1, seed=0)
    >>> len(train), len(held_out)
    (3600, 400)
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}; expected 0 < fraction < 1")
    labels = single_labels(dataset)
    shuffled = permutation(seed, 0, len(dataset), Purpose.HOLDOUT)
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]  # by class, in random order within each
    counts = np.bincount(labels, minlength=len(dataset.classes))
    take = np.minimum(np.floor(counts * fraction + 0.5), counts - 1)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)  # within the class
    held = np.zeros(len(labels), bool)
    held[grouped[place < np.repeat(take, counts)]] = True
    if not held.any():
        raise ValueError(
            f"fraction {fraction} of {len(dataset)} images in {len(dataset.classes)} classes holds out none; "
            "give a larger fraction or more images"
        )
    return Subset(dataset, np.flatnonzero(~held)), Subset(dataset, np.flatnonzero(held))


# ---- arguments


def single_labels(dataset: Dataset) -> npt.NDArray[np.int64]:
    """The labels, (N,); ValueError for a data set with several an image, such as `VOC`."""
    labels = np.asarray(dataset.labels, np.int64)
    if labels.ndim != 1:
        raise ValueError(
            f"dataset has labels of shape {labels.shape}, several an image; expected one an image, (N,). "
            "Such data are for vggnet.features.extract"
        )
    return labels


def read_only(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    values = np.array(values, np.int64)
    values.flags.writeable = False
    return values


def check_class_names(classes: Sequence[str]) -> list[str]:
    names = list(classes)
    if isinstance(classes, str) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"classes is {classes!r}; expected a list of names, one for each class")
    if len(set(names)) != len(names):
        raise ValueError(f"classes has the name {max(names, key=names.count)!r} twice")
    return names


def check_labels(labels: Indices, images: int, classes: int) -> npt.NDArray[np.int64]:
    values = np.asarray(labels)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(f"labels is {values.dtype} of shape {values.shape}; expected integers of shape (N,)")
    if len(values) != images:
        raise ValueError(f"{len(values)} labels for {images} images")
    if values.min() < 0 or values.max() >= classes:
        raise ValueError(
            f"labels lie in {values.min()}..{values.max()}; expected 0..{classes - 1}, for {classes} classes"
        )
    return read_only(values)


def check_indices(indices: Indices, images: int) -> npt.NDArray[np.int64]:
    values = np.asarray(indices)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise ValueError(
            f"indices is {values.dtype} of shape {values.shape}; expected integers of shape (M,)"
        )
    if values.size and (values.min() < 0 or values.max() >= images):
        raise ValueError(f"indices lie in {values.min()}..{values.max()}; expected 0..{images - 1}")
    return read_only(values)
