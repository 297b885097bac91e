"""What the layers of a net could reach on GPUs that are not here: a roofline from FLOPs and bytes, computed and not measured.

A layer takes at least the longer of its arithmetic at the GPU's peak and its bytes at the GPU's bandwidth. FLOPs are those of
the direct sum; bytes are operands read once and results written once, as each precision stores them. Example::

    python -m benchmarks roofline
    python -m benchmarks roofline --batch 256 --direction training --net E
    python -m benchmarks roofline --update docs/cuda.md      # the tables there, between their marks
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vggnet.bench import Direction, Work, work
from vggnet.configs import CONFIGS, layers_of
from vggnet.run import Plan, Precision, nbytes

from .measure import write_section

BEGIN, END = "<!-- python -m benchmarks roofline: begin -->", "<!-- end -->"


@dataclass(frozen=True)
class Gpu:
    """Peaks in FLOP/s without sparsity, and bandwidth in bytes a second, as the vendor publishes them."""

    name: str
    float32: float
    tf32: float
    bf16: float
    bandwidth: float
    source: str


GPUS = (
    Gpu("A100 SXM 80 GB", 19.5e12, 156e12, 312e12, 2.039e12, "NVIDIA A100 Tensor Core GPU datasheet"),
    Gpu(
        "H100 SXM 80 GB",
        67e12,
        494.5e12,
        989.5e12,
        3.35e12,
        "NVIDIA H100 Tensor Core GPU datasheet (half of its figures with sparsity)",
    ),
    Gpu("RTX 4090", 82.6e12, 82.6e12, 165.2e12, 1.008e12, "NVIDIA Ada GPU architecture white paper"),
)


PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16")


@dataclass(frozen=True)
class Row:
    """One operation: its name and shape, and its work."""

    layer: str
    direction: Direction
    work: Work

    def seconds(self, peak: float, bandwidth: float) -> float:
        """The least that it takes.

        Examples
        --------
        >>> Row("fc8", "forward", Work("", None, 300, 300, 100)).seconds(peak=100, bandwidth=50)
        3.0
        """
        return max(self.work.flops / peak, self.work.least_bytes / bandwidth)


def rows_of(net: str, batch: int, size: int, precision: Precision, *, training: bool) -> list[Row]:
    """The operations of a forward pass or a training step, in order; SGD, and what bf16 rounds beside maps, last."""
    layers = layers_of(net, num_classes=1000, input_size=size, in_channels=3, fc_width=4096)
    plan = Plan(
        layers,
        (batch, size, size, 3),
        ("fc8",),
        pool_rounding="floor",
        dropout=training,
        keep=training,
        device="cpu",
        precision=precision,
    )
    rows = [Row(step.layer.name, "forward", work(plan, step, "forward")) for step in plan.steps]
    if training:
        rows += _backward(plan)
        parameters = sum(nbytes(shape) for layer in layers for shape in layer.parameter_shapes.values())
        rows.append(Row("sgd", "forward", Work("", None, 0, 0, 5 * parameters)))
    if precision == "bf16":
        weights = [
            s for layer in layers for name, s in layer.parameter_shapes.items() if name.endswith("weight")
        ]
        rounded = [(batch, size, size, 3), *(weights if training else [])]
        moved = sum(nbytes(shape) + nbytes(shape, "bfloat16") for shape in rounded)
        rows.append(
            Row("rounding", "forward", Work("weights, input" if training else "input", None, 0, 0, moved))
        )
    return rows


def _backward(plan: Plan) -> Iterator[Row]:
    for step in reversed(plan.steps):
        if step.layer.parameter_shapes:
            yield Row(step.layer.name, "backward_weight", work(plan, step, "backward_weight"))
        if step is not plan.steps[0]:
            yield Row(step.layer.name, "backward_input", work(plan, step, "backward_input"))


def table(net: str, batch: int, size: int, *, training: bool) -> str:
    """Markdown: a line a layer (its directions added up), and the pass; ms at each peak, and what limits it there."""
    rows = {precision: rows_of(net, batch, size, precision, training=training) for precision in PRECISIONS}
    kinds = [(gpu, precision) for gpu in GPUS for precision in PRECISIONS]
    head = [
        "layer",
        "shape",
        "GFLOP",
        "MB",
        "MB, bf16",
        *(f"{gpu.name}, {precision}" for gpu, precision in kinds),
    ]
    lines = [_line(head), _line(["---"] * 2 + ["---:"] * (len(head) - 2))]
    shapes = {row.layer: row.work.shape for row in reversed(rows["bf16"])}
    for name in dict.fromkeys(row.layer for row in rows["bf16"]):
        part = {precision: [row for row in rows[precision] if row.layer == name] for precision in PRECISIONS}
        cells = (_cell(part[precision], gpu, precision) for gpu, precision in kinds)
        lines.append(_line([name, shapes[name], *_sums(part), *cells]))
    cells = (_cell(rows[precision], gpu, precision) for gpu, precision in kinds)
    lines.append(_line(["total", "", *_sums(rows), *cells]))
    rates = []
    for gpu, precision in kinds:
        seconds = sum(row.seconds(getattr(gpu, precision), gpu.bandwidth) for row in rows[precision])
        rates.append(f"{batch / seconds:,.0f}")
    lines.append(_line(["images/s at most", "", "", "", "", *rates]))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _sums(rows: dict[Precision, list[Row]]) -> list[str]:
    moved = (sum(r.work.least_bytes for r in rows[precision]) for precision in ("float32", "bf16"))
    return [
        f"{sum(r.work.flops for r in rows['bf16']) * 1e-9:.1f}",
        *(f"{count * 1e-6:.1f}" for count in moved),
    ]


def _cell(rows: list[Row], gpu: Gpu, precision: str) -> str:
    if not rows:
        return ""
    peak = getattr(gpu, precision)
    seconds = sum(row.seconds(peak, gpu.bandwidth) for row in rows)
    bound = sum(
        row.seconds(peak, gpu.bandwidth)
        for row in rows
        if row.work.flops / peak < row.work.least_bytes / gpu.bandwidth
    )
    return f"{1e3 * seconds:.3f}" + (" m" if bound > seconds / 2 else "")


def text(net: str, batches: list[int], size: int, directions: list[str]) -> str:
    """All tables, with what they are."""
    parts = [
        f"Computed, not measured: ms that net {net} at {size} x {size} takes at least, a layer at a time, at the published "
        "peak and bandwidth. Marked m: memory is the limit. FLOPs are the direct sum's: an engine with Winograd's "
        "algorithm can go below the times in float32. MB are those of float32 and TF32, and of bf16, where maps and the "
        "weights that they are multiplied with have two bytes, and the input and changed weights are rounded beside."
    ]
    for direction in directions:
        for batch in batches:
            what = "a training step" if direction == "training" else "a forward pass"
            parts += [f"**{what}, batch {batch}**", table(net, batch, size, training=direction == "training")]
    parts.append(
        "Peaks without sparsity: "
        + "; ".join(
            f"{g.name} {g.float32 * 1e-12:g} TFLOP/s float32, {g.tf32 * 1e-12:g} TF32, {g.bf16 * 1e-12:g} bf16, "
            f"{g.bandwidth * 1e-12:g} TB/s ({g.source})"
            for g in GPUS
        )
        + "."
    )
    return "\n\n".join(parts)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks roofline", description=__doc__)
    parser.add_argument("--net", choices=tuple(CONFIGS), default="D")
    parser.add_argument("--batch", default="1,64", help="batch sizes, with commas between (default: 1,64)")
    parser.add_argument("--size", type=int, default=224, help="of the images (default: 224)")
    parser.add_argument("--direction", choices=("forward", "training", "both"), default="both")
    parser.add_argument(
        "--update", type=Path, metavar="FILE", help="write the tables between the marks of this page"
    )
    options = parser.parse_args(arguments)
    directions = ["forward", "training"] if options.direction == "both" else [options.direction]
    written = text(options.net, [int(n) for n in options.batch.split(",")], options.size, directions)
    if options.update is None:
        print(written)
        return 0
    try:
        write_section(options.update, BEGIN, END, written)
    except ValueError as error:
        parser.error(str(error))
    return 0
