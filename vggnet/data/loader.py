"""Reading images in threads, ahead of their use."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Generator
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
    left is not given out. The threads end when an iteration ends, also by an exception, by Ctrl-C, and by
    leaving the loop (then when the iterator is dropped or closed).

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

        Yields
        ------
        indices : (N,) int64
        images : list of N (H, W, C) uint8 arrays
        labels : (N,) int64
        """
        order = np.arange(len(self.dataset)) if indices is None else check_indices(indices, len(self.dataset))
        transform = transform or self.transform

        def read_image(i: int) -> Pixels:
            image = self.dataset.image(i)
            return image if transform is None else transform(image, i)

        return self._batches(order, read or read_image)

    def _batches(
        self,
        order: npt.NDArray[np.int64],
        read_image: Callable[[int], Pixels],
    ) -> Generator[Batch, None, None]:
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
        starts = range(0, len(order), self.batch_size)
        pieces = (
            order[i : min(i + piece, start + self.batch_size)].tolist()
            for start in starts
            for i in range(start, min(start + self.batch_size, len(order)), piece)
        )
        waiting: deque[tuple[list[int], Future[list[Pixels | ImageError]]]] = deque()
        ahead = 0
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="vggnet-data")
        try:
            upcoming = next(pieces, None)
            for start in starts:
                good: list[int] = []
                images: list[Pixels] = []
                left = min(self.batch_size, len(order) - start)
                while left:
                    while upcoming is not None and ahead + len(upcoming) <= self.lookahead:
                        waiting.append((upcoming, pool.submit(read, upcoming)))
                        ahead += len(upcoming)
                        upcoming = next(pieces, None)
                    numbers, future = waiting.popleft()
                    for i, result in zip(numbers, future.result(), strict=True):
                        if isinstance(result, ImageError):
                            self._note_broken(i, result)
                        else:
                            good.append(i)
                            images.append(result)
                    ahead -= len(numbers)
                    left -= len(numbers)
                if good:
                    yield np.array(good, np.int64), images, self._labels[good]
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _note_broken(self, i: int, error: ImageError) -> None:
        if self.strict:
            raise error
        if i in self._broken:
            return
        self._broken[i] = Broken(i, self.dataset.name(i), str(error))
        _log.warning("skipped a broken image: %s", error)
        listed = len(self.dataset)
        if 100 * len(self._broken) > listed:
            some = "; ".join(entry.reason for entry in itertools.islice(self._broken.values(), 3))
            raise ImageError(
                f"{len(self._broken)} of the {listed} images listed are broken, more than 1 %: {some}"
                f"{'; ...' if len(self._broken) > 3 else ''}. Replace or remove them"
            ) from error
