"""Training steps on the replicas of this process, and of the other processes under MPI, timed part by part.

The parts of a step add up to it: *input* (waiting for images, and augmenting them), *compute* (forward, loss, backward), *idle*
(waiting for a slower replica), *exposed* (waiting for averages when all replicas have computed), *update*.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import vggnet as vgg
from PIL import Image
from vggnet import _C, data, ops, parallel
from vggnet.augment import Augmentation
from vggnet.data.loader import Batch, share
from vggnet.parallel.averaging import Averages
from vggnet.parallel.replicas import Ready, Replica, Replicas
from vggnet.preprocess import Pixels, load_rescaled

PARTS = ("input", "compute", "idle", "exposed", "update")
MODES = ("alone", "off", "on")  # one replica; all of them without averaging; with it
# Of a round: memory that rested during a step is slow to come back, so each mode follows one in which its replicas computed.
ORDER = ("off", "on", "alone")
PHOTOS = 64


class Photos:
    """JPEG files in memory, of landscape format, whose smallest side is what the net sees and a seventh more."""

    def __init__(self, crop: int) -> None:
        self.classes = ["one"]
        self.side = crop * 8 // 7
        self.labels = np.zeros(PHOTOS, np.int64)
        random = np.random.default_rng(0)
        self.files = [self._file(random.integers(0, 256, (12, 16, 3), np.uint8)) for _ in range(PHOTOS)]

    def _file(self, pixels: Pixels) -> bytes:
        file = io.BytesIO()
        large = Image.fromarray(pixels).resize((self.side * 4 // 3, self.side), Image.Resampling.BICUBIC)
        large.save(file, "JPEG", quality=95)
        return file.getvalue()

    def __len__(self) -> int:
        return PHOTOS

    def name(self, i: int) -> str:
        return f"photo {i}"

    def image(self, i: int) -> Pixels:
        return load_rescaled(self.files[i], self.side)[0]


class Off(Averages):
    """Averages nothing."""

    def __init__(self) -> None:
        """No engine."""

    def begin(self, counts: Sequence[int]) -> None:
        """Nothing is to be done."""

    def ready(self, names: Sequence[str]) -> None:
        """Nothing is to be done."""

    def wait(self, number: int) -> None:
        """It is there."""


@dataclass
class Times:
    """When a replica did what in a step (`time.perf_counter`, the same for all processes of a machine)."""

    begin: float = 0.0
    fetched: float = 0.0
    agreed: float = 0.0
    augmented: float = 0.0
    computed: float = 0.0
    end: float = 0.0
    update: float = field(default=0.0)  # seconds


def parts_of(times: Sequence[Times]) -> dict[str, float]:
    """The step and its parts in seconds, means over the replicas.

    Examples
    --------
    >>> fast = Times(0, 1, 1, 2, 5, 10, update=1)
    >>> slow = Times(0, 1, 1, 2, 6, 10, update=1)
    >>> parts_of([fast, slow])
    {'input': 2.0, 'compute': 3.5, 'idle': 0.5, 'exposed': 3.0, 'update': 1.0, 'step': 10.0}
    """
    step = max(t.end - t.begin for t in times)
    last = max(t.computed for t in times)
    rows = []
    for t in times:
        waited = t.end - t.computed - t.update
        slower = min(max(last - t.computed, 0.0), waited)
        late = step - (t.end - t.begin)  # without averaging nobody waits for the others
        rows.append(
            {
                "input": t.fetched - t.begin + t.augmented - t.agreed,
                "compute": t.computed - t.augmented,
                "idle": t.agreed - t.fetched + slower + late,
                "exposed": waited - slower,
                "update": t.update,
            }
        )
    return {part: statistics.fmean(row[part] for row in rows) for part in PARTS} | {"step": step}


class Steps:
    """Steps of one net on some replicas, each with one thread.

    Parameters
    ----------
    net : config of the net
    size : side of its input
    batch : images of each replica (weak scaling), or of all together (strong)
    strong : whether it is of all together
    devices : of this process; one, where there are several processes
    """

    def __init__(
        self, net: str, size: int, batch: int, *, strong: bool, devices: Sequence[str], **options: Any
    ) -> None:
        self.world = parallel.world()
        for device in devices:
            _C.set_num_threads(1, device)
        self.model = vgg.VGG(net, input_size=size, device=devices[0], init="he", **options)
        layers = dict.fromkeys(name.split(".")[0] for name in self.model.parameters)
        self.replicas = Replicas(self.model, devices, layers, self.world)
        self.batch, self.strong, count = batch, strong, self.replicas.count
        self.counts = {
            "alone": [batch] + [0] * (count - 1),
            "on": [len(share(batch, r, count)) if strong else batch for r in range(count)],
        }
        self.counts["off"] = self.counts["on"]
        self.augmentation = Augmentation(size, size * 8 // 7)
        self.photos = Photos(size)
        self.batches = {mode: self._batches(mode) for mode in MODES}
        self.times: dict[int, Times] = {}

    def __enter__(self) -> Steps:
        _C.keep_memory(True)  # as `train.fit` does
        self.replicas.__enter__()
        size = self.model.input_size
        self.replicas.start((max(self.counts["alone"] + self.counts["on"]), size, size, 3))
        return self

    def __exit__(self, *error: Any) -> None:
        for batches in self.batches.values():
            batches.close()
        self.replicas.__exit__(*error)
        _C.keep_memory(False)

    def _batches(self, mode: str) -> Generator[Batch, None, None]:
        total = sum(self.counts[mode])
        part = None if mode == "alone" else (self.world.rank, self.world.size)
        order = np.arange(total * 1000) % PHOTOS
        return data.Loader(self.photos, total).batches(order, part=part)

    def step(self, mode: str) -> dict[str, float]:
        """One step; its parts, on every rank. Alone, the other replicas sleep."""
        self.world.gather(None)
        own = [] if mode == "alone" and self.world.rank else self._step(mode)
        found = [Times(*values) for part in self.world.gather(own) for values in part]
        return parts_of(found)

    def _step(self, mode: str) -> list[list[float]]:
        replicas, counts = self.replicas, self.counts[mode]
        begin = time.perf_counter()
        images, pixels, _ = next(self.batches[mode])
        fetched = time.perf_counter()
        if mode != "alone":
            self.world.gather(len(images))  # as the trainer does
        agreed = time.perf_counter()
        first = sum(counts[: self.world.rank]) if self.world.size > 1 else 0

        def compute(replica: Replica, ready: Ready | None) -> None:
            times = self.times[replica.number] = Times(begin, fetched, agreed)
            start = sum(counts[: replica.number]) - first
            part = slice(start, start + counts[replica.number])
            self._compute(replica, images[part], pixels[part], ready, times)

        def descend(replica: Replica, names: Sequence[str]) -> None:
            times = self.times[replica.number]
            start = time.perf_counter()
            tensors = (replica.model.parameters, replica.grads, replica.velocities)
            p, g, v = ([t[name] for name in names] for t in tensors)
            ops.sgd_(p, g, v, lr=1e-6)
            times.end = time.perf_counter()
            times.update += times.end - start

        self.times = {}
        if mode == "alone":
            compute(replicas.first, None)
            for names in replicas.buckets:
                descend(replicas.first, names)
        else:
            averages = [replica.averages for replica in replicas.local]
            if mode == "off":
                for replica in replicas.local:
                    replica.averages = Off()
            replicas.gradients(counts, compute)
            replicas.update(descend)
            for replica, own in zip(replicas.local, averages, strict=True):
                replica.averages = own
        return [list(vars(self.times[number]).values()) for number in sorted(self.times)]

    def _compute(
        self, replica: Replica, images: Any, pixels: list[Pixels], ready: Ready | None, times: Times
    ) -> None:
        model = replica.model
        assert replica.x is not None
        x = replica.x.view(0, (len(images), *replica.x.shape[1:]), "float32")
        self.augmentation.batch(pixels, 0, images, model.preprocessing.mean, out=x)
        times.augmented = time.perf_counter()
        run = model.run(x, training=True, rng=vgg.Rng(0, images))
        _, gradient = ops.cross_entropy(run.logits, np.zeros(len(images), np.int64))
        run.backward({"fc8": gradient}, grads=replica.grads, ready=ready)
        times.computed = time.perf_counter()

    def exchanges(self) -> list[dict[str, float]]:
        """Each bucket averaged while nobody computes: its bytes, seconds, and the seconds of CPU time that each replica's own
        process spent."""
        found = []
        for number, names in enumerate(self.replicas.buckets):
            for replica in self.replicas.local:
                if replica.averages is not None:
                    replica.averages.begin(self.counts["on"])

            def average(replica: Replica, names: Sequence[str] = names, number: int = number) -> None:
                if replica.averages is not None:
                    replica.averages.ready(names)
                    replica.averages.wait(number)

            self.world.gather(None)
            begin, cpu = time.perf_counter(), time.process_time()
            self.replicas.map(average)
            found.append(
                {
                    "bytes": sum(self.replicas.first.grads[name].nbytes for name in names),
                    "seconds": time.perf_counter() - begin,
                    "cpu": (time.process_time() - cpu) / len(self.replicas.local),
                }
            )
        return found


def measure(steps: Steps, rounds: int) -> dict[str, Any]:
    """After one step that is dropped, the modes in turn; of each the fastest step, and the seconds of all."""
    for mode in MODES:
        if mode != "alone" or steps.world.rank == 0:
            next(steps.batches[mode])  # the threads that read have started
    steps.step("on")
    found: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for _ in range(rounds):
        for mode in ORDER:
            found[mode].append(steps.step(mode))
    exchanges = [steps.exchanges() for _ in range(2)]
    return {
        "modes": {
            mode: min(rows, key=lambda row: row["step"])
            | {"images": sum(steps.counts[mode]), "steps": [row["step"] for row in rows]}
            for mode, rows in found.items()
        },
        "exchanges": [
            {key: min(row[key] for row in rows) for key in rows[0]} for rows in zip(*exchanges, strict=True)
        ],
    }
