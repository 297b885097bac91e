"""What a chain of trainings will cost, before it starts: arithmetic, time, memory and disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import bench
from ..models import VGG
from ..run import FLOAT_BYTES
from .layers import learning_layers
from .memory import micro_batch
from .saved import tensor_bytes

if TYPE_CHECKING:
    from .stages import Stage

TIMED_IMAGES = 8  # of the passes that measure the speed, at most


@dataclass(frozen=True)
class Cost:
    """Of one stage, at most: a plateau may end it earlier.

    Attributes
    ----------
    stage : Stage
    images, iterations : int
        Images that pass through training, and updates.
    flop : float
        Multiplications and additions of forward and backward passes, counted as direct sums.
    seconds : float
        Without the epochs' tests on held-out images, a hundredth where they are a twenty-fifth of the set, as ILSVRC's.
    micro_batch : int
        Images of a pass, with the memory that is free now.
    memory : int
        Bytes of a training step, and of the copy that checkpoints are written from.
    disk : int
        Bytes of checkpoints, one more than are kept while it is written, and of the model.
    """

    stage: Stage
    images: int
    iterations: int
    flop: float
    seconds: float
    micro_batch: int
    memory: int
    disk: int


def stage_costs(
    plan: Sequence[Stage], images: int, *, images_per_second: float | None = None, keep: int = 2
) -> list[Cost]:
    """The costs of the stages of a plan.

    Parameters
    ----------
    plan : sequence of Stage
    images : int
        Of the training set, without those held out.
    images_per_second : float, optional
        Training speed of the last stage's net; other nets go by their arithmetic. Default: measured, by training steps on a
        few random images.
    keep : int
        Checkpoints kept, as in `fit`.
    """
    last = VGG(**{**plan[-1].model, "init": None})
    if images_per_second is None:
        batch = min(TIMED_IMAGES, plan[-1].recipe.batch)
        images_per_second = bench.training_speed(last, batch)
    flop_per_second = images_per_second * bench.training_flop(last)
    del last
    costs = []
    for stage in plan:
        model, recipe = VGG(**{**stage.model, "init": None}), stage.recipe
        layers = learning_layers(model, recipe)
        updates = -(-images // recipe.batch)  # of an epoch
        limits = [recipe.epochs * updates] if recipe.epochs is not None else []
        limits += [recipe.iterations] if recipe.iterations is not None else []
        if not limits:
            raise ValueError("stage_costs: nothing limits the stages; give epochs or iterations")
        iterations = min(limits)
        epochs, rest = divmod(iterations, updates)
        seen = epochs * images + min(rest * recipe.batch, images)
        flop = float(seen) * bench.training_flop(model)
        checkpoint = tensor_bytes(model, layers)
        micro = recipe.micro_batch or micro_batch(model, recipe.batch, layers, reserved=checkpoint)
        costs.append(
            Cost(
                stage=stage,
                images=seen,
                iterations=iterations,
                flop=flop,
                seconds=flop / flop_per_second,
                micro_batch=min(micro, recipe.batch),
                memory=model.memory_plan(min(micro, recipe.batch), training=layers).total + checkpoint,
                disk=(keep + 1) * checkpoint + FLOAT_BYTES * model.num_parameters,
            )
        )
    return costs
