"""Which gradients are averaged together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._C import Tensor

# What is averaged at once, at least. Small ones start early, large ones cost fewer starts; measured in docs/parallel.md.
BUCKET_BYTES = 16 << 20


def plan_buckets(
    parameters: Mapping[str, Tensor], layers: Collection[str], at_least: int = BUCKET_BYTES
) -> list[tuple[str, ...]]:
    """Cut the gradients of some layers into buckets, in the order in which backward finishes them.

    Parameters
    ----------
    parameters : mapping of str to Tensor
        Of the model, in the layers' order.
    layers : collection of str
        Those that learn.
    at_least : int
        Bytes of every bucket but the last.

    Returns
    -------
    list of tuples of parameter names
        Whole layers, fc8 in the first bucket.

    Examples
    --------
    >>> from vggnet import VGG
    >>> model = VGG("A", num_classes=10, input_size=32, fc_width=8, init=None)
    >>> [bucket[0] for bucket in plan_buckets(model.parameters, {"conv1_1", "fc7", "fc8"}, at_least=600)]
    ['fc8.weight', 'conv1_1.weight']
    """
    buckets: list[tuple[str, ...]] = []
    names: list[str] = []
    size = 0
    for layer in dict.fromkeys(name.split(".")[0] for name in reversed(list(parameters))):
        if layer not in layers:
            continue
        own = [f"{layer}.weight", f"{layer}.bias"]
        names += own
        size += sum(parameters[name].nbytes for name in own)
        if size >= at_least:
            buckets.append(tuple(names))
            names, size = [], 0
    return [*buckets, tuple(names)] if names else buckets
