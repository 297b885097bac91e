"""Averaging the gradients of all replicas while their backward passes go on."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from .. import ops

if TYPE_CHECKING:
    from .._C import Tensor
    from .world import Pending, World

NAPS = (
    1e-4,
    2e-3,
)  # seconds between two looks at exchanges with other processes: short to begin with, then long


class Averaging:
    """A thread that averages a bucket as soon as every replica of this process has its gradients.

    Parameters
    ----------
    grads : sequence of mappings of parameter name to Tensor
        Of each replica of this process; averages are written in place.
    buckets : sequence of tuples of parameter names
        See `plan_buckets`.
    world : World
        With more than one process, each has one replica.
    """

    def __init__(
        self, grads: Sequence[Mapping[str, Tensor]], buckets: Sequence[tuple[str, ...]], world: World
    ) -> None:
        self.grads, self.buckets, self.world = grads, buckets, world
        self.number = {names[-1]: number for number, names in enumerate(buckets)}  # by what is ready last
        self.lock = threading.Lock()
        self.arrived: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # numbers of buckets; None: the end
        self.thread = threading.Thread(target=self._run, name="vggnet-averaging", daemon=True)
        self.thread.start()

    def begin(self, counts: Sequence[int]) -> None:
        """A new step; `counts` are the images of all replicas of all processes."""
        self.counts = [float(count) for count in counts]
        self.missing = [len(self.grads)] * len(self.buckets)  # replicas that have not arrived
        self.averages: list[Future[None]] = [Future() for _ in self.buckets]

    def ready(self, names: Sequence[str]) -> None:
        """A replica has the final gradients of a layer: ``Run.backward(ready=)``, in its thread."""
        number = self.number.get(names[-1])
        if number is None:
            return
        with self.lock:
            self.missing[number] -= 1
            complete = not self.missing[number]
        if complete:
            self.arrived.put(number)

    def wait(self, number: int) -> None:
        """Return when the average of a bucket is there; raises what went wrong."""
        self.averages[number].result()

    def close(self) -> None:
        """End the thread; exchanges that are under way are given up."""
        self.arrived.put(None)
        self.thread.join()

    def _run(self) -> None:
        under_way: deque[tuple[Future[None], Pending]] = deque()
        nap = NAPS[0]
        while True:
            try:
                number = self.arrived.get(timeout=nap if under_way else None)
                nap = NAPS[0]
                if number is None:
                    return
                future = self.averages[number]
                try:
                    under_way.append((future, self._start(number)))
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

    def _start(self, number: int) -> Pending:
        tensors = [[grads[name] for name in self.buckets[number]] for grads in self.grads]
        if len(tensors) > 1:
            ops.average_gradients_(tensors, weights=self.counts)
        return self.world.mean(tensors[0], self.counts)
