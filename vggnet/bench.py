"""What a pass costs, operation by operation: time, arithmetic and memory traffic. The command is ``vggnet bench``.

The times are those of whole passes as a net runs them, taken between one operation and the next, so they hold what fusion,
cached weights and caches that the operation before left do for a layer, and they add up to the pass.
"""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from . import _C, cuda, ops
from .configs import Layer
from .rng import Rng
from .run import FLOAT_BYTES, Plan, Run, Step, nbytes

if TYPE_CHECKING:
    from .models import VGG

Direction = Literal["forward", "backward_weight", "backward_input"]
TILES = {"winograd2": 2, "winograd4": 4, "winograd6": 6}  # side of an output tile; its input's is 2 more
STREAM_BYTES = 128 << 20  # of each array that `bandwidth` streams; more than caches hold


# ---- the machine


def cpu_name() -> str:
    """The CPU's own name, or the architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def bandwidth(device: str = "cpu") -> float:
    """Bytes a second of ``y += x`` on arrays in memory, with the threads that are set: two reads for each write."""
    y, x = (_C.zeros((STREAM_BYTES // FLOAT_BYTES,), device=device) for _ in range(2))
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        ops.add_(y, x)
        seconds.append(time.perf_counter() - begin)
    return 3 * STREAM_BYTES / min(seconds)


def machine(device: str = "cpu", precision: str = "float32") -> dict[str, Any]:
    """What a figure means nothing without; `peak` is the multiply-add rate in FLOP/s: measured, of the threads that are set, on
    the CPU; of a GPU the one that its clock and multiprocessors give at that precision.

    Raises
    ------
    DeviceError
        If the device tells no clock rate, as an emulator: its times mean nothing.
    """
    info = _C.build_info()
    if not device.startswith("cpu"):
        found = cuda.properties(device)
        if not found["clock"]:
            raise _C.DeviceError(
                f"bench: {device} ({found['name']}) has no clock, so it is an emulator, whose times mean nothing; "
                f'expected a GPU or "cpu"'
            )
        return found | {
            "peak": found[precision],
            "vggnet": info["version"],
            "python": platform.python_version(),
            "numpy": np.__version__,
        }
    threads = _C.get_num_threads(device)
    return {
        "cpu": cpu_name(),
        "isa": info["isa"],
        "kernel": next(kernel["name"] for kernel in _C.kernels() if kernel["selected"]),
        "threads": threads,
        # the best of some: a thread that was just made may share its core with the caller for a while
        "peak": max(_C.fma_peak(threads) for _ in range(20)),
        "bandwidth": bandwidth(device),
        "vggnet": info["version"],
        "compiler": info["compiler"],
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


# ---- arithmetic and traffic, from shapes


def conv2d_flops(x_shape: Sequence[int], w_shape: Sequence[int], algorithm: str = "direct") -> int:
    """Multiplications of a convolution in any one direction, and as many additions.

    Those of the direct sum; of Winograd's algorithm, with tiles of m x m pixels, (m + 2)² for each tile, also where a tile
    reaches over the border. Its transforms are not counted: this is the least that the algorithm can take.

    Examples
    --------
    >>> direct = conv2d_flops((1, 28, 28, 512), (512, 3, 3, 512))
    >>> direct // conv2d_flops((1, 28, 28, 512), (512, 3, 3, 512), "winograd4")
    4
    """
    n, h, w, c = x_shape
    k, window = w_shape[:2]
    if algorithm in TILES:
        tile = TILES[algorithm]
        return 2 * n * -(-h // tile) * -(-w // tile) * (tile + 2) ** 2 * c * k
    return 2 * n * h * w * c * k * window**2


@dataclass(frozen=True)
class Work:
    """What one operation has to do: `flops` of the direct sum, `least_flops` of the algorithm's multiplications and
    additions without transforms, and `least_bytes`: its operands read once, its results written once."""

    shape: str
    algorithm: str | None
    flops: int
    least_flops: int
    least_bytes: int


def _parameter_bytes(plan: Plan, layer: Layer, *, bias: bool, gradient: bool = False) -> int:
    """Of a layer's weights as they are multiplied, or of their gradient."""
    linear = layer.kind == "linear" and plan.weight_dtype == "bfloat16"
    narrow = not gradient and (linear or plan.precision == "bf16")
    return sum(
        nbytes(shape) // (2 if narrow and name.endswith("weight") else 1)
        for name, shape in layer.parameter_shapes.items()
        if bias or name.endswith("weight")
    )


def work(plan: Plan, step: Step, direction: Direction) -> Work:
    """The work of one step of a plan in one direction."""
    layer = step.layer
    x_shape, y_shape = plan.shapes[step.source], plan.shapes[step.result]
    moved = (
        nbytes(x_shape, plan.dtype(step.source))
        + nbytes(y_shape, plan.dtype(step.result))
        + _parameter_bytes(
            plan, layer, bias=direction != "backward_input", gradient=direction == "backward_weight"
        )
    )
    if layer.kind == "conv":
        w_shape = layer.parameter_shapes[f"{layer.name}.weight"]
        pool: Any = plan.pool_rounding if step.pool else False
        cpu = plan.device.startswith("cpu")  # elsewhere the backend's library chooses
        algorithm = _C.conv2d_algorithm(x_shape, w_shape, direction, pool=pool) if cpu else None
        text = f"{layer.inputs}->{layer.outputs} @ {x_shape[1]}x{x_shape[2]}" + (" pool" if step.pool else "")
        least = conv2d_flops(x_shape, w_shape, algorithm or "direct")
        return Work(text, algorithm, conv2d_flops(x_shape, w_shape), least, moved)
    if layer.kind == "linear":
        flops = 2 * x_shape[0] * layer.inputs * layer.outputs
        return Work(f"{layer.inputs}->{layer.outputs}", None, flops, flops, moved)
    return Work(" x ".join(map(str, x_shape[1:])), None, 0, 0, moved)


@dataclass(frozen=True)
class Traffic:
    """Bytes of one kind that a training step moves through memory; `least` are those that no step can do without."""

    what: str
    bytes: int
    least: bool


def traffic(plan: Plan) -> list[Traffic]:
    """What a training step reads and writes by design, assuming that nothing stays in a cache from pass to pass.

    The least: every map, weight and gradient read or written once where it is needed, and SGD's five streams. The rest are
    passes that could be avoided, at least in principle.
    """
    weighted = [step for step in plan.steps if step.layer.parameter_shapes]
    convs = [step for step in weighted if step.layer.kind == "conv"]

    def maps(steps: Sequence[Step], *, of: Literal["source", "result"]) -> int:
        return sum(nbytes(plan.shapes[getattr(step, of)]) for step in steps)

    def weights(steps: Sequence[Step]) -> int:
        return sum(_parameter_bytes(plan, step.layer, bias=False) for step in steps)

    def transformed(step: Step, direction: Direction) -> int:
        """Bytes of the weights as Winograd's algorithm multiplies them."""
        tile = TILES.get(str(work(plan, step, direction).algorithm))
        return 0 if tile is None else weights([step]) * (tile + 2) ** 2 // step.layer.window**2

    index = sum(nbytes(plan.shapes[step.result]) // FLOAT_BYTES for step in plan.steps if step.pool)
    relus = [step for step in weighted if step.layer.kind == "linear" and step.relu]
    others = [step for step in plan.steps if not step.layer.parameter_shapes]
    x, y, inner = maps(weighted, of="source"), maps(weighted, of="result"), maps(weighted[1:], of="source")
    parameters = sum(_parameter_bytes(plan, step.layer, bias=True) for step in weighted)
    return [
        Traffic("forward: x and w read, y written", x + parameters + y, True),
        Traffic("gradient to the weights: x and dy read, dw written", x + y + parameters, True),
        Traffic("gradient to the input: w read, dx written", weights(weighted[1:]) + inner, True),
        Traffic("SGD: p, g and v read, p and v written", 5 * parameters, True),
        Traffic("dy again, for the gradient to the input", maps(weighted[1:], of="result"), False),
        Traffic(
            "masks y > 0, read by both gradients",
            2 * maps([s for s in convs if s.relu], of="result") - maps(convs[:1], of="result"),
            False,
        ),
        Traffic("winners of the pools, written, and read by both gradients", 3 * index, False),
        Traffic(
            "Winograd: transformed weights, written and read",
            2 * sum(transformed(step, "forward") for step in convs)
            + 2 * sum(transformed(step, "backward_input") for step in convs[1:]),
            False,
        ),
        Traffic("ReLU of linear layers: dy and y read, dy written", 3 * maps(relus, of="result"), False),
        Traffic(
            "layers by themselves (dropout, pools, LRN), both ways", 4 * maps(others, of="result"), False
        ),
    ]


# ---- times


class _Clock:
    """Times between operations, by (layer, direction), of one pass; a layer that runs in chunks has the sum of them."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.marks: list[tuple[tuple[str, Any] | None, Any]] = []
        self.mark()

    def __call__(self, layer: Layer, direction: Any) -> None:
        self.mark((layer.name, direction))

    def mark(self, what: tuple[str, Any] | None = None) -> None:
        """`what` has just been done; on a GPU, queued: the time is taken by the device when it comes there."""
        now = time.perf_counter() if self.device.startswith("cpu") else cuda.record(self.device)
        self.marks.append((what, now))

    def _between(self, begin: Any, end: Any) -> float:
        return end - begin if self.device.startswith("cpu") else cuda.elapsed(begin, end)

    @property
    def total(self) -> float:
        return self._between(self.marks[0][1], self.marks[-1][1])

    @property
    def seconds(self) -> dict[tuple[str, Direction], float]:
        seconds: dict[tuple[str, Direction], float] = {}
        for (_, begin), (what, end) in itertools.pairwise(self.marks):
            assert what is not None
            seconds[what] = seconds.get(what, 0.0) + self._between(begin, end)
        return seconds


class _Passes:
    """A model with what its passes need, so that only passes are timed."""

    def __init__(self, model: VGG, batch: int, training: bool) -> None:
        side, channels = model.input_size, model.in_channels
        random = np.random.Generator(np.random.Philox(0))
        pixels = random.standard_normal((batch, side, side, channels), dtype=np.float32)
        self.model, self.training = model, training
        self.x = _C.tensor(pixels * np.float32(60), device=model.device)
        self.plan = model._plan(self.x.shape, None, training=training, keep=training)
        self.rng = Rng(0, np.arange(batch)) if training else None
        self.labels = random.integers(model.num_classes, size=batch)
        shapes = {name: p.shape for name, p in model.parameters.items()} if training else {}
        self.grads, self.velocity = (
            {name: _C.zeros(shape, device=model.device) for name, shape in shapes.items()} for _ in range(2)
        )

    def run(self) -> _Clock:
        """One forward pass or one training step."""
        model, clock = self.model, _Clock(self.model.device)
        run = Run(model, self.plan, self.x, self.rng, clock)
        if self.training:
            _, dlogits = ops.cross_entropy(run.logits, self.labels)
            clock.mark(("loss", "forward"))
            run.backward({"fc8": dlogits}, grads=self.grads)
            parameters, names = model.parameters, list(self.grads)
            ops.sgd_(
                [parameters[name] for name in names],
                list(self.grads.values()),
                list(self.velocity.values()),
                lr=1e-6,
            )
            clock.mark(("sgd", "update"))
        return clock


def training_flop(model: VGG) -> int:
    """Multiplications and additions of forward and backward pass of one image, counted as direct sums.

    Examples
    --------
    >>> from vggnet import VGG
    >>> training_flop(VGG("A", num_classes=10, input_size=32, fc_width=64, init=None)) // 10**6
    913
    """
    side = model.input_size
    plan = model._plan((1, side, side, model.in_channels), None, training=True, keep=True)
    steps = [step for step in plan.steps if step.layer.parameter_shapes]
    forward, first = (sum(work(plan, s, "forward").flops for s in part) for part in (steps, steps[:1]))
    return 3 * forward - first  # nothing needs the gradient to the images


def training_speed(model: VGG, batch: int) -> float:
    """Images a second of training steps on random images: the best of passes within a second, at least of one, after one
    that is dropped. Weights change by nothing that matters (lr 1e-6)."""
    passes = _Passes(model, batch, training=True)
    passes.run()
    seconds: list[float] = []
    start = time.perf_counter()
    while not seconds or time.perf_counter() - start < 1.0:
        seconds.append(passes.run().total)
    return batch / min(seconds)


def _rows(passes: _Passes, clocks: Sequence[_Clock], about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row an operation, in the order of the pass."""
    plan = passes.plan
    steps = {step.layer.name: step for step in plan.steps}
    parameters = passes.model.num_parameters * FLOAT_BYTES
    times = [clock.seconds for clock in clocks]
    for name, direction in times[0]:
        seconds = min(time[name, direction] for time in times)
        if name in steps:
            cost = work(plan, steps[name], direction)
        else:
            cost = Work("", None, 0, 0, 5 * parameters if name == "sgd" else 2 * plan.output_bytes())
        yield {"layer": name, "direction": direction, **asdict(cost), **_rates(cost, seconds, about)}


def _rates(cost: Work, seconds: float, about: dict[str, Any]) -> dict[str, float]:
    return {
        "ms": 1e3 * seconds,
        "gflops": 1e-9 * cost.flops / seconds,
        "peak_fraction": cost.flops / about["peak"] / seconds,
        "floor_fraction": cost.least_flops / about["peak"] / seconds,
        "gbytes_per_s": 1e-9 * cost.least_bytes / seconds,
    }


def profile(model: VGG, batch: int, *, training: bool = False, seconds: float = 1.0) -> dict[str, Any]:
    """Time passes of a model, operation by operation.

    Parameters
    ----------
    model : VGG
        With `training` its weights change.
    batch : int
        Images of a pass, drawn at random.
    training : bool
        Time training steps (forward with dropout, gradients, SGD with momentum) instead of forward passes.
    seconds : float
        After one pass that is dropped, passes are timed until these have gone by, but at least three.

    Returns
    -------
    dict
        "machine"; "rows", one an operation, in order, with the least time of all passes; "total", of the fastest pass; and
        for training on the CPU "traffic", bytes by purpose. `peak_fraction` is of the machine's multiply-add rate, counting
        the direct sum's arithmetic whatever the algorithm; `floor_fraction` counts what the algorithm itself multiplies.

    Notes
    -----
    Rows need not add up to the total: each is the least of its own.
    """
    about = machine(model.device, model.precision)  # which refuses an emulator
    passes = _Passes(model, batch, training)
    _ = passes.run().total  # which waits
    clocks: list[_Clock] = []
    start = time.perf_counter()
    while len(clocks) < 3 or time.perf_counter() - start < seconds:
        clocks.append(passes.run())
        _ = clocks[-1].total
    rows = list(_rows(passes, clocks, about))
    best = min(clock.total for clock in clocks)
    sums = {key: sum(row[key] for row in rows) for key in ("flops", "least_flops", "least_bytes")}
    total = Work("", None, **sums)
    result: dict[str, Any] = {
        "machine": about,
        "passes": len(clocks),
        "rows": rows,
        "total": asdict(total) | _rates(total, best, about) | {"images_per_s": batch / best},
    }
    if training and model.device.startswith("cpu"):
        result["traffic"] = [asdict(item) for item in traffic(passes.plan)]
    return result
