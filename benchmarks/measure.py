"""What benchmarks share: timing with cold caches, and where figures come from."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

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


def commit() -> str:
    """The short name of the commit, with a + if the tree has changes; "unknown" outside a clone."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def origin() -> dict[str, str]:
    """Where figures come from, beside the machine: commit and command."""
    return {"commit": commit(), "command": "python -m benchmarks " + " ".join(sys.argv[1:])}


def write_section(path: Path, begin: str, end: str, text: str) -> None:
    """Put `text` between two lines of a page in place of what is there.

    Raises
    ------
    ValueError
        If the page lacks them.
    """
    page = path.read_text(encoding="utf-8")
    before, found, rest = page.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"{path} has no {begin} ... {end}")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{rest[rest.index(end) :]}", encoding="utf-8")
