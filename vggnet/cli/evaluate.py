"""``vggnet evaluate``: top-1 and top-5 errors under the paper's protocols."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vggnet as vgg

from ..progress import Progress
from .common import (
    UsageError,
    add_command,
    columns,
    data_option,
    filter_option,
    join,
    open_data,
    pass_options,
    positive,
    positive_list,
    print_json,
)

if TYPE_CHECKING:
    from ..evaluate import Preset, Protocol, Report

# Those of vggnet.evaluate: loading it would keep every --help waiting.
KINDS = ("center", "ten-crop", "multi-crop", "dense", "combined")

EXAMPLES = """\
  vggnet evaluate model.safetensors --data sample --protocol center,dense,multi-crop,combined
  vggnet evaluate D.safetensors --data ILSVRC2012 --protocol dense --scales 384
  vggnet evaluate D.safetensors E.safetensors --data ILSVRC2012 --protocol combined --json
  vggnet evaluate D.safetensors --data ILSVRC2012 --paper table3:D:jitter,table4:D:jitter,table5:D:both
  vggnet evaluate --fuse D-combined.npz E-combined.npz --paper table6:D+E:both
  vggnet evaluate --paper list
"""
OF_A_ROW = {
    "protocol": ["dense"],
    "scales": None,
    "grid": 5,
    "mirror": None,
    "averaging": "scores",
}  # and defaults


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
        nargs="*",
        metavar="MODEL",
        help="model files; several are also fused: the mean of their posteriors",
    )
    data_option(parser)
    parser.add_argument(
        "--part", choices=("train", "val", "test"), default="test", help="of the data (default: test)"
    )
    protocol_options(parser, "dense", several=True)
    parser.add_argument(
        "--paper",
        metavar="ROW,...",
        help="rows of the paper's tables 3 to 6, such as table4:D:jitter: takes the models that a row is of, tests them "
        "by its protocol, and prints the paper's errors beside; list shows all rows",
    )
    parser.add_argument(
        "--scaled",
        action="store_true",
        help="with --paper, for models of another input size than 224: S and Q in proportion to it",
    )
    parser.add_argument(
        "--fuse",
        nargs="+",
        metavar="FILE",
        help="average posteriors that --posteriors stored, instead of evaluating models",
    )
    parser.add_argument(
        "--posteriors",
        metavar="DIR",
        help="store the report of each row of the table, with labels and posteriors, in an .npz file in this folder",
    )
    pass_options(parser)


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
    filter_option(parser)


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
    if args.paper == "list":
        _list_rows(args.json)
        return 0
    names, reports = _fuse(args) if args.fuse else _evaluate(args)
    from ..parallel import world

    if world().rank > 0:
        return 0
    if args.posteriors is not None:
        _store(Path(args.posteriors), names, reports)
    if args.json:
        rows = [report.to_dict() | {"name": name} for name, report in zip(names, reports, strict=True)]
        print_json({"data": args.data, "part": args.part, "reports": rows})
    elif len(reports) == 1:
        print(reports[0])
    else:
        from ..evaluate import table

        print(table(reports, names))
        notes = [report.paper.describe() for report in reports if report.paper is not None]
        notes += [protocol.describe() for report in reports for protocol in report.protocols]
        for text in dict.fromkeys(notes):
            print(f"\n{text}")
    return 0


def _evaluate(args: argparse.Namespace) -> tuple[list[str], list[Report]]:
    """Names and reports of all that the models are asked for, in one pass over the data."""
    from ..evaluate import compare

    if not args.models or args.data is None:
        raise UsageError("MODEL and --data are needed (or --fuse, or --paper list)")
    world = join(args)
    given = _rows(args)
    models = [
        vgg.load(path, device=args.device, weight_dtype=args.weight_dtype, precision=args.precision)
        for path in args.models
    ]
    entries: list[Any] = []
    names: list[str] = []
    if given:
        rows = [row.scaled(models[0].input_size) for row in given] if args.scaled else given
        entries = [([m for m in models if row.fits(m)] or models, row) for row in rows]
        names = [row.name for row in rows]
        for model, path in zip(models, args.models, strict=True):
            if not any(model in group for group, _ in entries):
                raise ValueError(f"{path}, of net {model.config}, belongs to no row of {args.paper}")
    else:
        labels = _labels(args.models, models)
        for kind in dict.fromkeys(args.protocol):
            pairs = [(model, make_protocol(args, kind, model)) for model in models]
            entries += pairs
            names += [f"{label} {kind}" for label in labels]
            if len(pairs) > 1:
                entries.append(pairs)
                names.append(f"{' + '.join(labels)} {kind}")
    dataset = open_data(args.data, args.part, channels=models[0].in_channels)
    with Progress("evaluate", None if world.rank == 0 else False) as progress:
        reports = compare(
            entries,
            dataset,
            progress=progress,
            keep_posteriors=args.posteriors is not None,
            strict=args.strict,
        )
    return names, reports


def _fuse(args: argparse.Namespace) -> tuple[list[str], list[Report]]:
    """Stored reports and their fusion."""
    from ..evaluate import Report, fuse

    for name, value in (("MODEL", args.models), ("--data", args.data), ("--posteriors", args.posteriors)):
        if value:
            raise UsageError(f"--fuse reads stored posteriors alone; leave out {name}")
    reports = [Report.load(path) for path in args.fuse]
    names = [Path(path).stem for path in args.fuse]
    fused = fuse(reports)
    name = " + ".join(names)
    rows = _rows(args)
    if len(rows) > 1:
        raise UsageError(f"--paper {args.paper}: with --fuse expected one row, that of the fusion")
    if rows:
        row = rows[0].scaled(fused.models[0]["input_size"]) if args.scaled else rows[0]
        fused, name = fused.beside(row), row.name
    return ([*names, name], [*reports, fused]) if len(reports) > 1 else ([name], [fused])


def _rows(args: argparse.Namespace) -> list[Preset]:
    """The rows that --paper names, with the options that the paper leaves open."""
    from dataclasses import replace

    from ..evaluate import preset

    if args.paper is None:
        if args.scaled:
            raise UsageError("--scaled goes with --paper")
        return []
    for name, default in OF_A_ROW.items():
        if getattr(args, name) != default:
            raise UsageError(f"--paper says how to test; leave out --{name}")
    options = {name: getattr(args, name) for name in ("filter", "batch", "memory")}
    try:
        rows = [preset(name) for name in dict.fromkeys(args.paper.split(","))]
    except ValueError as error:
        raise UsageError(f"--paper {args.paper}: {error}; --paper list shows all") from error
    return [replace(row, protocol=replace(row.protocol, **options)) for row in rows]


def _list_rows(as_json: bool) -> None:
    from ..evaluate import paper_rows

    rows = paper_rows()
    if as_json:
        print_json({"rows": [row.to_dict() for row in rows]})
        return
    lines = [("--paper", "S", "tested", "Q", "top-1", "top-5")]
    for row in rows:
        s = str(row.train_scale) if isinstance(row.train_scale, int) else "{}..{}".format(*row.train_scale)
        q = ", ".join(map(str, row.protocol.scales))
        lines.append((row.name, s, row.protocol.kind, q, f"{row.top1:.1f}", f"{row.top5:.1f}"))
    print(columns(lines))
    print("\nTop-1 and top-5 are the paper's errors on the validation images of ILSVRC-2012, %.")


def _labels(paths: list[str], models: list[vgg.VGG]) -> list[str]:
    """Short names of the models, all different: configs, or else names of files, or else paths."""
    candidates = ([m.config for m in models], [Path(path).stem for path in paths], paths)
    return next((names for names in candidates if len(set(names)) == len(names)), paths)


def _store(directory: Path, names: list[str], reports: list[Report]) -> None:
    """One file for each row of the table, named after it."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, report in zip(names, reports, strict=True):
        report.save(directory / (re.sub(r"[^\w+.-]+", "-", name.replace(" + ", "+")) + ".npz"))
