"""Training (paper, section 3.1): a `Recipe` says how, `fit` does it, a `History` tells what happened.

A run is a function of the model's first weights, the data and the recipe: order, crops, mirrors, shifts and
dropout are keyed by (seed, epoch, image), so a run that was interrupted, killed, or given other threads ends
in the same weights, bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import _C, evaluate, ops, rng
from .augment import Augmentation, pixel_statistics
from .checkpoint import VELOCITY, Checkpoints, restore_tensors
from .data import Loader, split
from .evaluate.report import tells_top5
from .history import History, Row
from .preprocess import check_image, rescale
from .progress import Progress
from .recipes import Recipe

if TYPE_CHECKING:
    from .data import Dataset
    from .models import VGG

__all__ = ["Callback", "History", "Recipe", "Row", "fit", "saved_run", "start_from"]

log = logging.getLogger("vggnet")

FORMAT = "vggnet-checkpoint-1"

# Weights that a deeper net takes from a trained A: "the first four convolutional layers and the last three
# fully-connected layers" (paper, section 3.1), by name.
FROM_A = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")


class Callback:
    """Hooks into `fit`: derive from this and override what you need."""

    def on_iteration(self, model: VGG, iteration: int, loss: float, error: float) -> None:
        """After each update: the loss of its batch, and its top-1 error in %."""

    def on_epoch(self, model: VGG, row: Row) -> None:
        """After each epoch, its held-out evaluation and its checkpoint."""


def start_from(model: VGG, trained: VGG) -> list[str]:
    """Copy into a new net the layers that the paper took from a trained A (section 3.1): `FROM_A`.

    Parameters
    ----------
    model : VGG
        Changed in place; its other layers keep their random weights.
    trained : VGG
        Usually of config "A".

    Returns
    -------
    list of str
        The layers copied: fc8 is left random when the numbers of classes differ.

    Raises
    ------
    ValueError
        When another of these layers has another shape; nothing has been copied then.
    """
    copied = []
    for layer in FROM_A:
        ours, theirs = (m.parameters[f"{layer}.weight"].shape for m in (model, trained))
        if ours == theirs:
            copied.append(layer)
        elif layer != "fc8":
            raise ValueError(
                f"start_from: {layer} has shape {ours}, that of the trained net {theirs}; expected "
                "nets of the same input_size, in_channels and fc_width"
            )
    for layer in copied:
        for name in (f"{layer}.weight", f"{layer}.bias"):
            model.parameters[name].copy_(trained.parameters[name])
    return copied


def fit(
    model: VGG,
    train_data: Dataset,
    val_data: Dataset | None = None,
    recipe: Recipe | None = None,
    *,
    init_from: VGG | None = None,
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
        A trained A, whose layers the new net starts with (`start_from`); ignored when the run is resumed.
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
    trainer = _Trainer(
        model, train_data, val_data, recipe, callbacks=callbacks, threads=threads, strict=strict
    )
    if checkpoint is not None:
        trainer.open(Checkpoints(checkpoint, keep=keep), resume=resume, every=checkpoint_every)
    elif resume:
        raise ValueError("fit: resume=True needs checkpoint=, the directory of the run to go on with")
    if init_from is not None and trainer.state.iteration == 0:
        start_from(model, init_from)
    return trainer.run(Progress("training", progress))


def saved_run(directory: str | os.PathLike[str]) -> tuple[dict[str, Any], Recipe]:
    """Arguments of `VGG` and the recipe of the run in a directory, as its newest checkpoint has them."""
    newest = _newest(Checkpoints(directory))
    if newest is None:
        raise ValueError(f"{directory} has no checkpoint yet: start the run again")
    _, model, run = newest
    return model, Recipe.from_dict(run["recipe"])


def _newest(checkpoints: Checkpoints) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
    """The newest intact checkpoint: its file, the arguments of its model, and its run."""
    newest = checkpoints.newest()
    if newest is None:
        return None
    path, metadata = newest
    if metadata.get("format") != FORMAT:
        raise _C.WeightsError(f"{path}: format {metadata.get('format')!r}; expected {FORMAT!r}")
    return path, json.loads(metadata["model"]), json.loads(metadata["run"])


@dataclass
class _State:
    """Where a run is: all that a checkpoint needs beside weights, velocities and rows."""

    epoch: int = 0  # epochs done
    step: int = 0  # batches of the current epoch done
    iteration: int = 0  # updates done
    drops: int = 0  # how often the lr fell
    best: float | None = None  # lowest held-out error, %
    waited: int = 0  # epochs since it fell
    plateau: bool = False  # the last plateau was reached
    loss: float = 0.0  # sum over the images of the current epoch
    wrong: int = 0
    seen: int = 0
    seconds: float = 0.0


class _Trainer:
    """One run of `fit`."""

    def __init__(
        self,
        model: VGG,
        train_data: Dataset,
        val_data: Dataset | None,
        recipe: Recipe,
        *,
        callbacks: Sequence[Callback],
        threads: int | None,
        strict: bool | None,
    ) -> None:
        self.model, self.recipe, self.callbacks = model, recipe, callbacks
        self.data: Dataset = train_data
        self.held_out = val_data
        if val_data is None and recipe.holdout > 0:
            self.data, self.held_out = split(train_data, recipe.holdout, recipe.seed)
        self._check()
        self.loader = Loader(self.data, recipe.batch, workers=threads, strict=strict)
        self.labels = np.asarray(self.data.labels, dtype=np.int64)
        self.state = _State()
        self.history = History()
        self.micro = recipe.micro_batch or _micro_batch(model, recipe.batch)
        self.covariance = recipe.rgb_covariance
        self.checkpoints: Checkpoints | None = None
        self.checkpoint_every: int | None = None
        device = model.device
        self.grads = {name: _C.empty(p.shape, device=device) for name, p in model.parameters.items()}
        self.velocities = {name: _C.zeros(p.shape, device=device) for name, p in model.parameters.items()}
        self.stuck = _Stuck(model.num_classes, recipe.stuck_iterations)

    def _check(self) -> None:
        model, recipe, data = self.model, self.recipe, self.data
        for name, part in (("train_data", data), ("val_data", self.held_out)):
            if part is None:
                continue
            if len(part) == 0:
                raise ValueError(f"fit: {name} is empty")
            if len(part.classes) != model.num_classes:
                raise ValueError(
                    f"fit: {name} has {len(part.classes)} classes; the model has {model.num_classes}"
                )
            if model.classes is None:  # so that the saved model can name them
                model.classes = list(part.classes)
            if list(part.classes) != model.classes:
                raise ValueError(f"fit: the classes of {name} are not those of the model, in the same order")
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
        channels = 3 if model.preprocessing.channels == "RGB" else 1
        if recipe.rgb_covariance is not None and len(recipe.rgb_covariance) != channels:
            raise ValueError(
                f"fit: recipe.rgb_covariance is for {len(recipe.rgb_covariance)} channels, not {channels}"
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
        newest = _newest(checkpoints)
        if newest is None:
            log.info("no checkpoint in %s: starting from the beginning", checkpoints.directory)
            return
        path, model, run = newest
        self._compare(path, model, run)
        velocities = {VELOCITY + name: velocity for name, velocity in self.velocities.items()}
        restore_tensors(path, {**self.model.parameters, **velocities})
        self.state = _State(**run["state"])
        self.history = History([Row(**row) for row in run["rows"]], run["stopped_by"])
        self.micro = run["micro_batch"]
        self.covariance = run["covariance"]
        log.info("resumed from %s: epoch %d, iteration %d", path, self.state.epoch, self.state.iteration)

    def _compare(self, path: Path, model: dict[str, Any], run: dict[str, Any]) -> None:
        """Raise ValueError when what was saved is not this run."""
        limits = {"epochs", "iterations", "stuck_iterations"}  # what may change without changing the updates
        pairs = [
            ("recipe.", run["recipe"], self.recipe.to_dict(), limits),
            ("model.", model, json.loads(json.dumps(self.model.to_dict())), {"seed"}),
            ("", run["data"], self._data_facts(), set()),
        ]
        for where, saved, now, free in pairs:
            for name in sorted((saved.keys() | now.keys()) - free):
                if saved.get(name) != now.get(name):
                    raise ValueError(
                        f"fit: {where}{name} is {now.get(name)!r}, but the run in {path} has "
                        f"{saved.get(name)!r}; a run is resumed unchanged: use the same value, or "
                        "another directory"
                    )

    def _data_facts(self) -> dict[str, Any]:
        return {
            "training images": len(self.data),
            "held-out images": 0 if self.held_out is None else len(self.held_out),
            "training labels' checksum": zlib.crc32(self.labels.data),
        }

    def _save(self) -> Path | None:
        if self.checkpoints is None:
            return None
        run = {
            "recipe": self.recipe.to_dict(),
            "data": self._data_facts(),
            "state": asdict(self.state),
            "rows": [asdict(row) for row in self.history.rows],
            "stopped_by": self.history.stopped_by,
            "micro_batch": self.micro,
            "covariance": self.covariance,
        }
        metadata = {
            "format": FORMAT,
            "model": json.dumps(self.model.to_dict()),
            "preprocessing": json.dumps(self.model.preprocessing.to_dict()),
            "run": json.dumps(run),
        }
        self.history.write(self.checkpoints.directory)
        return self.checkpoints.save(self.state.iteration, self.model.parameters, self.velocities, metadata)

    # ---- the run

    def run(self, progress: Progress) -> History:
        self.progress = progress
        with _Interrupts(terminate=self.checkpoints is not None) as interrupts, progress:
            self.interrupts = interrupts
            try:
                self._prepare()
                while self._limit() is None:
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

    def _prepare(self) -> None:
        recipe, size = self.recipe, self.model.input_size
        if recipe.rgb_shift is not None and self.covariance is None:
            self.progress.note("computing the covariance of the channels over the training images")
            self.covariance = self._covariance()
        self.augmentation = Augmentation(
            size, recipe.scale, recipe.mirror, recipe.rgb_shift, self.covariance, recipe.seed
        )
        if self._limit() is None:
            if (
                self.history.stopped_by is not None
            ):  # a limit was raised; the row of an unfinished epoch is made anew
                self.history.stopped_by = None
                del self.history.rows[self.state.epoch :]
            shape = (self.micro, size, size, len(self.model.preprocessing.mean))
            self.x = _C.empty(shape, device=self.model.device)

    def _covariance(self) -> tuple[tuple[float, ...], ...]:
        check = self._checked
        batches = self.loader.batches(transform=check)
        with contextlib.closing(batches):
            return pixel_statistics(image for _, images, _ in batches for image in images).covariance

    def _checked(self, image: npt.NDArray[np.uint8], i: int) -> npt.NDArray[np.uint8]:
        check_image(image, self.model.preprocessing.channels, self.data.name(i))
        return image

    def _epoch_name(self, epoch: int) -> str:
        return f"epoch {epoch}" if self.recipe.epochs is None else f"epoch {epoch}/{self.recipe.epochs}"

    @property
    def lr(self) -> float:
        return self.recipe.lr * self.recipe.lr_factor**self.state.drops

    def _epoch(self) -> None:
        """Train what is left of the current epoch, then evaluate, record, and save."""
        self._train()
        state = self.state
        complete = state.step == len(self.loader)
        lr = self.lr
        report = self._evaluate()
        with self.interrupts.held():
            row = self._row(lr, report)
            if complete:
                self._turn(report)
            self.history.rows.append(row)
            self.history.stopped_by = self._limit()
            self._save()
        self.progress.note(
            f"{self._epoch_name(row.epoch)}: {row.describe(top5=tells_top5(self.model.num_classes))}"
        )
        for callback in self.callbacks:
            callback.on_epoch(self.model, row)

    def _train(self) -> None:
        state, recipe, n = self.state, self.recipe, len(self.data)
        order = rng.permutation(recipe.seed, state.epoch, n)
        place = np.empty(n, dtype=np.int64)
        place[order] = np.arange(n)
        sides = self.augmentation.short_sides(state.epoch, np.arange(n))

        def rescaled(image: npt.NDArray[np.uint8], i: int) -> npt.NDArray[np.uint8]:
            return rescale(self._checked(image, i), int(sides[i]), recipe.filter)

        done = state.step * recipe.batch
        batches = self.loader.batches(order[done:], rescaled)
        self.progress.start(self._epoch_name(state.epoch + 1), state.seen, n)
        start = time.perf_counter()
        with contextlib.closing(batches):
            for images, pixels, labels in batches:
                loss, wrong = self._gradients(images, pixels, labels)
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
                if recipe.iterations is not None and state.iteration >= recipe.iterations:
                    break
            else:
                state.step = len(self.loader)  # batches without one readable image are left out
        self.progress.stop()

    def _gradients(
        self,
        images: npt.NDArray[np.int64],
        pixels: list[npt.NDArray[np.uint8]],
        labels: npt.NDArray[np.int64],
    ) -> tuple[float, int]:
        """Gradients of the batch, the sum of its micro-batches', into `self.grads`; loss and errors."""
        model, epoch, count = self.model, self.state.epoch, len(images)
        total, wrong = 0.0, 0
        for start in range(0, count, self.micro):
            part = slice(start, min(start + self.micro, count))
            ids = images[part]
            x = self.x.view(0, (len(ids), *self.x.shape[1:]), "float32")
            self.augmentation.batch(pixels[part], epoch, ids, model.preprocessing.mean, out=x)
            self.last = x
            run = model.run(x, training=True, rng=rng.Rng(self.recipe.seed, rng.rows_of(epoch, ids)))
            loss, dlogits = ops.cross_entropy(run.logits, labels[part], normalizer=count)
            total += float(loss)
            wrong += int((run.logits.numpy().argmax(axis=1) != labels[part]).sum())
            if not math.isfinite(total):
                raise FloatingPointError(self._diverged(total))
            run.backward({"fc8": dlogits}, grads=self.grads, accumulate=start > 0)
            del run  # its maps, before the next run makes its own
        return total, wrong

    def _update(self) -> None:
        recipe, parameters = self.recipe, self.model.parameters
        decay = recipe.weight_decay if recipe.bias_weight_decay is None else recipe.bias_weight_decay
        for kind, lr, weight_decay in (
            ("weight", self.lr, recipe.weight_decay),
            ("bias", self.lr * recipe.bias_lr_multiplier, decay),
        ):
            names = [name for name in parameters if name.endswith(kind)]
            p, g, v = ([t[name] for name in names] for t in (parameters, self.grads, self.velocities))
            ops.sgd_(p, g, v, lr, recipe.momentum, weight_decay)

    def _after_update(self, loss: float, wrong: int, count: int) -> None:
        state = self.state
        self.progress(
            state.seen,
            len(self.data),
            f"loss {state.loss / state.seen:.3f}, error {100.0 * state.wrong / state.seen:.1f} %, lr {self.lr:g}",
        )
        if self.stuck.add(loss):
            self.progress.warn(self._stuck_advice())
        if self.checkpoint_every is not None and state.iteration % self.checkpoint_every == 0:
            with self.interrupts.held():
                self._save()
        for callback in self.callbacks:
            callback.on_iteration(self.model, state.iteration, loss, 100.0 * wrong / count)

    def _evaluate(self) -> evaluate.Report | None:
        """One centre crop of each held-out image: fast, and enough to see a plateau."""
        if self.held_out is None:
            return None
        protocol = evaluate.Protocol(
            "center", (self.recipe.validation_scale,), filter=self.recipe.filter, batch=self.micro
        )
        return evaluate.evaluate(self.model, self.held_out, protocol)

    def _row(self, lr: float, report: evaluate.Report | None) -> Row:
        state = self.state
        seen = max(state.seen, 1)
        return Row(
            epoch=state.epoch + 1,
            iteration=state.iteration,
            lr=lr,
            train_loss=state.loss / seen,
            train_error=100.0 * state.wrong / seen,
            val_loss=None if report is None else _mean_loss(report),
            val_top1=None if report is None else report.top1,
            val_top5=None if report is None else report.top5,
            images_per_second=state.seen / state.seconds if state.seconds > 0 else 0.0,
            seconds=state.seconds,
        )

    def _turn(self, report: evaluate.Report | None) -> None:
        """End an epoch: the plateau rule, and counters back to zero."""
        state, recipe = self.state, self.recipe
        if report is not None:
            if state.best is None or report.top1 < state.best - recipe.plateau_threshold:
                state.best, state.waited = report.top1, 0
            else:
                state.waited += 1
            if state.waited >= recipe.plateau_patience:
                state.waited = 0
                state.plateau = state.drops == recipe.lr_drops
                state.drops += not state.plateau
        state.epoch += 1
        state.step = state.wrong = state.seen = 0
        state.loss = state.seconds = 0.0

    # ---- when something is wrong

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

    def _diverged(self, loss: float) -> str:
        state = self.state
        return (
            f"the loss is {loss} at iteration {state.iteration + 1} (epoch {state.epoch + 1}, "
            f"lr {self.lr:g}): training has diverged. Lower the lr (a tenth: {self.lr / 10:g}), check the "
            'mean and the labels, or use init="xavier"; the weights are those of before this iteration'
        )

    def _stuck_advice(self) -> str:
        state, model = self.state, self.model
        advice = (
            f"training is stuck: for {self.recipe.stuck_iterations} iterations, up to {state.iteration}, the "
            f"loss has been ln({model.num_classes}) = {math.log(model.num_classes):.3f}, which is guessing. "
            'Deep nets do this from small random weights: use init="xavier" ("he" needs a far lower lr), or '
            "train an A first and pass it as init_from (paper, section 3.1). "
            f"If it started to learn and fell back, lower the lr ({self.lr:g})"
        )
        dead = self._dead_layers()
        return (
            f"{advice}. Dead ReLUs, zero for each of the last images: {', '.join(dead)}" if dead else advice
        )

    def _dead_layers(self) -> list[str]:
        """ReLU layers with most of their channels zero for all of the last images, with the share."""
        relus = [name for name in self.model.layer_names if name.startswith("relu")]
        maps = self.model.features(self.last, relus)
        dead = {
            name: np.mean(~map.numpy().reshape(-1, map.shape[-1]).any(axis=0)) for name, map in maps.items()
        }
        return [f"{name} ({100 * share:.0f} %)" for name, share in dead.items() if share > 0.5]


def _mean_loss(report: evaluate.Report) -> float | None:
    """Mean of -ln(posterior of the right class) over the images that could be read."""
    assert report.posteriors is not None
    own = report.posteriors[np.arange(report.count), report.labels].astype(np.float64)
    own = own[~np.isnan(own)]
    return float(-np.log(np.maximum(own, 1e-38)).mean()) if len(own) else None


def _micro_batch(model: VGG, batch: int) -> int:
    """The batch, or its half, quarter, ...: the largest that fits into four fifths of the free memory."""
    free = _free_memory()
    micro = batch
    if free is None:
        return batch
    while micro > 1 and model.memory_plan(micro, training=True).total > 0.8 * free:
        micro = -(-micro // 2)
    if micro < batch:
        log.info("batches of %d go in parts of %d: %d MB of memory are free", batch, micro, free >> 20)
    return micro


def _free_memory() -> int | None:
    """Bytes that may still be taken, of the machine and of the control group; None where that is unknown."""

    def table(path: str) -> dict[str, int]:
        lines = Path(path).read_text(encoding="ascii").splitlines()
        return {line.split()[0].rstrip(":"): int(line.split()[1]) for line in lines}

    free = []
    with contextlib.suppress(OSError, ValueError, LookupError):
        free.append(table("/proc/meminfo")["MemAvailable"] << 10)
    with contextlib.suppress(OSError, ValueError, LookupError):  # "max" when there is no limit
        group = Path("/sys/fs/cgroup")
        limit, used = (
            int((group / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current")
        )
        cached = table(f"{group}/memory.stat")["inactive_file"]  # given back when it is needed
        free.append(limit - used + cached)
    return min(free, default=None)


class _Stuck:
    """Watches for a loss that stays at ln(classes): the means of both halves of `iterations` within 1 %."""

    def __init__(self, classes: int, iterations: int) -> None:
        self.level = math.log(classes)
        self.losses: deque[float] = deque(maxlen=iterations)

    def add(self, loss: float) -> bool:
        """Whether it is stuck; then the count begins anew."""
        self.losses.append(loss)
        if len(self.losses) < (self.losses.maxlen or 0) or self.level == 0.0:
            return False
        losses = np.array(self.losses)
        stuck = all(abs(half.mean() - self.level) < 0.01 * self.level for half in np.array_split(losses, 2))
        if stuck:
            self.losses.clear()
        return stuck


class _Interrupts:
    """Ctrl-C while training, and with `terminate` SIGTERM, which schedulers send before they kill: at once, between
    layers, except inside `held()`, where it waits for its end.

    An update of the weights and its counters must be one: a checkpoint written between them could not go on
    bit for bit.
    """

    def __init__(self, *, terminate: bool) -> None:
        self.depth = 0
        self.pending: BaseException | None = None
        self.defaults: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
        if terminate:
            self.defaults[signal.SIGTERM] = signal.SIG_DFL
        self.installed: list[int] = []

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():  # only there signals arrive
            self.installed = [n for n, default in self.defaults.items() if signal.getsignal(n) == default]
        for number in self.installed:
            signal.signal(number, self._arrived)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self.installed:
            signal.signal(number, self.defaults[number])

    def _arrived(self, number: int, _: object) -> None:
        stop = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(0)
        if not self.depth:
            raise stop
        self.pending = stop

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
        if self.pending is not None and not self.depth:
            stop, self.pending = self.pending, None
            raise stop
