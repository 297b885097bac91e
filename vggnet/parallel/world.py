"""The processes that train together, as the trainer sees them."""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .._C import Tensor


class Pending(Protocol):
    """Something that was started and goes on by itself."""

    def done(self) -> bool:
        """Whether it is finished. Also makes progress, where the engine needs to be asked; raises what went wrong."""
        ...

    def wait(self) -> None:
        """Return when it is finished; raises what went wrong."""
        ...


class World(ABC):
    """The processes that train together. Every process calls the methods in the same order.

    Attributes
    ----------
    rank : int
        Which this is, 0 to `size` - 1. Rank 0 alone writes files and talks to the user.
    size : int
        How many there are.
    local_rank : int
        Which this is of those on its machine.
    advice : str
        What to do after a failure, such as how to resume: added to the message when another rank is lost.
    """

    rank: int
    size: int
    local_rank = 0
    advice = ""

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, by rank.

        Parameters
        ----------
        value
            Small, of what JSON can hold.
        """

    @abstractmethod
    def mean(self, tensors: Sequence[Tensor], weights: Sequence[float], *, compress: bool = False) -> Pending:
        """Start to replace tensors, in place, by their weighted mean over the ranks, the same bits on each and every time.

        Parameters
        ----------
        tensors : sequence of float32 Tensor
            This process's, of the same shapes on every rank. They must not be touched before the end.
        weights : sequence of float
            One for each rank, 0 or more, with a sum above 0; the same on every rank.
        compress : bool
            Send them rounded to bfloat16, which halves what is sent: the mean is then off by at most 2^-7 of the weighted mean
            of absolute values.

        Notes
        -----
        Several may be under way; they are started in the same order everywhere. Summed in float64 in the ranks' order.
        """

    @abstractmethod
    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors, in place, the values that they have on rank 0."""

    @abstractmethod
    def concatenate(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The rows of every rank, each (n, ...) with an n of its own, in the order of ranks."""

    @abstractmethod
    def alive(self) -> None:
        """Tell the others, who may wait for this process, that it goes on: in work of which each may take another time."""

    @abstractmethod
    def abort(self, status: int) -> None:
        """End all ranks at once, because this one has failed."""


class Finished:
    """The `Pending` of what needed no time."""

    def done(self) -> bool:
        """True."""
        return True

    def wait(self) -> None:
        """Return at once."""


class Alone(World):
    """A single process: a mean over one is what it was.

    Examples
    --------
    >>> Alone().gather(3)
    [3]
    """

    rank = 0
    size = 1

    def gather(self, value: Any) -> list[Any]:
        """That value."""
        return [value]

    def mean(self, tensors: Sequence[Tensor], weights: Sequence[float], *, compress: bool = False) -> Pending:
        """Nothing is to be done."""
        return Finished()

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Nothing is to be done."""

    def concatenate(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Those rows."""
        return rows

    def alive(self) -> None:
        """Nobody waits."""

    def abort(self, status: int) -> None:
        """Nothing is to be done: this process ends by itself."""


#: Where launchers tell their processes how many they are: Open MPI; MPICH, Intel MPI and others with PMI; MVAPICH; srun.
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


def started() -> int | None:
    """How many processes the launcher (mpirun, srun) of this one started; None without a launcher, 0 when it does not tell."""
    for name in SIZES:
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return 0 if "PMIX_RANK" in os.environ else None


@functools.cache
def world() -> World:
    """The processes that this one was started with: `MPI` where mpirun or srun started several, else `Alone`.

    A process that was started alone never loads MPI.

    Raises
    ------
    ImportError
        When there are several, and mpi4py (``pip install 'vggnet[mpi]'``) or an MPI is missing.
    """
    if started() in (None, 1):
        return Alone()
    from .mpi import MPI

    return MPI()


def abort(status: int) -> None:
    """End all processes of the world with this exit status, because this one has failed; nothing when it is alone."""
    if world.cache_info().currsize:
        world().abort(status)
