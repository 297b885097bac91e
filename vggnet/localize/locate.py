"""What is on an image and where: the dense pass over scales, boxes merged and rated by class scores (paper, appendix A)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _C
from ..configs import STRIDE
from ..data.base import Boxes
from ..dense import DENSE_MEMORY
from ..evaluate import Protocol
from ..evaluate.passes import dense_maps
from ..preprocess import Pixels, load_image, rescale
from .boxes import clip, decode, merge

if TYPE_CHECKING:
    from ..models import VGG

BATCH = 32  # images of the input size in one forward pass; a dense pass takes about as many pixels
GUESSES = 5

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Maps = list[npt.NDArray[np.float32]]  # (h, w, outputs) each: of the classifier, then of each net for boxes


class Located(NamedTuple):
    """One guess at an image: what and where.

    Attributes
    ----------
    label : str or int
        The class's name, or its number when the nets know no names.
    probability : float
        Of the class, in the image.
    box : (4,) float64
        Left, top, right, bottom in pixels of the image.
    """

    label: str | int
    probability: float
    box: Boxes


class Scene(NamedTuple):
    """An image: its height and width, and its pixels at the scales of a test."""

    size: tuple[int, int]
    pixels: dict[int, Pixels]

    def to_image(self, boxes: Boxes, scale: int) -> Boxes:
        """Boxes in pixels of ``pixels[scale]`` in those of the image itself, without what lies outside of it."""
        height, width = self.size
        rescaled = self.pixels[scale].shape
        factors = np.array([width / rescaled[1], height / rescaled[0]] * 2)
        return clip(boxes * factors, height, width)


def locate(
    models: VGG | Sequence[VGG],
    classifier: VGG,
    images: Any,
    *,
    top: int = GUESSES,
    scales: Sequence[int] | int | None = None,
    filter: str = "bicubic",
) -> list[list[Located]]:
    """What is on images, and where (paper, appendix A: the full test).

    The nets run densely over the rescaled image, as in classification. Each position of the maps is a window, of which a box
    net tells a box, and the classification net class scores. For each of the likeliest classes, the boxes of all windows,
    scales and nets are merged (`merge`), each with the posterior of the class in its window for a score, and the best is
    taken. The classes are those with the largest posteriors in the image: the soft-max of the scores' mean over positions,
    averaged over scales.

    Parameters
    ----------
    models : VGG, or several
        That predict boxes (`from_classifier`); the boxes of several are merged together.
    classifier : VGG
        A classification net of the same input size.
    images : path, PIL image or uint8 array (H, W, C), or a sequence of these
    top : int
        Guesses an image.
    scales : one or more ints, optional
        Smallest sides Q that images are rescaled to; by default the S that the first model was trained at.
    filter : "bicubic" | "bilinear" | "lanczos" | "box"
        Pillow's, antialiased.

    Returns
    -------
    list of list of Located
        One list an image, likeliest class first.

    Raises
    ------
    ImageError
        If a file can't be read.
    ValueError, TypeError
        If the nets do not fit together, a scale is smaller than their input, or an array can't be an image.

    Notes
    -----
    Mirror images, which the paper's classification averages over, are not used: what their boxes would add it does not tell.
    """
    nets, scales = fitting(models, classifier, scales)
    if not 1 <= top <= classifier.num_classes:
        raise ValueError(
            f"locate: top is {top}; expected 1 to {classifier.num_classes}, the number of classes"
        )
    one_array = isinstance(images, np.ndarray) and images.ndim <= 3
    if one_array or isinstance(images, (str, os.PathLike)) or not isinstance(images, Iterable):
        images = [images]
    loaded = (load_image(image, classifier.preprocessing.channels) for image in images)
    scenes = [scene_of(image, scales, filter) for image in loaded]
    names = classifier.classes or nets[0].classes
    return [
        [
            Located(names[c] if names else int(c), float(p), box)
            for c, p, box in zip(classes, probabilities, boxes, strict=True)
        ]
        for classes, probabilities, boxes in located(nets, classifier, scenes, top)
    ]


def default_scale(model: VGG) -> int:
    return Protocol.for_model("center", model).scales[0]


def check_scales(model: VGG, scales: Sequence[int]) -> None:
    if not scales or min(scales) < model.input_size:
        raise ValueError(
            f"scales is {tuple(scales)}; expected at least the model's input size, {model.input_size}"
        )


def fitting(
    models: VGG | Sequence[VGG], classifier: VGG, scales: Sequence[int] | int | None
) -> tuple[list[VGG], list[int]]:
    """The nets for boxes and the scales, or an error when something does not fit."""
    nets = list(models) if isinstance(models, Sequence) else [models]
    if not nets:
        raise ValueError("models is empty; expected at least one that predicts boxes")
    classifier.expect_classes("classifier")
    for net in nets:
        if net.head == "classes":
            raise ValueError(
                "models has a net that predicts classes; expected nets of localize.from_classifier"
            )
        for name in ("num_classes", "classes", "input_size", "in_channels", "pool_rounding"):
            unnamed = name == "classes" and not (net.classes and classifier.classes)
            if getattr(net, name) != getattr(classifier, name) and not unnamed:
                raise ValueError(
                    f"a model's {name} is {getattr(net, name)!r}, the classifier's {getattr(classifier, name)!r}; expected "
                    "the same, so that their windows and classes are the same"
                )
    scales = default_scale(nets[0]) if scales is None else scales
    scales = [scales] if isinstance(scales, int) else list(scales)
    check_scales(classifier, scales)
    return nets, scales


def scene_of(image: Pixels, scales: Sequence[int], filter: str) -> Scene:
    return Scene(image.shape[:2], {scale: rescale(image, scale, filter) for scale in scales})


def column(net: VGG, label: int) -> int:
    """Which of its boxes a net means for a class."""
    return label if net.head == "PCR" else 0


def located(
    nets: Sequence[VGG], classifier: VGG, scenes: Sequence[Scene], top: int
) -> Iterator[tuple[Ints, Floats, Boxes]]:
    """Of each scene: its likeliest classes (top,), their posteriors (top,), and the best merged box of each (top, 4)."""
    maps: list[dict[int, Maps]] = [{} for _ in scenes]
    for scale in scenes[0].pixels if scenes else ():
        pixels = [scene.pixels[scale] for scene in scenes]
        for net in (classifier, *nets):
            for owners, found in dense_maps(net, pixels, mirror=False, batch=BATCH, memory=DENSE_MEMORY):
                for owner, map in zip(owners, found, strict=True):
                    maps[owner].setdefault(scale, []).append(map[0])
    for scene, by_scale in zip(scenes, maps, strict=True):
        yield _best(nets, scene, by_scale, classifier.input_size, top)


def _best(
    nets: Sequence[VGG], scene: Scene, by_scale: dict[int, Maps], size: int, top: int
) -> tuple[Ints, Floats, Boxes]:
    """Merge and rate what the windows of one image say."""
    scores = {scale: maps[0] for scale, maps in by_scale.items()}
    means = np.stack([s.mean(axis=(0, 1), dtype=np.float64) for s in scores.values()])
    posteriors = _softmax(means).mean(axis=0, dtype=np.float64)
    classes = np.argsort(-posteriors, kind="stable")[:top]
    windows = {scale: _softmax(s) for scale, s in scores.items()}
    best = np.empty((len(classes), 4))
    for guess, label in enumerate(classes):
        boxes, rates = [], []
        for scale, (_, *every) in by_scale.items():
            corners = window_corners(*scores[scale].shape[:2])
            for net, numbers in zip(nets, every, strict=True):
                own = numbers.reshape(*numbers.shape[:2], -1, 4)[:, :, column(net, label)]
                found = decode(own, size) + np.concatenate([corners, corners], axis=2)
                boxes.append(scene.to_image(found.reshape(-1, 4), scale))
                rates.append(windows[scale][..., label].ravel())
        best[guess] = merge(np.concatenate(boxes), np.concatenate(rates))[0][0]
    return classes, posteriors[classes], best


def window_corners(rows: int, columns: int) -> Ints:
    """Left and top of each window of a map, (rows, columns, 2): position (i, j) sees the input's side from pixel
    (32 j, 32 i) on, since five poolings halve, and nothing else moves."""
    j, i = np.meshgrid(np.arange(columns), np.arange(rows))
    return STRIDE * np.stack([j, i], axis=2)


def _softmax(scores: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    return _C.softmax(np.ascontiguousarray(scores, np.float32)).numpy()
