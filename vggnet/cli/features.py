"""``vggnet features``: descriptors of images for other classifiers (paper, appendix B)."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import vggnet as vgg

from ..progress import Progress
from .common import (
    UsageError,
    add_command,
    begin,
    filter_option,
    open_data,
    pass_options,
    positive_list,
    print_json,
)

if TYPE_CHECKING:
    from ..features.extraction import LabelledImages

LAYOUTS = ("folder", "voc", "caltech101", "caltech256")

EXAMPLES = """\
  vggnet features photos --model D.safetensors --out photos.safetensors
  vggnet features VOCdevkit/VOC2007 --layout voc --part test --model D.safetensors --out test.safetensors
  vggnet features 101_ObjectCategories --layout caltech101 --combine stack --model D.safetensors E.safetensors \\
      --out caltech.safetensors
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "features",
        run,
        "Describe images by a layer of one or several nets, averaged over positions, mirror image and scales.",
        EXAMPLES,
    )
    parser.add_argument(
        "data",
        metavar="DIR",
        help="folder of images, laid out as --layout says; also sample, fashion-mnist or fashion-mnist:DIR",
    )
    parser.add_argument(
        "--model",
        nargs="+",
        required=True,
        metavar="MODEL",
        help="model files; descriptors of several are stacked",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the safetensors file to write")
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="folder",
        help="folder: one subfolder for each class, or train/, val/ and test/ of that kind; voc: a year of PASCAL VOC; "
        "caltech101, caltech256: without background and clutter (default: folder)",
    )
    parser.add_argument(
        "--part",
        help="of the data: train, val or test (default: train); voc: trainval too, and that is its default; "
        "caltech has no parts",
    )
    parser.add_argument(
        "--combine",
        choices=("mean", "stack"),
        default="mean",
        help="descriptors of the scales: mean (the paper, on VOC) or stack (on Caltech) (default: mean)",
    )
    parser.add_argument(
        "--scales",
        type=positive_list,
        metavar="Q,...",
        help="shorter sides of the rescaled images (default: the paper's, in proportion to the model's input size)",
    )
    parser.add_argument("--layer", default="relu7", help="any of the net's (default: relu7)")
    parser.add_argument(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="average with the mirror image (default: yes)",
    )
    filter_option(parser)
    pass_options(parser)


def run(args: argparse.Namespace) -> int:
    from ..features import Aggregation, extract, resolve

    begin(args)
    models = [
        vgg.load(path, device=args.device, weight_dtype=args.weight_dtype, precision=args.precision)
        for path in args.model
    ]
    fields = {name: getattr(args, name) for name in ("layer", "mirror", "filter", "batch", "memory")}
    try:
        pairs = [
            (model, resolve(Aggregation.for_model(model, args.combine, args.scales, **fields), model))
            for model in models
        ]
    except ValueError as error:
        raise UsageError(str(error)) from error
    dataset = _open(args.data, args.layout, args.part, models[0])
    with Progress("features") as progress:
        found = extract(pairs, dataset, progress=progress, strict=args.strict)
    found.save(args.out)
    seconds = found.facts["seconds"]
    if args.json:
        facts = {name: found.facts[name] for name in ("models", "aggregations", "columns", "version")}
        result = {"data": args.data, "out": args.out, "images": len(found), "width": found.values.shape[1]}
        broken = [{"name": name, "reason": reason} for name, reason in found.broken]
        speed = {"seconds": seconds, "images_per_second": len(found) / seconds}
        print_json(result | {"classes": len(found.classes), "broken": broken} | speed | facts)
        return 0
    for text in dict.fromkeys(aggregation.describe() for _, aggregation in pairs):
        print(text)
    if found.broken:
        print(
            f"{len(found.broken)} images could not be read and are left out; the first: {found.broken[0][1]}"
        )
    print(
        f"{args.out}: {len(found)} images of {len(found.classes)} classes, {found.values.shape[1]} features each "
        f"({len(found) / seconds:.1f} images/s)"
    )
    return 0


def _open(folder: str, layout: str, part: str | None, model: vgg.VGG) -> LabelledImages:
    from .. import data

    channels = model.preprocessing.channels
    if layout == "voc":
        return data.VOC(folder, part or "trainval", channels=channels)
    if layout != "folder":
        if part is not None:
            raise UsageError(
                f"--part {part}: {layout} has no parts; its splits are random, see data.split_per_class"
            )
        kind = data.Caltech101 if layout == "caltech101" else data.Caltech256
        return kind(folder, channels=channels)
    if part not in (None, "train", "val", "test"):
        raise UsageError(f"--part {part}: expected train, val or test")
    return open_data(folder, part or "train", channels=model.in_channels)
