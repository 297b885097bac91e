"""One run of training: `fit`, and the `Trainer` that it makes."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _C, ops, parallel, rng
from ..augment import Augmentation, pixel_statistics
from ..checkpoint import Checkpoints
from ..data import Loader, epoch_order, rescaled_image, split
from ..data.loader import Broken, share
from ..evaluate.report import tells_top5
from ..history import History, Row
from ..memory import kept
from ..parallel import Ready, Replica, Replicas, World
from ..preprocess import check_image
from ..progress import Progress
from ..recipes import Recipe
from . import advice, saved
from .captured import CapturedPass
from .interrupts import Interrupts
from .layers import learning_layers
from .memory import micro_batch
from .saved import State
from .start import start_from
from .task import Classification, Measure, Task
from .writer import Writer

if TYPE_CHECKING:
    from ..data import Dataset
    from ..models import VGG

log = logging.getLogger("vggnet")

CHECK_EVERY = 1000  # updates between two comparisons of the replicas' weights: under 0.1 % of the time


class Part(NamedTuple):
    """The images of a batch that one replica takes: indices (N,), rescaled pixels, and heights and widths before (N, 2)."""

    images: npt.NDArray[np.int64]
    pixels: list[npt.NDArray[np.uint8]]
    original: npt.NDArray[np.int64]


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
    devices: Sequence[str] | None = None,
    cuda_graph: bool = False,
) -> History:
    """Train a model in place, on one device or on several.

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
    devices : sequence of str, optional
        Devices of one kind that train together, as ["cuda:0", "cuda:1"]; the model is on the first. Each batch is split among
        them, their gradients are averaged, and the result is that of one device, to rounding. CPU devices ("cpu:0", "cpu:1")
        share the threads of computing. Default: the model's device.
    cuda_graph : bool
        On CUDA devices: capture forward and backward pass as CUDA graphs, of batches that are whole. The results are the same
        bits; launches cost the host less, which small nets and batches gain from. Averages of several devices then start when
        backward is done. The images of a device must fit its memory at once.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        When model, data and recipe do not fit together; when the directory holds another run; when a resumed
        run differs from the checkpoint's (the message names the field; `epochs`, `iterations` and
        `stuck_iterations` may change); when devices are unknown or do not go together; when `cuda_graph` can't be had.
    WeightsError
        When no checkpoint is intact.
    FloatingPointError
        When the loss is no longer finite; the message says where and what to do.
    ImageError
        When more than 1 % of the images are broken, or one with `strict`.
    RuntimeError
        When the weights of the devices differ, which is looked at after each epoch and every `CHECK_EVERY` updates.
    OSError
        When a checkpoint can't be written: at the update after that, or at the end.
    KeyboardInterrupt
        On Ctrl-C, after the checkpoint was written.
    SystemExit
        On SIGTERM, which schedulers send before they kill, after the checkpoint was written; status 0. Without
        `checkpoint`, or where the program handles SIGTERM itself, the signal does what it did before.

    Notes
    -----
    Velocities, gradients and the input are allocated once, on every device. Checkpoints are written by a thread while training
    goes on, from a copy that takes as much memory as a checkpoint is long. The result does not depend on the number of
    threads; nor, but for rounding, on that of devices. A run may be resumed with another number of devices; with the same
    number, it goes on bit for bit. Started by an MPI launcher, the processes train together: see docs/parallel.md.
    """
    if model.weight_dtype != "float32":
        raise ValueError(
            f"fit: model has weight_dtype {model.weight_dtype!r}, which is for inference; "
            f"load it with weight_dtype='float32'"
        )
    recipe = Recipe() if recipe is None else recipe
    task = Classification() if task is None else task
    own = next(iter(model.parameters.values())).device
    devices = [own] if devices is None else parallel.check_devices(devices)
    if devices[0] != own:
        raise ValueError(
            f"fit: devices is {devices}, but the model is on {own}; expected it on the first of them"
        )
    world = parallel.world()
    if checkpoint is None and resume:
        raise ValueError("fit: resume=True needs checkpoint=, the directory of the run to go on with")
    trainer = Trainer(
        model,
        train_data,
        val_data,
        recipe,
        task,
        devices=devices,
        world=world,
        checkpoints=None if checkpoint is None else Checkpoints(checkpoint, keep=keep),
        callbacks=callbacks,
        threads=threads,
        strict=strict,
        cuda_graph=cuda_graph,
    )
    if checkpoint is not None:
        trainer.open(resume=resume, every=checkpoint_every)
    if init_from is not None and trainer.state.iteration == 0:
        start_from(model, init_from)
    return trainer.run(Progress("training", progress if world.rank == 0 else False))


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
        devices: Sequence[str],
        world: World,
        checkpoints: Checkpoints | None = None,
        callbacks: Sequence[Callback] = (),
        threads: int | None = None,
        strict: bool | None = None,
        cuda_graph: bool = False,
    ) -> None:
        self.model, self.recipe, self.task, self.callbacks = model, recipe, task, callbacks
        self.data: Dataset = train_data
        self.held_out = val_data
        if val_data is None and recipe.holdout > 0:
            self.data, self.held_out = split(train_data, recipe.holdout, recipe.seed)
        self._check()
        self.loader = Loader(self.data, recipe.batch, workers=threads, strict=strict)
        self.told = 0  # broken images that the other processes know of
        self.state = State()
        self.history = History()
        self.layers = learning_layers(model, recipe)
        self.world = world
        self.checkpoints = checkpoints
        self.checkpoint_every: int | None = None
        self.writer: Writer | None = None  # of rank 0, while the run goes on
        self.micro = self._micro_batch(devices)
        self.replicas = Replicas(model, devices, self.layers, world, compress=recipe.compress == "bf16")
        self.cuda_graph = cuda_graph
        self._check_cuda_graph()
        self.captured: dict[int, CapturedPass] = {}  # by replica; they hold the memory that other passes need
        self.last: _C.Tensor | None = None  # the input of the last images
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

    def _micro_batch(self, devices: Sequence[str]) -> int:
        if self.recipe.micro_batch is not None:
            return self.recipe.micro_batch
        part = len(share(self.recipe.batch, 0, self.world.size * len(devices)))  # the largest
        on_cpu = self.model.device.startswith("cpu")
        reserved = 0
        if on_cpu and self.checkpoints is not None:
            reserved = saved.tensor_bytes(self.model, self.layers)
        replicas = len(devices) if on_cpu else 1
        micro = micro_batch(self.model, part, self.layers, replicas=replicas, reserved=reserved)
        return int(min(self.world.gather(micro)))

    def _whole(self, replica: Replica) -> int:
        """Images of a replica's part of a whole batch."""
        return len(share(self.recipe.batch, replica.number, self.replicas.count))

    def _check_cuda_graph(self) -> None:
        if not self.cuda_graph:
            return
        if not self.model.device.startswith("cuda"):
            raise ValueError(f"fit: cuda_graph=True needs a CUDA device; the model is on {self.model.device}")
        whole = self._whole(self.replicas.first)
        if self.micro < whole:
            raise ValueError(
                f"fit: cuda_graph=True, but the {whole} images of a device go in parts of {self.micro}; expected them to "
                "fit at once: take a smaller batch, or leave cuda_graph off"
            )

    # ---- checkpoints

    def open(self, *, resume: bool, every: int | None) -> None:
        """Use the directory: a new one, or go on with the run in it."""
        if every is not None and every < 1:
            raise ValueError(f"fit: checkpoint_every is {every}; expected at least 1")
        assert self.checkpoints is not None
        directory, self.checkpoint_every = self.checkpoints.directory, every
        self.world.advice = f"To go on: the same call with resume=True (vggnet train --resume {directory})"
        found = None
        if self.world.rank == 0:
            if not resume and self.checkpoints.paths():
                raise ValueError(
                    f"fit: {directory} holds the checkpoints of a run; pass resume=True to go on "
                    "with it, or another directory"
                )
            if resume:
                velocities = self.replicas.first.velocities
                found = saved.restore(self.checkpoints, self.model, velocities, self._run())
        run = self.world.gather(None if found is None else found[1])[0]  # as rank 0 has it
        if run is not None:
            self.state = State(**run["state"])
            self.history = History([Row(**row) for row in run["rows"]], run["stopped_by"])
            self.micro = run["micro_batch"]
            self._check_cuda_graph()
        if not resume or self.world.rank > 0:
            return
        if found is None:
            log.info("no checkpoint in %s: starting from the beginning", directory)
            return
        path, before, now = found[0], run.get("devices", 1), self.replicas.count
        log.info("resumed from %s: epoch %d, iteration %d", path, self.state.epoch, self.state.iteration)
        if before != now:
            log.info(
                "it was trained on %d devices, now on %d: equal to rounding, not bit for bit", before, now
            )

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
            "devices": self.replicas.count,
        }

    def _save(self) -> None:
        """Begin to write a checkpoint, in rank 0."""
        if self.writer is None:
            return
        velocities = self.replicas.first.velocities
        history = History(list(self.history.rows), self.history.stopped_by)
        about = saved.metadata(self.model, self._run())
        self.writer.save(self.state.iteration, self.model.parameters, velocities, about, history)

    def _written(self) -> Path | None:
        """Wait for the checkpoint that is being written; the last one."""
        with self.interrupts.held():
            return None if self.writer is None else self.writer.wait()

    # ---- the run

    def run(self, progress: Progress) -> History:
        """Train until a limit, or the last plateau."""
        self.progress = progress
        with contextlib.ExitStack() as stack:
            self.interrupts = stack.enter_context(Interrupts(terminate=self.checkpoints is not None))
            stack.enter_context(progress)
            stack.enter_context(kept())
            if self.checkpoints is not None and self.world.rank == 0:
                self.writer = stack.enter_context(Writer(self.checkpoints))
            stack.enter_context(self.replicas)
            stack.callback(self.captured.clear)
            try:
                with self.interrupts.held(
                    self.world.size > 1
                ):  # all processes stop after the same update, see _together
                    self._prepare()
                    while self._limit() is None or self._unrecorded():
                        self._epoch()
                    self._written()
            except (KeyboardInterrupt, SystemExit):
                with self.interrupts.held():
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
        self._check_processes()
        if recipe.rgb_shift is not None:
            covariance = self.world.gather(model.preprocessing.covariance)[
                0
            ]  # a resumed run's is rank 0's alone
            if covariance is None:  # every process computes it: no longer than to wait for one
                self.progress.note("computing the covariance of the channels over the training images")
                covariance = self._covariance()
            model.preprocessing = replace(model.preprocessing, covariance=tuple(map(tuple, covariance)))
        self.augmentation = Augmentation(
            size, recipe.scale, recipe.mirror, recipe.rgb_shift, model.preprocessing.covariance, recipe.seed
        )
        if self._limit() is None:
            if self.history.stopped_by is not None:
                # a limit was raised; the row of an unfinished epoch is made anew
                self.history.stopped_by = None
                del self.history.rows[self.state.epoch :]
            self.replicas.start((self.micro, size, size, model.in_channels))

    def _check_processes(self) -> None:
        """All were given the same training."""
        facts = ("recipe", "task", "data")
        own = {name: value for name, value in self._run().items() if name in facts}
        for rank, theirs in enumerate(self.world.gather(own)):
            for name in facts:
                if json.dumps(theirs[name]) != json.dumps(own[name]):
                    raise ValueError(
                        f"fit: {name} is {own[name]} in process {self.world.rank}, {theirs[name]} in process {rank}; expected "
                        "the same arguments in all"
                    )

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
        self.replicas.check(state.iteration)
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
        part = (self.world.rank, self.world.size)
        batches = self.loader.batches(order[done:], read=rescaled, part=part)
        self.progress.start(self._epoch_name(state.epoch + 1), state.seen, n)
        self.clock = time.perf_counter()
        with contextlib.closing(batches), self.replicas.sharing_threads():
            for images, pixels, _ in batches:
                first = state.step * recipe.batch
                parts = self._split(place[images] - first, min(recipe.batch, n - first))
                self._step([Part(images[p], pixels[p], original[images[p]]) for p in parts])
                if self._limit() is not None:
                    break
        self.captured.clear()
        self.progress.stop()

    def _split(self, positions: npt.NDArray[np.int64], listed: int) -> list[slice]:
        """Which of the images that were read go to each replica of this process, given their positions in a batch of so many: a
        broken image makes a part smaller and moves nothing else."""
        own = len(self.replicas.local)
        ends = np.searchsorted(positions, [share(listed, r, own).stop for r in range(own)])
        return [slice(start, stop) for start, stop in itertools.pairwise([0, *ends.tolist()])]

    def _step(self, parts: Sequence[Part]) -> None:
        """One update; `parts` are the images of each replica of this process."""
        state, counts = self.state, self._counts(parts)
        total = sum(counts)
        if total == 0:
            state.step += 1
            return
        number = self.replicas.first.number

        def gradients(replica: Replica, ready: Ready | None) -> tuple[float, float]:
            return self._gradients(replica, parts[replica.number - number], ready)

        with self.interrupts.held(self.replicas.count > 1):
            results = self.replicas.gradients(counts, gradients)
            with self.interrupts.held():  # weights and counters change together, or not at all
                self.replicas.update(self._descend)
                loss, wrong, stop = self._together(results, counts)
                state.step += 1
                state.iteration += 1
                state.loss += loss * total
                state.wrong += wrong
                state.seen += total
                now = time.perf_counter()
                state.seconds += now - self.clock
                self.clock = now
        if stop:
            self.interrupts.stop(stop)
        self._after_update(loss, wrong, total)

    def _counts(self, parts: Sequence[Part]) -> list[int]:
        """Images of every replica of every process; and they tell each other which are broken."""
        own = [len(part.images) for part in parts]
        if self.world.size == 1:
            return own
        broken = self.loader.broken[self.told :]
        told = self.world.gather({"counts": own, "broken": [asdict(b) for b in broken]})
        self.loader.note_broken(Broken(**b) for theirs in told for b in theirs["broken"])
        self.told = len(self.loader.broken)
        return [count for theirs in told for count in theirs["counts"]]

    def _together(
        self, results: Sequence[tuple[float, float] | None], counts: Sequence[int]
    ) -> tuple[float, float, int]:
        """The mean loss, the sum of errors, and the signal after which all stop, of all replicas and processes."""
        if self.replicas.count == 1:
            assert results[0] is not None
            return *results[0], 0
        own = [(0.0, 0.0) if result is None else result for result in results]
        waiting = self.interrupts.waiting if self.world.size > 1 else 0
        told = self.world.gather({"results": own, "stop": waiting})
        pairs = [pair for theirs in told for pair in theirs["results"]]
        loss = sum(count * pair[0] for count, pair in zip(counts, pairs, strict=True)) / sum(counts)
        return loss, sum(pair[1] for pair in pairs), max(theirs["stop"] for theirs in told)

    def _gradients(self, replica: Replica, part: Part, ready: Ready | None) -> tuple[float, float]:
        """Gradients of a part, the sum of its micro-batches', into ``replica.grads``; its mean loss, and its sum of errors."""
        model, task, epoch, count = replica.model, self.task, self.state.epoch, len(part.images)
        assert replica.x is not None
        total, wrong = 0.0, 0.0
        for start in range(0, count, self.micro):
            stop = min(start + self.micro, count)
            ids, pixels = part.images[start:stop], part.pixels[start:stop]
            x = replica.x.view(0, (len(ids), *replica.x.shape[1:]), "float32")
            geometry = self.augmentation.geometry(epoch, ids, part.original[start:stop], pixels)
            self.augmentation.batch(pixels, epoch, ids, model.preprocessing.mean, out=x)
            if replica is self.replicas.first:
                self.last = x
            rows = rng.rows_of(epoch, ids)
            captured = self._captured(replica, x)
            if captured is None:
                run = model.run(x, training=True, rng=rng.Rng(self.recipe.seed, rows))
            logits = run.logits if captured is None else captured.forward(rows)
            loss = task.loss(logits, task.targets(self.data, geometry), count)
            total += float(loss.value)
            wrong += loss.wrong
            if not math.isfinite(total):
                state = self.state
                raise FloatingPointError(
                    advice.diverged(total, state.iteration + 1, state.epoch + 1, self.lr)
                )
            if captured is not None:
                captured.backward(loss.gradient)
                if ready is not None:
                    for names in self.replicas.buckets:
                        ready(names)
                break  # it had all images
            run.backward(
                {"fc8": loss.gradient},
                weights=self.layers,
                grads=replica.grads,
                accumulate=start > 0,
                ready=ready if stop == count else None,  # only the last micro-batch makes them final
            )
            del run, loss  # the run's maps, before the next run makes its own
        return total, wrong

    def _captured(self, replica: Replica, x: _C.Tensor) -> CapturedPass | None:
        """The replica's captured pass, if `x` are all images of its part of a whole batch."""
        if not self.cuda_graph:
            return None
        if x.shape[0] < self._whole(replica):
            self.captured.pop(replica.number, None)
        elif replica.number not in self.captured:
            self.captured[replica.number] = CapturedPass(replica, x, self.recipe.seed, self.layers)
        return self.captured.get(replica.number)

    def _descend(self, replica: Replica, names: Sequence[str]) -> None:
        """Update the parameters of these names."""
        recipe = self.recipe
        decay = recipe.weight_decay if recipe.bias_weight_decay is None else recipe.bias_weight_decay
        for kind, lr, weight_decay in (
            ("weight", self.lr, recipe.weight_decay),
            ("bias", self.lr * recipe.bias_lr_multiplier, decay),
        ):
            for multiplier in sorted(set(self.layers.values())):
                own = {f"{layer}.{kind}" for layer, value in self.layers.items() if value == multiplier}
                tensors = (replica.model.parameters, replica.grads, replica.velocities)
                p, g, v = ([t[name] for name in names if name in own] for t in tensors)
                if p:
                    ops.sgd_(p, g, v, multiplier * lr, recipe.momentum, weight_decay)

    def _after_update(self, loss: float, wrong: float, count: int) -> None:
        state = self.state
        self.progress(
            state.seen,
            len(self.data),
            f"loss {state.loss / state.seen:.3f}, error {100.0 * state.wrong / state.seen:.1f} %, lr {self.lr:g}",
        )
        if self.stuck.add(loss) and self.world.rank == 0 and self.last is not None:
            iterations = self.recipe.stuck_iterations
            self.captured.clear()
            self.progress.warn(advice.stuck(self.model, self.last, iterations, state.iteration, self.lr))
        if self.writer is not None:
            self.writer.look()
        if self.checkpoint_every is not None and state.iteration % self.checkpoint_every == 0:
            with self.interrupts.held():
                self._save()
        if state.iteration % CHECK_EVERY == 0:
            self.replicas.check(state.iteration)
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
        self._save()
        path = self._written()
        if path is None:
            self.progress.note(
                f"{where}; nothing was saved: give checkpoint= a directory to be able to go on"
            )
        else:
            self.progress.note(
                f"{where}; saved {path}. To go on, bit for bit: the same call with resume=True "
                "(vggnet train: --resume)"
            )
