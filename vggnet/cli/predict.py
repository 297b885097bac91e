"""``vggnet predict``: what is in these images?"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import vggnet as vgg

from .common import (
    add_command,
    begin,
    columns,
    positive,
    precision_option,
    print_json,
    weight_dtype_option,
)
from .evaluate import make_protocol, protocol_options

EXAMPLES = """\
  vggnet predict model.safetensors cat.jpg dog.png
  vggnet predict model.safetensors --top 3 --protocol combined --json cat.jpg
"""

TOGETHER = 16  # images read and computed at once


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "predict", run, "The likeliest classes of images, with their probabilities.", EXAMPLES
    )
    parser.add_argument("model", metavar="MODEL", help="a model file")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, of any size")
    parser.add_argument("--top", type=positive, default=5, metavar="N", help="how many classes (default: 5)")
    protocol_options(parser, "paper")
    weight_dtype_option(parser)
    precision_option(parser)


def run(args: argparse.Namespace) -> int:
    import numpy as np

    from ..evaluate import posteriors
    from ..preprocess import load_image

    begin(args)
    model = vgg.load(args.model, device=args.device, weight_dtype=args.weight_dtype, precision=args.precision)
    protocol = make_protocol(args, args.protocol, model)
    names = model.classes or [str(i) for i in range(model.num_classes)]
    results: list[dict[str, Any]] = []
    failed = 0
    for start in range(0, len(args.images), TOGETHER):
        paths, images = [], []
        for path in args.images[start : start + TOGETHER]:
            try:
                images.append(load_image(path, model.preprocessing.channels))
                paths.append(path)
            except vgg.ImageError as error:
                failed += 1
                print(f"vggnet predict: {error}", file=sys.stderr)
        for path, row in zip(paths, posteriors(model, images, protocol), strict=True):
            best = np.argsort(-row, kind="stable")[: args.top]
            top = [{"class": names[i], "index": int(i), "probability": float(row[i])} for i in best]
            results.append({"image": path, "top": top})
            if not args.json:
                print(path)
                print(columns([(f"{t['probability']:7.2%}", t["class"]) for t in top], "  "), flush=True)
    if args.json:
        print_json({"protocol": protocol.describe(), "images": results})
    return 1 if failed else 0
