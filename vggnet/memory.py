"""How much memory a pass takes, and how much of a device is free."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import _C
from .run import FLOAT_BYTES, MemoryPlan, nbytes

if TYPE_CHECKING:
    from .models import VGG


def memory_plan(
    model: VGG,
    batch: int,
    size: int | tuple[int, int] | None,
    layers: Sequence[str] | None,
    training: bool | Collection[str],
) -> MemoryPlan:
    """See `VGG.memory_plan`."""
    height, width = (size, size) if isinstance(size, int) else size or (model.input_size, model.input_size)
    shape = (batch, height, width, model.in_channels)
    whole = (height, width) == (model.input_size, model.input_size)
    taps = ["pool5"] if layers is None and not whole else layers
    plan = model._plan(shape, taps, training=bool(training), keep=bool(training))
    parameters = sum(tensor.nbytes for tensor in model.parameters.values())
    bytes_by_purpose = MemoryPlan(parameters=parameters, input=nbytes(shape))
    if training:
        learning = plan.learning(training)
        learnt = sum(
            nbytes(shape) for s in plan.steps if s in learning for shape in s.layer.parameter_shapes.values()
        )
        backward = plan.backward_arena(plan.steps[plan.steps.index(learning[0]) :], learning)
        bytes_by_purpose["gradients"] = learnt
        bytes_by_purpose["momentum"] = learnt
        bytes_by_purpose["loss"] = FLOAT_BYTES + plan.output_bytes()
        bytes_by_purpose["backward"] = backward.size
        if not model.device.startswith("cpu") and any(s.layer.kind == "dropout" for s in plan.steps):
            bytes_by_purpose["dropout rows"] = 8 * batch  # int64, moved to the device for a call
    elif plan.transformed:
        bytes_by_purpose["transformed weights"] = sum(plan.transformed.values())
    if model.precision == "bf16":
        bytes_by_purpose["bfloat16 weights"] = model.rounded_bytes(plan.steps)
    bytes_by_purpose["maps"] = plan.forward.size
    bytes_by_purpose["outputs"] = plan.output_bytes()
    return bytes_by_purpose


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Within, memory that a pass on the CPU gives back is kept for the next pass of the same size, which saves filling it with
    zeros: a fifteenth of a training step of net D on one thread. Training and evaluation do so.

    Examples
    --------
    >>> with kept():
    ...     pass  # passes of batches of one size
    """
    _C.keep_memory(True)
    try:
        yield
    finally:
        _C.keep_memory(False)


def free_memory(device: str = "cpu") -> int | None:
    """Bytes that may still be taken on a device; None where that is unknown. On the CPU, those of the machine and of the
    control group."""
    if not device.startswith("cpu"):
        return _C.memory_stats(device).get("free")

    def table(path: str) -> dict[str, int]:
        lines = Path(path).read_text(encoding="ascii").splitlines()
        return {line.split()[0].rstrip(":"): int(line.split()[1]) for line in lines}

    free = []
    with contextlib.suppress(OSError, ValueError, LookupError):
        free.append(table("/proc/meminfo")["MemAvailable"] << 10)
    with contextlib.suppress(OSError, ValueError, LookupError):  # "max" when there is no limit
        group = Path("/sys/fs/cgroup")
        limit, used = (
            int((group / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current")
        )
        cached = table(f"{group}/memory.stat")["inactive_file"]  # given back when it is needed
        free.append(limit - used + cached)
    return min(free, default=None)
