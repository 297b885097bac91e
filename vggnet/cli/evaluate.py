"""``vggnet evaluate``: top-1 and top-5 errors under the paper's protocols."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vggnet as vgg

from ..progress import Progress
from .common import (
    UsageError,
    add_command,
    begin,
    data_option,
    open_data,
    positive,
    positive_list,
    print_json,
    size_in_bytes,
    weight_dtype_option,
)

if TYPE_CHECKING:
    from ..evaluate import Protocol, Report

# Those of vggnet.evaluate and vggnet.preprocess: loading these would keep every --help waiting.
KINDS = ("center", "ten-crop", "multi-crop", "dense", "combined")
FILTERS = ("bilinear", "bicubic", "lanczos", "box")

EXAMPLES = """\
  vggnet evaluate model.safetensors --data sample --protocol center,dense,multi-crop,combined
  vggnet evaluate D.safetensors --data ILSVRC2012 --protocol dense --scales 384
  vggnet evaluate D.safetensors E.safetensors --data ILSVRC2012 --protocol combined --json
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "evaluate",
        run,
        "Errors of one or several nets, and of their fusion, under the protocols of the paper.",
        EXAMPLES,
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="model files; several are also fused: the mean of their posteriors",
    )
    data_option(parser, required=True)
    parser.add_argument(
        "--part", choices=("train", "val", "test"), default="test", help="of the data (default: test)"
    )
    protocol_options(parser, "dense", several=True)
    weight_dtype_option(parser)
    parser.add_argument(
        "--batch", type=positive, default=32, metavar="N", help="crops in one forward pass (default: 32)"
    )
    parser.add_argument(
        "--memory",
        type=size_in_bytes,
        metavar="SIZE",
        help="for one dense pass, such as 512M or 2G (default: 1G)",
    )
    parser.add_argument(
        "--posteriors", metavar="FILE", help="write labels and every net's posteriors to this .npz file"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop at the first image that cannot be read (default: at 1 %% of them)",
    )


def protocol_options(parser: argparse.ArgumentParser, default: str, *, several: bool = False) -> None:
    """Options that say how images become posteriors."""
    parser.add_argument(
        "--protocol",
        type=_kinds if several else str,
        choices=None if several else ("paper", *KINDS),
        default=[default] if several else default,
        metavar="KIND,..." if several else None,
        help=f"{', '.join(KINDS)}{'; several with commas' if several else ''} (default: {default})",
    )
    parser.add_argument(
        "--scales",
        type=positive_list,
        metavar="Q,...",
        help="shorter sides of the rescaled images (default: those that go with the model's training, see "
        "Protocol.for_model; center and ten-crop take one)",
    )
    parser.add_argument(
        "--grid",
        type=positive,
        default=5,
        metavar="N",
        help="multi-crop takes N x N crops at each scale (default: 5)",
    )
    parser.add_argument(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        help="average with the mirror image (default: yes, but not for center)",
    )
    parser.add_argument(
        "--averaging",
        choices=("scores", "posteriors"),
        default="scores",
        help="what dense averages over positions (default: scores, as the paper)",
    )
    parser.add_argument(
        "--filter",
        choices=FILTERS,
        default="bicubic",
        help="of rescaling (default: bicubic)",
    )


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    for kind in kinds:
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(f"{kind!r}: expected one of {', '.join(KINDS)}")
    return kinds


def make_protocol(args: argparse.Namespace, kind: str, model: vgg.VGG) -> Protocol:
    """The protocol that the options name, for a model."""
    from dataclasses import replace

    from ..evaluate import Protocol

    options: dict[str, Any] = {"grid": args.grid, "averaging": args.averaging, "filter": args.filter}
    if args.mirror is not None:
        options["mirror"] = args.mirror
    for name in ("batch", "memory"):
        if getattr(args, name, None) is not None:
            options[name] = getattr(args, name)
    try:
        return replace(
            Protocol.for_model("dense" if kind == "paper" else kind, model, args.scales), **options
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def run(args: argparse.Namespace) -> int:
    from ..evaluate import compare, table

    begin(args)
    models = [vgg.load(path, device=args.device, weight_dtype=args.weight_dtype) for path in args.models]
    dataset = open_data(args.data, args.part, channels=models[0].in_channels)
    labels = _labels(args.models, models)
    entries: list[Any] = []
    names: list[str] = []
    for kind in dict.fromkeys(args.protocol):
        pairs = [(model, make_protocol(args, kind, model)) for model in models]
        entries += pairs
        names += [f"{label} {kind}" for label in labels]
        if len(pairs) > 1:
            entries.append(pairs)
            names.append(f"{' + '.join(labels)} {kind}")
    with Progress("evaluate") as progress:
        reports = compare(
            entries,
            dataset,
            progress=progress,
            keep_posteriors=args.posteriors is not None,
            strict=args.strict,
        )
    if args.posteriors is not None:
        _write_posteriors(args.posteriors, names, reports)
    if args.json:
        rows = [report.to_dict() | {"name": name} for name, report in zip(names, reports, strict=True)]
        print_json({"data": args.data, "part": args.part, "reports": rows})
    elif len(reports) == 1:
        print(reports[0])
    else:
        print(table(reports, names))
        for text in dict.fromkeys(p.describe() for r in reports for p in r.protocols):
            print(f"\n{text}")
    return 0


def _labels(paths: list[str], models: list[vgg.VGG]) -> list[str]:
    """Short names of the models, all different: configs, or else names of files, or else paths."""
    candidates = ([m.config for m in models], [Path(path).stem for path in paths], paths)
    return next((names for names in candidates if len(set(names)) == len(names)), paths)


def _write_posteriors(path: str, names: list[str], reports: list[Report]) -> None:
    """Labels and posteriors of every row."""
    import numpy as np

    from ..checkpoint import replace_file

    arrays: dict[str, Any] = {name: report.posteriors for name, report in zip(names, reports, strict=True)}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # of whatever name: savez would add .npz to a path
            np.savez(file, labels=reports[0].labels, **arrays)

    replace_file(path, write)
