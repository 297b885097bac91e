"""Speed of the fully connected layers, against what memory or arithmetic allows.

The limit of a direction is the longer of two times: the big matrix (w, or its gradient) once through memory, at the rate of
a plain stream of that kind, and the multiply-adds at the machine's peak.

Example::

    python -m benchmarks linear --layer fc6 --batch 1,8,32,128
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any, Literal, get_args

from vggnet import _C, ops
from vggnet.bench import machine
from vggnet.configs import Layer, layers_of

from .measure import measure, origin

Direction = Literal["forward", "backward_input", "backward_weight", "accumulate"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
STREAMS = {  # what the big matrix is to memory
    "forward": "read",
    "backward_input": "read",
    "backward_weight": "write",
    "accumulate": "update",
}
HEADER = "layer shape         batch direction            min ms  median    GB/s  GFLOP/s  limit ms  of limit"


def fully_connected() -> list[Layer]:
    """fc6, fc7 and fc8 of every net at 224 x 224."""
    layers = layers_of("D", num_classes=1000, input_size=224, in_channels=3, fc_width=4096)
    return [layer for layer in layers if layer.kind == "linear"]


def call(layer: Layer, batch: int, direction: Direction) -> Callable[[], object]:
    """The operation with its arrays, ready to be timed."""

    def normal(*shape: int) -> _C.Tensor:
        tensor = _C.empty(shape)
        ops.random_normal_(tensor, 1.0, 1, len(shape))
        return tensor

    size = batch, layer.inputs, layer.outputs
    x, dy = normal(batch, layer.inputs), normal(batch, layer.outputs)
    w, b = normal(layer.outputs, layer.inputs), normal(layer.outputs)
    if direction == "forward":
        scratch = _C.empty(_C.linear_workspace(*size), "uint8")
        y = _C.empty(dy.shape)
        return lambda: ops.linear(x, w, b, relu=True, out=y, workspace=scratch)
    if direction == "backward_input":
        scratch = _C.empty(_C.linear_workspace(*size, direction), "uint8")
        dx = _C.empty(x.shape)
        return lambda: ops.linear_backward_input(dy, w, out=dx, workspace=scratch)
    scratch = _C.empty(_C.linear_workspace(*size, "backward_weight"), "uint8")
    more = direction == "accumulate"
    return lambda: ops.linear_backward_weight(dy, x, out=(w, b), accumulate=more, workspace=scratch)


def run(
    layer: Layer,
    batch: int,
    direction: Direction,
    options: argparse.Namespace,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Time one layer in one direction."""
    passes = measure(call(layer, batch, direction), seconds=options.seconds, flush=not options.warm)
    best = min(passes)
    moved = 4 * layer.inputs * layer.outputs * (2 if direction == "accumulate" else 1)
    flops = 2 * batch * layer.inputs * layer.outputs
    limit = max(moved / about["streams"][STREAMS[direction]], flops / about["peak"])
    return {
        "layer": layer.name,
        "shape": f"{layer.inputs}->{layer.outputs}",
        "batch": batch,
        "direction": direction,
        "min_ms": best * 1e3,
        "median_ms": statistics.median(passes) * 1e3,
        "gbytes": moved / best * 1e-9,
        "gflops": flops / best * 1e-9,
        "limit_ms": limit * 1e3,
        "limit_fraction": limit / best,
        "passes": len(passes),
    }


def main(arguments: list[str]) -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks linear", description=__doc__.splitlines()[0])
    parser.add_argument("--layer", default="all", help="fc6, or several with commas (default: all)")
    parser.add_argument("--batch", default="1", help="1, or several: 1,8,32,128")
    parser.add_argument("--direction", default="all", help=f"of {', '.join(DIRECTIONS)} (default: all)")
    parser.add_argument("--threads", type=int, default=_C.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.3, help="for each figure (default: %(default)s)")
    parser.add_argument("--warm", action="store_true", help="leave the caches as the last pass left them")
    parser.add_argument("--json", action="store_true", help="one document instead of a table")
    options = parser.parse_args(arguments)

    chosen = {layer.name: layer for layer in fully_connected()}
    names = list(chosen) if options.layer == "all" else options.layer.split(",")
    directions = DIRECTIONS if options.direction == "all" else tuple(options.direction.split(","))
    for what, given, known in (("layer", names, list(chosen)), ("direction", directions, DIRECTIONS)):
        for name in given:
            if name not in known:
                parser.error(f"no {what} {name!r}; expected {', '.join(known)}")

    _C.set_num_threads(options.threads)
    about = machine() | origin()
    runs = [_C.memory_bandwidth(options.threads) for _ in range(3)]
    about["streams"] = {kind: max(rates[kind] for rates in runs) for kind in runs[0]}
    if not options.json:
        rates = ", ".join(f"{kind} {rate * 1e-9:.1f}" for kind, rate in about["streams"].items())
        print(f"{about['cpu']}, {about['isa']}, {about['threads']} threads")
        print(f"peak {about['peak'] * 1e-9:.0f} GFLOP/s; GB/s: {rates}")
        print(HEADER)
    rows: list[dict[str, Any]] = []
    for name in names:
        for batch in map(int, options.batch.split(",")):
            for direction in directions:
                row = run(chosen[name], batch, direction, options, about)
                rows.append(row)
                if not options.json:
                    print(
                        f"{row['layer']:5} {row['shape']:13} {batch:5} {direction:15} {row['min_ms']:12.2f} "
                        f"{row['median_ms']:7.2f} {row['gbytes']:7.1f} {row['gflops']:8.1f} "
                        f"{row['limit_ms']:9.2f} {row['limit_fraction']:9.0%}",
                        flush=True,
                    )
    if options.json:
        print(json.dumps({"machine": about, "rows": rows}, indent=1))
    return 0
