"""One run of training: `fit`, and the `Trainer` that it makes."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import _C, ops, rng
from ..augment import Augmentation, pixel_statistics
from ..checkpoint import Checkpoints
from ..data import Loader, epoch_order, rescaled_image, split
from ..evaluate.report import tells_top5
from ..history import History, Row
from ..preprocess import check_image
from ..progress import Progress
from ..recipes import Recipe
from . import advice, saved
from .interrupts import Interrupts
from .layers import learning_layers
from .memory import micro_batch
from .saved import State
from .start import start_from
from .task import Classification, Measure, Task

if TYPE_CHECKING:
    from ..data import Dataset
    from ..models import VGG

log = logging.getLogger("vggnet")


class Callback:
    """Hooks into `fit`: derive from this and override what you need."""

    def on_iteration(self, model: VGG, iteration: int, loss: float, error: float) -> None:
        """After each update: the loss of its batch, and its error in % (top-1, in classification)."""

    def on_epoch(self, model: VGG, row: Row) -> None:
        """After each epoch, its held-out evaluation and its checkpoint."""


def fit(
    model: VGG,
    train_data: Dataset,
    val_data: Dataset | None = None,
    recipe: Recipe | None = None,
    *,
    init_from: VGG | None = None,
    task: Task | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    keep: int = 2,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
    threads: int | None = None,
    strict: bool | None = None,
) -> History:
    """Train a model in place.

    Parameters
    ----------
    model : VGG
        With the first weights; its preprocessing says what mean is subtracted, its input_size is the crop.
    train_data : Dataset
        Images and labels; see `vggnet.data`. A model without class names takes the data's.
    val_data : Dataset, optional
        What the learning rate watches. None: `recipe.holdout` of the training set is held out. Never give
        test data: an error measured on data that decided about the training is too good.
    recipe : Recipe, optional
        Default: the paper's.
    init_from : VGG, optional
        A trained net to start from: an A, whose layers a deeper net starts with, or one of the same config (`start_from`).
        Ignored when the run is resumed.
    task : Task, optional
        What is learnt; default: `Classification`.
    checkpoint : path, optional
        A directory for the checkpoints (after every epoch, on Ctrl-C and on SIGTERM), history.csv and history.jsonl.
    checkpoint_every : int, optional
        Also write a checkpoint after so many updates: for epochs that take hours.
    keep : int
        How many checkpoints to keep.
    resume : bool
        Go on from the newest intact checkpoint in the directory, bit for bit; from the start when there is
        none.
    callbacks : sequence of Callback
    progress : bool, optional
        True: a progress bar; False: nothing; None: a bar on a terminal or in a notebook, plain lines
        elsewhere. On stderr.
    threads : int, optional
        Threads that read and rescale images ahead of the training; see `data.Loader`.
    strict : bool, optional
        Stop at the first broken image; see `data.Loader`.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        When model, data and recipe do not fit together; when the directory holds another run; when a resumed
        run differs from the checkpoint's (the message names the field; `epochs`, `iterations` and
        `stuck_iterations` may change).
    WeightsError
        When no checkpoint is intact.
    FloatingPointError
        When the loss is no longer finite; the message says where and what to do.
    ImageError
        When more than 1 % of the images are broken, or one with `strict`.
    KeyboardInterrupt
        On Ctrl-C, after the checkpoint was written.
    SystemExit
        On SIGTERM, which schedulers send before they kill, after the checkpoint was written; status 0. Without
        `checkpoint`, or where the program handles SIGTERM itself, the signal does what it did before.

    Notes
    -----
    Velocities, gradients and the input are allocated once. The result does not depend on the number of
    threads.
    """
    if model.weight_dtype != "float32":
        raise ValueError(
            f"fit: model has weight_dtype {model.weight_dtype!r}, which is for inference; "
            f"load it with weight_dtype='float32'"
        )
    recipe = Recipe() if recipe is None else recipe
    task = Classification() if task is None else task
    trainer = Trainer(
        model, train_data, val_data, recipe, task, callbacks=callbacks, threads=threads, strict=strict
    )
    if checkpoint is not None:
        trainer.open(Checkpoints(checkpoint, keep=keep), resume=resume, every=checkpoint_every)
    elif resume:
        raise ValueError("fit: resume=True needs checkpoint=, the directory of the run to go on with")
    if init_from is not None and trainer.state.iteration == 0:
        start_from(model, init_from)
    return trainer.run(Progress("training", progress))


class Trainer:
    """One run of `fit`."""

    def __init__(
        self,
        model: VGG,
        train_data: Dataset,
        val_data: Dataset | None,
        recipe: Recipe,
        task: Task,
        *,
        callbacks: Sequence[Callback] = (),
        threads: int | None = None,
        strict: bool | None = None,
    ) -> None:
        self.model, self.recipe, self.task, self.callbacks = model, recipe, task, callbacks
        self.data: Dataset = train_data
        self.held_out = val_data
        if val_data is None and recipe.holdout > 0:
            self.data, self.held_out = split(train_data, recipe.holdout, recipe.seed)
        self._check()
        self.loader = Loader(self.data, recipe.batch, workers=threads, strict=strict)
        self.state = State()
        self.history = History()
        self.layers = learning_layers(model, recipe)
        self.micro = recipe.micro_batch or micro_batch(model, recipe.batch, self.layers)
        self.checkpoints: Checkpoints | None = None
        self.checkpoint_every: int | None = None
        device, learnt = (
            model.device,
            [f"{layer}.{kind}" for layer in self.layers for kind in ("weight", "bias")],
        )
        self.grads = {n: _C.empty(model.parameters[n].shape, device=device) for n in learnt}
        self.velocities = {n: _C.zeros(model.parameters[n].shape, device=device) for n in learnt}
        self.stuck = advice.Stuck(task.guessing(model), recipe.stuck_iterations)

    def _check(self) -> None:
        model, recipe, data = self.model, self.recipe, self.data
        for name, part in (("train_data", data), ("val_data", self.held_out)):
            if part is None:
                continue
            if len(part) == 0:
                raise ValueError(f"fit: {name} is empty")
            self.task.check(model, part, name)
        low = recipe.scale if isinstance(recipe.scale, int) else recipe.scale[0]
        if low < model.input_size:
            raise ValueError(
                f"fit: recipe.scale is {recipe.scale}; expected at least the crop, the model's input_size of "
                f"{model.input_size}"
            )
        model.scale = recipe.scale  # so that it is tested at scales that go with it
        if low > 3 * model.input_size:  # the paper's extreme is 512 / 224 = 2.3
            log.warning(
                "recipe.scale is %s for crops of %d: a crop shows less than a ninth of an image; scale=%d is "
                "in the paper's proportion",
                recipe.scale,
                model.input_size,
                round(model.input_size * 256 / 224),
            )
        if recipe.epochs is None and recipe.iterations is None and self.held_out is None:
            raise ValueError(
                "fit: nothing would end this run: give recipe.epochs or iterations, or hold images out"
            )

    # ---- checkpoints

    def open(self, checkpoints: Checkpoints, *, resume: bool, every: int | None) -> None:
        """Use a directory: a new one, or go on with the run in it."""
        if every is not None and every < 1:
            raise ValueError(f"fit: checkpoint_every is {every}; expected at least 1")
        self.checkpoints, self.checkpoint_every = checkpoints, every
        if not resume:
            if checkpoints.paths():
                raise ValueError(
                    f"fit: {checkpoints.directory} holds the checkpoints of a run; pass resume=True to go on "
                    "with it, or another directory"
                )
            return
        found = saved.restore(checkpoints, self.model, self.velocities, self._run())
        if found is None:
            log.info("no checkpoint in %s: starting from the beginning", checkpoints.directory)
            return
        path, run = found
        self.state = State(**run["state"])
        self.history = History([Row(**row) for row in run["rows"]], run["stopped_by"])
        self.micro = run["micro_batch"]
        log.info("resumed from %s: epoch %d, iteration %d", path, self.state.epoch, self.state.iteration)

    def _run(self) -> dict[str, Any]:
        """All of a checkpoint but weights and velocities."""
        labels = np.ascontiguousarray(self.data.labels, dtype=np.int64)
        return {
            "recipe": self.recipe.to_dict(),
            "task": self.task.to_dict(),
            "data": {
                "training images": len(self.data),
                "held-out images": 0 if self.held_out is None else len(self.held_out),
                "training labels' checksum": zlib.crc32(labels.data),
            },
            "state": asdict(self.state),
            "rows": [asdict(row) for row in self.history.rows],
            "stopped_by": self.history.stopped_by,
            "micro_batch": self.micro,
        }

    def _save(self) -> Path | None:
        if self.checkpoints is None:
            return None
        self.history.write(self.checkpoints.directory)
        return saved.write(self.checkpoints, self.state.iteration, self.model, self.velocities, self._run())

    # ---- the run

    def run(self, progress: Progress) -> History:
        """Train until a limit, or the last plateau."""
        self.progress = progress
        with Interrupts(terminate=self.checkpoints is not None) as interrupts, progress:
            self.interrupts = interrupts
            try:
                self._prepare()
                while self._limit() is None or self._unrecorded():
                    self._epoch()
            except (KeyboardInterrupt, SystemExit):
                with interrupts.held():
                    self._interrupted()
                raise
        return self.history

    def _limit(self) -> str | None:
        """What ends the run now, if anything."""
        state, recipe = self.state, self.recipe
        if state.plateau:
            return "plateau"
        if recipe.epochs is not None and state.epoch >= recipe.epochs:
            return "epochs"
        if recipe.iterations is not None and state.iteration >= recipe.iterations:
            return "iterations"
        return None

    def _unrecorded(self) -> bool:
        """Whether an epoch has no row yet: its last update was saved, and then the run was stopped."""
        return self.state.step > 0 and len(self.history) == self.state.epoch

    def _prepare(self) -> None:
        model, recipe, size = self.model, self.recipe, self.model.input_size
        if recipe.rgb_shift is not None and model.preprocessing.covariance is None:
            self.progress.note("computing the covariance of the channels over the training images")
            model.preprocessing = replace(model.preprocessing, covariance=self._covariance())
        self.augmentation = Augmentation(
            size, recipe.scale, recipe.mirror, recipe.rgb_shift, model.preprocessing.covariance, recipe.seed
        )
        if self._limit() is None:
            if self.history.stopped_by is not None:
                # a limit was raised; the row of an unfinished epoch is made anew
                self.history.stopped_by = None
                del self.history.rows[self.state.epoch :]
            self.x = _C.empty((self.micro, size, size, model.in_channels), device=model.device)

    def _covariance(self) -> tuple[tuple[float, ...], ...]:
        batches = self.loader.batches(transform=self._checked)
        with contextlib.closing(batches):
            return pixel_statistics(image for _, images, _ in batches for image in images).covariance

    def _checked(self, image: npt.NDArray[np.uint8], i: int) -> npt.NDArray[np.uint8]:
        check_image(image, self.model.preprocessing.channels, self.data.name(i))
        return image

    def _epoch_name(self, epoch: int) -> str:
        return f"epoch {epoch}" if self.recipe.epochs is None else f"epoch {epoch}/{self.recipe.epochs}"

    @property
    def lr(self) -> float:
        """Of the current epoch."""
        return self.recipe.lr * self.recipe.lr_factor**self.state.drops

    def _epoch(self) -> None:
        """Train what is left of the current epoch before a limit, then measure, record, and save."""
        self._train()
        state = self.state
        complete = state.step == len(self.loader)
        lr = self.lr
        measure = None
        if self.held_out is not None:
            measure = self.task.measure(self.model, self.held_out, self.recipe, self.micro)
        with self.interrupts.held():
            row = self._row(lr, measure)
            if complete:
                state.turn(None if measure is None else measure.error, self.recipe)
            self.history.rows.append(row)
            self.history.stopped_by = self._limit()
            self._save()
        self.progress.note(
            f"{self._epoch_name(row.epoch)}: {row.describe(top5=tells_top5(self.model.num_classes))}"
        )
        for callback in self.callbacks:
            callback.on_epoch(self.model, row)

    def _train(self) -> None:
        if self._limit() is not None:
            return
        state, recipe, n = self.state, self.recipe, len(self.data)
        order = epoch_order(self.data, recipe.seed, state.epoch)
        place = np.empty(n, dtype=np.int64)
        place[order] = np.arange(n)
        sides = self.augmentation.short_sides(state.epoch, np.arange(n))
        original = np.zeros((n, 2), dtype=np.int64)  # height and width of images that were read

        def rescaled(i: int) -> npt.NDArray[np.uint8]:
            image, original[i] = rescaled_image(self.data, i, int(sides[i]), recipe.filter)
            return self._checked(image, i)

        done = state.step * recipe.batch
        batches = self.loader.batches(order[done:], read=rescaled)
        self.progress.start(self._epoch_name(state.epoch + 1), state.seen, n)
        start = time.perf_counter()
        with contextlib.closing(batches):
            for images, pixels, _ in batches:
                loss, wrong = self._gradients(images, pixels, original[images])
                with self.interrupts.held():  # weights and counters change together, or not at all
                    self._update()
                    state.step = int(place[images[0]]) // recipe.batch + 1
                    state.iteration += 1
                    state.loss += loss * len(images)
                    state.wrong += wrong
                    state.seen += len(images)
                    now = time.perf_counter()
                    state.seconds += now - start
                    start = now
                self._after_update(loss, wrong, len(images))
                if self._limit() is not None:
                    break
            else:
                state.step = len(self.loader)  # batches without one readable image are left out
        self.progress.stop()

    def _gradients(
        self,
        images: npt.NDArray[np.int64],
        pixels: list[npt.NDArray[np.uint8]],
        original: npt.NDArray[np.int64],
    ) -> tuple[float, float]:
        """Gradients of the batch, the sum of its micro-batches', into `self.grads`; loss and errors.

        `pixels` are rescaled, `original` are heights and widths before that, (N, 2).
        """
        model, task, epoch, count = self.model, self.task, self.state.epoch, len(images)
        total, wrong = 0.0, 0.0
        for start in range(0, count, self.micro):
            part = slice(start, min(start + self.micro, count))
            ids = images[part]
            x = self.x.view(0, (len(ids), *self.x.shape[1:]), "float32")
            geometry = self.augmentation.geometry(epoch, ids, original[part], pixels[part])
            self.augmentation.batch(pixels[part], epoch, ids, model.preprocessing.mean, out=x)
            self.last = x
            run = model.run(x, training=True, rng=rng.Rng(self.recipe.seed, rng.rows_of(epoch, ids)))
            loss = task.loss(run.logits, task.targets(self.data, geometry), count)
            total += float(loss.value)
            wrong += loss.wrong
            if not math.isfinite(total):
                state = self.state
                raise FloatingPointError(
                    advice.diverged(total, state.iteration + 1, state.epoch + 1, self.lr)
                )
            run.backward({"fc8": loss.gradient}, weights=self.layers, grads=self.grads, accumulate=start > 0)
            del run, loss  # the run's maps, before the next run makes its own
        return total, wrong

    def _update(self) -> None:
        recipe = self.recipe
        decay = recipe.weight_decay if recipe.bias_weight_decay is None else recipe.bias_weight_decay
        for kind, lr, weight_decay in (
            ("weight", self.lr, recipe.weight_decay),
            ("bias", self.lr * recipe.bias_lr_multiplier, decay),
        ):
            for multiplier in sorted(set(self.layers.values())):
                names = [f"{layer}.{kind}" for layer, value in self.layers.items() if value == multiplier]
                tensors = (self.model.parameters, self.grads, self.velocities)
                p, g, v = ([t[name] for name in names] for t in tensors)
                ops.sgd_(p, g, v, multiplier * lr, recipe.momentum, weight_decay)

    def _after_update(self, loss: float, wrong: float, count: int) -> None:
        state = self.state
        self.progress(
            state.seen,
            len(self.data),
            f"loss {state.loss / state.seen:.3f}, error {100.0 * state.wrong / state.seen:.1f} %, lr {self.lr:g}",
        )
        if self.stuck.add(loss):
            iterations = self.recipe.stuck_iterations
            self.progress.warn(advice.stuck(self.model, self.last, iterations, state.iteration, self.lr))
        if self.checkpoint_every is not None and state.iteration % self.checkpoint_every == 0:
            with self.interrupts.held():
                self._save()
        for callback in self.callbacks:
            callback.on_iteration(self.model, state.iteration, loss, 100.0 * wrong / count)

    def _row(self, lr: float, measure: Measure | None) -> Row:
        state = self.state
        seen = max(state.seen, 1)
        return Row(
            epoch=state.epoch + 1,
            iteration=state.iteration,
            lr=lr,
            train_loss=state.loss / seen,
            train_error=100.0 * state.wrong / seen,
            val_loss=None if measure is None else measure.loss,
            val_top1=None if measure is None else measure.error,
            val_top5=None if measure is None else measure.top5,
            images_per_second=state.seen / state.seconds if state.seconds > 0 else 0.0,
            seconds=state.seconds,
        )

    def _interrupted(self) -> None:
        where = f"interrupted in epoch {self.state.epoch + 1}, after iteration {self.state.iteration}"
        path = self._save()
        if path is None:
            self.progress.note(
                f"{where}; nothing was saved: give checkpoint= a directory to be able to go on"
            )
        else:
            self.progress.note(
                f"{where}; saved {path}. To go on, bit for bit: the same call with resume=True "
                "(vggnet train: --resume)"
            )
