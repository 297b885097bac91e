"""Averaging gradients among CUDA devices of several threads or processes, by NCCL.

``ops.average_gradients_`` averages what one thread holds; here every device has a rank of its own, driven by its own thread or
process, and averages go on beside what the device computes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from . import cuda
from ._C import DeviceError, Tensor

MAX_SIZE = 64


def unique_id() -> bytes:
    """The 128 bytes that all ranks of one communicator are given; rank 0 makes them, for one use.

    Raises
    ------
    DeviceError
        If there is no CUDA device, or no NCCL: with what to install.
    """
    cuda.require()
    try:
        return bytes(cuda._backend.nccl_id())
    except RuntimeError as error:
        raise DeviceError(str(error)) from None


class Communicator:
    """One of the ranks that average their gradients, each with a CUDA device of its own.

    Making it waits until every rank does so. Afterwards all ranks call `mean` in the same order.

    Parameters
    ----------
    id : bytes
        Of `unique_id`, the same on every rank.
    rank, size : int
        Which rank this is, 0 to size - 1, and how many there are, at most 64.
    device : str
        "cuda" or "cuda:1"; no other rank may have it.
    timeout : float
        Seconds that `Mean.wait` gives the others before it gives up.

    Raises
    ------
    DeviceError
        If NCCL is missing or fails.

    Examples
    --------
    One process of an MPI job, where NCCL is::

        id = comm.bcast(nccl.unique_id() if comm.rank == 0 else None)
        ranks = nccl.Communicator(id, comm.rank, comm.size, "cuda:0")
        pending = ranks.mean([grads["fc8.weight"], grads["fc8.bias"]], weights=counts)
        ...  # the rest of the backward pass is queued
        pending.wait()
    """

    def __init__(self, id: bytes, rank: int, size: int, device: str = "cuda", *, timeout: float = 600.0):
        if not 1 <= size <= MAX_SIZE:
            raise ValueError(f"Communicator: size is {size}; expected 1 to {MAX_SIZE}")
        if not 0 <= rank < size:
            raise ValueError(f"Communicator: rank is {rank}; expected 0 to {size - 1} because size is {size}")
        cuda.require()
        self.rank, self.size, self.timeout = rank, size, timeout
        self.device = f"cuda:{cuda._index(device)}"
        self._under_way: list[Mean] = []
        try:
            self._handle: object = cuda._backend.open_communicator(id, rank, size, cuda._index(device))
        except RuntimeError as error:
            raise self._failed(error) from None

    def mean(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Mean:
        """Start to replace tensors, in place, by their weighted mean over the ranks.

        Parameters
        ----------
        tensors : sequence of float32 Tensor
            On this rank's device, of the same sizes on every rank; not a model's parameters. They must not be touched before
            the mean is there. What this thread's stream holds now is waited for by the device.
        weights : sequence of float
            One for each rank, 0 or more, with a sum above 0; the same on every rank.

        Returns
        -------
        Mean

        Raises
        ------
        DeviceError
            If NCCL fails, or an earlier mean did. No more can be started then.

        Notes
        -----
        Summed in float64 in the order of ranks: the same bits on every rank and every time. It runs on a stream of its own.
        """
        weights = tuple(float(weight) for weight in weights)
        if (
            len(weights) != self.size
            or not all(math.isfinite(w) and w >= 0 for w in weights)
            or not sum(weights)
        ):
            raise ValueError(
                f"Communicator.mean: weights is {weights}; expected {self.size} finite numbers, 0 or more, with a sum above 0"
            )
        if self._handle is None:
            raise self._failed(RuntimeError("NCCL: the communicator was closed"))
        self._under_way = [mean for mean in self._under_way if not mean.done()]
        addresses = tuple(self._address(i, tensor) for i, tensor in enumerate(tensors))
        try:
            event = cuda._backend.start_mean(self._handle, addresses, weights)
        except RuntimeError as error:
            raise self._failed(error) from None
        self._under_way.append(Mean(self, tuple(tensors), event))
        return self._under_way[-1]

    def abort(self) -> None:
        """End what is under way; `Mean.wait` raises DeviceError then, here and, where NCCL can tell, at the others.

        May be called from any thread, as when another device of the process failed.
        """
        if (handle := self._handle) is not None:
            cuda._backend.abort(handle)

    def close(self) -> None:
        """Give it back, when the means are there; one that is still under way is aborted. The others may go on with theirs."""
        self._handle = None

    def __del__(self) -> None:
        self.close()  # before the tensors of what is under way may go

    def _address(self, i: int, tensor: Tensor) -> tuple[int, int]:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"Communicator.mean: tensors[{i}] is {type(tensor)}; expected a Tensor")
        if tensor.dtype != "float32" or tensor.device != self.device:
            raise ValueError(
                f"Communicator.mean: tensors[{i}] is {tensor.dtype} on {tensor.device}; expected float32 on {self.device}"
            )
        address, readonly = tensor.__cuda_array_interface__["data"]
        if readonly:
            raise ValueError(
                f"Communicator.mean: tensors[{i}] is read-only; expected a gradient, not a parameter"
            )
        return address, tensor.nbytes // 4

    def _failed(self, error: Exception) -> DeviceError:
        return DeviceError(
            f"rank {self.rank} of {self.size}: {error}. The ranks can't go on: "
            "end them all, and resume from the last checkpoint"
        )


class Mean:
    """What `Communicator.mean` started."""

    def __init__(self, communicator: Communicator, tensors: tuple[Tensor, ...], event: object):
        self._communicator = communicator
        self._tensors = tensors  # kept from going back to the pool
        self._event: object | None = event

    def done(self) -> bool:
        """Whether it is there; never waits.

        Raises
        ------
        DeviceError
            If it failed, here or at another rank.
        """
        if self._event is not None:
            try:
                if cuda._backend.finished(self._communicator._handle, self._event):
                    self._event, self._tensors = None, ()
            except RuntimeError as error:
                raise self._communicator._failed(error) from None
        return self._event is None

    def wait(self) -> None:
        """Return when it is there. The host waits, so that it can notice a rank that is gone, where the device would hang.

        Raises
        ------
        DeviceError
            If it failed, here or at another rank, or took longer than the communicator's timeout.
        """
        begin, pause = time.monotonic(), 2e-5
        while not self.done():
            if time.monotonic() - begin > self._communicator.timeout:
                self._communicator.abort()
                raise self._communicator._failed(
                    TimeoutError(f"NCCL: the others did not come within {self._communicator.timeout:g} s")
                )
            time.sleep(pause)
            pause = min(2 * pause, 1e-3)
