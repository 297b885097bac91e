"""The processes that train together, as the trainer sees them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
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
    """

    rank: int
    size: int

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, by rank.

        Parameters
        ----------
        value
            Small, of what JSON can hold.
        """

    @abstractmethod
    def mean(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Pending:
        """Start to replace tensors, in place, by their weighted mean over the ranks, the same bits on each and every time.

        Parameters
        ----------
        tensors : sequence of float32 Tensor
            This process's, of the same shapes on every rank. They must not be touched before the end.
        weights : sequence of float
            One for each rank, 0 or more, with a sum above 0; the same on every rank.

        Notes
        -----
        Several may be under way; they are started in the same order everywhere. Summed in float64 in the ranks' order.
        """

    @abstractmethod
    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors, in place, the values that they have on rank 0."""


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

    def mean(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Pending:
        """Nothing is to be done."""
        return Finished()

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Nothing is to be done."""


def world() -> World:
    """The processes that this one was started with."""
    return Alone()
