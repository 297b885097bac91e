"""Speed of convolution, layer by layer, as the nets use it: with what forward and backward fuse.

Example::

    python -m benchmarks conv2d --layer conv3_1 --batch 1,16 --direction forward --json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from vggnet import _C, ops
from vggnet.bench import conv2d_flops, machine
from vggnet.configs import CONFIGS, Layer, layers_of, pooled

from .measure import measure, origin

Direction = Literal["forward", "backward_input", "backward_weight"]
Algorithm = Literal["auto", "direct", "winograd2", "winograd4", "winograd6"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
SAMPLES = 64  # elements of a result that are checked against float64
HEADER = "layer    shape             batch direction            min ms  median  GFLOP/s  of peak  of floor  error/eps"
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A convolution as a net has it: `size` is the side of its input, `pool` whether a pooling follows."""

    layer: Layer
    size: int
    pool: bool

    def flops(self, batch: int, algorithm: str = "direct") -> int:
        """Multiplications and additions of one direction, see `vggnet.bench.conv2d_flops`."""
        x_shape = (batch, self.size, self.size, self.layer.inputs)
        return conv2d_flops(x_shape, self.layer.parameter_shapes[f"{self.layer.name}.weight"], algorithm)


def cases(net: str, size: int, in_channels: int) -> list[Case]:
    """The convolutions of a net, in order, for images of `size` x `size`."""
    layers = layers_of(net, num_classes=1000, input_size=size, in_channels=in_channels, fc_width=4096)
    found: list[Case] = []
    for layer, after in zip(layers, layers[2:], strict=False):  # conv, relu, then perhaps pool
        if layer.kind == "conv":
            found.append(Case(layer, size, after.kind == "pool"))
        elif layer.kind == "pool":
            size = pooled(size, "floor")
    return found


class Problem:
    """One case with its arrays: He-scaled weights, rectified inputs, random gradients; results allocated."""

    def __init__(self, case: Case, batch: int, algorithm: Algorithm) -> None:
        random = np.random.Generator(np.random.Philox(case.layer.inputs * 1000 + batch))
        layer, side = case.layer, case.size

        def normal(*shape: int) -> Array:
            return random.standard_normal(shape, dtype=np.float32)

        self.case, self.algorithm = case, algorithm
        self.x = np.maximum(normal(batch, side, side, layer.inputs), 0)
        scale = np.float32((2 / (layer.inputs * layer.window**2)) ** 0.5)
        self.w = normal(layer.outputs, layer.window, layer.window, layer.inputs) * scale
        self.b = normal(layer.outputs)
        result = ops.conv2d(self.x, self.w, self.b, relu=True, pool=case.pool, algorithm=algorithm)
        self.y: _C.Tensor
        self.index: _C.Tensor | None
        self.y, self.index = result if case.pool else (result, None)
        self.dy = normal(*self.y.shape)
        self.out: dict[Direction, Any] = {
            "forward": result,
            "backward_input": _C.empty(self.x.shape),
            "backward_weight": (_C.empty(self.w.shape), _C.empty(self.b.shape)),
        }
        shapes = self.x.shape, self.w.shape
        self.workspace = {
            direction: _C.empty(
                _C.conv2d_workspace(*shapes, direction, pool=case.pool, algorithm=algorithm), "uint8"
            )
            for direction in DIRECTIONS
        }

    def call(self, direction: Direction) -> Callable[[], object]:
        """The operation, ready to be timed."""
        common: dict[str, Any] = {
            "algorithm": self.algorithm,
            "out": self.out[direction],
            "workspace": self.workspace[direction],
        }
        if direction == "forward":
            return lambda: ops.conv2d(self.x, self.w, self.b, relu=True, pool=self.case.pool, **common)
        common |= {"y": self.y, "index": self.index}
        if direction == "backward_input":
            return lambda: ops.conv2d_backward_input(self.dy, self.w, input_shape=self.x.shape, **common)
        return lambda: ops.conv2d_backward_weight(self.dy, self.x, self.case.layer.window, **common)

    def gradient(self) -> Array:
        """The gradient before pooling and ReLU, by definition."""
        masked = np.where(self.y.numpy() > 0, self.dy, 0)
        if self.index is None:
            return masked
        g = np.zeros((*self.x.shape[:3], masked.shape[3]), np.float32)
        for place in range(4):
            put = g[:, place // 2 :: 2, place % 2 :: 2][:, : masked.shape[1], : masked.shape[2]]
            put[...] = np.where(self.index.numpy() == place, masked, 0)
        return g

    def error(self, direction: Direction) -> float:
        """Largest error of some elements against float64, in units of eps32 times their mean sum of |terms|.

        The mean, since Winograd's errors are those of a tile: an element whose own terms are all 0 may have one.
        """
        random = np.random.Generator(np.random.Philox(1))
        border = self.case.layer.window // 2
        edges = ((0, 0), (border, border), (border, border), (0, 0))
        w = self.w.astype(np.float64)
        errors, bounds = [], []

        def judge(got: float, terms: npt.NDArray[np.float64], offset: float = 0.0) -> None:
            bounds.append(float(np.abs(terms).sum()) + abs(offset))
            exact = float(terms.sum()) + offset
            if direction == "forward":
                exact = max(exact, 0.0)
            errors.append(abs(got - exact))

        def window(padded: Array, n: int, i: int, j: int) -> npt.NDArray[np.float64]:
            side = self.case.layer.window
            return padded[n, i : i + side, j : j + side].astype(np.float64)

        def sample(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
            return [tuple(int(random.integers(size)) for size in shape) for _ in range(SAMPLES)]

        if direction == "forward":
            x = np.pad(self.x, edges)
            y = self.y.numpy()
            for n, i, j, k in sample(y.shape):
                if self.index is not None:  # the winner's own place
                    place = int(self.index.numpy()[n, i, j, k])
                    at = (2 * i + place // 2, 2 * j + place % 2)
                else:
                    at = (i, j)
                judge(float(y[n, i, j, k]), window(x, n, *at) * w[k], float(self.b[k]))
        elif direction == "backward_input":
            g = np.pad(self.gradient(), edges)
            rotated = w[:, ::-1, ::-1]
            for n, i, j, c in sample(self.x.shape):
                judge(
                    float(self.out[direction].numpy()[n, i, j, c]),
                    np.moveaxis(window(g, n, i, j), 2, 0) * rotated[:, :, :, c],
                )
        else:
            g, x = self.gradient(), np.pad(self.x, edges)
            side = self.case.size
            dw = self.out[direction][0].numpy()
            for k, r, s, c in sample(self.w.shape):
                shifted = x[:, r : r + side, s : s + side, c].astype(np.float64)
                judge(float(dw[k, r, s, c]), shifted * g[..., k])
        return float(max(errors) / (np.finfo(np.float32).eps * np.mean(bounds)))


def run(
    case: Case, batch: int, direction: Direction, options: argparse.Namespace, peak: float
) -> dict[str, Any]:
    """Time one case in one direction."""
    problem = Problem(case, batch, options.algorithm)
    passes = measure(problem.call(direction), seconds=options.seconds, flush=not options.warm)
    best = min(passes)
    rate = case.flops(batch) / best
    layer = case.layer
    algorithm = options.algorithm
    if algorithm == "auto":
        algorithm = _C.conv2d_algorithm(problem.x.shape, problem.w.shape, direction, pool=case.pool)
    return {
        "layer": layer.name,
        "shape": f"{layer.inputs}->{layer.outputs}@{case.size}" + (" pool" if case.pool else ""),
        "batch": batch,
        "direction": direction,
        "algorithm": algorithm,
        "min_ms": best * 1e3,
        "median_ms": statistics.median(passes) * 1e3,
        "gflops": rate * 1e-9,
        "peak_fraction": rate / peak,
        "floor_fraction": case.flops(batch, algorithm) / best / peak,
        "error_eps": problem.error(direction),
        "passes": len(passes),
    }


def main(arguments: list[str]) -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks conv2d", description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=sorted(CONFIGS), default="D")
    parser.add_argument("--layer", default="all", help="conv3_1, or several with commas (default: all)")
    parser.add_argument("--batch", default="1", help="1, or several: 1,16")
    parser.add_argument("--direction", default="all", help=f"of {', '.join(DIRECTIONS)} (default: all)")
    parser.add_argument("--size", type=int, default=224, help="side of the images (default: %(default)s)")
    parser.add_argument("--in-channels", type=int, default=3)
    parser.add_argument("--algorithm", choices=get_args(Algorithm), default="auto")
    parser.add_argument("--threads", type=int, default=_C.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.5, help="for each figure (default: %(default)s)")
    parser.add_argument("--warm", action="store_true", help="leave the caches as the last pass left them")
    parser.add_argument("--json", action="store_true", help="one document instead of a table")
    options = parser.parse_args(arguments)

    chosen = cases(options.net, options.size, options.in_channels)
    if options.layer != "all":
        by_name = {case.layer.name: case for case in chosen}
        unknown = [name for name in options.layer.split(",") if name not in by_name]
        if unknown:
            parser.error(f"net {options.net} has no layer {unknown[0]!r}; it has {', '.join(by_name)}")
        chosen = [by_name[name] for name in options.layer.split(",")]
    directions = DIRECTIONS if options.direction == "all" else tuple(options.direction.split(","))
    for direction in directions:
        if direction not in DIRECTIONS:
            parser.error(f"no direction {direction!r}; expected {', '.join(DIRECTIONS)}")
    batches = [int(batch) for batch in options.batch.split(",")]

    _C.set_num_threads(options.threads)
    about = machine() | origin()
    if not options.json:
        peak = f"peak {about['peak'] * 1e-9:.0f} GFLOP/s"
        print(f"{about['cpu']}, {about['kernel']}, {about['threads']} threads, {peak}")
        print(HEADER)
    rows: list[dict[str, Any]] = []
    for case in chosen:
        for batch in batches:
            for direction in directions:
                row = run(case, batch, direction, options, about["peak"])
                rows.append(row)
                if not options.json:
                    print(
                        f"{row['layer']:8} {row['shape']:17} {batch:5} {direction:15} {row['min_ms']:12.3f} "
                        f"{row['median_ms']:7.3f} {row['gflops']:8.1f} {row['peak_fraction']:8.0%} "
                        f"{row['floor_fraction']:9.0%} "
                        f"{row['error_eps']:10.2f}",
                        flush=True,
                    )
    if options.json:
        print(json.dumps({"machine": about, "rows": rows}, indent=1))
    return 0
