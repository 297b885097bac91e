"""The paper's chain of trainings (section 3.1): net A, then a deeper net at S = 256, at S = 384, and with scale jittering.

Each stage is a run of `fit` in a directory of its own; it starts from the weights of the stage before it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import write_text
from ..evaluate.protocol import in_proportion
from ..models import VGG, load
from ..parallel import world
from ..progress import Progress
from ..recipes import Recipe
from .start import start_from
from .trainer import fit

if TYPE_CHECKING:
    from ..data import Dataset

STAGES = ("A", "256", "384", "jitter")  # in their order
SCALES = (256, 384, 512)  # for crops of 224
FINE_TUNING_LR = 0.1  # of the first lr: the paper's 1e-3 at S = 384; for jittering our inference
PLAN_FILE = "stages.json"
MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class Stage:
    """One training of a chain.

    Attributes
    ----------
    name : "A" | "256" | "384" | "jitter"
        Also of its directory. The numbers are the paper's smallest sides, whatever those of a smaller net are.
    start : "random" | "A" | "weights"
        From random weights; from the layers that the paper took from net A (`FROM_A`); or from all weights of the same net.
    model : mapping
        Arguments of `VGG`.
    recipe : Recipe
    """

    name: str
    start: str
    model: Mapping[str, Any]
    recipe: Recipe

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        model = json.loads(json.dumps(dict(self.model)))
        return {"name": self.name, "start": self.start, "model": model, "recipe": self.recipe.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Stage:
        """The inverse of `to_dict`."""
        recipe = Recipe.from_dict(values["recipe"])
        return cls(values["name"], values["start"], values["model"], recipe)


def paper_stages(config: str, init: str = "paper") -> tuple[str, ...]:
    """The stages that the paper trained a net in (section 3.1, tables 3 and 4).

    Nets A and A-LRN, and others with an initialisation under which deep nets learn by themselves (Xavier's), need no A first.

    Examples
    --------
    >>> paper_stages("B"), paper_stages("D", "xavier")
    (('A', '256'), ('256', '384', 'jitter'))
    """
    first = ("A",) if init.startswith("paper") and config not in ("A", "A-LRN") else ()
    return (*first, "256", "384", "jitter") if config in ("C", "D", "E") else (*first, "256")


def proportional_scales(input_size: int) -> tuple[int, int, int]:
    """Smallest sides that are to a crop of `input_size` what 256, 384 and 512 are to 224, rounded to whole pixels.

    Examples
    --------
    >>> proportional_scales(224), proportional_scales(32)
    ((256, 384, 512), (37, 55, 73))
    """
    low, middle, high = (in_proportion(side, input_size) for side in SCALES)
    return low, middle, high


def plan_stages(
    net: Mapping[str, Any],
    stages: Sequence[str] | None = None,
    *,
    scales: tuple[int, int, int] | None = None,
    init_from: str | None = None,
    **changes: Any,
) -> list[Stage]:
    """The chain of trainings of a net.

    Parameters
    ----------
    net : mapping
        Arguments of `VGG`; "config" and "input_size" are needed.
    stages : sequence of "A" | "256" | "384" | "jitter", optional
        Which of them, in this order; default: `paper_stages`.

        "A" trains net A at the lowest scale, "256" the net itself at the lowest scale, "384" at the middle one, "jitter" at
        scales drawn from the lowest to the highest.
    scales : (lowest, middle, highest), optional
        Smallest sides, in pixels; default: the paper's 256, 384 and 512 in proportion to the input size.
    init_from : str, optional
        The config of a trained net that the first stage will start from (`run_stages`).
    **changes
        Fields of `Recipe` that differ from the paper's, in every stage. An `lr` is that of "A" and "256"; "384" and
        "jitter" begin with a tenth of it.

    Returns
    -------
    list of Stage

    Raises
    ------
    ValueError
        For stages that are unknown, in another order, or have nothing to start from.

    Notes
    -----
    The paper gives lr 1e-2 for random first weights and 1e-3 for S = 384. Our inferences: lr 1e-3 for jittering; the limits
    of 74 epochs and 370 K iterations for each stage; a stage goes on from the last weights of the one before. One seed is
    that of all stages, so that the images held out stay the same.

    Examples
    --------
    >>> plan = plan_stages({"config": "D", "input_size": 224})
    >>> [(stage.name, stage.model["config"], stage.recipe.scale, stage.recipe.lr) for stage in plan]
    [('A', 'A', 256, 0.01), ('256', 'D', 256, 0.01), ('384', 'D', 384, 0.001), ('jitter', 'D', (256, 512), 0.001)]
    """
    config = net["config"]
    names = tuple(paper_stages(config, net.get("init", "paper")) if stages is None else stages)
    if not names or list(names) != [name for name in STAGES if name in names]:
        raise ValueError(f"stages is {names}; expected some of {', '.join(STAGES)}, in this order")
    if "A" in names and config == "A":
        raise ValueError('stages has "A", but the net is A itself: begin with "256"')
    if names == ("A",):
        raise ValueError('stages is ("A",); to train A itself, make it the net')
    if names[0] in ("384", "jitter") and init_from is None:
        raise ValueError(
            f'stages begins with "{names[0]}", which goes on from trained weights: begin with "256", or '
            "start from a trained net (init_from, --init-from)"
        )
    low, middle, high = proportional_scales(net["input_size"]) if scales is None else scales
    if not low <= middle <= high:
        raise ValueError(f"scales is {scales}; expected lowest, middle and highest smallest side")
    lr = changes.pop("lr", Recipe().lr)
    plan: list[Stage] = []
    before = init_from  # the config of the net that the next stage starts from
    for name in names:
        model = {**net, "config": "A" if name == "A" else config}
        start = "random" if before is None else "weights" if before == model["config"] else "A"
        scale = {"384": middle, "jitter": (low, high)}.get(name, low)
        first = name in ("A", "256")
        recipe = Recipe(**{"scale": scale, "lr": lr if first else FINE_TUNING_LR * lr, **changes})
        plan.append(Stage(name, start, model, recipe))
        before = model["config"]
    return plan


def run_stages(
    plan: Sequence[Stage],
    train_data: Dataset,
    val_data: Dataset | None = None,
    *,
    out: str | os.PathLike[str],
    init_from: VGG | None = None,
    device: str = "cpu",
    **options: Any,
) -> VGG:
    """Train the stages of a plan, each in a directory under `out`; go on with what is there, bit for bit.

    Parameters
    ----------
    plan : sequence of Stage
        See `plan_stages`.
    train_data, val_data : Dataset
        As in `fit`, of every stage.
    out : path
        Made when it is not there. It gets the plan (stages.json) and a directory a stage, with its checkpoints, its
        history, curves.png, and in the end model.safetensors. Stages that are finished are not trained again.
    init_from : VGG, optional
        A trained net that the first stage starts from (`start_from`).
    device : str
    **options
        Of `fit`: checkpoint_every, keep, callbacks, progress, threads, strict, devices (the first is `device`),
        cuda_graph.

    Returns
    -------
    VGG
        The net of the last stage.

    Raises
    ------
    ValueError
        When `out` holds another plan; and as `fit` does.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    processes = world()
    if processes.rank == 0:
        _claim(out, plan)
    processes.gather(None)  # all wait for it
    progress = Progress("stages", options.get("progress") if processes.rank == 0 else False)
    for number, stage in enumerate(plan):
        what = f"stage {stage.name} ({number + 1} of {len(plan)})"
        if (out / stage.name / MODEL_FILE).exists():
            progress.note(f"{what} is finished")
            continue
        progress.note(
            f"{what}: net {stage.model['config']}, S = {stage.recipe.scale}, lr {stage.recipe.lr:g}"
        )
        before = init_from if number == 0 else load(out / plan[number - 1].name / MODEL_FILE, device=device)
        model = VGG(**stage.model, device=device)
        if before is not None:
            start_from(model, before)
            if (
                number and model.preprocessing.covariance is None
            ):  # computed in an earlier stage, of the same images
                model.preprocessing = before.preprocessing
            del before  # not two nets in memory while one is trained
        _train(stage, model, train_data, val_data, out / stage.name, options)
    return load(out / plan[-1].name / MODEL_FILE, device=device)


def saved_stages(out: str | os.PathLike[str]) -> list[Stage] | None:
    """The plan of the chain in a directory; None when it holds none."""
    path = Path(out, PLAN_FILE)
    if not path.is_file():
        return None
    return [Stage.from_dict(values) for values in json.loads(path.read_text(encoding="utf-8"))]


def _claim(out: Path, plan: Sequence[Stage]) -> None:
    """Write the plan, or see that it is the one that is there."""
    saved = saved_stages(out)
    if saved is None:
        write_text(out / PLAN_FILE, json.dumps([stage.to_dict() for stage in plan], indent=1) + "\n")
    elif [stage.to_dict() for stage in saved] != [stage.to_dict() for stage in plan]:
        raise ValueError(
            f"{out} holds another chain of stages; use its plan (saved_stages), or another directory"
        )


def _train(
    stage: Stage,
    model: VGG,
    train_data: Dataset,
    val_data: Dataset | None,
    directory: Path,
    options: Mapping[str, Any],
) -> None:
    """One stage: from the start, or from its newest checkpoint, to its model file."""
    history = fit(model, train_data, val_data, stage.recipe, checkpoint=directory, resume=True, **options)
    processes = world()
    if processes.rank == 0:
        history.plot(directory / "curves.png")
        model.save(directory / MODEL_FILE)
    processes.gather(None)  # the others go on from that file
