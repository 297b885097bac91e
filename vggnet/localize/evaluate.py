"""Where things are: the paper's two tests of predicted boxes (paper, appendix A)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .. import _C
from ..data import BoxDataset, Loader
from ..data.base import Boxes, single_labels
from ..preprocess import Pixels, check_image
from .boxes import CORRECT_OVERLAP, decode, iou
from .locate import (
    BATCH,
    GUESSES,
    Floats,
    Ints,
    Scene,
    check_scales,
    column,
    default_scale,
    fitting,
    located,
    scene_of,
)

if TYPE_CHECKING:
    from ..data import Dataset
    from ..models import VGG


@dataclass(frozen=True, eq=False)
class Report:
    """What a test found: K guesses at each of N images, likeliest class first.

    Attributes
    ----------
    test : str
        Which test, in words, with the choices that the paper leaves open.
    labels : (N,) int64
        True classes.
    classes : (N, K) int64
        Guessed ones; -1 for an image that could not be read.
    boxes : (N, K, 4) float64
        Left, top, right, bottom in pixels of the image; NaN for an image that could not be read.
    ious : (N, K) float64
        Of the guess with the true box that it overlaps most.
    broken : list of (name, reason)
        Images that could not be read; they count as wrong.
    seconds : float
    """

    test: str
    labels: Ints
    classes: Ints
    boxes: Floats
    ious: Floats
    broken: list[tuple[str, str]]
    seconds: float

    @property
    def count(self) -> int:
        """Images."""
        return len(self.labels)

    def error(self, guesses: int) -> float:
        """Localisation error in %: of images without a guess, among the first, that has the true class and an IoU above 0.5."""
        hit = (self.classes == self.labels[:, None]) & (self.ious > CORRECT_OVERLAP)
        return 100.0 * float(1 - hit[:, :guesses].any(axis=1).mean())

    @property
    def top1(self) -> float:
        """Localisation error in % with one guess; of the centre-crop test, which is told the class, the error."""
        return self.error(1)

    @property
    def top5(self) -> float:
        """Localisation error in % with five guesses, the paper's measure."""
        return self.error(GUESSES)

    @property
    def mean_iou(self) -> float:
        """Mean IoU of the guess that has the true class, 0 where none has, 0..1."""
        return float(np.where(self.classes == self.labels[:, None], self.ious, 0).max(axis=1).mean())

    def describe(self) -> str:
        """The test and its result in words."""
        errors = f"error {self.top1:.2f} %"
        if self.classes.shape[1] > 1:
            errors = f"top-1 {errors}, top-5 error {self.top5:.2f} %"
        return f"{self.test}\n{self.count} images, mean IoU {self.mean_iou:.3f}, localisation {errors}."


def center_crop_test(
    model: VGG,
    data: BoxDataset,
    *,
    scale: int | None = None,
    filter: str = "bicubic",
    batch: int = BATCH,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """The box of the true class, in one centre crop of each image: no classification error is in it (paper, appendix A).

    Parameters
    ----------
    model : VGG
        That predicts boxes, see `from_classifier`.
    data : BoxDataset
        Each image with at least one box (see `with_boxes`); the one that the guess overlaps most counts.
    scale : int, optional
        Smallest side Q that images are rescaled to; by default the S that the model was trained at (`Protocol.for_model`).
    filter : "bicubic" | "bilinear" | "lanczos" | "box"
        Pillow's, antialiased.
    batch : int
        Crops in one forward pass.
    progress : callable, optional
        Called as ``progress(done, total)`` with numbers of images.

    Returns
    -------
    Report
        With one guess an image.

    Raises
    ------
    ValueError
        If model and data do not fit, or an image has no box.
    ImageError
        If more than 1 % of the images are broken.
    """
    check(model, data, "data")
    scale = default_scale(model) if scale is None else scale
    size = model.input_size
    check_scales(model, [scale])

    def guesses(scenes: list[Scene], labels: Ints) -> Iterator[tuple[Ints, Floats, Boxes]]:
        pixels = [scene.pixels[scale] for scene in scenes]
        places = np.array([((p.shape[0] - size) // 2, (p.shape[1] - size) // 2, 0) for p in pixels])
        x = _C.augment(pixels, places, size, model.preprocessing.mean, device=model.device)
        numbers = model.forward(x).numpy().reshape(len(scenes), -1, 4)
        for scene, label, (top, left, _), row in zip(scenes, labels, places, numbers, strict=True):
            box = decode(row[column(model, label)], size) + np.array([left, top, left, top])
            yield np.array([label]), np.ones(1), scene.to_image(box[None], scale)

    return _test(
        f"Centre crop at Q = {scale}, the box of the true class.",
        model,
        data,
        [scale],
        filter,
        1,
        batch,
        guesses,
        progress,
    )


def full_test(
    models: VGG | Sequence[VGG],
    classifier: VGG,
    data: BoxDataset,
    *,
    scales: Sequence[int] | int | None = None,
    filter: str = "bicubic",
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Class and box of each image: dense, over scales, boxes merged and rated by the class scores (paper, appendix A).

    As `locate`, over a data set.

    Parameters
    ----------
    models : VGG, or several
        That predict boxes; the boxes of several are merged together.
    classifier : VGG
        A classification net of the same input size.
    data : BoxDataset
        Each image with at least one box (see `with_boxes`); the one that the guess overlaps most counts.
    scales, filter :
        As in `locate`.
    progress : callable, optional
        Called as ``progress(done, total)`` with numbers of images.

    Returns
    -------
    Report
        With five guesses an image, or as many as there are classes.

    Raises
    ------
    ValueError
        If the nets or the data do not fit together, or an image has no box.
    ImageError
        If more than 1 % of the images are broken.
    """
    nets, scales = fitting(models, classifier, scales)
    check(nets[0], data, "data")
    words = (
        f"Dense at Q = {', '.join(map(str, scales))}, {len(nets)} net{'s' * (len(nets) > 1)} for boxes.\n"
        "Boxes are merged while two have an IoU of at least 0.5 (our inference), and rated by the sum of their windows'\n"
        "posteriors of the class. Classes: largest posteriors of the scores averaged over positions (no mirror images: ours)."
    )
    top = min(GUESSES, classifier.num_classes)

    def guesses(scenes: list[Scene], _: Ints) -> Iterator[tuple[Ints, Floats, Boxes]]:
        return located(nets, classifier, scenes, top)

    return _test(words, classifier, data, scales, filter, top, BATCH, guesses, progress)


def check(model: VGG, data: Dataset, name: str) -> None:
    """Raise when a net does not predict boxes of the classes of a data set, which messages call `name`."""
    if model.head == "classes":
        raise ValueError(
            "the model predicts classes, not boxes; make one that predicts boxes of it with localize.from_classifier"
        )
    if not isinstance(data, BoxDataset):
        raise TypeError(
            f"{name} is {type(data).__name__}; expected a data set with boxes(i), see data.BoxDataset"
        )
    data.boxes(0)  # a Subset tells then whether it has some
    single_labels(data)
    if len(data.classes) != model.num_classes or (model.classes and list(data.classes) != model.classes):
        raise ValueError(f"the classes of {name} are not those of the model, in the same order")


def _test(
    words: str,
    model: VGG,
    data: BoxDataset,
    scales: Sequence[int],
    filter: str,
    top: int,
    batch: int,
    guesses: Callable[[list[Scene], Ints], Iterator[tuple[Ints, Floats, Boxes]]],
    progress: Callable[[int, int], object] | None,
) -> Report:
    """Run a test over a data set; a broken image keeps class -1 and IoU 0."""
    n = len(data)
    classes, boxes, ious = np.full((n, top), -1), np.full((n, top, 4), np.nan), np.zeros((n, top))

    def scene(image: Pixels, i: int) -> Scene:
        check_image(image, model.preprocessing.channels, data.name(i))
        return scene_of(image, scales, filter)

    loader = Loader(
        data, batch, transform=cast(Any, scene)
    )  # it carries whatever the transform makes of an image
    start = time.perf_counter()
    for rows, scenes, labels in cast("Iterable[tuple[Ints, list[Scene], Ints]]", loader):
        for i, (classes[i], _, boxes[i]) in zip(rows, guesses(scenes, labels), strict=True):
            ious[i] = iou(boxes[i][:, None], boxes_of(data, int(i))).max(axis=1)
        if progress is not None:
            progress(int(rows[-1]) + 1, n)
    broken = [(item.name, item.reason) for item in loader.broken]
    labels = np.asarray(data.labels, np.int64)
    return Report(words, labels, classes, boxes, ious, broken, time.perf_counter() - start)


def boxes_of(data: BoxDataset, i: int) -> Boxes:
    """The boxes of an image that must have some."""
    boxes = data.boxes(i)
    if len(boxes) == 0:
        raise ValueError(f"{data.name(i)} has no box; leave such images out with localize.with_boxes(data)")
    return boxes
