"""The options of ``vggnet train``, and which of them are arguments of `VGG` and fields of `Recipe`."""

from __future__ import annotations

import argparse

from ..configs import CONFIGS
from .common import data_option, number, positive, precision_option

NET = ("config", "input_size", "in_channels", "fc_width", "dropout", "init", "precision")  # arguments of VGG
RECIPE = {  # options and the fields of Recipe that they set
    "batch": "batch",
    "micro_batch": "micro_batch",
    "lr": "lr",
    "momentum": "momentum",
    "weight_decay": "weight_decay",
    "epochs": "epochs",
    "iterations": "iterations",
    "patience": "plateau_patience",
    "threshold": "plateau_threshold",
    "lr_drops": "lr_drops",
    "scale": "scale",
    "mirror": "mirror",
    "rgb_shift": "rgb_shift",
    "freeze": "freeze",
    "lr_multipliers": "lr_multipliers",
    "compress": "compress",
    "seed": "seed",
}
RECIPES = ("paper", "quickstart")


def add_options(parser: argparse.ArgumentParser) -> None:
    """All of them, in groups."""
    data_option(parser)
    parser.add_argument(
        "--val",
        metavar="SHARE|DATA",
        help="what the learning rate watches: a share of the training images to hold out, or a folder "
        "(default: the validation part of --data if it has one, else a share); never the test images",
    )
    parser.add_argument("--out", metavar="DIR", help="where model, checkpoints, history and curves go")
    parser.add_argument(
        "--resume", metavar="DIR", help="go on with the run in DIR, bit for bit; options are the run's"
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="net and settings where no option says otherwise; paper: D, 224 x 224, batch 256, lr 0.01, 74 "
        "epochs (default: quickstart for sample and fashion-mnist, else paper)",
    )
    parser.add_argument(
        "--devices",
        type=_names,
        metavar="LIST",
        help="train on several devices, as in cuda:0,cuda:1; the result is that of one, to rounding",
    )
    parser.add_argument(
        "--cuda-graph",
        action="store_true",
        help="on CUDA devices, capture the passes of whole batches as CUDA graphs: the same bits, less work for the host",
    )
    parser.add_argument(
        "--checkpoint-every",
        type=positive,
        metavar="N",
        help="also write a checkpoint after every N updates (default: after epochs)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="stop at the first broken image (default: at 1 %% of them)"
    )
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="threads that read images (default: one a core)"
    )
    _stage_options(parser.add_argument_group("the paper's chain of trainings"))
    _net_options(parser.add_argument_group("net"))
    _recipe_options(parser.add_argument_group("recipe"))


def _stage_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--paper",
        choices=tuple(CONFIGS),
        metavar="NET",
        help="train this net in stages, each from the weights of the one before; options hold for all stages",
    )
    group.add_argument(
        "--stages",
        type=_names,
        metavar="LIST",
        help="some of A,256,384,jitter, in this order (default: those that the paper trained the net in; without A "
        "where --init is xavier or he)",
    )
    group.add_argument(
        "--scales",
        type=_three,
        metavar="S1,S2,S3",
        help="smallest sides that stand for 256, 384 and 512 (default: in proportion to the input size)",
    )
    group.add_argument(
        "--dry-run", action="store_true", help="print the stages and what they will cost, and train nothing"
    )
    group.add_argument(
        "--images-per-second",
        type=number,
        metavar="X",
        help="training speed of the net, for the plan (default: measured)",
    )


def _net_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--config", choices=tuple(CONFIGS), help="column of the paper's table 1")
    group.add_argument("--input-size", type=positive, metavar="N", help="a multiple of 32")
    group.add_argument("--in-channels", type=int, choices=(1, 3), help="1 gray, 3 RGB")
    group.add_argument("--fc-width", type=positive, metavar="N", help="of fc6 and fc7; fewer suit small data")
    group.add_argument("--dropout", type=number, metavar="P", help="after fc6 and fc7")
    group.add_argument(
        "--init",
        choices=("paper", "paper-variance", "xavier", "he"),
        help="first weights; from the paper's, only A learns: deeper nets take xavier, or --init-from an A",
    )
    group.add_argument(
        "--init-from",
        metavar="MODEL",
        help="start from a model, ours or another program's: all weights of the same net, or the layers that "
        "deeper nets took from A",
    )
    group.add_argument(
        "--stats",
        metavar="FILE",
        help="mean and covariance of the training images, from vggnet data stats (default: those of --init-from's "
        "model, else computed in one pass)",
    )
    group.add_argument("--mean", type=_numbers, metavar="R,G,B", help="another mean, on the 0..255 scale")
    precision_option(group)


def _recipe_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--batch", type=positive, metavar="N", help="images an update")
    group.add_argument(
        "--micro-batch",
        type=positive,
        metavar="N",
        help="images a pass: less memory, same update (default: what fits)",
    )
    group.add_argument(
        "--lr", type=number, help="first learning rate; stages 384 and jitter begin with a tenth"
    )
    group.add_argument("--momentum", type=number)
    group.add_argument("--weight-decay", type=number)
    group.add_argument("--epochs", type=positive, metavar="N", help="at most")
    group.add_argument("--iterations", type=positive, metavar="N", help="updates, at most")
    group.add_argument(
        "--patience", type=positive, metavar="N", help="epochs without improvement until the lr falls"
    )
    group.add_argument(
        "--threshold", type=number, metavar="POINTS", help="the fall of the error that counts as improvement"
    )
    group.add_argument(
        "--lr-drops", type=int, metavar="N", help="times that the lr falls; the next plateau is the end"
    )
    group.add_argument(
        "--scale",
        type=_scale,
        metavar="S|LO,HI",
        help="shorter side of training images, or its range (default: 256 in proportion to the input size)",
    )
    group.add_argument("--mirror", action=argparse.BooleanOptionalAction, help="mirror half of the images")
    group.add_argument(
        "--freeze",
        type=_names,
        metavar="LAYERS",
        help="layers that keep their weights, by name or pattern, as in conv1_1,conv2*",
    )
    group.add_argument(
        "--lr-multipliers",
        type=_multipliers,
        metavar="LAYER=X,...",
        help="what the lr is multiplied by in some layers, by name or pattern, as in fc8=10,conv*=0.1",
    )
    group.add_argument(
        "--rgb-shift", choices=("eigenvalue", "deviation", "none"), help="random shift of the colour"
    )
    group.add_argument(
        "--compress",
        choices=("bf16",),
        help="processes (mpirun) send gradients rounded to bfloat16: half the bytes (default: float32)",
    )


# ---- types


def _numbers(text: str) -> list[float]:
    return [number(part) for part in text.split(",")]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _multipliers(text: str) -> dict[str, float]:
    pairs = [part.split("=") for part in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: expected LAYER=NUMBER, ...")
    return {name: number(value) for name, value in pairs}


def _scale(text: str) -> int | tuple[int, int]:
    sides = [positive(part) for part in text.split(",")]
    if len(sides) > 2 or sides != sorted(sides):
        raise argparse.ArgumentTypeError(f"{text!r}: expected one number, or LOW,HIGH")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _three(text: str) -> tuple[int, int, int]:
    sides = [positive(part) for part in text.split(",")]
    if len(sides) != 3 or sides != sorted(sides):
        raise argparse.ArgumentTypeError(f"{text!r}: expected three numbers, the smallest first")
    return sides[0], sides[1], sides[2]
