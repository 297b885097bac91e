"""What to say when training goes wrong: the loss is that of guessing, or no longer finite."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .._C import Tensor
    from ..models import VGG


class Stuck:
    """Watches for a loss that stays at `level`, that of guessing: the means of both halves of `iterations` within 1 %."""

    def __init__(self, level: float | None, iterations: int) -> None:
        self.level = level
        self.losses: deque[float] = deque(maxlen=iterations)

    def add(self, loss: float) -> bool:
        """Whether it is stuck; then the count begins anew."""
        self.losses.append(loss)
        if not self.level or len(self.losses) < (self.losses.maxlen or 0):
            return False
        losses = np.array(self.losses)
        stuck = all(abs(half.mean() - self.level) < 0.01 * self.level for half in np.array_split(losses, 2))
        if stuck:
            self.losses.clear()
        return stuck


def stuck(model: VGG, last: Tensor, iterations: int, iteration: int, lr: float) -> str:
    """Advice on a classifier that guesses; `last` is the input of the last images."""
    advice = (
        f"training is stuck: for {iterations} iterations, up to {iteration}, the "
        f"loss has been ln({model.num_classes}) = {math.log(model.num_classes):.3f}, which is guessing. "
        'Deep nets do this from small random weights: use init="xavier" ("he" needs a far lower lr), or '
        "train an A first and pass it as init_from (paper, section 3.1). "
        f"If it started to learn and fell back, lower the lr ({lr:g})"
    )
    dead = dead_layers(model, last)
    return f"{advice}. Dead ReLUs, zero for each of the last images: {', '.join(dead)}" if dead else advice


def diverged(loss: float, iteration: int, epoch: int, lr: float) -> str:
    """Advice on a loss that is not finite."""
    return (
        f"the loss is {loss} at iteration {iteration} (epoch {epoch}, "
        f"lr {lr:g}): training has diverged. Lower the lr (a tenth: {lr / 10:g}), check the "
        'mean and the labels, or use init="xavier"; the weights are those of before this iteration'
    )


def dead_layers(model: VGG, x: Tensor) -> list[str]:
    """ReLU layers with most of their channels zero for all images of `x`, with the share."""
    relus = [name for name in model.layer_names if name.startswith("relu")]
    maps = {name: map.to(dtype="float32").numpy() for name, map in model.features(x, relus).items()}
    dead = {name: np.mean(~map.reshape(-1, map.shape[-1]).any(axis=0)) for name, map in maps.items()}
    return [f"{name} ({100 * share:.0f} %)" for name, share in dead.items() if share > 0.5]
