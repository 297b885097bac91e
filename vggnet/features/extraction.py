"""Descriptors of images, and of the images of a data set: computed, written and read."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from .. import _C
from ..checkpoint import read_tensors, write_tensors
from ..data import Loader
from ..evaluate.dataset import CHUNK_BATCHES
from ..evaluate.passes import (
    Array,
    Image,
    Pyramid,
    Rows,
    build_pyramid,
    chunks,
    crops_per_image,
    dense_maps,
    key_of,
)
from .aggregation import Aggregation, resolve

if TYPE_CHECKING:
    from ..data import Dataset
    from ..models import VGG

FORMAT = "vggnet-features-1"

Progress = Callable[[int, int], object]
Pair = tuple["VGG", Aggregation]


class LabelledImages(Protocol):
    """A :class:`vggnet.data.Dataset`, or one whose images have several labels, as :class:`vggnet.data.VOC`."""

    @property
    def classes(self) -> list[str]: ...
    @property
    def labels(self) -> npt.NDArray[Any]: ...
    def __len__(self) -> int: ...
    def image(self, i: int) -> Image: ...
    def name(self, i: int) -> str: ...


@dataclass
class Features:
    """Descriptors of a data set's images, with all that a classifier and a reader of the file need.

    Attributes
    ----------
    values : (N, D) float32
        A row an image. Columns: model after model; in each scale after scale where they are stacked.
    labels : (N,) int64, or (N, classes) int8 of 1, 0 and -1 as :class:`vggnet.data.VOC` has them
    rows : (N,) int64
        Numbers of the images in the data set: those that could not be read are missing.
    names : list of str
        Of the images.
    classes : list of str
    broken : list of (name, reason)
        Images that could not be read.
    facts : dict
        "models", "aggregations", "columns", "seconds" and "version", as JSON has them.
    """

    values: Array
    labels: npt.NDArray[Any]
    rows: Rows
    names: list[str]
    classes: list[str]
    broken: list[tuple[str, str]]
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all: "features", "labels" and "rows"; the rest is in its metadata."""
        words = {name: getattr(self, name) for name in ("names", "classes", "broken", "facts")}
        write_tensors(
            path,
            {"features": self.values, "labels": self.labels, "rows": self.rows},
            {"format": FORMAT} | {name: json.dumps(value) for name, value in words.items()},
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Features:
        """Read what `save` wrote.

        Raises
        ------
        WeightsError
            If the file is damaged or holds something else.
        """
        arrays, metadata = read_tensors(path)
        if metadata.get("format") != FORMAT:
            raise _C.WeightsError(
                f"{os.fspath(path)}: not a file of features of vggnet (format {metadata.get('format')!r})"
            )
        words = {name: json.loads(metadata[name]) for name in ("names", "classes", "broken", "facts")}
        words["broken"] = [(name, reason) for name, reason in words["broken"]]
        return cls(arrays["features"], arrays["labels"], arrays["rows"], **words)


def descriptors(
    models: VGG | Sequence[VGG | Pair], images: Iterable[Image], aggregation: Aggregation | str = "mean"
) -> Array:
    """Descriptors of images in memory: the one core of :func:`extract` and :class:`VGGFeatures`.

    Parameters
    ----------
    models : a VGG; or several VGGs or (VGG, Aggregation) pairs, whose descriptors are stacked (paper, appendix B)
    images : uint8 (H, W, C) arrays, of any sizes, on the 0..255 scale; taken one by one
    aggregation : an Aggregation, or "mean" or "stack" for the paper's scales, in proportion to each model's input size; for
        the models that come without their own

    Returns
    -------
    (N, D) float32

    Raises
    ------
    ValueError
        No images, an unknown layer, a scale smaller than a net's input size, or an image that does not fit a net's channels.

    Examples
    --------
    >>> from vggnet import VGG
    >>> model = VGG("A", num_classes=5, input_size=32, fc_width=16)
    >>> descriptors(model, [np.zeros((40, 50, 3), np.uint8)], Aggregation("relu4_2", (32, 48), "stack")).shape
    (1, 1024)
    """
    pairs = _pairs(models, aggregation)
    keys = _keys(pairs)
    pyramids = (build_pyramid(image, keys) for image in images)
    blocks = [_describe(pairs, chunk) for chunk in chunks(pyramids, pairs[0][1].batch)]
    if not blocks:
        raise ValueError("images is empty; expected at least one image")
    return np.concatenate(blocks)


def extract(
    models: VGG | Sequence[VGG | Pair],
    dataset: LabelledImages,
    aggregation: Aggregation | str = "mean",
    *,
    progress: Progress | None = None,
    strict: bool = False,
) -> Features:
    """Descriptors of all images of a data set, which are read in threads ahead of their use.

    Parameters
    ----------
    models, aggregation : as in :func:`descriptors`
    dataset : a :class:`vggnet.data.Dataset`, or one with several labels an image (:class:`vggnet.data.VOC`)
    progress : called as ``progress(done, total)`` with numbers of images
    strict : the first broken image raises; otherwise they are left out, and more than 1 % of them raises

    Raises
    ------
    ValueError
        As :func:`descriptors`.
    ImageError
        Too many broken images.
    """
    pairs = _pairs(models, aggregation)
    n = len(dataset)
    if n == 0:
        raise ValueError("dataset is empty; expected at least one image")
    keys = _keys(pairs)
    batch = max(a.batch for _, a in pairs)
    # Images that are computed together: enough to fill batches, few enough that progress shows.
    together = int(CHUNK_BATCHES * batch / sum(crops_per_image(m, a.protocol) for m, a in pairs))
    # The loader carries whatever its transform makes of an image: here the image at every scale.
    loader = Loader(
        cast("Dataset", dataset),
        min(max(together, 1), batch),
        transform=lambda image, _: cast(Any, build_pyramid(image, keys)),
        strict=strict or None,
    )
    begin = time.perf_counter()
    rows: list[int] = []
    values = np.empty((n, 0), np.float32)
    for numbers, chunk, _ in cast("Iterable[tuple[Rows, list[Pyramid], Rows]]", loader):
        block = _describe(pairs, chunk)
        if not rows:
            values = np.empty((n, block.shape[1]), np.float32)
        values[len(rows) : len(rows) + len(block)] = block
        rows += numbers.tolist()
        if progress is not None:
            progress(rows[-1] + 1, n)
    columns = [
        {"model": m.config, "scales": scales, "width": _width(m, a)}
        for m, a in pairs
        for scales in ([[q] for q in a.scales] if a.combine == "stack" else [list(a.scales)])
    ]
    return Features(
        values=values[: len(rows)],
        labels=np.asarray(dataset.labels)[rows],
        rows=np.array(rows, np.int64),
        names=[dataset.name(i) for i in rows],
        classes=list(dataset.classes),
        broken=[(item.name, item.reason) for item in loader.broken],
        facts={
            "models": [m.to_dict() for m, _ in pairs],
            "aggregations": [
                asdict(a) | {"scales": list(a.scales), "description": a.describe()} for _, a in pairs
            ],
            "columns": columns,
            "seconds": time.perf_counter() - begin,
            "version": str(_C.build_info()["version"]),
        },
    )


def _pairs(models: VGG | Sequence[VGG | Pair], aggregation: Aggregation | str) -> list[Pair]:
    several = list(models) if isinstance(models, list | tuple) else [models]
    if not several:
        raise ValueError("models is empty; expected at least one model")
    pairs = [item if isinstance(item, tuple) else (item, aggregation) for item in several]
    return [(cast("VGG", model), resolve(own, cast("VGG", model))) for model, own in pairs]


def _keys(pairs: Sequence[Pair]) -> list[Any]:
    """What each image must be rescaled to."""
    return list(dict.fromkeys(key_of(m, a.protocol, scale) for m, a in pairs for scale in a.scales))


def _width(model: VGG, aggregation: Aggregation) -> int:
    """Channels of the layer: of the last one up to it that has weights."""
    through = model.layers[: model.layer_names.index(aggregation.layer) + 1]
    return next(layer.outputs for layer in reversed(through) if layer.outputs)


def _describe(pairs: Sequence[Pair], pyramids: Sequence[Pyramid]) -> Array:
    """(N, D) of images that share a chunk; models are stacked."""
    return np.concatenate([_aggregate(m, pyramids, a) for m, a in pairs], axis=1).astype(np.float32)


def _aggregate(model: VGG, pyramids: Sequence[Pyramid], aggregation: Aggregation) -> npt.NDArray[np.float64]:
    each = np.empty((len(aggregation.scales), len(pyramids), _width(model, aggregation)))
    for pooled, scale in zip(each, aggregation.scales, strict=True):
        key = key_of(model, aggregation.protocol, scale)
        images = [pyramid[key] for pyramid in pyramids]
        for rows, maps in dense_maps(
            model,
            images,
            layer=aggregation.layer,
            mirror=aggregation.mirror,
            batch=aggregation.batch,
            memory=aggregation.memory,
        ):
            pooled[rows] = maps.mean(axis=(1, 2, 3), dtype=np.float64)
        norms = np.sqrt((pooled**2).sum(axis=1, keepdims=True))
        pooled /= np.where(norms == 0, 1, norms)  # an image that nothing responds to stays 0
    return each.mean(axis=0) if aggregation.combine == "mean" else np.concatenate(list(each), axis=1)
