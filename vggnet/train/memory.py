"""How many images of a batch are computed at a time: what fits the free memory."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models import VGG

log = logging.getLogger("vggnet")


def micro_batch(model: VGG, batch: int, layers: Collection[str]) -> int:
    """The batch, or its half, quarter, ...: the largest of which a training step of `layers` fits into four fifths of the
    free memory."""
    free = free_memory()
    micro = batch
    if free is None:
        return batch
    while micro > 1 and model.memory_plan(micro, training=layers).total > 0.8 * free:
        micro = -(-micro // 2)
    if micro < batch:
        log.info("batches of %d go in parts of %d: %d MB of memory are free", batch, micro, free >> 20)
    return micro


def free_memory() -> int | None:
    """Bytes that may still be taken, of the machine and of the control group; None where that is unknown."""

    def table(path: str) -> dict[str, int]:
        lines = Path(path).read_text(encoding="ascii").splitlines()
        return {line.split()[0].rstrip(":"): int(line.split()[1]) for line in lines}

    free = []
    with contextlib.suppress(OSError, ValueError, LookupError):
        free.append(table("/proc/meminfo")["MemAvailable"] << 10)
    with contextlib.suppress(OSError, ValueError, LookupError):  # "max" when there is no limit
        group = Path("/sys/fs/cgroup")
        limit, used = (
            int((group / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current")
        )
        cached = table(f"{group}/memory.stat")["inactive_file"]  # given back when it is needed
        free.append(limit - used + cached)
    return min(free, default=None)
