"""Counter-based random numbers: every number is known from (seed, row, purpose, position) alone.

Nothing here has state, so an order, a crop or a dropout mask is the same whatever the batch, the number of threads or
devices, and whether the run was resumed. The generator is Philox4x32-10, in C (csrc/core/philox.h).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from . import _C

if TYPE_CHECKING:
    import numpy.typing as npt  # only for annotations: importing it takes longer than all of vggnet


class Purpose(IntEnum):
    """What a number is drawn for: numbers of different purposes are independent."""

    ORDER = 1
    CROP = 2
    MIRROR = 3
    SHIFT = 4
    SCALE = 5
    DROP6 = 6
    DROP7 = 7
    HOLDOUT = 8
    SPLIT = 9
    SHARDS = 10
    PREPARE = 11
    CANVAS = 12
    INIT = 1 << 16  # + number of the weight layer


@dataclass(frozen=True, eq=False)
class Rng:
    """The key of one batch's random numbers.

    Parameters
    ----------
    seed : int
        0 <= seed < 2**64.
    rows : (N,) int64 array, or Tensor on the model's device
        The global counter of each row of the batch: ``epoch << 32 | image`` (see `rows_of`).

    Examples
    --------
    >>> Rng(seed=1, rows=rows_of(epoch=0, images=[7, 3])).rows.tolist()
    [7, 3]
    """

    seed: int
    rows: npt.NDArray[np.int64] | _C.Tensor

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"Rng: seed is {self.seed}; expected 0 <= seed < 2**64")
        rows = self.rows
        if not isinstance(rows, _C.Tensor):
            rows = np.ascontiguousarray(rows, dtype=np.int64)
        if len(rows.shape) != 1 or rows.dtype != "int64":
            raise ValueError(f"Rng: rows has shape {rows.shape} and dtype {rows.dtype}; expected (N,) int64")
        object.__setattr__(self, "rows", rows)


def rows_of(epoch: int, images: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """The counters ``epoch << 32 | image`` of some images, (N,) int64."""
    return (np.int64(epoch) << np.int64(32)) | np.asarray(images, dtype=np.int64)


def bits64(seed: int, rows: npt.NDArray[np.int64], purpose: int, count: int = 1) -> npt.NDArray[np.uint64]:
    """`count` random 64-bit words a row, (N, count)."""
    words = _C.random_bits(seed, rows, purpose, 2 * count).astype(np.uint64)
    return (words[:, 0::2] << np.uint64(32)) | words[:, 1::2]


def uniform(seed: int, rows: npt.NDArray[np.int64], purpose: int, count: int = 1) -> npt.NDArray[np.float64]:
    """`count` numbers a row, uniform in [0, 1), (N, count) float64 with 53 random bits."""
    return (bits64(seed, rows, purpose, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(seed: int, rows: npt.NDArray[np.int64], purpose: int, count: int = 1) -> npt.NDArray[np.float64]:
    """`count` numbers a row from N(0, 1), (N, count) float64 (Box-Muller)."""
    u = uniform(seed, rows, purpose, 2 * count)
    radius = np.sqrt(-2.0 * np.log1p(-u[:, 0::2]))  # log1p(-u): u may be 0, never 1
    return radius * np.cos(2.0 * np.pi * u[:, 1::2])


def permutation(seed: int, epoch: int, n: int, purpose: int = Purpose.ORDER) -> npt.NDArray[np.int64]:
    """A random order of 0..n-1, (n,) int64: the order of epoch `epoch`.

    Examples
    --------
    >>> sorted(permutation(seed=0, epoch=3, n=4).tolist())
    [0, 1, 2, 3]
    """
    keys = bits64(seed, rows_of(epoch, np.arange(n)), purpose)[:, 0]
    return np.argsort(keys, kind="stable").astype(np.int64)
