"""Files inside tar archives, read where they lie: an archive is looked through once, then each file is one read."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from .._C import ImageError
from ..checkpoint import replace_file

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

_log = logging.getLogger("vggnet")


class TarFiles:
    """Files in some tar archives.

    Parameters
    ----------
    archives : sequence of paths
    arrays : mapping
        What `index` made of them, or some rows of it.

    Notes
    -----
    `read` may be called from several threads.
    """

    def __init__(self, archives: Sequence[Path], arrays: Arrays) -> None:
        self.archives = list(archives)
        self.names = arrays["names"]
        self.archive = arrays["archive"]
        self._offsets, self._sizes = arrays["offsets"], arrays["sizes"]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        """Name of file `i` within its archive."""
        return bytes(self.names[i]).decode()

    def path(self, i: int) -> str:
        """What messages call file `i`: its archive, and its name there."""
        return f"{self.archives[self.archive[i]]}/{self.name(i)}"

    def read(self, i: int) -> bytes:
        """Contents of file `i`; ImageError when they cannot be read."""
        size = int(self._sizes[i])
        try:
            with open(self.archives[self.archive[i]], "rb") as file:
                file.seek(int(self._offsets[i]))
                content = file.read(size)
        except OSError as error:
            raise ImageError(f"{self.path(i)}: {error.strerror}") from error
        if len(content) < size:
            raise ImageError(f"{self.path(i)}: the archive ends within it")
        return content


def index(archives: Sequence[Path], *, nested: bool = False) -> Arrays:
    """What lies where in tar archives.

    Parameters
    ----------
    archives : sequence of paths
        Not compressed.
    nested : bool
        They hold archives, one a class: the file b.JPEG in a.tar has the name a/b.JPEG.

    Returns
    -------
    dict
        "names", "archive" (which of them), "offsets" and "sizes" of the plain files, in the order of the archives,
        then of the names.

    Raises
    ------
    ImageError
        When an archive is damaged or incomplete; the message names it.
    """
    names: list[bytes] = []
    places: list[tuple[int, int, int]] = []
    for number, path in enumerate(archives):
        _log.info("looking through %s, once", path)
        try:
            with open(path, "rb") as file:
                found = sorted(_nested_files(file) if nested else _files(file))
        except tarfile.TarError as error:
            raise ImageError(f"{path}: damaged or incomplete tar archive ({error}); get it again") from error
        names += (name.encode() for name, _, _ in found)
        places += ((number, offset, size) for _, offset, size in found)
    table = np.array(places, np.int64).reshape(-1, 3)
    return {
        "names": np.array(names, dtype=np.bytes_),
        "archive": table[:, 0].astype(np.int32),
        "offsets": table[:, 1],
        "sizes": table[:, 2],
    }


def _files(archive: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Name, offset and bytes of each plain file; TarError also when the last one is cut short."""
    with tarfile.open(fileobj=archive, mode="r:") as tar:
        for member in tar:
            if member.isfile():
                yield member.name.removeprefix("./"), member.offset_data, member.size


def _nested_files(archive: BinaryIO) -> Iterator[tuple[str, int, int]]:
    with tarfile.open(fileobj=archive, mode="r:") as tar:
        for member in tar:
            inner = tar.extractfile(member) if member.name.endswith(".tar") else None
            if inner is not None:
                folder = Path(member.name).stem
                for name, offset, size in _files(inner):  # type: ignore[arg-type]
                    yield f"{folder}/{name}", member.offset_data + offset, size


def remember(path: Path, sources: Sequence[Path], make: Callable[[], Arrays]) -> Arrays:
    """Arrays that are made from files once, and kept while sizes and times of the files stay as they are.

    Parameters
    ----------
    path : Path
        The .npz file that keeps them; where its folder cannot be written to, one in the user's cache folder
        ($XDG_CACHE_HOME, or ~/.cache).
    sources : sequence of paths
    make : callable
        Returns the arrays: numbers, or bytes.
    """
    status = [os.stat(source) for source in sources]
    identity = np.array([(s.st_size, s.st_mtime_ns) for s in status], np.int64).reshape(-1, 2)
    digest = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "vggnet")
    places = (path, cache / f"{digest}-{path.name.lstrip('.')}")
    for place in places:
        # Whatever is wrong with a kept file, it is made anew.
        damaged = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)
        with contextlib.suppress(*damaged), place.open("rb") as file:
            kept = np.load(file, allow_pickle=False)
            if np.array_equal(kept["sources"], identity):
                return {name: kept[name] for name in kept.files if name != "sources"}
    arrays = make()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            contents: dict[str, Any] = {"sources": identity, **arrays}
            np.savez(file, **contents)

    for place in places:
        try:
            if place is not path:
                cache.mkdir(parents=True, exist_ok=True)
            replace_file(place, write)
            break
        except OSError as error:
            _log.info("%s could not be written: %s", place, error)
    return arrays
