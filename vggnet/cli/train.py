"""``vggnet train``: a net on your images, by the paper's recipe."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vggnet as vgg

from .common import (
    Interrupted,
    Progress,
    UsageError,
    add_command,
    begin,
    data_option,
    fraction,
    number,
    open_data,
    positive,
    print_json,
)

if TYPE_CHECKING:
    from ..data import Dataset
    from ..train import History, Recipe

EXAMPLES = """\
  vggnet train --data sample --config A --input-size 32 --fc-width 512 --init he --batch 32 --out runs/sample
  vggnet train --data flowers --config A --out runs/A
  vggnet train --data flowers --config D --init-from runs/A/model.safetensors --out runs/D
  vggnet train --resume runs/D
"""

OPTIONS_FILE = "train.json"
# What a resumed run may change: the rest is part of what it is.
FREE = ("resume", "device", "threads", "json", "epochs", "iterations", "strict", "workers", "run", "command")


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "train", run, "Train a net by the paper's recipe; its settings are the defaults.", EXAMPLES
    )
    data_option(parser)
    parser.add_argument(
        "--val",
        metavar="SHARE|DATA",
        help="what the learning rate watches: a share of the training images to hold out, or a folder "
        "(default: val/ of the data folder if there is one, else 0.1); never the test images",
    )
    parser.add_argument("--out", metavar="DIR", help="where model, checkpoints, history and curves go")
    parser.add_argument(
        "--resume", metavar="DIR", help="go on with the run in DIR, bit for bit; options are the run's"
    )

    net = parser.add_argument_group("net")
    net.add_argument(
        "--config",
        choices=("A", "A-LRN", "B", "C", "D", "E"),
        default="D",
        help="column of the paper's table 1 (default: D)",
    )
    net.add_argument(
        "--input-size", type=positive, default=224, metavar="N", help="a multiple of 32 (default: 224)"
    )
    net.add_argument(
        "--in-channels",
        type=int,
        choices=(1, 3),
        help="1 gray, 3 RGB (default: 1 for sample and fashion-mnist, else 3)",
    )
    net.add_argument(
        "--fc-width",
        type=positive,
        default=4096,
        metavar="N",
        help="of fc6 and fc7; fewer suit small data (default: 4096)",
    )
    net.add_argument(
        "--dropout", type=number, default=0.5, metavar="P", help="after fc6 and fc7 (default: 0.5)"
    )
    net.add_argument(
        "--init",
        choices=("paper", "paper-variance", "xavier", "he"),
        default="paper",
        help="first weights; nets deeper than A need xavier, he or --init-from (default: paper)",
    )
    net.add_argument(
        "--init-from",
        metavar="MODEL",
        help="start from a model: all weights of the same net, or the layers that deeper nets took from A",
    )
    net.add_argument(
        "--mean", type=_numbers, metavar="R,G,B", help="0..255 scale (default: of the training images)"
    )

    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "--batch", type=positive, default=256, metavar="N", help="images an update (default: 256)"
    )
    recipe.add_argument(
        "--micro-batch",
        type=positive,
        metavar="N",
        help="images a pass: less memory, same update (default: what fits)",
    )
    recipe.add_argument("--lr", type=number, default=1e-2, help="first learning rate (default: 0.01)")
    recipe.add_argument("--momentum", type=number, default=0.9, help="(default: 0.9)")
    recipe.add_argument("--weight-decay", type=number, default=5e-4, help="(default: 0.0005)")
    recipe.add_argument("--epochs", type=positive, default=74, metavar="N", help="at most (default: 74)")
    recipe.add_argument("--iterations", type=positive, metavar="N", help="updates, at most")
    recipe.add_argument(
        "--patience",
        type=positive,
        default=3,
        metavar="N",
        help="epochs without improvement before the lr falls (default: 3)",
    )
    recipe.add_argument(
        "--lr-drops", type=int, default=3, metavar="N", help="times that the lr falls (default: 3)"
    )
    recipe.add_argument(
        "--scale",
        type=_scale,
        metavar="S|LO,HI",
        help="shorter side of training images, or its range (default: 256 in proportion to the input size)",
    )
    recipe.add_argument("--no-mirror", action="store_true", help="do not mirror half of the images")
    recipe.add_argument(
        "--rgb-shift",
        choices=("eigenvalue", "deviation", "none"),
        default="eigenvalue",
        help="(default: eigenvalue)",
    )
    recipe.add_argument(
        "--workers", type=positive, metavar="N", help="threads that read images (default: one a core)"
    )
    recipe.add_argument(
        "--strict", action="store_true", help="stop at the first broken image (default: at 1 %% of them)"
    )


def _numbers(text: str) -> list[float]:
    return [number(part) for part in text.split(",")]


def _scale(text: str) -> int | tuple[int, int]:
    sides = [positive(part) for part in text.split(",")]
    if len(sides) > 2 or sides != sorted(sides):
        raise argparse.ArgumentTypeError(f"{text!r}: expected one number, or LOW,HIGH")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def run(args: argparse.Namespace) -> int:
    resume = args.resume is not None
    if resume:
        args = _restore(args)
    elif args.data is None or args.out is None:
        raise UsageError("--data and --out are needed (or --resume DIR)")
    begin(args)
    train_data = open_data(args.data, "train", channels=_channels(args))
    val_data, holdout = _validation(args)
    out = Path(args.out)
    if not resume:
        if (out / OPTIONS_FILE).exists():
            raise UsageError(f"{out} holds a run already: go on with --resume {out}, or choose another --out")
        args.mean, args.covariance = _statistics(args, train_data)
        out.mkdir(parents=True, exist_ok=True)
    model = _model(args, train_data.classes)
    recipe = _recipe(args, holdout)
    if not resume:
        from ..checkpoint import write_text

        options = {
            name: value
            for name, value in vars(args).items()
            if name not in FREE or name in ("epochs", "iterations")
        }
        write_text(out / OPTIONS_FILE, json.dumps(options, indent=2) + "\n")
    history = _fit(args, model, train_data, val_data, recipe, resume)
    _finish(args, model, history, out)
    return 0


def _channels(args: argparse.Namespace) -> int:
    gray = args.data.partition(":")[0] in ("sample", "fashion-mnist")
    return args.in_channels or (1 if gray else 3)


def _restore(args: argparse.Namespace) -> argparse.Namespace:
    """The options of the run in ``--resume``; limits and what does not change the result may be new."""
    path = Path(args.resume, OPTIONS_FILE)
    if not path.is_file():
        raise FileNotFoundError(
            f"--resume {args.resume}: no {OPTIONS_FILE} in it; is it the --out of vggnet train?"
        )
    options = json.loads(path.read_text(encoding="utf-8"))
    defaults = {"epochs": 74, "iterations": None}
    free = {
        name: value
        for name, value in vars(args).items()
        if name in FREE and not (name in defaults and value == defaults[name])
    }
    return argparse.Namespace(**options | free | {"out": args.resume})


def _validation(args: argparse.Namespace) -> tuple[Dataset | None, float]:
    """Validation images, or the share of the training images to hold out."""
    if args.val is None:
        own = Path(args.data, "val")
        return (open_data(args.data, "val", channels=_channels(args)), 0.0) if own.is_dir() else (None, 0.1)
    try:
        return None, fraction(args.val)
    except ValueError:
        return open_data(args.val, "val", channels=_channels(args)), 0.0
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--val {error}") from error


def _statistics(args: argparse.Namespace, dataset: Dataset) -> tuple[list[float], Any]:
    """Mean and covariance of the training images, in one pass; none when both are known or not needed."""
    if args.mean is not None:
        return args.mean, None  # fit computes the covariance if the recipe needs it
    from ..augment import pixel_statistics
    from ..data import Loader

    with Progress("mean of the training images") as progress:
        loader = Loader(dataset, 64, workers=args.workers, strict=args.strict or None)

        def images() -> Any:
            for indices, batch, _ in loader:
                progress(int(indices[-1]) + 1, len(dataset))
                yield from batch

        statistics = pixel_statistics(images())
    return list(statistics.mean), statistics.covariance


def _model(args: argparse.Namespace, classes: list[str]) -> vgg.VGG:
    from ..train import start_from

    model = vgg.VGG(
        args.config,
        num_classes=len(classes),
        input_size=args.input_size,
        in_channels=_channels(args),
        fc_width=args.fc_width,
        dropout=args.dropout,
        init=args.init,
        seed=args.seed,
        mean=args.mean,
        classes=classes,
        device=args.device,
    )
    if args.init_from is not None and args.resume is None:
        other = vgg.load(args.init_from)
        if other.config != model.config:
            start_from(model, other)
        else:
            weights = {name: p.numpy() for name, p in other.parameters.items()}
            if other.num_classes != model.num_classes:  # other classes: fc8 stays as it was drawn
                weights |= {name: p.numpy() for name, p in model.parameters.items() if name.startswith("fc8")}
            model.load_parameters(weights)
    return model


def _recipe(args: argparse.Namespace, holdout: float) -> Recipe:
    from ..train import Recipe

    scale = args.scale or (args.input_size * 256 + 112) // 224
    try:
        return Recipe(
            batch=args.batch,
            micro_batch=args.micro_batch,
            lr=args.lr,
            momentum=args.momentum,
            weight_decay=args.weight_decay,
            lr_drops=args.lr_drops,
            plateau_patience=args.patience,
            epochs=args.epochs,
            iterations=args.iterations,
            scale=tuple(scale) if isinstance(scale, list | tuple) else scale,
            mirror=not args.no_mirror,
            rgb_shift=None if args.rgb_shift == "none" else args.rgb_shift,
            rgb_covariance=None if args.rgb_shift == "none" else args.covariance,
            holdout=holdout,
            seed=args.seed,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _fit(
    args: argparse.Namespace,
    model: vgg.VGG,
    train_data: Dataset,
    val_data: Dataset | None,
    recipe: Recipe,
    resume: bool,
) -> History:
    from ..train import fit

    try:
        return fit(
            model,
            train_data,
            val_data,
            recipe,
            checkpoint=args.out,
            resume=resume,
            threads=args.workers,
            strict=args.strict or None,
        )
    except KeyboardInterrupt:
        raise Interrupted(f"Go on with: vggnet train --resume {args.out}") from None


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
