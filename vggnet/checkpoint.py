"""Weights on disk: safetensors files that are written whole or not at all, and the checkpoints of a run.

Every file carries the SHA-256 of its contents (names, types, shapes, bytes and metadata), so a file that a
full disk, a crash or a bad copy damaged is named, never loaded. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ._C import WeightsError

log = logging.getLogger("vggnet")

# The whole metadata of a file is one JSON text under this key: safetensors writes the keys of its metadata in
# an order that changes from call to call, and equal contents should make equal files.
METADATA_KEY = "vggnet"
CHECKSUM_KEY = "sha256"
COPY_BYTES = 16 << 20  # of an array that are in memory twice while tensors are restored

Array = npt.NDArray[Any]


def write_tensors(
    path: str | os.PathLike[str], arrays: Mapping[str, Array], metadata: Mapping[str, str]
) -> None:
    """Write named arrays and text to a safetensors file, atomically.

    The file is written beside `path`, flushed to the disk and renamed over it, so `path` holds the old
    contents or the new ones, whole, whatever happens in between. Equal contents make equal files.

    Parameters
    ----------
    path : str or os.PathLike
        The file to make or replace; its directory must exist.
    arrays : mapping of str to ndarray
        Written in the order of safetensors (by type, then name). C-contiguous arrays are hashed and written
        from where they lie, without a copy.
    metadata : mapping of str to str
        Kept with the arrays and covered by the checksum; "sha256" is added.

    Raises
    ------
    OSError
        When the file cannot be written; `path` is then as it was.
    """
    path = Path(path)
    contents = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    checksum = _checksum(((name, contents[name]) for name in sorted(contents)), metadata)
    text = json.dumps({**metadata, CHECKSUM_KEY: checksum}, sort_keys=True)

    def write(temporary: Path) -> None:
        try:
            save_file(contents, temporary, {METADATA_KEY: text})
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from error

    replace_file(path, write)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically, as `write_tensors` does."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Read a safetensors file; a checksum, when the file has one, is verified.

    Returns
    -------
    arrays : dict of str to ndarray
        Sorted by name; the arrays are the caller's own.
    metadata : dict of str to str
        As given to `write_tensors`, "sha256" included; files of other programs: their metadata as it is.

    Raises
    ------
    FileNotFoundError
    WeightsError
        When the file is no safetensors file, is cut short, or its contents do not match its checksum.
    """
    with _open(path) as (file, metadata):
        names = sorted(file.keys())
    arrays = dict(_arrays(path, names))
    _verify(path, arrays.items(), metadata)
    return arrays, metadata


def describe_tensors(path: str | os.PathLike[str]) -> tuple[list[str], dict[str, str]]:
    """Names of the arrays and the metadata of a file; no array is read and no checksum verified. Raises as `read_tensors`."""
    with _open(path) as (file, metadata):
        return sorted(file.keys()), metadata


@contextlib.contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open a safetensors file for reading one array at a time; format errors become WeightsError."""
    path = Path(path)
    if not path.is_file():  # safetensors' own message does not name the file
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            if METADATA_KEY in metadata:
                metadata = json.loads(metadata[METADATA_KEY])
                if CHECKSUM_KEY not in metadata:
                    raise WeightsError(f"{path}: its checksum is missing; it is damaged: use another copy")
            yield file, metadata
    except (SafetensorError, json.JSONDecodeError) as error:
        reason = not_weights(path) or "not a readable safetensors file, or cut short; get or make it again"
        raise WeightsError(f"{path}: {reason} ({error})") from error


def _arrays(path: str | os.PathLike[str], names: Iterable[str]) -> Iterator[tuple[str, Array]]:
    """Name and array of each entry, one at a time. The file is opened for each: it is mapped, so what was read of it counts as
    memory of the process while it is open."""
    for name in names:
        with _open(path) as (file, _):
            try:
                array = file.get_tensor(name)
            except (
                TypeError,
                AttributeError,
            ) as error:  # what safetensors raises for bfloat16 and the float8 types
                kind = file.get_slice(name).get_dtype()
                raise WeightsError(
                    f"{path}: {name} has type {kind}, which NumPy lacks; save it as float32"
                ) from error
        yield name, array


def not_weights(path: Path) -> str | None:
    """What a file is that often lies where weights should; None for anything else."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the weights: fetch the file itself (git lfs pull)"
    if start.startswith(b"<"):
        return "this is an HTML or XML page, not weights: the download failed; get the file again"
    return None


def _checksum(arrays: Iterable[tuple[str, Array]], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, array in arrays:
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)  # nothing is copied
    return digest.hexdigest()


def _verify(path: object, arrays: Iterable[tuple[str, Array]], metadata: Mapping[str, str]) -> None:
    rest = dict(metadata)
    expected = rest.pop(CHECKSUM_KEY, None)
    if expected is not None and _checksum(arrays, rest) != expected:
        raise WeightsError(
            f"{path}: the contents do not match the SHA-256 in the file; it is damaged: use another copy"
        )


def replace_file(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Let `write` make a temporary file beside `path`, put it on the disk, rename it to `path`: whole or not there."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path.name}: no such directory: {path.parent}")
    # A directory, since safetensors makes a temporary file of its own beside the one it is asked for.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as directory:
        temporary = Path(directory, path.name)
        write(temporary)
        if path.exists():
            mode = path.stat().st_mode & 0o7777
        else:  # what a new file gets; to ask for the umask is to change it, and other threads make files too
            plain = Path(directory, "plain")
            plain.touch()
            mode = plain.stat().st_mode & 0o7777
        os.chmod(temporary, mode)
        _sync(temporary)
        os.replace(temporary, path)
    _sync(path.parent)  # the rename itself


def _sync(path: str | os.PathLike[str]) -> None:
    if os.name == "nt" and os.path.isdir(path):  # Windows cannot open a directory
        return
    handle = os.open(path, os.O_RDWR if os.path.isfile(path) else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Checkpoints:
    """The checkpoints of one training run, in one directory.

    A checkpoint is a safetensors file ``checkpoint-<iteration>.safetensors``: the parameters under their
    names, their velocities under ``velocity/<name>``, and everything else a run needs to go on bit for bit as
    text in the metadata.

    Parameters
    ----------
    directory : str or os.PathLike
        Made when it does not exist.
    keep : int
        How many to keep, the newest ones.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; expected at least 1 checkpoint")
        self.directory = Path(directory)
        self.keep = keep
        self.directory.mkdir(parents=True, exist_ok=True)

    def paths(self) -> list[Path]:
        """The checkpoints, newest first."""
        return sorted(self.directory.glob(_PATTERN), reverse=True)  # the digits of the iterations are padded

    def save(
        self,
        iteration: int,
        parameters: Mapping[str, Any],
        velocities: Mapping[str, Any],
        metadata: Mapping[str, str],
    ) -> Path:
        """Write the checkpoint of `iteration`, then remove all but the `keep` newest.

        Parameters
        ----------
        iteration : int
            Updates made since the start of the run.
        parameters, velocities : mapping of str to Tensor
            Parameters that learn have a velocity of the same name. Tensors on the CPU are hashed and written from where they
            lie.
        metadata : mapping of str to str
        """
        for stale in self.directory.glob(".*.tmp"):  # of a process that was killed while it wrote
            shutil.rmtree(stale, ignore_errors=True)
        path = self.directory / f"checkpoint-{iteration:010d}.safetensors"
        arrays = {name: np.asarray(tensor) for name, tensor in parameters.items()}
        arrays |= {VELOCITY + name: np.asarray(tensor) for name, tensor in velocities.items()}
        write_tensors(path, arrays, metadata)
        for old in self.paths()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> tuple[Path, dict[str, str]] | None:
        """The newest checkpoint whose contents match its checksum, and its metadata; None when there is none.

        Damaged ones are renamed to ``*.damaged`` and logged.

        Raises
        ------
        WeightsError
            When there are checkpoints and every one is damaged.
        """
        damaged = None
        for path in self.paths():
            try:
                return path, verify_tensors(path)
            except WeightsError as error:
                damaged = error
                log.warning("skipped a damaged checkpoint, kept as %s.damaged: %s", path.name, error)
                path.rename(path.with_name(path.name + ".damaged"))
        if damaged is not None:
            raise WeightsError(
                f"{self.directory}: every checkpoint is damaged; start again in another directory"
            ) from damaged
        return None


VELOCITY = "velocity/"
_PATTERN = "checkpoint-*.safetensors"


def verify_tensors(path: str | os.PathLike[str]) -> dict[str, str]:
    """Verify the checksum of a file, one array in memory at a time, and return the metadata.

    Raises as `read_tensors` does.
    """
    with _open(path) as (file, metadata):
        names = sorted(file.keys())
    _verify(path, _arrays(path, names), metadata)
    return metadata


def restore_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Any], leave: Collection[str] = ()
) -> None:
    """Copy the arrays of a file into tensors that exist, a part at a time; the file has been verified before.

    Parameters
    ----------
    path : str or os.PathLike
    tensors : mapping of str to Tensor
        Exactly the names and shapes of the file.
    leave : collection of str
        Names that are not copied, whatever their shapes.

    Raises
    ------
    WeightsError
        When names or shapes differ; nothing has been written then.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if name not in leave}
    with _open(path) as (file, _):
        names = set(file.keys()) - set(leave)
        for name in sorted(names ^ tensors.keys()):
            where = "the file has no" if name in tensors else "the model has no"
            raise WeightsError(f"{path}: {where} {name}; it is of another network")
        for name, tensor in tensors.items():
            shape = tuple(file.get_slice(name).get_shape())
            if shape != tuple(tensor.shape):
                raise WeightsError(f"{path}: {name} has shape {shape}; expected {tuple(tensor.shape)}")
    for name, tensor in tensors.items():
        count = tensor.shape[0]
        row_bytes = tensor.nbytes // max(count, 1)
        rows = max(COPY_BYTES // max(row_bytes, 1), 1)
        for first in range(0, count, rows):
            with _open(path) as (file, _):  # anew, as in _arrays
                part = file.get_slice(name)[first : min(first + rows, count)]
            tensor.view(first * row_bytes, part.shape, tensor.dtype).copy_(part)
