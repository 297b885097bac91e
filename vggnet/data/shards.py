"""Images in tar files of a thousand each, for training from disks that read files in a row much faster than at random."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import tarfile
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .. import rng
from .._C import ImageError
from ..checkpoint import replace_file, write_text
from ..preprocess import FILTERS, Channels, Pixels, channel_count, rescale
from ..rng import Purpose
from . import tar
from .base import Dataset, DatasetNotFoundError, read_only
from .files import ImageFiles
from .folder import ImageFolder
from .loader import Broken, Loader

CLASSES = "classes.txt"
SETTINGS = "prepare.json"
INDEX = ".shards.npz"


class Shards(ImageFiles):
    """A folder of tar files in WebDataset's form, as `prepare` writes them.

    In an archive, files that share their name up to the first dot are one image: 000000017.jpg (or .jpeg, .png, .webp),
    and 000000017.cls with the number of its class in digits; other files are ignored. The classes' names are the lines
    of classes.txt in the folder, or else their numbers.

    Parameters
    ----------
    dir : path
    channels : "RGB" or "gray"
        What images are converted to: ``model.preprocessing.channels``.
    strict : bool
        Let `Loader` stop at the first broken image rather than skip up to 1 % of them.

    Raises
    ------
    DatasetNotFoundError
        When there are no archives in `dir`.
    ImageError
        When an archive is damaged or incomplete, or labels do not fit.

    Notes
    -----
    The archives are looked through at the first use; what lies where is kept in a hidden file beside them, or in the
    user's cache folder. An archive is read ahead, in one go, when the first of its images is asked for.

    Examples
    --------
    >>> train = Shards("imagenet-512/train")        # doctest: +SKIP
    >>> train.name(0)                               # doctest: +SKIP
    'imagenet-512/train/shard-000000.tar/000000000.jpg'
    """

    #: Archives whose images are mixed with one another in an epoch.
    WINDOW = 8

    def __init__(
        self, dir: str | os.PathLike[str], *, channels: Channels = "RGB", strict: bool = False
    ) -> None:
        channel_count(channels)  # raises for another name
        self.dir = Path(dir)
        self.channels = channels
        self.strict = strict
        archives = sorted(self.dir.glob("*.tar"))
        if not archives:
            raise DatasetNotFoundError(
                f"{self.dir}: {'no .tar files in it' if self.dir.is_dir() else 'no such folder'}; expected a "
                "folder of shards, as vggnet data prepare writes it"
            )
        arrays = tar.remember(self.dir / INDEX, archives, lambda: _index(archives))
        self._files = tar.TarFiles(archives, arrays)
        self.labels = read_only(arrays["labels"])
        names = self.dir / CLASSES
        if names.is_file():
            self.classes = names.read_text(encoding="utf-8").splitlines()
        else:
            self.classes = [str(label) for label in range(int(self.labels.max()) + 1)]
        if int(self.labels.max()) >= len(self.classes):
            raise ImageError(
                f"{self.dir}: an image has class {self.labels.max()}, but {CLASSES} has {len(self.classes)} lines"
            )
        self._announced: deque[int] = deque(maxlen=2 * self.WINDOW)

    def __len__(self) -> int:
        return len(self._files)

    def _source(self, i: int) -> bytes:
        self._announce(int(self._files.archive[i]))
        return self._files.read(i)

    def _announce(self, archive: int) -> None:
        """Let the system read an archive ahead, unless that was asked for a short while ago."""
        if archive in self._announced or not hasattr(os, "posix_fadvise"):
            return
        self._announced.append(archive)
        with contextlib.suppress(OSError), open(self._files.archives[archive], "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def name(self, i: int) -> str:
        """The archive of image `i`, and its name there."""
        return self._files.path(i)

    def epoch_order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """The order of an epoch, (N,) int64: archives at random, `WINDOW` at a time, whose images are mixed at random."""
        place = np.empty(len(self._files.archives), np.int64)
        place[rng.permutation(seed, epoch, len(place), Purpose.SHARDS)] = np.arange(len(place))
        window = place[self._files.archive] // self.WINDOW
        order = rng.permutation(seed, epoch, len(self))
        return order[np.argsort(window[order], kind="stable")]


def _index(archives: list[Path]) -> tar.Arrays:
    """Of the images alone, with their labels."""
    arrays = tar.index(archives)
    files = tar.TarFiles(archives, arrays)
    images: list[int] = []
    labels: dict[tuple[int, str], int] = {}
    keys: list[tuple[int, str]] = []
    for i in range(len(files)):
        folder, _, base = files.name(i).rpartition("/")
        stem, _, suffix = base.partition(".")
        key = (int(files.archive[i]), f"{folder}/{stem}")
        if f".{suffix.lower()}" in ImageFolder.SUFFIXES:
            images.append(i)
            keys.append(key)
        elif suffix == "cls":
            text = files.read(i)
            if not text.strip().isdigit():
                raise ImageError(f"{files.path(i)}: holds {text[:20]!r}; expected the number of a class")
            labels[key] = int(text)
    if not images:
        raise ImageError(f"{archives[0].parent}: no images in its .tar files")
    for i, key in zip(images, keys, strict=True):
        if key not in labels:
            raise ImageError(
                f"{files.path(i)}: no label beside it, a file of the same name that ends in .cls"
            )
    return {name: array[images] for name, array in arrays.items()} | {
        "labels": np.array([labels[key] for key in keys], np.int64)
    }


def prepare(
    dataset: Dataset,
    dir: str | os.PathLike[str],
    *,
    short_side: int = 512,
    per_shard: int = 1000,
    quality: int = 95,
    filter: str = "bicubic",
    seed: int = 0,
    workers: int | None = None,
    strict: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Broken]:
    """Write the images of a data set to shards, rescaled once, for `Shards` to read.

    The images are put in random order, so that one archive holds images of many classes. They become JPEG files whose
    smallest side is at most `short_side`; smaller ones keep their size. Each archive shard-000000.tar, ... is written
    whole or not at all, and one that is there is not written again: after an interruption, the same call goes on.

    Parameters
    ----------
    dataset : Dataset
    dir : path
        Made if it is not there.
    short_side : int
        The largest S of the training that is to come: 512 also suits S in [256, 512] (paper, section 3.1).
    per_shard : int
        Images an archive.
    quality : int
        Of the JPEG files, 1 to 100.
    filter : str
        As of `rescale`.
    seed : int
        Of the random order.
    workers, strict
        As of `Loader`.
    progress : callable, optional
        ``progress(done, images)``.

    Returns
    -------
    list of Broken
        Images that could not be read; they are left out.

    Raises
    ------
    ValueError
        When `dir` holds shards of other data or settings.
    ImageError
        When more than 1 % of the images are broken, or one with `strict`.

    Notes
    -----
    Equal data and settings make equal files, to the byte. Evaluate on the original images: these have been compressed
    twice.
    """
    if filter not in FILTERS:
        raise ValueError(f"filter is {filter!r}; expected one of {', '.join(FILTERS)}")
    for argument, value, most in (
        ("short_side", short_side, 1 << 16),
        ("per_shard", per_shard, 1 << 30),
        ("quality", quality, 100),
    ):
        if not 1 <= value <= most:
            raise ValueError(f"{argument} is {value}; expected 1 to {most}")
    folder = Path(dir)
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.asarray(dataset.labels, np.int64)
    settings = {
        "images": len(dataset),
        "labels' checksum": zlib.crc32(labels.tobytes()),
        "short_side": short_side,
        "per_shard": per_shard,
        "quality": quality,
        "filter": filter,
        "seed": seed,
    }
    _check_settings(folder, settings)
    for stale in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
        shutil.rmtree(stale, ignore_errors=True)
    write_text(folder / CLASSES, "".join(f"{name}\n" for name in dataset.classes))
    order = rng.permutation(seed, 0, len(dataset), Purpose.PREPARE)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    missing = [
        order[first : first + per_shard]
        for first in range(0, len(order), per_shard)
        if not _shard(folder, first // per_shard).exists()
    ]
    done = len(order) - sum(map(len, missing))

    def encode(image: Pixels, _: int) -> Pixels:
        from PIL import Image

        if min(image.shape[:2]) > short_side:
            image = rescale(image, short_side, filter)
        file = io.BytesIO()
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(file, "JPEG", quality=quality)
        return np.frombuffer(file.getvalue(), np.uint8)

    # A batch is an archive: all have per_shard images but the last, which is last here, too.
    loader = Loader(dataset, per_shard, workers=workers, strict=strict)
    with contextlib.closing(
        loader.batches(np.concatenate([*missing, np.zeros(0, np.int64)]), encode)
    ) as batches:
        for indices, contents, _ in batches:
            path = _shard(folder, int(place[indices[0]]) // per_shard)
            write = functools.partial(
                _write, dataset=dataset, place=place, indices=indices, contents=contents
            )
            replace_file(path, write)
            done += len(indices)
            if progress is not None:
                progress(done, len(order))
    return loader.broken


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.tar"


def _check_settings(folder: Path, settings: dict[str, object]) -> None:
    path = folder / SETTINGS
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, value in settings.items():
            if found.get(name) != value:
                raise ValueError(
                    f"{folder} holds shards whose {name} is {found.get(name)!r}, not {value!r}; go on with the same "
                    "data and settings, or use another folder"
                )
    elif any(folder.glob("*.tar")):
        raise ValueError(f"{folder} holds .tar files but no {SETTINGS}; use another folder")
    write_text(path, json.dumps(settings, indent=2) + "\n")


def _write(
    path: Path,
    *,
    dataset: Dataset,
    place: npt.NDArray[np.int64],
    indices: npt.NDArray[np.int64],
    contents: list[Pixels],
) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for i, content in zip(indices.tolist(), contents, strict=True):
            label = int(dataset.labels[i])
            facts = {"name": Path(dataset.name(i)).name, "class": dataset.classes[label]}
            for suffix, part in (
                ("cls", str(label).encode()),
                ("jpg", content.tobytes()),
                ("json", json.dumps(facts).encode()),
            ):
                member = tarfile.TarInfo(f"{place[i]:09d}.{suffix}")
                member.size = len(part)
                archive.addfile(member, io.BytesIO(part))
