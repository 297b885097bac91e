"""What a protocol costs, from shapes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..configs import STRIDE, pooled
from ..preprocess import rescaled_size
from .passes import crops
from .protocol import Protocol, check_scales, resolve

if TYPE_CHECKING:
    from ..models import VGG


def flops(model: VGG, protocol: Protocol | str, height: int, width: int) -> int:
    """Multiplications and additions that the posteriors of one image take.

    They are counted as in the direct sums of convolutions and fully connected layers, whatever the algorithm; crops of a grid
    that fall on the same place are computed once.

    Parameters
    ----------
    model : the net
    protocol : a Protocol, "paper" or a kind
    height, width : of the image before it is rescaled, in pixels

    Raises
    ------
    ValueError
        A scale is smaller than the net's input size.

    Examples
    --------
    >>> from vggnet import VGG
    >>> model = VGG("A", num_classes=10, input_size=32, fc_width=64)
    >>> crop = flops(model, Protocol("center", (32,)), 375, 500)
    >>> flops(model, Protocol("multi-crop", (40, 48)), 375, 500) == 100 * crop
    True
    """
    protocol = resolve(protocol, model)
    check_scales(model, protocol)
    size = model.input_size
    total = 0
    for part in protocol.parts():
        for scale in part.scales:
            shape = rescaled_size(height, width, scale)
            if part.kind == "dense":
                total += (2 if part.mirror else 1) * _pass(model, *shape)
            else:
                total += len(crops(part, *shape, size)[0]) * _pass(model, size, size)
    return total


def _pass(model: VGG, height: int, width: int) -> int:
    """Of one dense pass over an image; of a forward pass where it has the input size."""
    total = 0
    for layer in model.layers:
        if layer.kind == "pool":
            height, width = (pooled(side, model.pool_rounding) for side in (height, width))
        elif layer.name == "fc6":
            side = model.input_size // STRIDE
            height, width = height - side + 1, width - side + 1
        total += 2 * height * width * layer.inputs * layer.outputs * layer.window**2
    return total
