"""What the commands share: options, data sets, output."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vggnet as vgg

if TYPE_CHECKING:
    from ..data import Dataset
    from ..parallel import World
    from ..preprocess import Channels

FILTERS = ("bilinear", "bicubic", "lanczos", "box")  # of preprocess, which would load Pillow
SIZES = {"k": 10, "m": 20, "g": 30, "t": 40}


class UsageError(Exception):
    """The command line asks for something that cannot be; exit status 2."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a sentence on how to go on."""


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of examples, and does not squeeze the help of options into the right half of the
    terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    summary: str,
    examples: str,
    *,
    reports: bool = True,
) -> argparse.ArgumentParser:
    """A subcommand with the options that all have."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary, epilog="examples:\n" + examples, formatter_class=Formatter
    )
    parser.set_defaults(run=run)
    common = parser.add_argument_group("common options")
    common.add_argument(
        "--device",
        default="cpu",
        help='where to compute: "cpu" (default) or a device that "vggnet info" lists',
    )
    common.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="CPU threads (default: all cores); results do not depend on it",
    )
    common.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of everything drawn at random (default: 0)"
    )
    if reports:
        common.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def begin(args: argparse.Namespace) -> None:
    """Apply the common options; an unknown device is an error now, not after the data are read."""
    if args.threads is not None:
        vgg.set_num_threads(args.threads)
    vgg.empty((1,), device=args.device)


def join(args: argparse.Namespace) -> World:
    """`begin` for a command that processes do together, each on a device of its own; the processes."""
    from ..parallel import world

    processes = world()
    if processes.size > 1 and args.device == "cuda":
        found = vgg.cuda.device_count()
        if not processes.local_rank < found:
            raise UsageError(
                f"--device cuda: process {processes.rank} is number {processes.local_rank} on this machine, which has {found} "
                "CUDA devices; start as many processes as there are devices"
            )
        args.device = f"cuda:{processes.local_rank}"
    begin(args)
    return processes


# ---- types of arguments: argparse reports their errors as usage errors


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return value


def fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number between 0 and 1")
    return value


def number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a number, 0 or more")
    return value


def positive_list(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def size_in_bytes(text: str) -> int:
    """ "512M", "2G" or a plain number of bytes."""
    unit = text[-1:].lower()
    return positive(text[:-1]) << SIZES[unit] if unit in SIZES else positive(text)


# ---- data


def open_data(spec: str, part: str, channels: int = 3) -> Dataset:
    """The data set that ``--data`` names.

    Parameters
    ----------
    spec : "sample", "fashion-mnist", "fashion-mnist:DIR" or a folder
        Of ILSVRC-2012, if it holds one of its archives or its devkit; or with subfolders for the parts; or of one part.
        A folder of a part holds shards, or a folder per class.
    part : "train", "val" or "test"
        "test" takes val/ where there is no test/ (ILSVRC's test labels are secret).
    """
    from .. import data
    from ..data.ilsvrc import DEVKIT

    name, _, directory = spec.partition(":")
    if name in ("sample", "fashion-mnist"):
        if part == "val":
            raise UsageError(f"--data {spec} has the parts train and test, no val")
        if name == "sample" and not directory:
            return data.sample(train=part == "train")
        if name == "fashion-mnist":
            return data.FashionMNIST(directory or None, train=part == "train")
    order: Channels = "gray" if channels == 1 else "RGB"
    root = Path(spec)
    if not root.is_dir():
        raise FileNotFoundError(
            f"--data {spec}: no such folder; expected sample, fashion-mnist, "
            "or a folder with one subfolder of images for each class"
        )
    if any(
        (root / name).exists() for name in (*data.ILSVRC2012.ARCHIVES.values(), DEVKIT, f"{DEVKIT}.tar.gz")
    ):
        return data.ILSVRC2012(root, "train" if part == "train" else "val", channels=order)
    candidates = {"train": ("train",), "val": ("val",), "test": ("test", "val")}[part]
    for candidate in candidates:
        if (root / candidate).is_dir():
            return _open_folder(root / candidate, order)
    if any((root / candidate).is_dir() for candidate in ("train", "val", "test")):
        raise FileNotFoundError(f"--data {spec} has no subfolder {' or '.join(candidates)}")
    return _open_folder(root, order)


def has_val(spec: str) -> bool:
    """Whether the folder that ``--data`` names has validation images of its own."""
    from ..data import ILSVRC2012

    return Path(spec, "val").is_dir() or Path(spec, ILSVRC2012.ARCHIVES["val"]).is_file()


def _open_folder(folder: Path, order: Channels) -> Dataset:
    from .. import data

    kind = data.Shards if next(folder.glob("*.tar"), None) else data.ImageFolder
    return kind(folder, channels=order)


def data_option(parser: argparse.ArgumentParser, **options: Any) -> None:
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="sample (in the package), fashion-mnist, fashion-mnist:DIR (its four .gz files), or a folder: "
        "with one subfolder of images for each class, or shards, or train/, val/ and test/ of these kinds, or the "
        "files of ILSVRC-2012",
        **options,
    )


def weight_dtype_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weight-dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="how the weights of fc6, fc7 and fc8 are held; bfloat16 takes half the memory and rounds them "
        "(default: float32)",
    )


def precision_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--precision",
        choices=("float32", "tf32", "bf16"),
        help="tf32: a GPU may round the factors of products to 10 bits, for its tensor cores; bf16, on GPUs only: maps, and "
        "the weights that they are multiplied with, have 8 bits (default: the model's, float32)",
    )


def filter_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--filter", choices=FILTERS, default="bicubic", help="of rescaling (default: bicubic)"
    )


def pass_options(parser: argparse.ArgumentParser) -> None:
    """How the images of a data set go through nets: what `evaluate` and `features` share."""
    weight_dtype_option(parser)
    precision_option(parser)
    parser.add_argument(
        "--batch",
        type=positive,
        default=32,
        metavar="N",
        help="a pass takes N crops, or as many pixels (default: 32)",
    )
    parser.add_argument(
        "--memory",
        type=size_in_bytes,
        default=1 << 30,
        metavar="SIZE",
        help="for one dense pass, such as 512M or 2G (default: 1G)",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop at the first image that cannot be read (default: at 1 %% of them)",
    )


# ---- output


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Rows of text as left-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
        for row in rows
    )
