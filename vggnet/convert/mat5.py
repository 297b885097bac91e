"""MATLAB's files of level 5 ("-v6" and "-v7"): arrays, text, cells and structs.

SciPy reads them too, but a few wrong bytes end its process, and a download that went wrong should end in an error.

A file is a header and data elements: a tag with type and size, then the bytes, up to the next multiple of 8; or four bytes at
most inside the tag. An array is an element of elements: flags, sizes, name, contents. Others are compressed by zlib.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .._C import WeightsError

HEADER, VERSION = 128, 1  # bytes; the upper byte of its version field
MATRIX, COMPRESSED = 14, 15  # types of elements; the others are numbers, or text
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXTS = {16: "utf-8", 17: "utf-16", 18: "utf-32"}
CELL, STRUCT, CHAR, FIRST_NUMERIC, LAST_NUMERIC = 1, 2, 4, 6, 15  # classes of arrays
LARGEST = (1 << 31) - 1  # bytes of a variable, by the format
DEEPEST = 16  # cells and structs within each other


def read(path: Path) -> dict[str, Any]:
    """The variables of a file by name.

    Returns
    -------
    dict
        Numbers are arrays, text is str, a cell array a list in column-major order, a struct a dict, and an array of structs a
        list of them. Of arrays that are none of these None is left.

    Raises
    ------
    WeightsError
        When the file is damaged, or of another format.
    """
    content = memoryview(path.read_bytes())
    order = {b"IM": "<", b"MI": ">"}.get(bytes(content[126:128]))
    version = content[125 if order == "<" else 124] if order is not None else None
    if version == 2:
        raise WeightsError(
            "is of MATLAB 7.3 (HDF5), which is not read: in MATLAB, save it with the option '-v7'"
        )
    if order is None or version != VERSION:
        raise WeightsError("is no file of MATLAB (level 5)")
    try:
        variables = {}
        for kind, data in _elements(content[HEADER:], order):
            if kind == COMPRESSED:
                whole = zlib.decompressobj()
                unpacked = memoryview(whole.decompress(data, LARGEST))
                if not whole.eof:
                    raise ValueError("compressed data are cut short, or too large")
                kind, data = next(_elements(unpacked, order))
            if kind == MATRIX:
                name, value = _array(data, order, DEEPEST)
                variables[name] = value
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, StopIteration, zlib.error) as error:
        raise WeightsError(f"is no readable file of MATLAB, or damaged: {error}") from error
    return variables


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and bytes of one element after the other."""
    position = 0
    while position < len(content):
        kind, size = (int(word) for word in np.frombuffer(content[position : position + 8], f"{order}u4"))
        if kind >> 16:  # a small element: its size is the upper half of the first word
            kind, size = kind & 0xFFFF, kind >> 16
            if size > 4:
                raise ValueError("a small element is not small")
            yield kind, content[position + 4 : position + 4 + size]
            position += 8
            continue
        position += 8
        if size > len(content) - position:
            raise ValueError("an element is longer than what is left: the file is cut short")
        yield kind, content[position : position + size]
        position += size if kind == COMPRESSED else -(-size // 8) * 8


def _array(content: memoryview, order: str, depth: int) -> tuple[str, Any]:
    """Name and value of an array element."""
    if not len(content):
        return "", np.empty((0, 0))
    if depth == 0:
        raise ValueError("cells and structs lie too deep")
    elements = _elements(content, order)
    kind = int(_numbers(*next(elements), order)[0]) & 0xFF
    shape = tuple(int(size) for size in _numbers(*next(elements), order))
    name = bytes(next(elements)[1]).decode("latin-1")
    if min(shape, default=0) < 0 or not shape:
        raise ValueError(f"an array has the shape {shape}")
    count = math.prod(shape)
    if kind == CELL:
        return name, _values(elements, count, order, depth)
    if kind == STRUCT:
        length = int(_numbers(*next(elements), order)[0])
        text = bytes(next(elements)[1])
        if length < 1:
            raise ValueError("the names of a struct's fields have no length")
        fields = [text[i : i + length].split(b"\0")[0].decode("latin-1") for i in range(0, len(text), length)]
        values = _values(elements, count * len(fields), order, depth)
        structs = [
            dict(zip(fields, values[i : i + len(fields)], strict=True))
            for i in range(0, len(values), max(len(fields), 1))
        ]
        return name, structs[0] if count == 1 and structs else structs
    if kind == CHAR:
        kind, data = next(elements)
        text_bytes = bytes(data)
        if kind in TEXTS:
            return name, text_bytes.decode(
                TEXTS[kind] + ("" if kind == 16 else "-le" if order == "<" else "-be")
            )
        return name, "".join(map(chr, _numbers(kind, data, order)))
    if not FIRST_NUMERIC <= kind <= LAST_NUMERIC:
        return name, None
    numbers = _numbers(*next(elements), order)
    if numbers.size != count:
        raise ValueError(f"an array of the shape {shape} has {numbers.size} numbers")
    return name, numbers.reshape(shape, order="F")


def _values(elements: Iterator[tuple[int, memoryview]], count: int, order: str, depth: int) -> list[Any]:
    values = []
    for kind, data in elements:
        if kind != MATRIX:
            raise ValueError(f"a cell or field has the type {kind}")
        values.append(_array(data, order, depth - 1)[1])
    if len(values) != count:
        raise ValueError(f"{len(values)} cells or fields are there; expected {count}")
    return values


def _numbers(kind: int, data: memoryview, order: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(data, order + NUMBERS[kind])
