"""From images to posteriors: crops and dense passes, batched over images and scales."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import _C
from ..preprocess import Channels, check_image, rescale
from .protocol import Protocol, check_scales, resolve

if TYPE_CHECKING:
    from ..models import VGG

CHUNK_BYTES = 1 << 26  # rescaled images held at once; one image is always taken

Image = npt.NDArray[np.uint8]  # (H, W, C)
Array = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]  # numbers of images
Key = tuple[Channels, str, int]  # channels, filter, scale: what a rescaled image depends on
Pyramid = dict[Key, Image]


def posteriors(model: VGG, images: Sequence[Image], protocol: Protocol | str = "paper") -> Array:
    """Class probabilities of images under a protocol: the one core of ``model.predict`` and :func:`evaluate`.

    Parameters
    ----------
    model : the net; its preprocessing says channels and mean
    images : uint8 (H, W, C) arrays, of any sizes, on the 0..255 scale
    protocol : a Protocol, "paper" or a kind (see :func:`resolve`)

    Returns
    -------
    (N, classes) float32

    Raises
    ------
    ValueError
        A scale is smaller than the net's input size, or an image does not fit the net's channels.
    """
    protocol = resolve(protocol, model)
    model.expect_classes("posteriors")
    check_scales(model, protocol)
    keys = [key_of(model, protocol, scale) for scale in protocol.scales]
    result = np.empty((len(images), model.num_classes), np.float32)
    row = 0
    for chunk in chunks((build_pyramid(image, keys) for image in images), protocol.batch):
        result[row : row + len(chunk)] = average(
            [part_posteriors(model, chunk, part) for part in protocol.parts()]
        )
        row += len(chunk)
    return result


def chunks(pyramids: Iterable[Pyramid], count: int) -> Iterator[list[Pyramid]]:
    """Groups of at most ``count`` images and about CHUNK_BYTES bytes."""
    chunk: list[Pyramid] = []
    held = 0
    for pyramid in pyramids:
        chunk.append(pyramid)
        held += sum(image.nbytes for image in pyramid.values())
        if len(chunk) == count or held >= CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def grid_offsets(size: int, crop: int, grid: int) -> npt.NDArray[np.int64]:
    """Where the crops of a regular grid start on an axis of ``size`` pixels: floor(linspace(0, size - crop,
    grid) + 0.5)."""
    return np.floor(np.linspace(0, size - crop, grid) + 0.5).astype(np.int64)


def crops(
    protocol: Protocol, height: int, width: int, crop: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The crops of one image at one scale.

    Returns
    -------
    (crops, weights)
        (N, 3) int64: top, left, mirrored (0 or 1), all different; (N,) float64: the share of each, their sum
        is 1. A grid that is finer than the image's margin meets the same place several times: it is computed
        once and counted as often.
    """
    if protocol.kind == "multi-crop":
        rows, columns = (grid_offsets(side, crop, protocol.grid) for side in (height, width))
        places = [(t, c) for t in rows for c in columns]
    else:
        bottom, right = height - crop, width - crop
        places = [(bottom // 2, right // 2)]
        if protocol.kind == "ten-crop":
            places += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    flips = (0, 1) if protocol.mirror else (0,)
    every = np.array([(t, c, flip) for t, c in places for flip in flips], np.int64)
    unique, counts = np.unique(every, axis=0, return_counts=True)
    return unique, counts / len(every)


def key_of(model: VGG, protocol: Protocol, scale: int) -> Key:
    return model.preprocessing.channels, protocol.filter, scale


def build_pyramid(image: Image, keys: Iterable[Key]) -> Pyramid:
    """The image at every scale and with every filter asked for; pure, runs in any thread."""
    for channels in {key[0] for key in keys}:
        check_image(image, channels)
    return {key: rescale(image, key[2], filter=key[1]) for key in keys}


def part_posteriors(model: VGG, pyramids: Sequence[Pyramid], protocol: Protocol) -> Array:
    """One part (anything but "combined") on images that share a chunk."""
    compute = _dense_posteriors if protocol.kind == "dense" else _crop_posteriors
    return compute(model, pyramids, protocol)


def _crop_posteriors(model: VGG, pyramids: Sequence[Pyramid], protocol: Protocol) -> Array:
    """Mean of the crops' soft-max outputs, (N, classes); batches are filled across images and scales."""
    size = model.input_size
    total = np.zeros((len(pyramids), model.num_classes))
    images: list[Image] = []
    owners: list[int] = []
    places: list[npt.NDArray[np.int64]] = []
    weights: list[float] = []

    def flush() -> None:
        x = _C.augment(images, np.stack(places), size, model.preprocessing.mean, device=model.device)
        posterior = _C.softmax(model.forward(x)).numpy().astype(np.float64)
        np.add.at(total, owners, posterior * np.array(weights)[:, None])
        for batch in (images, owners, places, weights):
            batch.clear()

    for scale in protocol.scales:
        for owner, pyramid in enumerate(pyramids):
            image = pyramid[key_of(model, protocol, scale)]
            for place, weight in zip(*crops(protocol, image.shape[0], image.shape[1], size), strict=True):
                images.append(image)
                owners.append(owner)
                places.append(place)
                weights.append(weight)
                if len(images) == protocol.batch:
                    flush()
    if images:
        flush()
    return (total / len(protocol.scales)).astype(np.float32)


def _dense_posteriors(model: VGG, pyramids: Sequence[Pyramid], protocol: Protocol) -> Array:
    """Posteriors of the fully-convolutional net, (N, classes)."""
    total = np.zeros((len(pyramids), model.num_classes))
    for scale in protocol.scales:
        key = key_of(model, protocol, scale)
        images = [pyramid[key] for pyramid in pyramids]
        for rows, scores in dense_maps(
            model, images, mirror=bool(protocol.mirror), batch=protocol.batch, memory=protocol.memory
        ):
            if protocol.averaging == "scores":
                posterior = _softmax(scores.mean(axis=(2, 3), dtype=np.float64))
            else:
                posterior = _softmax(scores).mean(axis=(2, 3), dtype=np.float64)
            total[rows] += posterior.mean(axis=1, dtype=np.float64)
    return (total / len(protocol.scales)).astype(np.float32)


def dense_maps(
    model: VGG, images: Sequence[Image], *, layer: str = "fc8", mirror: bool, batch: int, memory: int
) -> Iterator[tuple[list[int], Array]]:
    """The map of a layer (see `VGG.dense`) for whole images; an image and its mirror share a pass, so do
    images of one shape.

    Parameters
    ----------
    model : its mean is subtracted here
    images : uint8 (H, W, C) arrays, of any sizes
    layer : one of ``model.layer_names``
    mirror : also of the mirrored images
    batch : a pass takes as many pixels as this many crops have, but one image at least
    memory : bytes that the maps of one pass may take

    Yields
    ------
    (rows, maps)
        Numbers of the images that shared a pass; (images, 1 or 2, h, w, channels) float32, the mirrored image
        second. In order of shape, each image once.
    """
    mean = np.asarray(model.preprocessing.mean, np.float32)
    flips = 2 if mirror else 1
    shapes: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
        shapes.setdefault(image.shape, []).append(row)
    for (height, width, channels), rows in shapes.items():
        plan = model.memory_plan(flips, size=(height, width), layers=[model.trunk_layer(layer)])
        together = min(
            batch * model.input_size**2 // (flips * height * width),
            memory // (plan["maps"] + plan["outputs"]),
        )
        together = max(1, together)
        for start in range(0, len(rows), together):
            part = rows[start : start + together]
            x = np.empty((flips * len(part), height, width, channels), np.float32)
            for i, row in enumerate(part):
                for flip in range(flips):
                    image = images[row]
                    np.subtract(image[:, ::-1] if flip else image, mean, out=x[flips * i + flip])
            maps = model.dense(x, layer=layer, memory=memory).to(dtype="float32").numpy()
            yield part, maps.reshape(len(part), flips, *maps.shape[1:])


def _softmax(scores: npt.NDArray[np.floating[Any]]) -> Array:
    return _C.softmax(np.ascontiguousarray(scores, np.float32)).numpy()


def average(posteriors: Sequence[Array]) -> Array:
    """Mean over models or techniques: summed in float64, in the order given, rounded once."""
    total = np.zeros(posteriors[0].shape)
    for posterior in posteriors:
        total += posterior
    return (total / len(posteriors)).astype(np.float32)


def crops_per_image(model: VGG, part: Protocol) -> float:
    """What an image costs, in forward passes of one crop."""
    flips = 2 if part.mirror else 1
    if part.kind == "dense":
        return flips * sum(scale**2 for scale in part.scales) / model.input_size**2
    return flips * len(part.scales) * {"center": 1, "ten-crop": 5, "multi-crop": part.grid**2}[part.kind]
