"""``vggnet train``: a net on your images, by the paper's recipe."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vggnet as vgg

from ..configs import CONFIGS
from ..progress import Progress
from .common import (
    Interrupted,
    UsageError,
    add_command,
    begin,
    data_option,
    fraction,
    has_val,
    number,
    open_data,
    positive,
    precision_option,
    print_json,
)

if TYPE_CHECKING:
    from ..data import Dataset
    from ..history import History
    from ..train import Recipe

EXAMPLES = """\
  vggnet train --data sample --out runs/sample
  vggnet train --data flowers --config A --out runs/A
  vggnet train --data flowers --config D --init xavier --batch 64 --lr 0.005 --out runs/xavier
  vggnet train --data flowers --config D --init-from runs/A/model.safetensors --out runs/D
  vggnet train --resume runs/D
"""

DATA_FILE = "train.json"  # --data and --val of the run; all else is in its checkpoints
LIMITS = ("epochs", "iterations")  # of the recipe: what a resumed run may change

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
    "seed": "seed",
}
RECIPES = ("paper", "quickstart")
PAPER_NET = {
    "config": "D",
    "input_size": 224,
    "in_channels": 3,
    "fc_width": 4096,
    "dropout": 0.5,
    "init": "paper",
}


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "train", run, "Train a net by the paper's recipe, or a variation of it.", EXAMPLES
    )
    data_option(parser)
    parser.add_argument(
        "--val",
        metavar="SHARE|DATA",
        help="what the learning rate watches: a share of the training images to hold out, or a folder "
        "(default: val/ of the data folder if there is one, else a share); never the test images",
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
        "--strict", action="store_true", help="stop at the first broken image (default: at 1 %% of them)"
    )
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="threads that read images (default: one a core)"
    )

    net = parser.add_argument_group("net")
    net.add_argument("--config", choices=tuple(CONFIGS), help="column of the paper's table 1")
    net.add_argument("--input-size", type=positive, metavar="N", help="a multiple of 32")
    net.add_argument("--in-channels", type=int, choices=(1, 3), help="1 gray, 3 RGB")
    net.add_argument("--fc-width", type=positive, metavar="N", help="of fc6 and fc7; fewer suit small data")
    net.add_argument("--dropout", type=number, metavar="P", help="after fc6 and fc7")
    net.add_argument(
        "--init",
        choices=("paper", "paper-variance", "xavier", "he"),
        help="first weights; from the paper's, only A learns: deeper nets take xavier, or --init-from an A",
    )
    net.add_argument(
        "--init-from",
        metavar="MODEL",
        help="start from a model: all weights of the same net, or the layers that deeper nets took from A",
    )
    net.add_argument(
        "--stats",
        metavar="FILE",
        help="mean and covariance of the training images, from vggnet data stats (default: computed in one pass)",
    )
    net.add_argument("--mean", type=_numbers, metavar="R,G,B", help="another mean, on the 0..255 scale")

    precision_option(net)

    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--batch", type=positive, metavar="N", help="images an update")
    recipe.add_argument(
        "--micro-batch",
        type=positive,
        metavar="N",
        help="images a pass: less memory, same update (default: what fits)",
    )
    recipe.add_argument("--lr", type=number, help="first learning rate")
    recipe.add_argument("--momentum", type=number)
    recipe.add_argument("--weight-decay", type=number)
    recipe.add_argument("--epochs", type=positive, metavar="N", help="at most")
    recipe.add_argument("--iterations", type=positive, metavar="N", help="updates, at most")
    recipe.add_argument(
        "--patience", type=positive, metavar="N", help="epochs without improvement until the lr falls"
    )
    recipe.add_argument(
        "--threshold", type=number, metavar="POINTS", help="the fall of the error that counts as improvement"
    )
    recipe.add_argument(
        "--lr-drops", type=int, metavar="N", help="times that the lr falls; the next plateau is the end"
    )
    recipe.add_argument(
        "--scale",
        type=_scale,
        metavar="S|LO,HI",
        help="shorter side of training images, or its range (default: 256 in proportion to the input size)",
    )
    recipe.add_argument("--mirror", action=argparse.BooleanOptionalAction, help="mirror half of the images")
    recipe.add_argument(
        "--freeze",
        type=_names,
        metavar="LAYERS",
        help="layers that keep their weights, by name or pattern, as in conv1_1,conv2*",
    )
    recipe.add_argument(
        "--lr-multipliers",
        type=_multipliers,
        metavar="LAYER=X,...",
        help="what the lr is multiplied by in some layers, by name or pattern, as in fc8=10,conv*=0.1",
    )
    recipe.add_argument(
        "--rgb-shift", choices=("eigenvalue", "deviation", "none"), help="random shift of the colour"
    )


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


def run(args: argparse.Namespace) -> int:
    if args.resume is None and (args.data is None or args.out is None):
        raise UsageError("--data and --out are needed (or --resume DIR)")
    begin(args)
    model, train_data, val_data, recipe = _new(args) if args.resume is None else _resumed(args)
    history = _fit(args, model, train_data, val_data, recipe)
    _finish(args, model, history, Path(args.out))
    return 0


def _new(args: argparse.Namespace) -> tuple[vgg.VGG, Dataset, Dataset | None, Recipe]:
    """Net, data and recipe that the options ask for."""
    from ..checkpoint import Checkpoints, write_text

    net, recipe = _settings(args)
    train_data = open_data(args.data, "train", channels=net["in_channels"])
    val_data, recipe = _validation(args, recipe, net["in_channels"])
    out = Path(args.out)
    if Checkpoints(out).paths():
        raise UsageError(f"{out} holds a run already: go on with --resume {out}, or choose another --out")
    statistics = _statistics(args, train_data)
    model = vgg.VGG(
        **net,
        num_classes=len(train_data.classes),
        classes=train_data.classes,
        **statistics,
        seed=args.seed,
        device=args.device,
    )
    if args.init_from is not None:
        _start_from(model, vgg.load(args.init_from))
    write_text(out / DATA_FILE, json.dumps({"data": args.data, "val": args.val}, indent=2) + "\n")
    return model, train_data, val_data, recipe


def _resumed(args: argparse.Namespace) -> tuple[vgg.VGG, Dataset, Dataset | None, Recipe]:
    """Those of the run in ``--resume``, with the limits that are given now."""
    from ..train import saved_run

    path = Path(args.resume, DATA_FILE)
    if not path.is_file():
        raise FileNotFoundError(
            f"--resume {args.resume}: no {DATA_FILE} in it; is it the --out of vggnet train?"
        )
    saved = json.loads(path.read_text(encoding="utf-8"))
    args.data, args.val, args.out = saved["data"], saved["val"], args.resume
    net, recipe = saved_run(args.resume)
    limits = {name: getattr(args, name) for name in LIMITS if getattr(args, name) is not None}
    model = vgg.VGG(**net, init=None, device=args.device)
    val_data, recipe = _validation(args, replace(recipe, **limits), model.in_channels)
    return model, open_data(args.data, "train", channels=model.in_channels), val_data, recipe


def _settings(args: argparse.Namespace) -> tuple[dict[str, Any], Recipe]:
    """Arguments of the net, and the recipe: the named one, changed by the options."""
    from .. import recipes
    from ..train import Recipe

    small = args.data.partition(":")[0] in ("sample", "fashion-mnist")
    name = args.recipe or ("quickstart" if small else "paper")
    net, recipe = recipes.quickstart() if name == "quickstart" else (PAPER_NET, Recipe())
    net = net | {n: getattr(args, n) for n in NET if getattr(args, n) is not None}
    changes = {field: getattr(args, n) for n, field in RECIPE.items() if getattr(args, n) is not None}
    if changes.get("rgb_shift") == "none":
        changes["rgb_shift"] = None
    if "scale" not in changes and args.input_size is not None:
        changes["scale"] = (args.input_size * 256 + 112) // 224
    try:
        return net, replace(recipe, **changes)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _validation(args: argparse.Namespace, recipe: Recipe, channels: int) -> tuple[Dataset | None, Recipe]:
    """Images for the learning rate to watch, or the recipe with the share of training images to hold out."""
    if args.val is None:
        own = has_val(args.data)
        return (open_data(args.data, "val", channels=channels) if own else None), recipe
    try:
        return None, replace(recipe, holdout=fraction(args.val))
    except ValueError:
        return open_data(args.val, "val", channels=channels), recipe
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--val {error}") from error


def _statistics(args: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    """Mean and covariance of the training images, arguments of VGG: of a file, or in one pass; or the mean that was given."""
    if args.mean is not None:
        return {"mean": args.mean}  # fit computes the covariance if the recipe needs it
    from ..augment import PixelStatistics
    from ..data import statistics as statistics_of

    if args.stats is not None:
        statistics = PixelStatistics.from_dict(json.loads(Path(args.stats).read_text(encoding="utf-8")))
        return {"mean": statistics.mean, "covariance": statistics.covariance}
    with Progress("mean of the training images") as progress:
        statistics = statistics_of(
            dataset, workers=args.workers, strict=args.strict or None, progress=progress
        )
    return {"mean": statistics.mean, "covariance": statistics.covariance}


def _start_from(model: vgg.VGG, other: vgg.VGG) -> None:
    """All weights of the same net, but for fc8 where the classes are others; or the layers that deeper nets took from A."""
    from ..train import start_from

    if other.config != model.config:
        start_from(model, other)
        return
    weights = {name: p.numpy() for name, p in other.parameters.items()}
    if other.num_classes != model.num_classes:  # fc8 stays as it was drawn
        weights |= {name: p.numpy() for name, p in model.parameters.items() if name.startswith("fc8")}
    model.load_parameters(weights)


def _fit(
    args: argparse.Namespace,
    model: vgg.VGG,
    train_data: Dataset,
    val_data: Dataset | None,
    recipe: Recipe,
) -> History:
    from ..train import fit

    go_on = f"Go on with: vggnet train --resume {args.out}"
    try:
        return fit(
            model,
            train_data,
            val_data,
            recipe,
            checkpoint=args.out,
            resume=args.resume is not None,
            threads=args.workers,
            strict=args.strict or None,
        )
    except KeyboardInterrupt:
        raise Interrupted(go_on) from None
    except SystemExit:
        print(f"vggnet train: terminated. {go_on}", file=sys.stderr)
        raise


def _finish(args: argparse.Namespace, model: vgg.VGG, history: History, out: Path) -> None:
    from .. import picture

    model.save(out / "model.safetensors")
    picture.history(out / "curves.png", history.rows)
    last, best = history.rows[-1], history.best
    if args.json:
        from dataclasses import asdict

        print_json(
            {
                "model": str(out / "model.safetensors"),
                "parameters": model.num_parameters,
                "stopped_by": history.stopped_by,
                "last": asdict(last),
                "best": None if best is None else asdict(best),
            }
        )
        return
    print(f"Wrote {out}: model.safetensors, history.csv, history.jsonl, curves.png and checkpoints.")
    if last.val_top1 is not None:
        print(f"Held-out top-1 error {last.val_top1:.2f} % after {last.epoch} epochs, one centre crop.")
    model_file = out / "model.safetensors"
    print(f"Next: vggnet evaluate {model_file} --data {args.data} --protocol center,dense,combined")
