"""The mean of the gradients of all replicas, bucket by bucket, while their backward passes go on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from .. import ops

if TYPE_CHECKING:
    from .._C import Tensor
    from .world import Pending, World

# Seconds between two looks at what other processes send: short to begin with, then long.
NAPS = (1e-4, 2e-3)


class Engine(Protocol):
    """Averages tensors among ranks: the processes of a `World`, `Asked`; an `nccl.Communicator`; a `Member` of a `Meeting`."""

    def mean(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Pending:
        """As `World.mean`."""
        ...


class Meeting:
    """Ranks that are threads of this process, on CPU devices; another thread averages what all of them have brought."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.lock = threading.Lock()
        self.open: dict[
            int, tuple[dict[int, Sequence[Tensor]], Future[None]]
        ] = {}  # by the number of the mean
        self.thread = ThreadPoolExecutor(1, "vggnet-averaging")

    def bring(
        self, number: int, rank: int, tensors: Sequence[Tensor], weights: Sequence[float]
    ) -> Future[None]:
        """A rank's part of that mean; the last one starts it."""
        with self.lock:
            brought, future = self.open.setdefault(number, ({}, Future()))
            brought[rank] = tensors
            if len(brought) == self.size:
                del self.open[number]
                self.thread.submit(self._average, [brought[r] for r in range(self.size)], weights, future)
        return future

    def _average(
        self, lists: Sequence[Sequence[Tensor]], weights: Sequence[float], future: Future[None]
    ) -> None:
        try:
            ops.average_gradients_(lists, weights=weights)
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    def close(self) -> None:
        """End the thread."""
        self.thread.shutdown()


class Member:
    """One rank of a `Meeting`."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.means = meeting, rank, 0

    def mean(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Pending:
        """As `World.mean`."""
        self.means += 1
        return Promised(self.meeting.bring(self.means, self.rank, tensors, weights))


class Asked:
    """The other processes of a `World`, and a thread that asks how means are, which makes them go on."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.new: queue.SimpleQueue[tuple[Sequence[Tensor], Sequence[float], Future[None]] | None] = (
            queue.SimpleQueue()
        )
        self.thread = threading.Thread(target=self._run, name="vggnet-averaging", daemon=True)
        self.thread.start()

    def mean(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Pending:
        """As `World.mean`."""
        future: Future[None] = Future()
        self.new.put((tensors, weights, future))
        return Promised(future)

    def close(self) -> None:
        """End the thread; means that are under way are given up."""
        self.new.put(None)
        self.thread.join()

    def _run(self) -> None:
        under_way: list[tuple[Future[None], Pending]] = []
        nap = NAPS[0]
        while True:
            try:
                asked = self.new.get(timeout=nap if under_way else None)
                nap = NAPS[0]
                if asked is None:
                    return
                tensors, weights, future = asked
                try:
                    under_way.append((future, self.world.mean(tensors, weights)))
                except BaseException as error:
                    future.set_exception(error)
            except queue.Empty:
                nap = min(1.5 * nap, NAPS[1])
            for future, pending in list(under_way):
                try:
                    if not pending.done():
                        continue
                    future.set_result(None)
                except BaseException as error:
                    future.set_exception(error)
                under_way.remove((future, pending))


class Promised:
    """The `Pending` of a future."""

    def __init__(self, future: Future[None]) -> None:
        self.future = future

    def done(self) -> bool:
        """Whether it is finished; raises what went wrong."""
        return self.future.done() and self.future.result() is None

    def wait(self) -> None:
        """Return when it is finished; raises what went wrong."""
        self.future.result()


class Averages:
    """The averages of one replica's buckets in one step after another.

    Parameters
    ----------
    engine : Engine
        With the other replicas behind it.
    grads : mapping of parameter name to Tensor
        The replica's; averages are written in place.
    buckets : sequence of tuples of parameter names
        See `plan_buckets`.
    """

    def __init__(
        self, engine: Engine, grads: Mapping[str, Tensor], buckets: Sequence[tuple[str, ...]]
    ) -> None:
        self.engine, self.grads, self.buckets = engine, grads, buckets
        self.number = {names[-1]: number for number, names in enumerate(buckets)}  # by what is ready last

    def begin(self, counts: Sequence[int]) -> None:
        """A new step; `counts` are the images of all replicas."""
        self.counts = [float(count) for count in counts]
        self.pending: dict[int, Pending] = {}

    def ready(self, names: Sequence[str]) -> None:
        """The gradients of a layer are final: ``Run.backward(ready=)``. With the last of a bucket, its mean starts."""
        number = self.number.get(names[-1])
        if number is not None:
            tensors = [self.grads[name] for name in self.buckets[number]]
            self.pending[number] = self.engine.mean(tensors, self.counts)

    def wait(self, number: int) -> None:
        """Return when the average of a bucket is there; raises what went wrong."""
        self.pending[number].wait()
