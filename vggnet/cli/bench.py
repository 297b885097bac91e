"""``vggnet bench``: how fast is each layer of a net on this machine, and what limits it?"""

from __future__ import annotations

import argparse
from typing import Any

import vggnet as vgg

from ..configs import CONFIGS
from .common import add_command, begin, number, positive, precision_option, print_json

EXAMPLES = """\
  vggnet bench
  vggnet bench --config A --batch 32 --direction training
  vggnet bench --input-size 64 --fc-width 512 --json
"""

HEADER = "layer    shape                    direction       algorithm        ms  GFLOP/s of peak of floor       MB   GB/s"


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "bench", run, "Time, arithmetic and memory traffic of each layer of a net.", EXAMPLES
    )
    parser.add_argument(
        "--config", choices=tuple(CONFIGS), default="D", help="column of the paper's table 1 (default: D)"
    )
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="images (default: 1)")
    parser.add_argument(
        "--direction",
        choices=("forward", "training"),
        default="forward",
        help="a forward pass (default), or a training step: forward, gradients, SGD",
    )
    parser.add_argument(
        "--input-size", type=positive, default=224, metavar="N", help="a multiple of 32 (default: 224)"
    )
    parser.add_argument("--in-channels", type=int, choices=(1, 3), default=3, help="1 gray, 3 RGB (default)")
    parser.add_argument(
        "--fc-width", type=positive, default=4096, metavar="N", help="of fc6 and fc7 (default: 4096)"
    )
    precision_option(parser)
    parser.add_argument(
        "--seconds",
        type=number,
        default=1.0,
        metavar="S",
        help="of timed passes, at least three (default: 1)",
    )


def run(args: argparse.Namespace) -> int:
    from ..bench import profile

    begin(args)
    model = vgg.VGG(
        args.config,
        input_size=args.input_size,
        in_channels=args.in_channels,
        fc_width=args.fc_width,
        init="he",
        precision=args.precision or "float32",
        seed=args.seed,
        device=args.device,
    )
    result = profile(model, args.batch, training=args.direction == "training", seconds=args.seconds)
    result = {
        name: getattr(args, name) for name in ("config", "batch", "direction", "input_size", "in_channels")
    } | result
    if args.json:
        print_json(result)
    else:
        print(_table(result))
    return 0


def _table(result: dict[str, Any]) -> str:
    about, total = result["machine"], result["total"]
    where = (
        f"{about['cpu']}, {about['kernel']}, {about['threads']} threads"
        if "cpu" in about
        else f"{about['name']}, {about['multiprocessors']} multiprocessors at {about['clock'] * 1e-6:.0f} MHz"
    )
    lines = [
        f"{where}; peak {about['peak'] * 1e-9:.0f} GFLOP/s, "
        f"memory {about['bandwidth'] * 1e-9:.0f} GB/s; least of {result['passes']} passes",
        "",
        HEADER,
        *(_line(row) for row in result["rows"]),
        _line({"layer": "total", "shape": "", "direction": result["direction"], "algorithm": None} | total),
        "",
        f"{total['ms']:.1f} ms a pass, {total['ms'] / result['batch']:.2f} ms an image, "
        f"{total['images_per_s']:.1f} images/s",
    ]
    if "traffic" in result:
        lines += ["", "Bytes that a step moves (* the least that any can)"]
        lines += [
            f"{item['bytes'] / 1e6:9.0f} MB {'*' if item['least'] else ' '} {item['what']}"
            for item in result["traffic"]
        ]
        moved = sum(item["bytes"] for item in result["traffic"])
        least = sum(item["bytes"] for item in result["traffic"] if item["least"])
        lines.append(
            f"{moved / 1e6:9.0f} MB in all, {moved / least:.2f} times the least, {least / 1e6:.0f} MB"
        )
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    rates = (
        f"{row['gflops']:8.1f} {row['peak_fraction']:7.0%} {row['floor_fraction']:8.0%}"
        if row["flops"]
        else " " * 25
    )
    return (
        f"{row['layer']:8} {row['shape']:24} {row['direction']:15} {row['algorithm'] or '':9} {row['ms']:9.3f} "
        f"{rates} {row['least_bytes'] / 1e6:8.1f} {row['gbytes_per_s']:6.1f}"
    )
