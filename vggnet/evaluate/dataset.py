"""Over a data set: the errors of nets, and of the fusion of several, in one pass over the images."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from .. import parallel
from ..data import Broken, Loader
from ..data.base import single_labels
from ..data.loader import share
from ..memory import kept
from .passes import Pyramid, Rows, average, build_pyramid, crops_per_image, key_of, part_posteriors
from .presets import Preset, model_facts
from .protocol import Protocol, check_scales, resolve
from .report import Count, Report

if TYPE_CHECKING:
    from ..data import Dataset
    from ..models import VGG
    from ..parallel import World

    Pair = tuple[VGG, Protocol | str]
    Entry = VGG | Pair | Sequence[VGG | Pair] | tuple[VGG | Sequence[VGG], Preset]

CHUNK_BATCHES = 16  # forward passes of a full batch on one group of images, at most about

Progress = Callable[[int, int], object]


def evaluate(
    model_or_list: VGG | Sequence[VGG | Pair],
    dataset: Dataset,
    protocol: Protocol | Preset | str = "paper",
    *,
    progress: Progress | None = None,
    keep_posteriors: bool = True,
    strict: bool = False,
    world: World | None = None,
) -> Report:
    """Top-1 and top-5 error of a net, or of the fusion of several, on a data set.

    Parameters
    ----------
    model_or_list : a VGG; or several VGGs or (VGG, Protocol) pairs, whose posteriors are averaged (paper,
        section 4.4)
    dataset : see :class:`vggnet.data.Dataset`
    protocol : a Protocol, "paper" or a kind, for the models that come without their own; or a row of the
        paper's tables (:func:`preset`), for its nets
    progress : called as ``progress(done, total)`` with numbers of images
    keep_posteriors : keep (N, classes) float32 in the report: 200 MB for 50,000 images and 1000 classes
    strict : the first broken image raises; otherwise they count as wrong, and more than 1 % of them raises
    world : processes that share the images: all of them make this call, and each gets the whole report, which is that of one
        process bit for bit; default: those that mpirun or srun started (:func:`vggnet.parallel.world`)

    Raises
    ------
    ValueError
        Scales below the input size, classes of data and model that do not fit, or models that are not the
        nets of the row.
    ImageError
        Too many broken images.
    """
    return compare(
        [model_or_list],
        dataset,
        protocol,
        progress=progress,
        keep_posteriors=keep_posteriors,
        strict=strict,
        world=world,
    )[0]


def compare(
    entries: Sequence[Entry],
    dataset: Dataset,
    protocol: Protocol | Preset | str = "paper",
    *,
    progress: Progress | None = None,
    keep_posteriors: bool = True,
    strict: bool = False,
    world: World | None = None,
) -> list[Report]:
    """Several evaluations in one pass over the data: one report for each entry.

    An entry is a model, a (model, protocol) pair, a list of those (fusion), or a (models, row of the paper)
    pair. Images are read and rescaled once, and what entries have in common (the same model under the same
    protocol; the dense part of "combined") is computed once. The rest is as in :func:`evaluate`.
    """
    world = parallel.world() if world is None else world
    rows = [_row(entry, protocol) for entry in entries]
    groups = [_pairs(entry, protocol) for entry in entries]
    if not groups:
        raise ValueError("entries is empty; expected at least one model")
    n = len(dataset)
    if n == 0:
        raise ValueError("dataset is empty; expected at least one image")
    for model, p in (pair for group in groups for pair in group):
        model.expect_classes("evaluate")
        check_scales(model, p)
        if model.num_classes != groups[0][0][0].num_classes:
            raise ValueError(
                f"models have {groups[0][0][0].num_classes} and {model.num_classes} classes; "
                "expected the same classes for all"
            )
    labels = _labels(dataset, [pair[0] for group in groups for pair in group])
    # What is to be computed for each chunk, once: (model, part) pairs by identity; and what each image must
    # be rescaled to.
    parts = {(id(m), part): (m, part) for group in groups for m, p in group for part in p.parts()}
    keys = list(dict.fromkeys(key_of(m, p, scale) for m, p in parts.values() for scale in p.scales))
    batch = max(p.batch for _, p in parts.values())
    # Images that are computed together: enough to fill batches, few enough that progress shows.
    together = int(CHUNK_BATCHES * batch / sum(crops_per_image(m, p) for m, p in parts.values()))
    together = min(max(together, 1), batch)

    # Whole chunks for each process: what shares a pass, and so every bit, is as in one process.
    own = share(-(-n // together), world.rank, world.size)
    first, last = (min(chunk * together, n) for chunk in (own.start, own.stop))
    counts = [Count(first, last, group[0][0].num_classes, keep_posteriors) for group in groups]
    spent = dict.fromkeys(parts, 0.0)
    waited = 0.0
    # The loader carries whatever its transform makes of an image: here the image at every scale.
    loader = Loader(
        dataset,
        together,
        transform=lambda image, _: cast(Any, build_pyramid(image, keys)),
        strict=strict or None,
    )
    clock = time.perf_counter()
    batches = loader.batches(range(first, last))
    with kept():
        for numbers, chunk, _ in cast("Iterable[tuple[Rows, list[Pyramid], Rows]]", batches):
            waited += time.perf_counter() - clock
            results = {}
            for key, (model, part) in parts.items():
                clock = time.perf_counter()
                results[key] = part_posteriors(model, chunk, part)
                spent[key] += time.perf_counter() - clock
            for group, count in zip(groups, counts, strict=True):
                each = [average([results[id(m), part] for part in p.parts()]) for m, p in group]
                count.add(numbers, average(each), labels[numbers])
            if progress is not None:
                progress((int(numbers[-1]) + 1 - first) * n // (last - first), n)  # all are about as far
            world.alive()
            clock = time.perf_counter()
    seconds = [waited + sum(spent[key] for key in _used(group)) for group in groups]
    seconds = _together(world, loader, counts, seconds)
    names, broken = _names_sha256(dataset), sorted(loader.broken, key=lambda b: b.index)
    return [
        Report(
            top1=100.0 * (count.top1 + len(broken)) / n,
            top5=100.0 * (count.top5 + len(broken)) / n,
            count=n,
            broken=broken,
            not_finite=count.not_finite,
            seconds=time_taken,
            labels=labels,
            names_sha256=names,
            models=[model_facts(model) for model, _ in group],
            protocols=[p for _, p in group],
            posteriors=count.posteriors,
            paper=row,
        )
        for row, group, count, time_taken in zip(rows, groups, counts, seconds, strict=True)
    ]


def _together(world: World, loader: Loader, counts: Sequence[Count], seconds: Sequence[float]) -> list[float]:
    """Add up what the processes found, in the order of images; returns the seconds of the slowest."""
    if world.size == 1:
        return list(seconds)
    told = world.gather(
        [[asdict(b) for b in loader.broken], [count.wrong for count in counts], list(seconds)]
    )
    loader.note_broken(Broken(**b) for broken, *_ in told for b in broken)
    for number, count in enumerate(counts):
        count.wrong = [sum(found) for found in zip(*(wrong[number] for _, wrong, _ in told), strict=True)]
        if count.posteriors is not None:
            count.posteriors = world.concatenate(count.posteriors)
    return [max(times) for times in zip(*(times for *_, times in told), strict=True)]


def _row(entry: Entry, protocol: Protocol | Preset | str) -> Preset | None:
    """The row of the paper that an entry of compare is to be."""
    given = entry[1] if isinstance(entry, tuple) and len(entry) == 2 else protocol
    return given if isinstance(given, Preset) else None


def _pairs(entry: Any, protocol: Protocol | Preset | str) -> list[tuple[VGG, Protocol]]:
    """An entry of compare as (model, Protocol) pairs."""
    if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Preset):
        entry, protocol = entry
    if isinstance(protocol, Preset):
        return protocol.pairs(entry)
    if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Protocol | str):
        return [(entry[0], resolve(entry[1], entry[0]))]
    if isinstance(entry, list | tuple):
        if not entry:
            raise ValueError("a list of models is empty; expected at least one model")
        return [pair for item in entry for pair in _pairs(item, protocol)]
    return [(entry, resolve(protocol, entry))]


def _labels(dataset: Dataset, models: Sequence[VGG]) -> npt.NDArray[np.int64]:
    """The data set's labels in the model's numbering: by class names where both have them, else by number."""
    names, labels = list(dataset.classes or []), single_labels(dataset)
    known = {tuple(m.classes) for m in models if m.classes}
    if len(known) > 1:
        raise ValueError(
            "models have different class names, or the same in another order; expected one list for all"
        )
    classes = list(known.pop()) if known else []
    if names and set(names) <= set(classes):
        return np.array([classes.index(name) for name in names], np.int64)[labels]
    if set(names) & set(classes):
        missing = [name for name in names if name not in classes]
        raise ValueError(
            f"the model does not know the class {missing[0]!r} of the data set ({len(missing)} such classes)"
        )
    if names and len(names) != models[0].num_classes:
        raise ValueError(
            f"the data set has {len(names)} classes, the model {models[0].num_classes}, "
            "and their names do not match; expected the same classes"
        )
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < models[0].num_classes:
        raise ValueError(f"labels reach {int(labels.max())}; the model has {models[0].num_classes} classes")
    return labels


def _names_sha256(dataset: Dataset) -> str:
    """A checksum of the images' names in order, without their folders, which may lie elsewhere on another day."""
    names = (re.split(r"[/\\]", dataset.name(i))[-1] for i in range(len(dataset)))
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()


def _used(group: Sequence[tuple[VGG, Protocol]]) -> list[tuple[int, Protocol]]:
    return list(dict.fromkeys((id(m), part) for m, p in group for part in p.parts()))
