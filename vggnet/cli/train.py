"""``vggnet train``: a net on your images, by the paper's recipe, in one run or in the paper's stages."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vggnet as vgg

from ..progress import Progress
from .common import (
    Interrupted,
    UsageError,
    add_command,
    columns,
    fraction,
    has_val,
    join,
    open_data,
    print_json,
)
from .train_options import NET, RECIPE, add_options

if TYPE_CHECKING:
    from ..data import Dataset
    from ..history import History
    from ..train import Cost, Recipe, Stage

EXAMPLES = """\
  vggnet train --data sample --out runs/sample
  vggnet train --data flowers --config A --out runs/A
  vggnet train --data flowers --config D --init xavier --batch 64 --lr 0.005 --out runs/xavier
  vggnet train --data flowers --config D --init-from runs/A/model.safetensors --out runs/D
  vggnet train --data imagenet --paper D --stages A,256,384,jitter --out runs/D
  vggnet train --resume runs/D
"""

DATA_FILE = "train.json"  # what a run is started with beside net and recipe, which are in its checkpoints
KEPT = ("data", "val", "checkpoint_every", "init_from")  # options in it
LIMITS = ("epochs", "iterations")  # of the recipe: what a resumed run may change
ONE_RUN = ("config", "scale", "recipe")  # options that a chain of stages has no use for
CHAIN = ("stages", "scales", "images_per_second")  # and that it alone has
PAPER_NET: dict[str, Any] = {
    "config": "D",
    "input_size": 224,
    "in_channels": 3,
    "fc_width": 4096,
    "dropout": 0.5,
    "init": "paper",
}


def add_parser(commands: Any) -> None:
    add_options(
        add_command(
            commands, "train", run, "Train a net by the paper's recipe, or a variation of it.", EXAMPLES
        )
    )


def run(args: argparse.Namespace) -> int:
    if args.resume is not None:
        _recall(args)
    elif args.data is None or (args.out is None and not args.dry_run):
        raise UsageError("--data and --out are needed (or --resume DIR)")
    refused = [name for name in (CHAIN if args.paper is None else ONE_RUN) if getattr(args, name) is not None]
    if args.resume is None and (refused or (args.dry_run and args.paper is None)):
        option = f"--{(refused or ['dry_run'])[0]}".replace("_", "-")
        raise UsageError(f"{option} goes {'with' if args.paper is None else 'without'} --paper")
    if args.devices is not None:
        _check_devices(args)
    join(args).advice = f"Go on with: vggnet train --resume {args.resume or args.out}, started as before"
    if args.paper is not None:
        return _new_stages(args)
    if args.resume is None:
        model, train_data, val_data, recipe = _new(args)
    else:
        from ..train import saved_stages

        stages = saved_stages(args.resume)
        if stages is not None:
            return _resumed_stages(args, stages)
        model, train_data, val_data, recipe = _resumed(args)
    history = _fit(args, model, train_data, val_data, recipe)
    if not _first():
        return 0
    out = Path(args.out)
    model_file = out / "model.safetensors"
    model.save(model_file)
    history.plot(out / "curves.png")
    if args.json:
        about = {"parameters": model.num_parameters, "stopped_by": history.stopped_by}
        print_json(_summary(model_file, history) | about)
    else:
        wrote = "model.safetensors, history.csv, history.jsonl, curves.png and checkpoints"
        _report(args, wrote, history, model_file)
    return 0


def _check_devices(args: argparse.Namespace) -> None:
    """Of --devices; the model is made on the first."""
    from ..parallel import check_devices

    try:
        devices = check_devices(args.devices)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    if args.device not in ("cpu", devices[0]):
        raise UsageError(f"--device is {args.device}, --devices {','.join(devices)}: give one of them")
    args.device, args.devices = devices[0], devices


def _first() -> bool:
    """Whether this is the process that writes and reports: the only one, or rank 0."""
    from ..parallel import world

    return world().rank == 0


def _remember(args: argparse.Namespace) -> None:
    """Make --out, which must not hold a run yet, and write what --resume will need."""
    from ..checkpoint import Checkpoints, write_text
    from ..train import saved_stages

    if not _first():
        return
    out = Path(args.out)
    if Checkpoints(out).paths() or saved_stages(out) is not None:
        raise UsageError(f"{out} holds a run already: go on with --resume {out}, or choose another --out")
    write_text(out / DATA_FILE, json.dumps({name: getattr(args, name) for name in KEPT}, indent=2) + "\n")


def _recall(args: argparse.Namespace) -> None:
    """The options of the run in --resume that are in no checkpoint."""
    path = Path(args.resume, DATA_FILE)
    if not path.is_file():
        raise FileNotFoundError(
            f"--resume {args.resume}: no {DATA_FILE} in it; is it the --out of vggnet train?"
        )
    saved = json.loads(path.read_text(encoding="utf-8"))
    every = args.checkpoint_every or saved["checkpoint_every"]
    vars(args).update(saved, out=args.resume, checkpoint_every=every)


# ---- one run


def _new(args: argparse.Namespace) -> tuple[vgg.VGG, Dataset, Dataset | None, Recipe]:
    """Net, data and recipe that the options ask for."""
    from ..train import start_from

    net, recipe = _settings(args)
    train_data = open_data(args.data, "train", channels=net["in_channels"])
    val_data, recipe = _validation(args, recipe, net["in_channels"])
    trained = _trained(args, net["in_channels"])
    _remember(args)
    model = vgg.VGG(**net, **_arguments(args, train_data, trained), device=args.device)
    if trained is not None and "fc8" not in start_from(model, trained):
        note = (
            f"has {trained.num_classes} classes: fc8 is drawn anew for {model.num_classes}, the rest is kept"
        )
        print(f"vggnet train: {args.init_from} {note}", file=sys.stderr)
    return model, train_data, val_data, recipe


def _resumed(args: argparse.Namespace) -> tuple[vgg.VGG, Dataset, Dataset | None, Recipe]:
    """Those of the run in ``--resume``, with the limits that are given now."""
    from ..train import saved_run

    net, recipe = saved_run(args.resume)
    limits = {name: getattr(args, name) for name in LIMITS if getattr(args, name) is not None}
    model = vgg.VGG(**net, init=None, device=args.device)
    val_data, recipe = _validation(args, replace(recipe, **limits), model.in_channels)
    return model, open_data(args.data, "train", channels=model.in_channels), val_data, recipe


def _settings(args: argparse.Namespace) -> tuple[dict[str, Any], Recipe]:
    """Arguments of the net, and the recipe: the named one, changed by the options."""
    from .. import recipes
    from ..evaluate.protocol import in_proportion
    from ..train import Recipe

    small = args.data.partition(":")[0] in ("sample", "fashion-mnist")
    name = args.recipe or ("quickstart" if small else "paper")
    net, recipe = recipes.quickstart() if name == "quickstart" else (PAPER_NET, Recipe())
    net = net | {n: getattr(args, n) for n in NET if getattr(args, n) is not None}
    changes = _changes(args)
    if "scale" not in changes and args.input_size is not None:
        changes["scale"] = in_proportion(256, args.input_size)
    try:
        return net, replace(recipe, **changes)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of the recipe that options set."""
    changes = {field: getattr(args, n) for n, field in RECIPE.items() if getattr(args, n) is not None}
    if changes.get("rgb_shift") == "none":
        changes["rgb_shift"] = None
    return changes


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


def _trained(args: argparse.Namespace, channels: int) -> vgg.VGG | None:
    """The model of --init-from."""
    if args.init_from is None:
        return None
    model = vgg.load(args.init_from, device=args.device, precision="float32")  # its weights are what counts
    if model.in_channels != channels:
        takes = f"{args.init_from} takes images of {model.in_channels} channels"
        raise UsageError(f"--init-from: {takes}; the net has --in-channels {channels}")
    return model


def _arguments(args: argparse.Namespace, train_data: Dataset, trained: vgg.VGG | None) -> dict[str, Any]:
    """Arguments of VGG that the training images decide, and the seed. Weights that go on being trained keep the mean that they
    were trained with."""
    classes = list(train_data.classes)
    about = {"num_classes": len(classes), "classes": classes, "seed": args.seed}
    if args.mean is not None:
        return about | {"mean": args.mean}  # fit computes the covariance if the recipe needs it
    if args.stats is not None:
        from ..augment import PixelStatistics

        found = PixelStatistics.from_dict(json.loads(Path(args.stats).read_text(encoding="utf-8")))
    elif trained is not None:
        kept = trained.preprocessing
        return about | {"mean": kept.mean, "covariance": kept.covariance}
    else:
        from ..data import statistics

        with Progress("mean of the training images", None if _first() else False) as progress:
            found = statistics(
                train_data, workers=args.workers, strict=args.strict or None, progress=progress
            )
    return about | {"mean": found.mean, "covariance": found.covariance}


def _fit(
    args: argparse.Namespace,
    model: vgg.VGG,
    train_data: Dataset,
    val_data: Dataset | None,
    recipe: Recipe,
) -> History:
    from ..train import fit

    with _resumable(args):
        return fit(
            model,
            train_data,
            val_data,
            recipe,
            checkpoint=args.out,
            resume=args.resume is not None,
            **_options(args),
        )


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Of `fit`, that change nothing in what is learnt."""
    return {
        "checkpoint_every": args.checkpoint_every,
        "threads": args.workers,
        "strict": args.strict or None,
        "devices": args.devices,
        "cuda_graph": args.cuda_graph,
    }


@contextlib.contextmanager
def _resumable(args: argparse.Namespace) -> Iterator[None]:
    """Ctrl-C and SIGTERM end with how to go on."""
    go_on = f"Go on with: vggnet train --resume {args.out}"
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(go_on) from None
    except SystemExit:
        if _first():
            print(f"vggnet train: terminated. {go_on}", file=sys.stderr)
        raise


# ---- the paper's stages


def _new_stages(args: argparse.Namespace) -> int:
    """Plan the chain that the options ask for, tell its costs, and train."""
    from ..train import Recipe, plan_stages

    net = PAPER_NET | {n: getattr(args, n) for n in NET if getattr(args, n) is not None}
    net["config"] = args.paper
    train_data = open_data(args.data, "train", channels=net["in_channels"])
    val_data, recipe = _validation(args, Recipe(), net["in_channels"])
    changes = _changes(args) | {"holdout": recipe.holdout}
    trained = _trained(args, net["in_channels"])
    before = None if trained is None else trained.config

    def plan(**about: Any) -> list[Stage]:
        try:
            return plan_stages({**net, **about}, args.stages, scales=args.scales, init_from=before, **changes)
        except ValueError as error:
            raise UsageError(str(error)) from error

    shape = plan(num_classes=len(train_data.classes))
    images = len(train_data) - (0 if val_data is not None else round(len(train_data) * recipe.holdout))
    _tell_costs(args, shape, images)
    if args.dry_run:
        return 0
    _remember(args)
    return _train_stages(args, plan(**_arguments(args, train_data, trained)), train_data, val_data, trained)


def _resumed_stages(args: argparse.Namespace, plan: Sequence[Stage]) -> int:
    """Go on with the first stage that is not finished."""
    given = [f"--{name}" for name in LIMITS if getattr(args, name) is not None]
    if given:
        raise UsageError(f"{given[0]}: a chain of stages is resumed unchanged")
    channels = plan[0].model["in_channels"]
    val_data, _ = _validation(args, plan[0].recipe, channels)
    train_data = open_data(args.data, "train", channels=channels)
    return _train_stages(args, plan, train_data, val_data, _trained(args, channels))


def _train_stages(
    args: argparse.Namespace,
    plan: Sequence[Stage],
    train_data: Dataset,
    val_data: Dataset | None,
    trained: vgg.VGG | None,
) -> int:
    from ..history import History
    from ..train import run_stages

    with _resumable(args):
        run_stages(
            plan,
            train_data,
            val_data,
            out=args.out,
            init_from=trained,
            device=args.device,
            **_options(args),
        )
    if not _first():
        return 0
    folders = [Path(args.out, stage.name) for stage in plan]
    files = [folder / "model.safetensors" for folder in folders]
    histories = [History.read(folder) for folder in folders]
    if args.json:
        stages = zip(plan, files, histories, strict=True)
        print_json({"stages": [{"name": stage.name, **_summary(f, h)} for stage, f, h in stages]})
    else:
        wrote = f"stages {', '.join(stage.name for stage in plan)}, each with a model and its history"
        _report(args, wrote, histories[-1], files[-1])
    return 0


def _tell_costs(args: argparse.Namespace, plan: Sequence[Stage], images: int) -> None:
    """The plan with its costs: the result of --dry-run, else a note."""
    from ..train import stage_costs

    if args.images_per_second is None:
        print("measuring the training speed on random images", file=sys.stderr, flush=True)
    costs = stage_costs(plan, images, images_per_second=args.images_per_second)
    if args.json and args.dry_run:
        print_json([asdict(cost) | {"stage": cost.stage.to_dict()} for cost in costs])
        return
    text = _plan_text(costs, images)
    print(text, file=sys.stdout if args.dry_run else sys.stderr, flush=True)


STARTS = {"random": "random weights", "A": "layers of A", "weights": "weights before"}


def _plan_text(costs: Sequence[Cost], images: int) -> str:
    def figure(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    head = (
        "stage",
        "net",
        "starts from",
        "S",
        "lr",
        "images seen",
        "updates",
        "PFLOP",
        "hours",
        "pass",
        "memory",
    )
    rows = [(*head, "disk")]
    for cost in costs:
        stage = cost.stage
        scale = stage.recipe.scale
        rows.append(
            (
                stage.name,
                stage.model["config"],
                STARTS[stage.start]
                if stage.start != "random"
                else f"random ({stage.model.get('init', 'paper')})",
                str(scale) if isinstance(scale, int) else f"{scale[0]}..{scale[1]}",
                f"{stage.recipe.lr:g}",
                f"{cost.images:,}",
                f"{cost.iterations:,}",
                figure(cost.flop / 1e15),
                figure(cost.seconds / 3600),
                str(cost.micro_batch),
                f"{cost.memory / 1e9:.2f} GB",
                f"{cost.disk / 1e9:.2f} GB",
            )
        )
    flop, seconds, disk = (sum(getattr(cost, name) for cost in costs) for name in ("flop", "seconds", "disk"))
    return (
        f"{columns(rows)}\n"
        f"At most, for {images:,} training images: {figure(flop / 1e15)} PFLOP, {figure(seconds / 3600)} hours at "
        f"{figure(flop / seconds / 1e9)} GFLOP/s, {disk / 1e9:.2f} GB of disk; a plateau ends a stage earlier.\n"
        "Our inferences where the paper is silent: the lr of jittering, and the limits, which hold for each stage."
    )


# ---- output


def _summary(model_file: Path, history: History) -> dict[str, Any]:
    best = history.best
    return {
        "model": str(model_file),
        "last": asdict(history.rows[-1]),
        "best": None if best is None else asdict(best),
    }


def _report(args: argparse.Namespace, wrote: str, history: History, model_file: Path) -> None:
    """What came out, and what to do with it."""
    last = history.rows[-1]
    print(f"Wrote {args.out}: {wrote}.")
    if last.val_top1 is not None:
        print(f"Held-out top-1 error {last.val_top1:.2f} % after {last.epoch} epochs, one centre crop.")
    print(f"Next: vggnet evaluate {model_file} --data {args.data} --protocol center,dense,combined")
