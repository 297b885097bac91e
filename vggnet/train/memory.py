"""How many images of a batch are computed at a time: what fits the free memory."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from ..memory import free_memory

if TYPE_CHECKING:
    from ..models import VGG

log = logging.getLogger("vggnet")


def micro_batch(
    model: VGG, batch: int, layers: Collection[str], *, replicas: int = 1, reserved: int = 0
) -> int:
    """The batch, or its half, quarter, ...: the largest of which a training step of `layers` fits into four fifths of the
    device's free memory, with so many replicas on that device's memory, and after so many bytes were reserved."""
    free = free_memory(model.device)
    micro = batch
    if free is None:
        return batch
    while micro > 1 and replicas * model.memory_plan(micro, training=layers).total + reserved > 0.8 * free:
        micro = -(-micro // 2)
    if micro < batch:
        log.info("batches of %d go in parts of %d: %d MB of memory are free", batch, micro, free >> 20)
    return micro
