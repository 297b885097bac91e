"""``vggnet convert``: weights from one program's file to another's."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import vggnet as vgg

from ..configs import CONFIGS
from .common import UsageError, add_command, begin, positive, precision_option, print_json

FORMATS = (
    "vggnet",
    "torchvision",
    "caffe",
    "keras",
    "matconvnet",
    "onnx",
)  # vggnet.convert's, which is not loaded for --help

EXAMPLES = """\
  vggnet convert VGG_ILSVRC_16_layers.caffemodel D.safetensors --verify
  vggnet convert vgg16-397923af.pth D.safetensors
  vggnet convert D.safetensors D.onnx --verify
  vggnet convert D.safetensors vgg16.safetensors --to torchvision
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "convert",
        run,
        "Weights from one program's file to another's: Caffe, torchvision, ...",
        EXAMPLES,
    )
    parser.add_argument(
        "input", metavar="IN", help=".safetensors, .pth, .caffemodel, .h5, .keras, .mat or .onnx"
    )
    parser.add_argument("output", metavar="OUT", help=".safetensors, .caffemodel (and a .prototxt) or .onnx")
    parser.add_argument(
        "--from", dest="source", choices=FORMATS, help="format of IN, where its suffix doesn't tell"
    )
    parser.add_argument(
        "--to", choices=FORMATS, help="format of OUT (default: by its suffix; vggnet for .safetensors)"
    )
    parser.add_argument(
        "--config", choices=tuple(CONFIGS), help="the net that IN must hold; A-LRN is not told from A"
    )
    parser.add_argument(
        "--num-classes",
        type=positive,
        metavar="N",
        help="to fine-tune: with another number than IN's, fc8 is drawn anew",
    )
    precision_option(parser)
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read OUT back; compare all weights and the scores of a random image",
    )


@contextlib.contextmanager
def _log_shown() -> Iterator[None]:
    """Send what the package logs to the standard error."""
    log, handler = logging.getLogger("vggnet"), logging.StreamHandler(sys.stderr)
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def run(args: argparse.Namespace) -> int:
    from .. import convert

    begin(args)
    if Path(args.output).exists() and Path(args.input).exists() and Path(args.output).samefile(args.input):
        raise UsageError("IN and OUT are one file")
    to = args.to or convert.format_of(args.output)
    with _log_shown():  # which says that fc8 is drawn anew
        model = vgg.load(
            args.input,
            device=args.device,
            config=args.config,
            num_classes=args.num_classes,
            format=args.source,
            precision=args.precision,
        )
    convert.write(model, args.output, format=to)
    result: dict[str, Any] = {
        "input": args.input,
        "output": args.output,
        "format": to,
        "config": model.config,
        "parameters": model.num_parameters,
        "classes": model.num_classes,
        "image": [model.input_size, model.input_size, model.in_channels],
        "mean": list(model.preprocessing.mean),
        "pool_rounding": model.pool_rounding,
        "verified": convert.verify(model, args.output, format=to) if args.verify else None,
    }
    if args.json:
        print_json(result)
        return 0
    mean = ", ".join(f"{value:.6g}" for value in result["mean"])
    print(
        f"{args.output} ({to}): net {model.config}, {model.num_parameters:,} parameters, {model.num_classes} classes"
    )
    print(
        f"input {model.input_size} x {model.input_size} {model.preprocessing.channels}, mean {mean}, "
        f"pooling rounds {'up' if model.pool_rounding == 'ceil' else 'down'}"
    )
    if verified := result["verified"]:
        print(
            f"verified: read back, all weights are equal bit for bit; class scores of a random image, by "
            f"{verified['runtime']}, differ by at most {verified['scores']:.2g} of {verified['largest']:.3g}"
        )
    return 0
