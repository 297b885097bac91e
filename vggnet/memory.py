"""How much memory of a device is free."""

from __future__ import annotations

import contextlib
from pathlib import Path

from . import _C


def free_memory(device: str = "cpu") -> int | None:
    """Bytes that may still be taken on a device; None where that is unknown. On the CPU, those of the machine and of the
    control group."""
    if not device.startswith("cpu"):
        return _C.memory_stats(device).get("free")

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
