"""Reading images in threads, ahead of their use."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .._C import ImageError
from ..preprocess import Pixels
from .base import Dataset, Indices, check_indices

#: Indices in the data set (N,), N images (H, W, C) uint8, labels (N,).
Batch: TypeAlias = tuple[npt.NDArray[np.int64], list[Pixels], npt.NDArray[np.int64]]
Transform: TypeAlias = Callable[[Pixels, int], Pixels]

_log = logging.getLogger("vggnet")


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(count: int, part: int, parts: int) -> range:
    """Part `part` of 0..count - 1 cut into `parts` consecutive ones as even as they can be, as numpy.array_split does.

    Examples
    --------
    >>> [list(share(5, part, 3)) for part in range(3)]
    [[0, 1], [2, 3], [4]]
    """
    size, more = divmod(count, parts)
    start = part * size + min(part, more)
    return range(start, start + size + (part < more))


@dataclass(frozen=True)
class Broken:
    """An image that could not be read."""

    index: int
    name: str
    reason: str


class Loader:
    """Reads images in threads ahead of their use, and gives them out in order, in batches.

    Parameters
    ----------
    dataset : Dataset
    batch_size : int
        Images in a batch; the last one may be smaller.
    transform : callable, optional
        ``transform(image, index) -> image``, called in the threads, for work such as `rescale`; `index` is
        the one in `dataset`. An ImageError that it raises marks the image as broken.
    workers : int, optional
        Threads; by default one for each CPU that this process may use, at most 8.
    lookahead : int, optional
        At most so many images are being read, or are read and wait, beyond the batch that is given out; by
        default one batch, but at least 4 for each thread.
    strict : bool, optional
        Stop at the first broken image. By default as the data set says (`ImageFolder`), else False.

    Raises
    ------
    ImageError
        While iterating: if more than 1 % of the images that `dataset` lists are broken, or the first, if
        strict.

    Notes
    -----
    Batches are consecutive pieces of the order given, whatever the number of threads. A broken image is left
    out of its batch, which is then smaller, so a later batch never depends on it; a batch without any image
    left is not given out (except of a part, see `batches`). The threads end when an iteration ends, also by an
    exception, by Ctrl-C, and by leaving the loop (then when the iterator is dropped or closed).

    Examples
    --------
    >>> from vggnet import data
    >>> loader = data.Loader(data.sample(train=False), 100)
    >>> indices, images, labels = next(iter(loader))
    >>> len(loader), len(images), labels.shape, len(loader.broken)
    (10, 100, (100,), 0)
    """

    #: Images a thread takes at once, at most: with small images a task each would cost more than the reading.
    PIECE = 8

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        transform: Transform | None = None,
        workers: int | None = None,
        lookahead: int | None = None,
        strict: bool | None = None,
    ) -> None:
        workers = min(_usable_cpus(), 8) if workers is None else workers
        lookahead = max(batch_size, 4 * workers) if lookahead is None else lookahead
        for argument, value in (("batch_size", batch_size), ("workers", workers), ("lookahead", lookahead)):
            if value < 1:
                raise ValueError(f"{argument} is {value}; expected at least 1")
        self.dataset = dataset
        self.batch_size = batch_size
        self.transform = transform
        self.workers = workers
        self.lookahead = lookahead
        self.strict = bool(getattr(dataset, "strict", False) if strict is None else strict)
        self._labels = np.asarray(dataset.labels)
        self._broken: dict[int, Broken] = {}

    @property
    def broken(self) -> list[Broken]:
        """Images that could not be read so far, each listed (and logged, to the logger "vggnet") once."""
        return list(self._broken.values())

    def __len__(self) -> int:
        """Batches of one pass over the data set."""
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Generator[Batch, None, None]:
        return self.batches()

    def batches(
        self,
        indices: Indices | None = None,
        transform: Transform | None = None,
        *,
        read: Callable[[int], Pixels] | None = None,
        part: tuple[int, int] | None = None,
    ) -> Generator[Batch, None, None]:
        """One pass, in another order or with another transform: an epoch.

        Parameters
        ----------
        indices : (M,) integers, optional
            Which images, in which order; by default all, in the data set's.
        transform : callable, optional
            Instead of the loader's.
        read : callable, optional
            ``read(index) -> image``, called in the threads instead of the data set's `image` and the transform.
        part : (r, R), optional
            Of each batch only part r of R (`share`), for process r of R that read a batch together. Every batch is then
            given out, also one of which this part is empty, or has no image that can be read: so that the processes
            keep step.

        Yields
        ------
        indices : (N,) int64; N may be 0 with `part`
        images : list of N (H, W, C) uint8 arrays
        labels : (N,) int64
        """
        order = np.arange(len(self.dataset)) if indices is None else check_indices(indices, len(self.dataset))
        r, parts = (0, 1) if part is None else part
        if not 0 <= r < parts:
            raise ValueError(f"part is {part}; expected (r, R) with 0 <= r < R")
        starts = range(0, len(order), self.batch_size)
        shares = (share(min(self.batch_size, len(order) - start), r, parts) for start in starts)
        own = [order[start + s.start : start + s.stop] for start, s in zip(starts, shares, strict=True)]
        transform = transform or self.transform

        def read_image(i: int) -> Pixels:
            image = self.dataset.image(i)
            return image if transform is None else transform(image, i)

        return self._batches(own, read or read_image, empty=part is not None)

    def note_broken(self, found: Iterable[Broken]) -> None:
        """Count images that other processes could not read as broken, so that all know of the same ones.

        With `part` a process meets its own broken images alone, and holds their number against all images listed: what is
        more than 1 % for one of them is so for all; what is for all together, shows when they tell each other.

        Raises
        ------
        ImageError
            If now more than 1 % of the images listed are broken.
        """
        for broken in found:
            self._note_broken(broken, None)

    def _batches(
        self,
        batches: Sequence[npt.NDArray[np.int64]],
        read_image: Callable[[int], Pixels],
        *,
        empty: bool,
    ) -> Generator[Batch, None, None]:
        """Those batches, given as indices; `empty`: also without any image."""
        stop = threading.Event()

        def read(indices: list[int]) -> list[Pixels | ImageError]:
            results: list[Pixels | ImageError] = []
            for i in indices:
                if stop.is_set():
                    break
                try:
                    results.append(read_image(i))
                except ImageError as error:
                    results.append(error)
            return results

        piece = min(max(self.batch_size // self.workers, 1), self.PIECE, self.lookahead)
        pieces = (batch[i : i + piece].tolist() for batch in batches for i in range(0, len(batch), piece))
        waiting: deque[tuple[list[int], Future[list[Pixels | ImageError]]]] = deque()
        ahead = 0
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="vggnet-data")
        try:
            upcoming = next(pieces, None)
            for batch in batches:
                good: list[int] = []
                images: list[Pixels] = []
                left = len(batch)
                while left:
                    while upcoming is not None and ahead + len(upcoming) <= self.lookahead:
                        waiting.append((upcoming, pool.submit(read, upcoming)))
                        ahead += len(upcoming)
                        upcoming = next(pieces, None)
                    numbers, future = waiting.popleft()
                    for i, result in zip(numbers, future.result(), strict=True):
                        if isinstance(result, ImageError):
                            self._note_broken(Broken(i, self.dataset.name(i), str(result)), result)
                        else:
                            good.append(i)
                            images.append(result)
                    ahead -= len(numbers)
                    left -= len(numbers)
                if good or empty:
                    yield np.array(good, np.int64), images, self._labels[np.array(good, np.int64)]
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _note_broken(self, broken: Broken, error: ImageError | None) -> None:
        """A broken image, which this process found (with the error) or another."""
        if error is not None and self.strict:
            raise error
        if broken.index in self._broken:
            return
        self._broken[broken.index] = broken
        if error is not None:
            _log.warning("skipped a broken image: %s", error)
        listed = len(self.dataset)
        if 100 * len(self._broken) > listed:
            some = "; ".join(entry.reason for entry in itertools.islice(self._broken.values(), 3))
            raise ImageError(
                f"{len(self._broken)} of the {listed} images listed are broken, more than 1 %: {some}"
                f"{'; ...' if len(self._broken) > 3 else ''}. Replace or remove them"
            ) from error
