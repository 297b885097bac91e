"""Training with Winograd against training with direct convolution: does rounding change where it leads?

Two runs that round differently part: a ReLU or a pool's winner flips, and flips grow. So equality is not defined, but a
band is: direct runs from the same first weights, each moved by one unit in the last place in a random direction. The run
under test has the unmoved weights, the same images, order and dropout. The loss is compared as means over windows of steps.

Example::

    python -m benchmarks drift --steps 2000 --moved 5
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import vggnet as vgg
import vggnet.run
from vggnet import _C, data, ops
from vggnet.bench import machine

Array = npt.NDArray[np.float32]
CONVOLUTIONS = ("conv2d", "conv2d_backward_input", "conv2d_backward_weight", "conv2d_workspace")


class Direct:
    """`vggnet.ops` whose convolutions are direct."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(ops, name)
        return functools.partial(found, algorithm="direct") if name in CONVOLUTIONS else found


@contextlib.contextmanager
def direct() -> Iterator[None]:
    """Every pass inside runs direct convolution."""
    workspace = _C.conv2d_workspace
    vggnet.run.ops = Direct()  # type: ignore[assignment,attr-defined]
    _C.conv2d_workspace = functools.partial(workspace, algorithm="direct")
    try:
        yield
    finally:
        vggnet.run.ops = ops  # type: ignore[attr-defined]
        _C.conv2d_workspace = workspace


def moved(weights: Array, seed: int) -> Array:
    """Each weight moved by one unit in the last place, up or down."""
    up = np.random.default_rng(seed).random(weights.shape) < 0.5
    towards = np.where(up, np.float32(np.inf), np.float32(-np.inf))
    return np.nextafter(weights, towards)


def losses(steps: int, batch: int, seed: int | None) -> Array:
    """The loss of every step of one run; `seed` moves the first weights."""
    images = data.sample()
    model = vgg.VGG(
        "A", num_classes=10, input_size=32, in_channels=1, fc_width=64, init="xavier", mean=(73.0,)
    )
    if seed is not None:
        for number, parameter in enumerate(model.parameters.values()):
            parameter.copy_(moved(parameter.numpy(), 1000 * seed + number))
    velocity = [vgg.zeros(parameter.shape) for parameter in model.parameters.values()]
    pixels = np.stack([np.pad(images.image(i), ((2, 2), (2, 2), (0, 0))) for i in range(len(images))])
    found = np.empty(steps, np.float32)
    for step in range(steps):
        chosen = np.random.default_rng(step).integers(0, len(images), batch)
        x = pixels[chosen].astype(np.float32) - np.float32(73)
        rng = vgg.Rng(0, step << 32 | np.arange(batch, dtype=np.int64))
        loss, gradients = model.loss_and_gradients(x, images.labels[chosen], rng=rng)
        ops.sgd_(list(model.parameters.values()), list(gradients.values()), velocity, lr=0.0025)
        found[step] = float(loss)
    return found


def main(arguments: list[str]) -> int:
    """Run the comparison from the command line; exit status 1 if the run under test leaves the band."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks drift", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--window", type=int, default=200, help="steps of a mean (default: %(default)s)")
    parser.add_argument("--moved", type=int, default=5, help="runs that make the band (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)

    def windows(seed: int | None) -> Array:
        means: Array = losses(options.steps, options.batch, seed).reshape(-1, options.window).mean(1)
        print(f"{'unmoved' if seed is None else f'moved {seed}'}: done", file=sys.stderr, flush=True)
        return means

    with direct():
        band = np.stack([windows(seed) for seed in (None, *range(1, options.moved + 1))])
    winograd = windows(None)
    middle, spread = band.mean(0), band.std(0, ddof=1)
    # Two runs of one kind differ by a deviation of sqrt(1 + 1 / n); three of them is one in several hundred.
    reach = 3 * spread * (1 + 1 / len(band)) ** 0.5
    inside = np.abs(winograd - middle) <= reach
    rows = [
        {
            "step": (number + 1) * options.window,
            "direct": float(middle[number]),
            "deviation": float(spread[number]),
            "winograd": float(winograd[number]),
            "inside": bool(inside[number]),
        }
        for number in range(len(middle))
    ]
    if options.json:
        print(json.dumps({"machine": machine(), "rows": rows}, indent=1))
    else:
        print("  step  direct  deviation  winograd  inside")
        for row in rows:
            print(
                f"{row['step']:6} {row['direct']:7.4f} {row['deviation']:10.4f} {row['winograd']:9.4f}  "
                f"{'yes' if row['inside'] else 'NO'}"
            )
    return 0 if inside.all() else 1
