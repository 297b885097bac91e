"""A run on disk: where it is (`State`), what of it a checkpoint holds, and whether another call may go on with it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _C
from ..checkpoint import VELOCITY, Checkpoints, restore_tensors
from ..recipes import Recipe

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ..models import VGG

FORMAT = "vggnet-checkpoint-2"

# Fields of a recipe that may change without changing the updates.
LIMITS = frozenset({"epochs", "iterations", "stuck_iterations"})


@dataclass
class State:
    """Where a run is: all that a checkpoint needs beside weights, velocities and rows."""

    epoch: int = 0  # epochs done
    step: int = 0  # batches of the current epoch done
    iteration: int = 0  # updates done
    drops: int = 0  # how often the lr fell
    best: float | None = None  # lowest held-out error, %
    waited: int = 0  # epochs since it fell
    plateau: bool = False  # the last plateau was reached
    loss: float = 0.0  # sum over the images of the current epoch
    wrong: float = 0.0
    seen: int = 0
    seconds: float = 0.0

    def turn(self, error: float | None, recipe: Recipe) -> None:
        """End an epoch with that held-out error, in %: the plateau rule, and counters back to zero."""
        if error is not None:
            if self.best is None or error < self.best - recipe.plateau_threshold:
                self.best, self.waited = error, 0
            else:
                self.waited += 1
            if self.waited >= recipe.plateau_patience:
                self.waited = 0
                self.plateau = self.drops == recipe.lr_drops
                self.drops += not self.plateau
        self.epoch += 1
        self.step = self.seen = 0
        self.loss = self.wrong = self.seconds = 0.0


def saved_run(directory: str | os.PathLike[str]) -> tuple[dict[str, Any], Recipe]:
    """Arguments of `VGG` and the recipe of the run in a directory, as its newest checkpoint has them."""
    newest = _newest(Checkpoints(directory))
    if newest is None:
        raise ValueError(f"{directory} has no checkpoint yet: start the run again")
    _, model, run = newest
    return model, Recipe.from_dict(run["recipe"])


def tensor_bytes(model: VGG, layers: Collection[str]) -> int:
    """Bytes of the tensors of a checkpoint: the weights, and the velocities of the layers that learn."""
    learnt = [p.nbytes for name, p in model.parameters.items() if name.split(".")[0] in layers]
    return sum(p.nbytes for p in model.parameters.values()) + sum(learnt)


def metadata(model: VGG, run: Mapping[str, Any]) -> dict[str, str]:
    """All of a checkpoint but its tensors; `run` is what `restore` gives back."""
    return {
        "format": FORMAT,
        "model": json.dumps(model.to_dict()),
        "preprocessing": json.dumps(model.preprocessing.to_dict()),
        "run": json.dumps(run),
    }


def restore(
    checkpoints: Checkpoints, model: VGG, velocities: Mapping[str, _C.Tensor], run: Mapping[str, Any]
) -> tuple[Path, dict[str, Any]] | None:
    """Put weights, velocities and covariance of the newest intact checkpoint in place; its file and its run, None without one.

    `run` is this call's: ValueError when its recipe, data or task, or the model, are not those that were saved.
    """
    newest = _newest(checkpoints)
    if newest is None:
        return None
    path, saved_model, saved = newest
    _compare(path, saved_model, saved, model, run)
    covariance = saved_model["covariance"]
    if covariance is not None:
        model.preprocessing = replace(model.preprocessing, covariance=tuple(map(tuple, covariance)))
    restore_tensors(path, {**model.parameters, **{VELOCITY + name: v for name, v in velocities.items()}})
    return path, saved


def _newest(checkpoints: Checkpoints) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
    """The newest intact checkpoint: its file, the arguments of its model, and its run."""
    newest = checkpoints.newest()
    if newest is None:
        return None
    path, about = newest
    if about.get("format") != FORMAT:
        raise _C.WeightsError(f"{path}: format {about.get('format')!r}; expected {FORMAT!r}")
    return path, json.loads(about["model"]), json.loads(about["run"])


def _compare(
    path: Path, saved_model: dict[str, Any], saved: dict[str, Any], model: VGG, run: Mapping[str, Any]
) -> None:
    """Raise ValueError when what was saved is not this run."""
    free = (
        {"seed"} if model.preprocessing.covariance else {"seed", "covariance"}
    )  # it may have been computed in the run
    pairs = [
        ("recipe.", saved["recipe"], run["recipe"], LIMITS),
        ("model.", saved_model, json.loads(json.dumps(model.to_dict())), free),
        ("", saved["data"], run["data"], set()),
        ("task.", saved["task"], run["task"], set()),
    ]
    for where, before, now, ignored in pairs:
        for name in sorted((before.keys() | now.keys()) - ignored):
            if before.get(name) != now.get(name):
                raise ValueError(
                    f"fit: {where}{name} is {now.get(name)!r}, but the run in {path} has "
                    f"{before.get(name)!r}; a run is resumed unchanged: use the same value, or "
                    "another directory"
                )
