"""Many processes under MPI: what they tell each other, the mean of their gradients, and how they end together.

All that matters is sent from process to process, so that the order of sums, and the ranks that did not send, are known: the
mean of a tensor is a reduce-scatter (every rank gets its slice of all ranks' tensors and sums them in the ranks' order, in
float64) followed by an all-gather of the slices. It goes on whenever somebody asks whether it is done.
"""

from __future__ import annotations

import atexit
import itertools
import json
import math
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from .. import _C
from ..data.loader import share
from .world import World, started

if TYPE_CHECKING:
    from types import TracebackType

    from mpi4py.MPI import Request

#: Seconds without any progress after which the others are given up.
PATIENCE = "VGGNET_MPI_PATIENCE"
DEFAULT_PATIENCE = 600.0
#: Elements of a tensor that are averaged at once: 64 MB, far below the 2^31 bytes that MPI can count in a message.
PIECE = 1 << 24
#: Pieces under way at once, each with a scratch of its size: the next is on the wire while one is summed.
WINDOW = 3
#: Seconds of sleep between two looks at MPI while waiting: short to begin with, then long.
NAPS = (1e-4, 2e-3)
#: How long the others may need to notice that the run is over, in seconds.
GRACE = 0.3
#: Tags: of `gather`, of `concatenate`, and from FIRST two for each of TAGS pieces in turn.
WORDS, ROWS, FIRST = 1, 2, 16
TAGS = 1 << 13
BYE = "bye"  # what a rank that ends sends in place of a value
ALIVE = "alive"  # what one that goes on with long work sends before it


def library() -> Any:
    """The module mpi4py.MPI, not initialised.

    Raises
    ------
    ImportError
        When mpi4py or an MPI is missing.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize = False  # with the threads that we need, below
        from mpi4py import MPI as module  # noqa: N811
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"this process was started as one of several, by mpirun or srun, but mpi4py does not load ({error}); "
            "pip install 'vggnet[mpi]', and an MPI, as by apt install openmpi-bin"
        ) from error
    return module


class Pieces:
    """The `Pending` of a mean: finished when all its pieces are."""

    def __init__(self, world: MPI, left: int) -> None:
        self._world, self.left = world, left

    def done(self) -> bool:
        """Whether it is finished, after a look at what has arrived; raises what went wrong, also that others do not go on."""
        if self.left:
            self._world.advance()
        return not self.left

    def wait(self) -> None:
        """Return when it is finished; raises what went wrong."""
        for nap in naps():
            if self.done():
                return
            time.sleep(nap)


@dataclass(eq=False)
class Piece:
    """A piece of a tensor on its way."""

    whole: Pieces
    steps: Generator[list[Request], None, None]
    requests: list[Request] = field(default_factory=list)  # what it waits for


class MPI(World):
    """The processes that mpirun or srun started, over mpi4py (``pip install 'vggnet[mpi]'``) and any MPI.

    `vggnet.parallel.world` makes the only one.

    Attributes
    ----------
    rank, size : int
    local_rank, local_size : int
        The same among those on this machine.
    threads : int
        Its part of the cores that it may run on; `set_num_threads` was called with it.
    advice : str
        What to do when the run breaks down: added to the message.

    Raises
    ------
    ImportError
        Without mpi4py or an MPI.
    VggError
        When MPI sees other processes than the launcher started, or cannot be called from several threads.

    Notes
    -----
    Nothing here waits within MPI, where it would take a core from those that compute. When a process on the same machine
    dies, a thread notices at once, says which rank it was, and ends all. When a rank anywhere makes no progress for
    VGGNET_MPI_PATIENCE seconds (600 if that is not set) while another waits for it, that is an error that names it. An
    exception that nobody catches ends all processes.
    """

    def __init__(self) -> None:
        self._mpi = library()
        self._lock = threading.Lock()  # around every call of MPI: MPI_THREAD_SERIALIZED is enough
        needed = self._mpi.THREAD_SERIALIZED
        self._own = not self._mpi.Is_initialized()
        level = self._mpi.Init_thread(needed) if self._own else self._mpi.Query_thread()
        if level < needed:
            raise _C.VggError(
                "MPI allows calls from one thread only; vggnet needs MPI_THREAD_SERIALIZED: let vggnet initialise MPI, or "
                "ask for it, or use an MPI that is built with threads"
            )
        self._comm = self._mpi.COMM_WORLD.Dup()
        self.rank, self.size = self._comm.rank, self._comm.size
        self._check_size()
        self.advice = ""
        self._patience = float(os.environ.get(PATIENCE, DEFAULT_PATIENCE))
        self._moved = time.monotonic()  # when something last arrived that was waited for
        self._told = self._moved  # when this rank last said that it is alive
        self._telling: list[Request] = []
        self._tag = 0
        self._scratch: list[_C.Tensor] = []
        self._waiting: deque[Piece] = deque()
        self._active: list[Piece] = []
        self._advancing = threading.Lock()
        self._closed = threading.Event()
        self._hook = sys.excepthook
        sys.excepthook = self._uncaught
        atexit.register(self.close)
        everyone = self.gather([_machine(), _pid_namespace(), os.getpid(), _cpus()])
        local = [rank for rank, (machine, *_) in enumerate(everyone) if machine == _machine()]
        self.local_rank, self.local_size = local.index(self.rank), len(local)
        self.threads = _own_cpus([everyone[rank][3] for rank in local], self.local_rank)
        _C.set_num_threads(self.threads)
        self._watch(
            {r: everyone[r][2] for r in local if r != self.rank and everyone[r][1] == _pid_namespace()}
        )

    def _check_size(self) -> None:
        number = started()
        if number and number != self.size:
            name = self._mpi.Get_library_version().partition(",")[0].strip()
            raise _C.VggError(
                f"{number} processes were started, but MPI ({name}) sees {self.size}: mpi4py has loaded another MPI than the "
                "launcher's. Use the mpirun of that MPI (with srun: --mpi=pmix or pmi2), or set MPI4PY_LIBMPI to the "
                "libmpi of the launcher"
            )

    # ---- what the trainer calls

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, by rank; see `World`.

        Raises
        ------
        VggError
            When ranks make no progress, or have ended; the message names them.
        """
        return [json.loads(text)["value"] for text in self._exchange(json.dumps({"value": value}))]

    def mean(
        self, tensors: Sequence[_C.Tensor], weights: Sequence[float], *, compress: bool = False
    ) -> Pieces:
        """Start to replace tensors by their weighted mean; see `World`.

        Parameters
        ----------
        tensors : sequence of float32 Tensor on the CPU
        weights : sequence of float
        compress : bool
            Send them rounded to bfloat16, which halves what is sent. The mean is of the rounded tensors, summed in float64,
            and is rounded itself: off by at most 2^-7 of the weighted mean of their absolute values.
        """
        if len(weights) != self.size:
            raise ValueError(
                f"weights has {len(weights)} numbers; expected one for each of {self.size} ranks"
            )
        if not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
            raise ValueError(f"weights is {list(weights)}; expected numbers from 0 with a sum above 0")
        for tensor in tensors:
            if tensor.dtype != "float32" or tensor.device.partition(":")[0] != "cpu":
                raise ValueError(
                    f"mean: a tensor is {tensor.dtype} on {tensor.device}; expected float32 on the CPU"
                )
        pieces = [
            tensor.view(4 * start, (min(PIECE, tensor.size - start),), "float32")
            for tensor in tensors
            for start in range(0, tensor.size, PIECE)
        ]
        pending = Pieces(self, len(pieces))
        with self._advancing:
            if not self._active:
                self._moved = time.monotonic()
            for piece in pieces:
                steps = self._average(piece, tuple(weights), compress, self._next_tag())
                self._waiting.append(Piece(pending, steps))
        self.advance()
        return pending

    def broadcast(self, tensors: Sequence[_C.Tensor]) -> None:
        """Give tensors, in place, the values that they have on rank 0."""
        self.gather(None)  # so that a rank that does not come is named
        for tensor in tensors:
            for start in range(0, tensor.size, PIECE):
                piece = tensor.view(4 * start, (min(PIECE, tensor.size - start),), "float32")
                buffer = piece if self.rank == 0 else _C.empty(piece.shape)
                with self._lock:
                    request = self._comm.Ibcast([buffer.numpy(), self._mpi.FLOAT], root=0)
                self._finish([request])
                if self.rank != 0:
                    piece.copy_(buffer)  # also of a parameter, whose memory only `copy_` may write

    def concatenate(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The rows of every rank, (n, ...), one rank's after the other's."""
        counts = self.gather(len(rows))
        result = np.empty((sum(counts), *rows.shape[1:]), np.float32)
        ends = np.cumsum([0, *counts]).tolist()
        parts = [result[start:end] for start, end in itertools.pairwise(ends)]
        parts[self.rank][:] = rows
        step = max(1, 4 * PIECE // max(1, result[:1].nbytes))  # rows in a message
        for start in range(0, max(counts, default=0), step):
            requests = []
            with self._lock:
                for peer in self._others():
                    for call, part in ((self._comm.Irecv, parts[peer]), (self._comm.Isend, parts[self.rank])):
                        if len(part[start : start + step]):
                            requests.append(call([part[start : start + step], self._mpi.FLOAT], peer, ROWS))
            self._finish(requests)
        return result

    def alive(self) -> None:
        """Tell the others that this process goes on; see `World`."""
        if time.monotonic() - self._told > self._patience / 10:
            self._told = time.monotonic()
            with self._lock:
                self._telling = [request for request in self._telling if not request.Test()]
                data = [ALIVE.encode(), self._mpi.BYTE]
                self._telling += [self._comm.Isend(data, peer, WORDS) for peer in self._others()]

    # ---- waiting

    def _until(self, look: Callable[[], bool], missing: Callable[[], Sequence[int]]) -> None:
        """Return when ``look()`` is true; `missing` are the ranks that are waited for."""
        self._moved = time.monotonic()
        for nap in naps():
            if look():
                return
            self._check_patience(missing)
            time.sleep(nap)

    def _check_patience(self, missing: Callable[[], Sequence[int]]) -> None:
        if time.monotonic() - self._moved > self._patience:
            raise _C.VggError(
                f"rank {', '.join(map(str, missing())) or 'unknown'} made no progress for {self._patience:g} s, while rank "
                f"{self.rank} waited for it ({PATIENCE} says how long): it hangs, has died, or cannot be reached"
                f"{self._so()}"
            )

    def _finish(self, requests: list[Request]) -> None:
        """Wait for them."""

        def look() -> bool:
            with self._lock:
                return bool(self._mpi.Request.Testall(requests))

        self._until(look, list)

    def _so(self) -> str:
        return f". {self.advice}" if self.advice else ""

    def _others(self) -> list[int]:
        """The other ranks, the next one first, so that not all send to the same at once."""
        return [(self.rank + step) % self.size for step in range(1, self.size)]

    def _exchange(self, text: str) -> list[str]:
        """The text of every rank."""
        found = {self.rank: text}
        missing = set(self._others())
        data = text.encode()
        with self._lock:
            requests = [self._comm.Isend([data, self._mpi.BYTE], peer, WORDS) for peer in self._others()]

        def look() -> bool:
            for peer in sorted(missing):
                with self._lock:
                    status = self._mpi.Status()
                    if not self._comm.Iprobe(peer, WORDS, status):
                        continue
                    buffer = bytearray(status.Get_count(self._mpi.BYTE))
                    self._comm.Recv([buffer, self._mpi.BYTE], peer, WORDS)
                self._moved = time.monotonic()
                if buffer == ALIVE.encode():
                    continue
                found[peer] = buffer.decode()
                missing.discard(peer)
                if (found[peer] == BYE) != (text == BYE):
                    ended, other = (self.rank, peer) if text == BYE else (peer, self.rank)
                    raise _C.VggError(f"rank {ended} has ended, while rank {other} waits for it{self._so()}")
            return not missing

        self._until(look, lambda: sorted(missing))
        self._finish(requests)
        return [found[rank] for rank in range(self.size)]

    # ---- means

    def _next_tag(self) -> int:
        self._tag = (self._tag + 1) % TAGS
        return FIRST + 2 * self._tag

    def _average(
        self, x: _C.Tensor, weights: tuple[float, ...], compress: bool, tag: int
    ) -> Generator[list[Request], None, None]:
        """Replace a piece by its mean; yields, twice, requests that must be done before it goes on."""
        dtype: Literal["bfloat16", "float32"] = "bfloat16" if compress else "float32"
        width = 2 if compress else 4
        sent = x.to(dtype="bfloat16") if compress else x

        def slice_of(
            tensor: _C.Tensor, rank: int, width: int, dtype: Literal["bfloat16", "float32"]
        ) -> _C.Tensor:
            part = share(x.size, rank, self.size)
            return tensor.view(width * part.start, (len(part),), dtype)

        def bytes_of(tensor: _C.Tensor) -> list[Any]:
            return [tensor.view(0, (tensor.nbytes,), "uint8").numpy(), self._mpi.BYTE]

        count = len(share(x.size, self.rank, self.size))
        scratch = self._borrow(count * (self.size - 1))
        received = {
            peer: scratch.view(4 * count * i, (count,), "float32") for i, peer in enumerate(self._others())
        }
        arrived = {
            peer: tensor.view(0, (count,), dtype) for peer, tensor in received.items()
        }  # in the first half of its float32 place
        with self._lock:
            requests = [self._comm.Irecv(bytes_of(arrived[peer]), peer, tag) for peer in self._others()]
            requests += [
                self._comm.Isend(bytes_of(slice_of(sent, peer, width, dtype)), peer, tag)
                for peer in self._others()
            ]
        yield requests
        own = slice_of(x, self.rank, 4, "float32")
        if compress:
            own.copy_(slice_of(sent, self.rank, width, dtype))
            received = {peer: tensor.to(dtype="float32") for peer, tensor in arrived.items()}
        lists = [[own if rank == self.rank else received[rank]] for rank in range(self.size)]
        if count:
            _C.average_gradients_(lists, weights=weights)
        if compress:
            slice_of(sent, self.rank, width, dtype).copy_(own)
        with self._lock:
            requests = [
                self._comm.Irecv(bytes_of(slice_of(sent, peer, width, dtype)), peer, tag + 1)
                for peer in self._others()
            ]
            mine = bytes_of(slice_of(sent, self.rank, width, dtype))
            requests += [self._comm.Isend(mine, peer, tag + 1) for peer in self._others()]
        yield requests
        if compress:
            x.copy_(sent)
        self._scratch.append(scratch)

    def _borrow(self, size: int) -> _C.Tensor:
        """A scratch of at least so many elements, for what the others send of a piece."""
        scratch = self._scratch.pop() if self._scratch else None
        return scratch if scratch is not None and scratch.size >= size else _C.empty((size,))

    def advance(self) -> None:
        """Look at all means under way, and go on with what has arrived; raises what went wrong."""
        if not self._advancing.acquire(blocking=False):  # another thread does
            return
        try:
            while self._waiting and len(self._active) < WINDOW:
                piece = self._waiting.popleft()
                piece.requests = next(piece.steps)
                self._active.append(piece)
            for piece in list(self._active):
                with self._lock:
                    if not self._mpi.Request.Testall(piece.requests):
                        continue
                self._moved = time.monotonic()
                piece.requests = next(piece.steps, [])
                if not piece.requests:
                    self._active.remove(piece)
                    piece.whole.left -= 1
            if self._active:
                self._check_patience(self._late)
        finally:
            self._advancing.release()

    def _late(self) -> list[int]:
        """The ranks that the oldest piece under way waits for."""
        others = self._others()
        requests = [request for piece in self._active[:1] for request in piece.requests]
        with self._lock:
            return sorted(
                {others[i % len(others)] for i, request in enumerate(requests) if not request.Test()}
            )

    # ---- the end

    def close(self) -> None:
        """Wait until all ranks end, and end MPI. Called at exit."""
        if self._closed.is_set():
            return
        try:
            self._exchange(BYE)
        except _C.VggError as error:
            self._say(str(error))
            self.abort(1)
        self._closed.set()
        sys.excepthook = self._hook
        with self._lock:
            self._comm.Free()
            if self._own:
                self._mpi.Finalize()

    def abort(self, status: int) -> None:
        """End all processes, now; does not return."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if self.rank:
            time.sleep(GRACE)  # when all fail alike, let one of them end all
        self._lock.acquire(timeout=GRACE)  # a call of MPI that hangs must not keep this one from it
        self._mpi.COMM_WORLD.Abort(status)
        os._exit(status)

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """`sys.excepthook`: what ends this process ends all. After Ctrl-C all stop together."""
        self._hook(kind, error, trace)
        if not issubclass(kind, KeyboardInterrupt):
            self._say(f"rank {self.rank} failed with the {kind.__name__} above{self._so()}")
            self.abort(1)

    def _say(self, text: str) -> None:
        print(f"vggnet: {text}", file=sys.stderr, flush=True)

    def _watch(self, pids: dict[int, int]) -> None:
        """Start to watch processes of this machine, {rank: pid}, where the system can (Linux 5.3): the death of one is noticed
        at once, by the lowest rank that lives, whatever it is doing."""
        if not pids or not hasattr(os, "pidfd_open"):
            return
        files = {os.pidfd_open(pid): rank for rank, pid in pids.items()}
        poll = select.poll()
        for file in files:
            poll.register(file, select.POLLIN)

        def watch() -> None:
            poll.poll()
            if self._closed.wait(GRACE):  # it has said goodbye
                return
            dead = sorted(files[file] for file, _ in poll.poll(0))
            if self.rank == min({self.rank, *pids} - {*dead}):
                self._say(f"rank {', '.join(map(str, dead))} has died: ending all{self._so()}")
            self.abort(1)

        threading.Thread(target=watch, name="vggnet-watch", daemon=True).start()


def naps() -> Iterator[float]:
    """Seconds to sleep between looks: short, then longer."""
    nap = NAPS[0]
    while True:
        yield nap
        nap = min(1.5 * nap, NAPS[1])


def _machine() -> str:
    """What is the same for all processes of a machine, in whatever container, and for no other."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text() if boot.exists() else os.uname().nodename


def _pid_namespace() -> str:
    """In which process numbers mean the same."""
    link = Path("/proc/self/ns/pid")
    return os.readlink(link) if link.exists() else ""


def _cpus() -> list[int]:
    """Those that this process may use."""
    return (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else list(range(os.cpu_count() or 1))
    )


def _own_cpus(sets: Sequence[Sequence[int]], index: int) -> int:
    """How many threads process `index` should have, when processes may use these CPUs: a CPU counts for each of those that
    may use it in equal parts.

    Examples
    --------
    >>> _own_cpus([[0, 1, 2, 3], [0, 1, 2, 3]], 0), _own_cpus([[0, 1], [2, 3, 4]], 1), _own_cpus([[0], [0]], 0)
    (2, 3, 1)
    """
    parts = sum(1 / sum(cpu in cpus for cpus in sets) for cpu in sets[index])
    return max(1, int(parts + 1e-9))
