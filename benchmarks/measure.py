"""What benchmarks share: timing with cold caches, and the machine's description."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from vggnet import _C

FLUSH_BYTES = 64 << 20  # more than the last-level cache of the machines we know


def measure(call: Callable[[], object], *, seconds: float, flush: bool) -> list[float]:
    """Seconds of each pass: one warm-up that is dropped, then at least three, until `seconds` have gone by.

    With `flush` the caches are overwritten before each pass, so that a pass finds its arrays in memory.
    """
    scratch = np.zeros(FLUSH_BYTES if flush else 0, np.uint8)
    call()
    passes: list[float] = []
    start = time.perf_counter()
    while len(passes) < 3 or time.perf_counter() - start < seconds:
        scratch += 1
        begin = time.perf_counter()
        call()
        passes.append(time.perf_counter() - begin)
    return passes


def cpu_name() -> str:
    """The CPU's own name, or the architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def commit() -> str:
    """The short name of the commit, with a + if the tree has changes; "unknown" outside a clone."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine(threads: int) -> dict[str, Any]:
    """What a figure means nothing without; `peak` is the multiply-add rate of the threads, in FLOP/s."""
    info = _C.build_info()
    return {
        "cpu": cpu_name(),
        "isa": info["isa"],
        "kernel": next(kernel["name"] for kernel in _C.kernels() if kernel["selected"]),
        "threads": threads,
        # the best of some: a thread that was just made may share its core with the caller for a while
        "peak": max(_C.fma_peak(threads) for _ in range(20)),
        "vggnet": info["version"],
        "compiler": info["compiler"],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "commit": commit(),
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
    }
