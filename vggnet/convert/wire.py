"""Protocol buffers: what .caffemodel and .onnx files are made of.

A message is a row of fields, each a key (number and wire type) and a value: a varint, 4 or 8 bytes, or a length and as many
bytes (text, an inner message, packed numbers). Numbers of fields by name come from tables such as `caffe.NET`; fields that a
table lacks are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from .._C import WeightsError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
LARGEST = (1 << 31) - 1  # bytes of a message that readers take

#: The number of a field, and for a field that is a message, the table of its own fields.
Numbers: TypeAlias = "Mapping[str, int | tuple[int, Numbers]]"
#: Fields of a message to be written, in order: int (varint), float, str, array (packed), or the fields of an inner message.
Fields: TypeAlias = "Sequence[tuple[str, int | float | str | npt.NDArray[Any] | Fields]]"


# ---- reading


class Record:
    """The fields of a message, by name; what they mean is up to who reads them.

    Parameters
    ----------
    message : memoryview of bytes
    numbers : Numbers

    Raises
    ------
    WeightsError
        When it is no message, or cut short; and from the methods, when a field has another wire type.
    """

    def __init__(self, message: memoryview, numbers: Numbers) -> None:
        self._numbers = numbers
        names = {number if isinstance(number, int) else number[0]: name for name, number in numbers.items()}
        self._values: dict[str, list[int | memoryview]] = {}
        for number, value in _fields(message):
            if number in names:
                self._values.setdefault(names[number], []).append(value)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def _bytes(self, name: str) -> list[memoryview]:
        values = [value for value in self._values.get(name, []) if not isinstance(value, int)]
        if len(values) != len(self._values.get(name, [])):
            raise WeightsError(f"the field {name} is a number; expected bytes: damaged, or of another format")
        return values

    def text(self, name: str) -> str:
        """A string; "" when the field is absent."""
        values = self._bytes(name)
        return str(bytes(values[-1]), "utf-8", "replace") if values else ""

    def integers(self, name: str) -> list[int]:
        """All values of an integer field, packed or not."""
        out = []
        for value in self._values.get(name, []):
            if isinstance(value, int):
                out.append(value)
                continue
            position = 0
            while position < len(value):
                integer, position = _varint(value, position)
                out.append(integer)
        return out

    def reals(self, name: str, dtype: str = "<f4") -> npt.NDArray[Any]:
        """All values of a float field, packed or not; a view when they lie together."""
        parts = self._bytes(name)
        size = np.dtype(dtype).itemsize
        for part in parts:
            if len(part) % size:
                raise WeightsError(f"the field {name} has {len(part)} bytes; expected a multiple of {size}")
        arrays = [np.frombuffer(part, dtype) for part in parts]
        return arrays[0] if len(arrays) == 1 else np.concatenate([*arrays, np.empty(0, dtype)])

    def inner(self, name: str) -> Iterator[Record]:
        """The messages of a field, one after the other."""
        number = self._numbers[name]
        assert not isinstance(number, int), "a table of the inner fields"
        for message in self._bytes(name):
            yield Record(message, number[1])


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: an int of a varint, else the bytes where they lie."""
    position, end = 0, len(message)
    while position < end:
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise WeightsError("a field has the number 0: damaged, or of another format")
        if kind == VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if kind == BYTES:
            size, position = _varint(message, position)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise WeightsError(f"a field has the wire type {kind}: damaged, or of another format")
        if size > end - position:
            raise WeightsError("a field is longer than what is left of the file: cut short or damaged")
        yield number, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise WeightsError("the file ends inside a number: cut short or damaged")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise WeightsError("a number has more than ten bytes: damaged, or of another format")


# ---- writing


def write(file: BinaryIO, fields: Fields, numbers: Numbers) -> None:
    """Write a message to a file. Arrays, float32 of any strides, are put in order one at a time.

    Raises
    ------
    ValueError
        When the message is larger than readers take; nothing has been written then.
    """
    parts = list(_encoded(fields, numbers))
    size = sum(map(_size, parts))
    if size > LARGEST:
        raise ValueError(
            f"the model takes {size:,} bytes; protocol buffers, so files of Caffe and ONNX, end at 2 GiB"
        )
    for part in parts:
        file.write(part if isinstance(part, bytes) else np.ascontiguousarray(part, "<f4").data)


def _encoded(fields: Fields, numbers: Numbers) -> Iterator[bytes | npt.NDArray[Any]]:
    for name, value in fields:
        entry = numbers[name]
        number, inner = (entry, {}) if isinstance(entry, int) else entry
        if isinstance(value, int):
            yield _encode_varint(number << 3 | VARINT) + _encode_varint(value)
        elif isinstance(value, float):
            yield _encode_varint(number << 3 | FIXED32) + np.array(value, "<f4").tobytes()
        else:
            parts = (
                [value.encode()]
                if isinstance(value, str)
                else [value]
                if isinstance(value, np.ndarray)
                else list(_encoded(value, inner))
            )
            yield _encode_varint(number << 3 | BYTES) + _encode_varint(sum(map(_size, parts)))
            yield from parts


def _size(part: bytes | npt.NDArray[Any]) -> int:
    return len(part) if isinstance(part, bytes) else part.nbytes


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
