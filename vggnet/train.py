"""Training by the paper's recipe (paper, section 3.1): `Recipe` says how, `fit` does it, `History` tells what happened.

A run is a function of the model's first weights, the data and the recipe: order, crops, mirrors, shifts and dropout are keyed
by (seed, epoch, image), so a run that was interrupted, killed, or given other threads ends in the same weights, bit for bit.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import _C, evaluate, ops, rng
from .augment import Augmentation, RgbShift, pixel_statistics
from .checkpoint import VELOCITY, Checkpoints, restore_tensors, write_text
from .data import Loader, split
from .preprocess import FILTERS, check_image, rescale

if TYPE_CHECKING:
    from .data import Dataset
    from .models import VGG

log = logging.getLogger("vggnet")

FORMAT = "vggnet-checkpoint-1"

# Weights that a deeper net takes from a trained A: "the first four convolutional layers and the last three fully-connected
# layers" (paper, section 3.1), by name.
FROM_A = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")


# ---------------------------------------------------------------------------------------------------------- recipe


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the paper's (section 3.1), and what the paper leaves open says so.

    Attributes
    ----------
    batch : int
        Images of one update.
    micro_batch : int or None
        Images of one forward and backward pass; their gradients are added up, so the update is that of the whole batch and
        any batch fits any memory. None: the whole batch, or the half, quarter, ... of it that fits the free memory.
    lr, momentum, weight_decay : float
        Of Caffe's rule, v = momentum v + lr (g + weight_decay w), w -= v.
    bias_weight_decay : float or None
        For biases; None: as for weights. The paper is silent.
    bias_lr_multiplier : float
        The lr of biases over that of weights. The paper is silent.
    lr_factor, lr_drops : float, int
        The lr is multiplied by lr_factor when the held-out error stops improving; it fell 3 times. The next time, the run
        stops.
    plateau_patience : int
        "Stops improving" means: this many epochs in a row without improvement (our inference; the paper did it by hand).
    plateau_threshold : float
        An improvement is a fall of the held-out top-1 error by more than this, in percentage points (our inference).
    epochs, iterations : int or None
        Stop after so many, whichever comes first.
    scale : int or (int, int)
        The smallest side S that training images are rescaled to; a pair is scale jittering: drawn per image from
        [lowest, highest]. The crop is the model's input_size.
    filter : "bilinear" | "bicubic" | "lanczos" | "box"
        Pillow's resampling filter (the paper is silent).
    mirror : bool
        Mirror half of the images.
    rgb_shift : "eigenvalue" | "deviation" | None
        Krizhevsky's random RGB shift, by the eigenvalues of the covariance or by their square roots; see `Augmentation`.
    rgb_covariance : C tuples of C floats, or None
        Of the channels over the training set, pixels on the 0..1 scale. None: computed before the first epoch, in one pass
        over the training images.
    holdout : float
        The share of the training set, class-balanced, that is held out for the learning rate to watch when `fit` is given
        no val_data; 0: none, and the lr never drops. (The paper watched the validation set.) Test data decide nothing.
    stuck_iterations : int
        Warn when the loss has been within 1 % of ln(classes), which is guessing, for so many iterations.
    seed : int
        Of the order, the augmentation, dropout and the held-out part.

    Raises
    ------
    ValueError
        For a value out of its range; the message names the field.
    """

    batch: int = 256
    micro_batch: int | None = None
    lr: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_weight_decay: float | None = None
    bias_lr_multiplier: float = 1.0
    lr_factor: float = 0.1
    lr_drops: int = 3
    plateau_patience: int = 3
    plateau_threshold: float = 0.1
    epochs: int | None = 74
    iterations: int | None = 370_000
    scale: int | tuple[int, int] = 256
    filter: str = "bicubic"
    mirror: bool = True
    rgb_shift: RgbShift | None = "eigenvalue"
    rgb_covariance: tuple[tuple[float, ...], ...] | None = None
    holdout: float = 0.1
    stuck_iterations: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        def check(name: str, good: bool, expected: str) -> None:
            if not good:
                raise ValueError(f"Recipe: {name} is {getattr(self, name)!r}; expected {expected}")

        def whole(name: str, least: int, *, none: bool = False) -> None:
            value = getattr(self, name)
            good = (value is None and none) or (type(value) is int and value >= least)
            check(name, good, f"a whole number, at least {least}" + (", or None" if none else ""))

        def number(name: str, good: Callable[[float], bool], expected: str, *, none: bool = False) -> None:
            value = getattr(self, name)
            real = isinstance(value, (int, float)) and not isinstance(value, bool)
            check(name, (value is None and none) or (real and math.isfinite(value) and good(value)), expected)

        if isinstance(self.scale, list):
            object.__setattr__(self, "scale", tuple(self.scale))
        if self.rgb_covariance is not None:
            rows = tuple(tuple(float(v) for v in row) for row in self.rgb_covariance)
            object.__setattr__(self, "rgb_covariance", rows)
            square = all(len(row) == len(rows) for row in rows)
            check(
                "rgb_covariance", square and bool(np.allclose(rows, np.transpose(rows))), "a symmetric matrix"
            )
        whole("batch", 1)
        whole("micro_batch", 1, none=True)
        whole("lr_drops", 0)
        whole("plateau_patience", 1)
        whole("epochs", 1, none=True)
        whole("iterations", 1, none=True)
        whole("stuck_iterations", 2)
        whole("seed", 0)
        check("seed", self.seed < 1 << 64, "less than 2**64")
        number("lr", lambda v: v > 0, "a number above 0")
        number("momentum", lambda v: 0 <= v < 1, "0 <= momentum < 1")
        number("weight_decay", lambda v: v >= 0, "a number, at least 0")
        number("bias_weight_decay", lambda v: v >= 0, "a number, at least 0, or None", none=True)
        number("bias_lr_multiplier", lambda v: v >= 0, "a number, at least 0")
        number("lr_factor", lambda v: 0 < v <= 1, "0 < lr_factor <= 1")
        number("plateau_threshold", lambda v: v >= 0, "a number of percentage points, at least 0")
        number("holdout", lambda v: 0 <= v < 1, "a share of the training set, 0 <= holdout < 1")
        sides = (self.scale, self.scale) if isinstance(self.scale, int) else self.scale
        pair = isinstance(sides, tuple) and len(sides) == 2 and all(type(side) is int for side in sides)
        check("scale", pair and 1 <= sides[0] <= sides[1], "a smallest side in pixels, or (lowest, highest)")
        check("filter", self.filter in FILTERS, f"one of {', '.join(FILTERS)}")
        check("mirror", isinstance(self.mirror, bool), "True or False")
        check(
            "rgb_shift",
            self.rgb_shift in ("eigenvalue", "deviation", None),
            '"eigenvalue", "deviation" or None',
        )

    @classmethod
    def paper(cls, scale: int | tuple[int, int] = 256, **changes: Any) -> Recipe:
        """The paper's settings for 224 x 224 crops (section 3.1), with changes if you like.

        Parameters
        ----------
        scale : 256 | 384 | (256, 512)
            256 from random weights, or from a trained A (`fit` with ``init_from``), with lr 1e-2. 384 goes on from the
            weights of 256 with lr 1e-3. (256, 512), scale jittering, goes on from those of 384; its lr is not stated, 1e-3
            is our inference.
        **changes
            Fields that differ.

        Examples
        --------
        >>> Recipe.paper(scale=(256, 512)).lr
        0.001
        """
        scale = tuple(scale) if isinstance(scale, list) else scale
        if scale not in (256, 384, (256, 512)):
            raise ValueError(
                f"Recipe.paper: scale is {scale!r}; the paper trained at 256, 384 and (256, 512)"
            )
        return cls(**({"scale": scale, "lr": 1e-2 if scale == 256 else 1e-3} | changes))

    @property
    def validation_scale(self) -> int:
        """The smallest side Q at which the held-out error is measured: S, or the middle of the range (section 4.1)."""
        return self.scale if isinstance(self.scale, int) else (self.scale[0] + self.scale[1]) // 2

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`; missing fields take their defaults.

        Raises
        ------
        ValueError
            For an unknown field or a value out of its range.
        """
        unknown = sorted(values.keys() - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"Recipe has no field {unknown[0]!r}")
        return cls(**values)


# --------------------------------------------------------------------------------------------------------- history


@dataclass(frozen=True)
class Row:
    """One epoch. Errors in %; `val_*` are of the held-out images, one centre crop each, None without them."""

    epoch: int  # epochs done
    iteration: int  # updates done
    lr: float  # of the epoch
    train_loss: float  # mean over the epoch's images, as they were trained on: cropped, with dropout
    train_error: float
    val_loss: float | None
    val_top1: float | None
    val_top5: float | None
    images_per_second: float
    seconds: float  # of training, without the held-out images


@dataclass
class History:
    """What happened in a run, epoch by epoch.

    Attributes
    ----------
    rows : list of Row
    stopped_by : "epochs" | "iterations" | "plateau" | None
        What ended the run; None while it goes on.
    """

    rows: list[Row] = field(default_factory=list)
    stopped_by: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    @property
    def best(self) -> Row | None:
        """The row of the lowest held-out top-1 error, the first of equals."""
        rows = [row for row in self.rows if row.val_top1 is not None]
        return min(rows, key=lambda row: row.val_top1 or 0.0) if rows else None

    def write(self, directory: str | os.PathLike[str]) -> None:
        """Write history.csv and history.jsonl, each whole or not at all; earlier ones are replaced."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(f.name for f in dataclasses.fields(Row))
        writer.writerows(dataclasses.astuple(row) for row in self.rows)
        write_text(Path(directory, "history.csv"), table.getvalue())
        write_text(
            Path(directory, "history.jsonl"), "".join(json.dumps(asdict(row)) + "\n" for row in self.rows)
        )

    def plot(self, path: str | os.PathLike[str] = "curves.png") -> None:
        """Draw loss and error over the epochs into a PNG file; dotted lines mark where the lr fell."""
        from . import picture

        picture.history(path, self.rows)


class Callback:
    """Hooks into `fit`: derive from this and override what you need."""

    def on_iteration(self, model: VGG, iteration: int, loss: float, error: float) -> None:
        """After each update: the loss of its batch, and its top-1 error in %."""

    def on_epoch(self, model: VGG, row: Row) -> None:
        """After each epoch, its held-out evaluation and its checkpoint."""


# -------------------------------------------------------------------------------------------------------- training


def start_from(model: VGG, trained: VGG) -> list[str]:
    """Copy into a new net what the paper copied from a trained A: conv1_1, conv2_1, conv3_1, conv3_2, fc6, fc7 and fc8.

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
                f"start_from: {layer} has shape {ours}, that of the trained net {theirs}; expected nets of the same "
                "input_size, in_channels and fc_width"
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
        What the learning rate watches. None: `recipe.holdout` of the training set is held out. Never give test data: an
        error measured on data that decided about the training is too good.
    recipe : Recipe, optional
        Default: the paper's.
    init_from : VGG, optional
        A trained A, whose layers the new net starts with (`start_from`); ignored when the run is resumed.
    checkpoint : path, optional
        A directory for the checkpoints (after every epoch, and on Ctrl-C), history.csv and history.jsonl.
    checkpoint_every : int, optional
        Also write a checkpoint after so many updates: for epochs that take hours.
    keep : int
        How many checkpoints to keep.
    resume : bool
        Go on from the newest intact checkpoint in the directory, bit for bit; from the start when there is none.
    callbacks : sequence of Callback
    progress : bool, optional
        True: a progress bar; False: nothing; None: a bar on a terminal or in a notebook, plain lines elsewhere. On stderr.
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
        When model, data and recipe do not fit together; when the directory holds another run; when a resumed run differs
        from the checkpoint's (the message names the field; `epochs`, `iterations` and `stuck_iterations` may change).
    WeightsError
        When no checkpoint is intact.
    FloatingPointError
        When the loss is no longer finite; the message says where and what to do.
    ImageError
        When more than 1 % of the images are broken, or one with `strict`.
    KeyboardInterrupt
        On Ctrl-C, after the checkpoint was written.

    Notes
    -----
    Velocities, gradients and the input are allocated once. The result does not depend on the number of threads.
    """
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
    return trainer.run(_Reporter(progress, recipe))


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
        if low > 3 * model.input_size:  # the paper's extreme is 512 / 224 = 2.3
            log.warning(
                "recipe.scale is %s for crops of %d: a crop shows less than a ninth of an image; scale=%d is in the paper's "
                "proportion",
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
                    f"fit: {checkpoints.directory} holds the checkpoints of a run; pass resume=True to go on with it, or "
                    "another directory"
                )
            return
        newest = checkpoints.newest()
        if newest is None:
            log.info("no checkpoint in %s: starting from the beginning", checkpoints.directory)
            return
        path, metadata = newest
        if metadata.get("format") != FORMAT:
            raise _C.WeightsError(f"{path}: format {metadata.get('format')!r}; expected {FORMAT!r}")
        run = json.loads(metadata["run"])
        self._compare(path, json.loads(metadata["model"]), run)
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
                        f"fit: {where}{name} is {now.get(name)!r}, but the run in {path} has {saved.get(name)!r}; a run is "
                        "resumed unchanged: use the same value, or another directory"
                    )

    def _data_facts(self) -> dict[str, Any]:
        return {
            "training images": len(self.data),
            "held-out images": 0 if self.held_out is None else len(self.held_out),
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

    def run(self, reporter: _Reporter) -> History:
        self.reporter = reporter
        with _Interrupts() as interrupts, reporter:
            self.interrupts = interrupts
            try:
                self._prepare()
                while self._limit() is None:
                    self._epoch()
            except KeyboardInterrupt:
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
            self.reporter.note("computing the covariance of the channels over the training images")
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
        self.reporter.epoch(row)
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
        self.reporter.start(state.epoch, done, n)
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
        self.reporter.stop()

    def _gradients(
        self,
        images: npt.NDArray[np.int64],
        pixels: list[npt.NDArray[np.uint8]],
        labels: npt.NDArray[np.int64],
    ) -> tuple[float, int]:
        """Gradients of the batch into `self.grads`, the sum of those of its micro-batches; loss, and how many were wrong."""
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
            lists = (
                [tensors[name] for name in names] for tensors in (parameters, self.grads, self.velocities)
            )
            ops.sgd_(*lists, lr, recipe.momentum, weight_decay)

    def _after_update(self, loss: float, wrong: int, count: int) -> None:
        iteration = self.state.iteration
        self.reporter.update(self.state, self.lr, loss, wrong, count)
        if self.stuck.add(loss):
            self.reporter.warn(self._stuck_advice())
        if self.checkpoint_every is not None and iteration % self.checkpoint_every == 0:
            with self.interrupts.held():
                self._save()
        for callback in self.callbacks:
            callback.on_iteration(self.model, iteration, loss, 100.0 * wrong / count)

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
            self.reporter.note(
                f"{where}; nothing was saved: give checkpoint= a directory to be able to go on"
            )
        else:
            self.reporter.note(
                f"{where}; saved {path}. To go on, bit for bit: the same call with resume=True (vggnet train: --resume)"
            )

    def _diverged(self, loss: float) -> str:
        state = self.state
        return (
            f"the loss is {loss} at iteration {state.iteration + 1} (epoch {state.epoch + 1}, lr {self.lr:g}): training has "
            f'diverged. Lower the lr (a tenth: {self.lr / 10:g}), check the mean and the labels, or use init="xavier" or "he"; '
            "the weights are those of before this iteration"
        )

    def _stuck_advice(self) -> str:
        state, model = self.state, self.model
        advice = (
            f"training is stuck: for {self.recipe.stuck_iterations} iterations, up to {state.iteration}, the loss has been "
            f"ln({model.num_classes}) = {math.log(model.num_classes):.3f}, which is guessing. Deep nets do this from small random "
            'weights: use init="xavier" or "he", or train an A first and pass it as init_from (paper, section 3.1). '
            f"If it started to learn and fell back, lower the lr ({self.lr:g})"
        )
        dead = self._dead_layers()
        return (
            f"{advice}. Dead ReLUs, zero for each of the last images: {', '.join(dead)}" if dead else advice
        )

    def _dead_layers(self) -> list[str]:
        """ReLU layers of which more than half of the channels are zero for the last images, with the share."""
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
    """The batch, or its half, quarter, ... (rounded up): the largest whose plan fits into four fifths of the free memory."""
    free = _free_memory()
    micro = batch
    if free is not None:
        while micro > 1 and model.memory_plan(micro, training=True).total > 0.8 * free:
            micro = -(-micro // 2)
    if micro < batch:
        log.info(
            "batches of %d are computed in parts of %d to fit into %d MB of free memory",
            batch,
            micro,
            free >> 20,
        )
    return micro


def _free_memory() -> int | None:
    """Bytes that this process may still take: of the machine, and of its control group; None where it cannot be known."""
    free = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        with open("/proc/meminfo", encoding="ascii") as file:
            free.append(next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable")))
    with contextlib.suppress(OSError, ValueError):  # "max" when there is no limit
        limit, used = (
            int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii"))
            for name in ("memory.max", "memory.current")
        )
        free.append(limit - used)
    return min(free, default=None)


class _Stuck:
    """Watches for a loss that stays at ln(classes): in both halves of the last `iterations`, the mean is within 1 %."""

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
    """Ctrl-C, while training: at once, between layers, except inside `held()`, where it waits for the end of the block.

    An update of the weights and its counters must be one: a checkpoint written between them could not go on bit for bit.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.pending = False
        self.installed = False

    def __enter__(self) -> _Interrupts:
        main = threading.current_thread() is threading.main_thread()  # only there Ctrl-C arrives
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._arrived)
            self.installed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self.installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _arrived(self, *_: object) -> None:
        if not self.depth:
            raise KeyboardInterrupt
        self.pending = True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
        if self.pending and not self.depth:
            self.pending = False
            raise KeyboardInterrupt


class _Reporter:
    """What the user sees while training: a bar on a terminal, plain lines elsewhere, or nothing. On stderr."""

    EVERY = 30.0  # seconds between plain lines within an epoch

    def __init__(self, progress: bool | None, recipe: Recipe) -> None:
        terminal = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.bar_wanted = terminal if progress is None else progress
        self.silent = progress is False
        self.epochs = recipe.epochs
        self.bar: Any = None
        self.last = 0.0

    def __enter__(self) -> _Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def note(self, message: str) -> None:
        """One line of text."""
        if self.bar is not None:
            self.bar.write(message, file=sys.stderr)
        elif not self.silent:
            print(message, file=sys.stderr, flush=True)

    def warn(self, message: str) -> None:
        """A warning: to the log, and to the user where nothing shows the log."""
        log.warning(message)
        if all(
            isinstance(handler, logging.NullHandler) for handler in (*log.handlers, *logging.root.handlers)
        ):
            self.note(f"warning: {message}")

    def _epoch_name(self, epoch: int) -> str:
        return f"epoch {epoch}" if self.epochs is None else f"epoch {epoch}/{self.epochs}"

    def start(self, epoch: int, done: int, total: int) -> None:
        self.name = self._epoch_name(epoch + 1)
        self.last = time.monotonic()
        self.total = total
        if self.bar_wanted:
            from tqdm.auto import tqdm

            self.bar = tqdm(
                total=total,
                initial=done,
                desc=self.name,
                unit=" images",
                leave=False,
                file=sys.stderr,
                dynamic_ncols=True,
            )

    def update(self, state: _State, lr: float, loss: float, wrong: int, count: int) -> None:
        if self.bar is not None:
            error = 100.0 * state.wrong / state.seen
            self.bar.set_postfix_str(f"loss {loss:.3f}, error {error:.1f} %, lr {lr:g}", refresh=False)
            self.bar.update(count)
        elif not self.silent and time.monotonic() - self.last > self.EVERY:
            self.last = time.monotonic()
            self.note(
                f"{self.name}, {state.seen} of {self.total} images: loss {state.loss / state.seen:.3f}, "
                f"error {100.0 * state.wrong / state.seen:.1f} %, {state.seen / state.seconds:.0f} images/s"
            )

    def epoch(self, row: Row) -> None:
        held_out = (
            "" if row.val_top1 is None else f", held out {row.val_top1:.2f} % (top-5 {row.val_top5:.2f} %)"
        )
        self.note(
            f"{self._epoch_name(row.epoch)}: lr {row.lr:g}, loss {row.train_loss:.4f}, error {row.train_error:.2f} %{held_out}, "
            f"{row.images_per_second:.0f} images/s, {row.seconds:.1f} s"
        )

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
