"""A network over larger images: its fully-connected layers as convolutions (paper, section 3.2), in bands where memory asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _C, ops
from .configs import STRIDE, halo_of, stride_of
from .run import as_input, map_type, nbytes

if TYPE_CHECKING:
    from .models import VGG

DENSE_MEMORY = 1 << 30  # bytes of maps in one band, unless told otherwise


def dense_pass(model: VGG, x: Any, layer: str, memory: int) -> _C.Tensor:
    """See `VGG.dense`."""
    x = as_input(x, model.device)
    trunk = model.trunk_layer(layer)
    if trunk == layer:
        return _trunk(model, x, layer, memory)
    if len(x.shape) != 4 or min(x.shape[1:3]) < model.input_size:
        raise ValueError(
            f"dense: x has shape {x.shape}; expected (N, H, W, {model.in_channels}) "
            f"with H and W at least {model.input_size}, the input_size of this model"
        )
    return _head(model, _trunk(model, x, trunk, memory), layer, memory)


def _trunk(model: VGG, x: _C.Tensor, layer: str, memory: int) -> _C.Tensor:
    """The map of a layer before fc6: at once, or image by image in as many bands as `memory` asks for. Bands are of rows,
    or of columns where an image is wider than high: they have the shorter halos then."""
    whole = model._plan(x.shape, [layer], training=False, keep=False)
    if whole.forward.size <= memory:
        return model.run(x, layers=[layer], keep=False)[layer]
    n, height, width, channels = x.shape
    axis = 1 if height >= width else 2
    length, end = x.shape[axis], whole.shapes[layer][axis]
    through = model.layers[: model.layer_names.index(layer) + 1]
    stride, halo = stride_of(through), halo_of(through)

    def band_shape(pixels: int) -> tuple[int, int, int, int]:
        return (1, pixels, width, channels) if axis == 1 else (1, height, pixels, channels)

    def cost(count: int) -> int:
        """Bytes of the costliest band of `count` rows or columns of the map."""
        longest = min(length, stride * (count + 2 * halo + 1))
        plan = model._plan(band_shape(longest), [layer], training=False, keep=False)
        return plan.forward.size + plan.output_bytes()

    count = max((c for c in range(1, end + 1) if cost(c) <= memory), default=0)
    if count == 0:
        raise MemoryError(
            f"dense: memory is {memory} bytes; one band of an image {x.shape[1:]} takes {cost(1)} bytes"
        )
    result = _C.empty(whole.shapes[layer], whole.dtype(layer), model.device)
    for image in range(n):
        for first in range(0, end, count):
            last = min(first + count, end)
            start = stride * max(first - halo, 0)
            stop = length if last + halo >= end else stride * (last + halo)
            band = _C.empty(band_shape(stop - start), device=model.device)
            _copy_band(band, 0, 0, x, image, start, stop - start, axis)
            maps = model.run(band, layers=[layer], keep=False)[layer]
            _copy_band(result, image, first, maps, 0, first - start // stride, last - first, axis)
    return result


def _head(model: VGG, pool5: _C.Tensor, layer: str, memory: int) -> _C.Tensor:
    """fc6 up to `layer` at every position of pool5's map, as many at a time as `memory` holds: fc6 has nine tenths of the
    weights, which are read once for all of these."""
    names = model.layer_names
    head = model.layers[names.index("fc6") : names.index(layer) + 1]
    relus = {step.name for step in head if step.kind == "relu"}
    outputs = [step.outputs for step in head if step.kind == "linear"][-1]
    n, height, width, channels = pool5.shape
    side = model.input_size // STRIDE
    h, w = height - side + 1, width - side + 1
    result = _C.empty((n, h, w, outputs), map_type(layer, model.precision), model.device)
    row_bytes = w * nbytes((side, side, channels), pool5.dtype)
    together = max(1, min(n, memory // (h * row_bytes)))
    count = max(1, min(h, memory // row_bytes))
    for image in range(0, n, together):
        images = min(together, n - image)
        for first in range(0, h, count):
            last = min(first + count, h)
            x = ops.unfold(_rows(pool5, image, first, last + side - 1, images), side)
            for step in head:  # dropout changes nothing here, and ReLUs are part of what lies before them
                if step.kind == "linear":
                    weight, bias = model.weights_of(step)
                    relu = step.name.replace("fc", "relu") in relus
                    shape, dtype = (x.shape[0], step.outputs), map_type(step.name, model.precision)
                    y = _C.empty(shape, dtype, model.device)
                    x = ops.linear(x, weight, bias, relu=relu, precision=model.precision, out=y)
                elif step.kind == "softmax":
                    x = ops.softmax(x)
            to = _rows(result, image, first, last, images)
            to.copy_(x.reshape(to.shape))
    return result


def _rows(x: _C.Tensor, image: int, first: int, last: int, images: int = 1) -> _C.Tensor:
    """Rows first..last-1 of one image of (N, H, W, C), as (1, last - first, W, C); several images only with all their rows."""
    _, height, width, channels = x.shape
    row = nbytes((width, channels), x.dtype)
    offset = (image * height + first) * row
    return x.view(offset, (images, last - first, width, channels), x.dtype)


def _copy_band(
    to: _C.Tensor, to_image: int, to_first: int, x: _C.Tensor, image: int, first: int, count: int, axis: int
) -> None:
    """Copy so many rows (axis 1) or columns (axis 2) of an image of (N, H, W, C) into one of another map."""
    if axis == 1:
        _rows(to, to_image, to_first, to_first + count).copy_(_rows(x, image, first, first + count))
        return
    for row in range(x.shape[1]):
        _pixels(to, to_image, row, to_first, count).copy_(_pixels(x, image, row, first, count))


def _pixels(x: _C.Tensor, image: int, row: int, first: int, count: int) -> _C.Tensor:
    """So many pixels of one row of one image of (N, H, W, C), as (count, C)."""
    _, height, width, channels = x.shape
    offset = ((image * height + row) * width + first) * nbytes((channels,), x.dtype)
    return x.view(offset, (count, channels), x.dtype)
