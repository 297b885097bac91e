"""Prints what GPUs a library of nvcc's has code for, "sm_80 9" and "ptx_80 9": machine code and PTX, and how many files of it.

Reads the fat binaries that nvcc embeds: a header (magic, version, size of the header, size of what follows), then entries of a
kind (1: PTX, 2: machine code), with the size of their header at 4, of what follows at 8, and the architecture at 28. So it
needs no cuobjdump, which small toolkits lack.
"""

from __future__ import annotations

import collections
import struct
import sys
from pathlib import Path

MAGIC = struct.pack("<I", 0xBA55ED50)
KINDS = {1: "ptx", 2: "sm"}


def codes(library: bytes) -> collections.Counter[str]:
    """Name and architecture of each entry -> how many there are."""
    found: collections.Counter[str] = collections.Counter()
    start = library.find(MAGIC)
    while start >= 0:
        header, size = struct.unpack_from("<HQ", library, start + 6)
        at, end = start + header, start + header + size
        while at < end:
            (kind,) = struct.unpack_from("<H", library, at)
            entry_header, entry_size = struct.unpack_from("<IQ", library, at + 4)
            (arch,) = struct.unpack_from("<I", library, at + 28)
            found[f"{KINDS.get(kind, kind)}_{arch}"] += 1
            at += entry_header + entry_size
        start = library.find(MAGIC, end)
    return found


if __name__ == "__main__":
    for name, count in sorted(codes(Path(sys.argv[1]).read_bytes()).items()):
        print(name, count)
