"""Copies of the model, one for each device, that compute at the same time and stay equal."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from .. import _C, nccl
from ..models import VGG
from .averaging import Asked, Averages, Engine, Meeting, Member
from .buckets import plan_buckets

if TYPE_CHECKING:
    from types import TracebackType

    from .world import World

T = TypeVar("T")
Ready: TypeAlias = Callable[[Sequence[str]], None]


class Replica:
    """One device's copy of what is trained.

    Attributes
    ----------
    number : int
        Among the replicas of all processes.
    model : VGG
    grads, velocities : dict of parameter name to Tensor
        Of the layers that learn. Gradients are 0 at first, since those of a part without images count with weight 0.
    x : Tensor, optional
        The input of one pass, (images, side, side, channels).
    averages : Averages, optional
        With other replicas, while a run goes on.
    """

    def __init__(self, number: int, model: VGG, layers: Collection[str]) -> None:
        self.number, self.model = number, model
        learnt = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
        shapes = {name: model.parameters[name].shape for name in learnt}
        self.grads = {name: _C.zeros(shape, device=model.device) for name, shape in shapes.items()}
        self.velocities = {name: _C.zeros(shape, device=model.device) for name, shape in shapes.items()}
        self.x: _C.Tensor | None = None
        self.averages: Averages | None = None  # while there are several

    def __str__(self) -> str:
        return f"replica {self.number} ({self.model.device})"

    def hashes(self) -> dict[str, int]:
        """A checksum of each parameter."""
        return {name: zlib.crc32(tensor.numpy().data) for name, tensor in self.model.parameters.items()}


class Replicas:
    """The replicas of this process. Leaving the with-block ends their threads.

    With one replica in this process, everything happens in the caller's thread; otherwise each has a thread of its own. CUDA
    devices average by NCCL, CPU devices of one process by themselves (`Meeting`), processes by their `World` (`Asked`).

    Parameters
    ----------
    model : VGG
        Replica 0, or the only one of this process.
    devices : sequence of str
        The model's, and those of copies: `check_devices`.
    layers : collection of str
        Those that learn.
    world : World
        With more than one process, each has one replica.
    compress : bool
        Processes send gradients rounded to bfloat16.

    Attributes
    ----------
    first : Replica
        The model's.
    local : list of Replica
        All of this process, after `start`.
    count : int
        Of all processes.
    """

    def __init__(
        self,
        model: VGG,
        devices: Sequence[str],
        layers: Collection[str],
        world: World,
        *,
        compress: bool = False,
    ) -> None:
        if world.size > 1 and len(devices) > 1:
            raise ValueError(
                f"devices is {list(devices)} in each of {world.size} processes; expected one device a process"
            )
        if compress and not devices[0].startswith("cpu"):
            raise ValueError(f"compress is for gradients on the CPU; {devices[0]} sends float32")
        self.devices, self.layers, self.world, self.compress = devices, layers, world, compress
        self.first = Replica(world.rank, model, layers)
        self.local = [self.first]
        self.count = world.size * len(devices)
        self.threads: list[ThreadPoolExecutor] = []
        self.ends: list[Callable[[], None]] = []  # of what averages
        self.aborts: list[Callable[[], None]] = []  # before them, when something went wrong
        learnt = tuple(self.first.grads)
        self.buckets = plan_buckets(model.parameters, layers) if self.count > 1 else [learnt]

    def start(self, input_shape: tuple[int, ...]) -> None:
        """Make the copies, of the weights and velocities that the model has now (rank 0's), and the input of each."""
        first, parameters = self.first, self.first.model.parameters
        self._broadcast([*parameters.values(), *first.velocities.values()])
        for number, device in enumerate(self.devices[1:], 1):
            copy = Replica(number, VGG(**first.model.to_dict(), init=None, device=device), self.layers)
            for name, tensor in copy.model.parameters.items():
                tensor.copy_(parameters[name])
            for name, tensor in copy.velocities.items():
                tensor.copy_(first.velocities[name])
            self.local.append(copy)
        for replica in self.local:
            replica.x = _C.empty(input_shape, device=replica.model.device)
        if len(self.local) > 1:
            self.threads = [ThreadPoolExecutor(1, f"vggnet-{device}") for device in self.devices]
        if self.count > 1:
            for replica, engine in zip(self.local, self._engines(), strict=True):
                replica.averages = Averages(engine, replica.grads, self.buckets)

    def _broadcast(self, tensors: Sequence[_C.Tensor]) -> None:
        if self.world.size > 1:
            on_host = [tensor.to(device="cpu") for tensor in tensors]  # itself, when it is there
            self.world.broadcast(on_host)
            for tensor, copy in zip(tensors, on_host, strict=True):
                if tensor is not copy:
                    tensor.copy_(copy)

    def _engines(self) -> Sequence[Engine]:
        """What averages, for each replica of this process."""
        if self.devices[0].startswith("cuda"):
            id = self.world.gather(nccl.unique_id().hex() if self.world.rank == 0 else None)[0]

            def join(replica: Replica) -> nccl.Communicator:
                device = replica.model.device
                return nccl.Communicator(bytes.fromhex(id), replica.number, self.count, device)

            communicators = self.map(join)  # each waits for the others
            self.ends = [communicator.close for communicator in communicators]
            self.aborts = [communicator.abort for communicator in communicators]
            return communicators
        if self.world.size > 1:
            asked = Asked(self.world, compress=self.compress)
            self.ends = [asked.close]
            return [asked]
        meeting = Meeting(self.count)
        return [Member(meeting, replica.number) for replica in self.local]

    def __enter__(self) -> Replicas:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for end in (self.aborts if kind else []) + self.ends:
            end()
        for thread in self.threads:
            thread.shutdown()
        for replica in self.local:
            replica.averages = None
        self.threads, self.ends, self.aborts = [], [], []
        del self.local[1:]

    @contextlib.contextmanager
    def sharing_threads(self) -> Iterator[None]:
        """Within, CPU devices share the threads of computing evenly."""
        shared = self.devices if len(self.devices) > 1 and self.devices[0].startswith("cpu") else []
        before = {device: _C.get_num_threads(device) for device in shared}
        for device in shared:
            _C.set_num_threads(max(_C.get_num_threads() // len(shared), 1), device)
        try:
            yield
        finally:
            for device, threads in before.items():
                _C.set_num_threads(threads, device)

    def map(self, function: Callable[[Replica], T]) -> list[T]:
        """Call it with every replica of this process, each in its thread; results in their order, or the first one's error."""
        if not self.threads:
            return [function(self.first)]
        calls = [
            thread.submit(function, replica) for thread, replica in zip(self.threads, self.local, strict=True)
        ]
        wait(calls)  # also when one failed: nobody computes when this has returned
        return [call.result() for call in calls]

    def gradients(
        self, counts: Sequence[int], compute: Callable[[Replica, Ready | None], T]
    ) -> list[T | None]:
        """Compute gradients on every replica, and start to average them.

        Parameters
        ----------
        counts : sequence of int
            Images of every replica of all processes, in their order; 0 is allowed, for some.
        compute : callable
            ``compute(replica, ready)`` fills ``replica.grads``, the means over its images, and calls ``ready(names)`` as soon
            as those of a layer are final; `ready` is None where nobody wants to know. Not called for a replica without images.

        Returns
        -------
        list
            What `compute` returned for each replica of this process; None for one without images.
        """

        def part(replica: Replica) -> T | None:
            averages = replica.averages
            if averages is None:
                return compute(replica, None)
            averages.begin(counts)
            if counts[replica.number]:
                return compute(replica, averages.ready)
            for names in self.buckets:
                averages.ready(names)
            return None

        return self.map(part)

    def update(self, descend: Callable[[Replica, Sequence[str]], None]) -> None:
        """Call ``descend(replica, names)`` for each bucket, as soon as its average is there."""

        def every(replica: Replica) -> None:
            for number, names in enumerate(self.buckets):
                if replica.averages is not None:
                    replica.averages.wait(number)
                descend(replica, names)

        self.map(every)

    def check(self, iteration: int) -> None:
        """Raise RuntimeError unless all replicas of all processes have the same weights."""
        if self.count == 1:
            return
        own = [
            (str(replica), hashes)
            for replica, hashes in zip(self.local, self.map(Replica.hashes), strict=True)
        ]
        (first, expected), *others = [pair for pairs in self.world.gather(own) for pair in pairs]
        for replica, hashes in others:
            for name, value in hashes.items():
                if value != expected[name]:
                    raise RuntimeError(
                        f"after update {iteration} the weights of {replica} are not those of {first}: they differ in {name}. "
                        "A device or its memory is at fault; go on from the last checkpoint, on other devices"
                    )


def check_devices(devices: Sequence[str]) -> list[str]:
    """The names of devices, as tensors have them.

    Raises
    ------
    ValueError
        When there are none, or unknown ones, or one twice, or several kinds.
    DeviceError
        When one can't be used.
    """
    if isinstance(devices, str) or not devices:
        raise ValueError(f"devices is {devices!r}; expected a list of at least one, as ['cuda:0', 'cuda:1']")
    names = [_C.empty((0,), device=device).device for device in devices]
    if len(set(names)) < len(names):
        raise ValueError(f"devices is {list(devices)}; expected each of them once")
    if len({name.partition(":")[0] for name in names}) > 1:
        raise ValueError(f"devices is {list(devices)}; expected devices of one kind")
    return names
