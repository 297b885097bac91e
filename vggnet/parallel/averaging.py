"""The mean of the gradients of all replicas, bucket by bucket, while their backward passes go on."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from .. import ops
from ..data.loader import share

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
    """Ranks that are threads of this process, on CPU devices. Nothing averages beside them: each takes a part of the work.

    A thread of its own would be one more than there are cores, and who shares a core with it would keep all waiting.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = threading.Condition()
        self.means: dict[int, Mean] = {}  # by number; those that some ranks have not come to


class Mean:
    """One mean of a `Meeting`: what every rank brought, and how many have not done their part of the averaging."""

    def __init__(self, size: int) -> None:
        self.lists: dict[int, Sequence[Tensor]] = {}
        self.left = size
        self.error: BaseException | None = None


class Member:
    """One rank of a `Meeting`; all calls are from its thread."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.count = meeting, rank, 0
        self.own: deque[Shared] = deque()  # means to which its part of the work is not done

    def mean(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Pending:
        """As `World.mean`; also does this rank's part of earlier means that all have come to by now."""
        self.count += 1
        with self.meeting.changed:
            mean = self.meeting.means.setdefault(self.count, Mean(self.meeting.size))
            mean.lists[self.rank] = tensors
            if len(mean.lists) == self.meeting.size:
                del self.meeting.means[self.count]
                self.meeting.changed.notify_all()
        pending = Shared(self, mean, weights)
        self.own.append(pending)
        self.work()
        return pending

    def work(self) -> None:
        """Do this rank's part of the means that all have come to."""
        while self.own and self.own[0].met():
            self.own.popleft().average()


class Shared:
    """The `Pending` of a mean of a `Meeting`, for one rank."""

    def __init__(self, member: Member, mean: Mean, weights: Sequence[float]) -> None:
        self.member, self.shared, self.weights = member, mean, weights

    def met(self) -> bool:
        """Whether every rank has brought its tensors."""
        return len(self.shared.lists) == self.member.meeting.size

    def average(self) -> None:
        """Average this rank's part of each tensor, for all ranks."""
        size, rank, mean = self.member.meeting.size, self.member.rank, self.shared

        def part(tensor: Tensor) -> Tensor:
            own = share(tensor.size, rank, size)
            return tensor.view(4 * own.start, (len(own),), "float32")

        try:
            lists = [[part(tensor) for tensor in mean.lists[r]] for r in range(size)]
            ops.average_gradients_(lists, weights=self.weights)
        except BaseException as error:
            mean.error = error
        with self.member.meeting.changed:
            mean.left -= 1
            self.member.meeting.changed.notify_all()

    def done(self) -> bool:
        """Whether it is finished; raises what went wrong."""
        self.member.work()
        if self.shared.error is not None:
            raise self.shared.error
        return self.shared.left == 0

    def wait(self) -> None:
        """Return when it is finished; raises what went wrong."""
        with self.member.meeting.changed:
            self.member.meeting.changed.wait_for(self.met)
        self.member.work()
        with self.member.meeting.changed:
            self.member.meeting.changed.wait_for(lambda: self.shared.left == 0)
        self.done()


class Asked:
    """The other processes of a `World`, and a thread that asks how means are, which makes them go on.

    Parameters
    ----------
    world : World
    compress : bool
        See `World.mean`.
    """

    def __init__(self, world: World, *, compress: bool = False) -> None:
        self.world, self.compress = world, compress
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
                    under_way.append((future, self.world.mean(tensors, weights, compress=self.compress)))
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
    """The `Pending` of a mean that was `Asked` for."""

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
