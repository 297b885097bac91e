"""PyTorch's .pth files: tensors and containers, read by a parser that knows nothing else. Nothing is unpickled.

What `torch.save` writes is a pickle: a program that builds the object, and names a storage where numbers of a tensor belong.
Here the instructions that a state dict takes are followed on plain data, and the few names that it holds stand for
themselves: a class or function is never looked up, so none can be called. Any other instruction or name ends the reading.

Since PyTorch 1.6 the file is a zip archive of the pickle and the storages, uncompressed. Before, as in torchvision's older
files, it is pickles of a magic number, a version, the machine's byte order, the object and the keys of the storages, and
then the storages.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import struct
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from .._C import WeightsError
from .layouts import Array

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the format before PyTorch 1.6
ZIP = b"PK\x03\x04"

DTYPES = {  # storages, and how their numbers lie in the file
    "torch.FloatStorage": "f4",
    "torch.DoubleStorage": "f8",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": "u2",
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "u1",
}
BFLOAT16 = "torch.BFloat16Storage"
DICT = "collections.OrderedDict"
TENSOR = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
PARAMETER = ("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter")
NAMES = {DICT, *TENSOR, *PARAMETER, *DTYPES}

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {  # instructions that push their argument; STRING ones are of files that Python 2 wrote
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING",
    "SHORT_BINSTRING",
}  # fmt: skip
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MALFORMED = (IndexError, KeyError, TypeError, ValueError, OverflowError, AttributeError, struct.error)


@dataclass(frozen=True)
class _Name:
    """A class or function that the pickle names."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """Numbers elsewhere in the file; `kind` is a key of `DTYPES`."""

    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides in numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: Path) -> dict[str, Array]:
    """The arrays of a state dict by their names.

    Raises
    ------
    WeightsError
        When the file is damaged, no file of PyTorch, or holds more than tensors and containers.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == ZIP
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickletools decodes arguments, of damaged instructions too
            return _read_zip(path) if zipped else _read_legacy(path)
    except WeightsError:
        raise
    except (
        *MALFORMED,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,  # of zipfile, for encrypted members
    ) as error:
        raise WeightsError(f"not a readable PyTorch file, or damaged: {error}") from error


# ---- the two formats


def _read_zip(path: Path) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:

        def member(name: str) -> bytes:
            info = archive.getinfo(name)
            if (
                info.compress_type != zipfile.ZIP_STORED
            ):  # PyTorch never compresses; others might to fill the memory
                raise WeightsError(f"its member {name} is compressed, which PyTorch does not do")
            return archive.read(info)  # its CRC is verified

        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise WeightsError("is a zip archive, but none that PyTorch wrote: it has no data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        order = (
            ">"
            if f"{folder}byteorder" in archive.namelist() and member(f"{folder}byteorder") == b"big"
            else "<"
        )
        tensors = _state_dict(_parse(BytesIO(member(pickles[0])), {}))
        return {
            name: _array(tensor, member(f"{folder}data/{tensor.storage.key}"), order)
            for name, tensor in tensors.items()
        }


def _read_legacy(path: Path) -> dict[str, Array]:
    with path.open("rb") as file:
        stream = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if stream[257:262] == b"ustar":
        raise WeightsError(
            "is of PyTorch before 0.1.10 (a tar archive): load and save it with a newer PyTorch"
        )
    if stream[:2] != b"\x80\x02" or _parse(stream, {}) != MAGIC or _parse(stream, {}) != VERSION:
        raise WeightsError("is no file of PyTorch: neither a zip archive nor what it wrote before 1.6")
    order = "<" if _parse(stream, {})["little_endian"] else ">"
    storages: dict[str, _Storage] = {}
    tensors = _state_dict(_parse(stream, storages))
    data = {}
    for key in _parse(stream, {}):
        (count,) = struct.unpack(f"{order}q", stream.read(8))
        size = count * np.dtype(DTYPES[storages[key].kind]).itemsize
        if not 0 <= size <= len(stream) - stream.tell():
            raise WeightsError("is cut short: the numbers of a tensor are missing")
        data[key] = memoryview(stream)[stream.tell() : stream.tell() + size]
        stream.seek(size, 1)
    return {name: _array(tensor, data[tensor.storage.key], order) for name, tensor in tensors.items()}


# ---- the pickle


def _parse(stream: Any, storages: dict[str, _Storage]) -> Any:
    """Follow a pickle to its end, on plain data; the storages that it names go to `storages`."""
    stack: list[Any] = []
    marked: list[list[Any]] = []  # stacks below the marks
    memo: dict[int, Any] = {}
    argument: Any
    for instruction, argument, _ in pickletools.genops(stream):
        name = instruction.name
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name in TUPLES:
            count = TUPLES[name]
            items = tuple(stack[len(stack) - count :])
            if len(items) != count:
                raise IndexError("the stack is too short")
            stack[len(stack) - count :] = [items]
        elif name == "MARK":
            marked.append(stack)
            stack = []
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            since, stack = stack, marked.pop()
            if name == "TUPLE":
                stack.append(tuple(since))
            elif name == "APPENDS":
                _list(stack[-1]).extend(since)
            else:
                _set(stack[-1], since)
        elif name == "APPEND":
            item = stack.pop()
            _list(stack[-1]).append(item)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set(stack[-1], [key, value])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_name(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_name(f"{module}.{attribute}"))
        elif name == "BINPERSID":
            storage = _storage(stack.pop())
            stack.append(storages.setdefault(storage.key, storage))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, called = stack.pop(), stack.pop()
            stack.append(_called(called, arguments))
        elif name == "BUILD":  # attributes: a state dict's version numbers, a parameter's requires_grad
            stack.pop()
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise WeightsError(
                f"holds the pickle instruction {name}, which no file of tensors needs; nothing was run"
            )
    raise ValueError("the pickle has no end")


def _name(name: str) -> _Name:
    if name not in NAMES:
        raise WeightsError(
            f"asks for {name}, which is no tensor and no container; nothing was run. Save model.state_dict() "
            f"alone with torch.save, or with safetensors"
        )
    return _Name(name)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"items for a {type(value).__name__}")
    return value


def _set(value: Any, items: list[Any]) -> None:
    if not isinstance(value, dict) or len(items) % 2:
        raise TypeError(f"keys and values for a {type(value).__name__}")
    for key, item in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int):  # hashing a nest of shared tuples might take for ever
            raise TypeError(f"a key is a {type(key).__name__}")
        value[key] = item


def _storage(identity: Any) -> _Storage:
    tag, kind, key, _, count, *view = identity
    if tag != "storage" or kind.name not in DTYPES or not isinstance(key, str) or count < 0:
        raise ValueError("a storage has another form than PyTorch's")
    if view not in ([], [None]):
        raise WeightsError("holds storages that are views of others: load and save it with a newer PyTorch")
    return _Storage(kind.name, key, count)


def _called(called: Any, arguments: Any) -> Any:
    """What the call of a name makes of its arguments, as data."""
    if not isinstance(called, _Name):
        raise TypeError(f"a call of a {type(called).__name__}")
    if called.name == DICT:
        made: dict[Any, Any] = {}
        for key, value in arguments[0] if arguments else ():  # as Python 2 wrote it
            _set(made, [key, value])
        return made
    if called.name in PARAMETER:
        return arguments[0]
    if called.name not in TENSOR:
        raise TypeError(f"a call of {called.name}")
    storage, offset, shape, strides = arguments[:4]
    sizes = (offset, *shape, *strides)
    if (
        not isinstance(storage, _Storage)
        or len(shape) != len(strides)
        or not all(isinstance(size, int) and size >= 0 for size in sizes)
    ):
        raise ValueError("a tensor has another form than PyTorch's")
    if math.prod(shape) > storage.count or (
        0 not in shape
        and offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        >= storage.count
    ):
        raise ValueError(
            f"a tensor of shape {tuple(shape)} reaches beyond its storage of {storage.count} numbers"
        )
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


# ---- from storages to arrays


def _state_dict(tree: Any) -> dict[str, _Tensor]:
    """The tensors by name: of the dict itself, or of the one in it that scripts of training save beside their own state.

    Nothing deeper is looked at: what a pickle shares may be a maze without an end.
    """
    for key in ("state_dict", "model"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
    tensors = {
        name.removeprefix("module."): value  # of torch.nn.DataParallel
        for name, value in (tree.items() if isinstance(tree, dict) else ())
        if isinstance(name, str) and isinstance(value, _Tensor)
    }
    if not tensors:
        raise WeightsError("holds no state dict, which has tensors by name: save model.state_dict()")
    return tensors


def _array(tensor: _Tensor, data: bytes | memoryview, order: str) -> Array:
    kind = tensor.storage.kind
    numbers = np.frombuffer(data, order + DTYPES[kind], tensor.storage.count)
    if kind == BFLOAT16:  # the upper half of a float32
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    if 0 in tensor.shape:
        return np.empty(tensor.shape, numbers.dtype)
    strides = [
        stride * numbers.itemsize for stride in tensor.strides
    ]  # within the storage, as _called saw to
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)
