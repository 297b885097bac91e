"""The paper's evaluation: dense, multi-crop, combined, scales, fusion of nets (paper, sections 3.2 and 4).

The same weights score two points worse with one centre crop than with the paper's protocol, so the protocol
is a value of its own here: :class:`Protocol` names every choice, and every :class:`Report` carries it in
full.

Orders of averaging (they are not interchangeable, a soft-max stands between them):

* dense: class scores are averaged over the positions of the map, then soft-max; then posteriors are averaged
  over image and mirror, then over scales.
* crops: soft-max of every crop, averaged over crops and mirrors, then over scales.
* combined: mean of the dense and the multi-crop posteriors.
* fusion: mean of the posteriors of several (model, protocol) pairs.

Sums are float64, each of these four stages ends rounded to float32: so ``fuse([dense, multi_crop])`` equals
"combined" bit for bit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from . import _C
from .data import Loader
from .preprocess import FILTERS, Channels, check_image, rescale

if TYPE_CHECKING:
    from .data import Dataset
    from .models import VGG

KINDS = ("center", "ten-crop", "multi-crop", "dense", "combined")
PAPER_SCALES = (256, 384, 512)  # at the paper's input size, 224

Image = npt.NDArray[np.uint8]  # (H, W, C)
Array = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Key = tuple[Channels, str, int]  # channels, filter, scale: what a rescaled image depends on
Pyramid = dict[Key, Image]


@dataclass(frozen=True)
class Protocol:
    """How an image becomes posteriors (paper, section 3.2); every choice is a named field.

    Parameters
    ----------
    kind : "center", "ten-crop", "multi-crop", "dense" or "combined" (the mean of multi-crop and dense)
    scales : ints, the sizes Q of the image's shorter side after isotropic rescaling; posteriors are averaged
        over them
    mirror : average with the mirrored image; None means True, but False for "center"
    grid : multi-crop takes ``grid`` x ``grid`` crops at each scale (the paper: 5)
    averaging : dense: "scores" averages the class-score map, then takes the soft-max (the paper);
        "posteriors" takes the soft-max at each position, then averages
    filter : Pillow's resampling filter, one of :data:`vggnet.preprocess.FILTERS`
    batch : crops in one forward pass; a dense pass takes images of one shape, up to the same number of pixels
    memory : bytes that the maps of one dense pass may take: fewer images share a pass, and one that is too
        large by itself goes in bands, with the same result

    Raises
    ------
    ValueError, TypeError
        A field is out of its range; the message names it.
    """

    kind: str
    scales: tuple[int, ...] = PAPER_SCALES
    mirror: bool | None = None
    grid: int = 5
    averaging: str = "scores"
    filter: str = "bicubic"
    batch: int = 32
    memory: int = 1 << 30

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, KINDS)
        _one_of("averaging", self.averaging, ("scores", "posteriors"))
        _one_of("filter", self.filter, FILTERS)
        given = (self.scales,) if isinstance(self.scales, int | np.integer) else self.scales
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise TypeError(f"scales is {self.scales!r}; expected one or more ints, such as (256, 384, 512)")
        scales = tuple(_integer("scales", s, 1) for s in given)
        if not scales or len(set(scales)) != len(scales):
            raise ValueError(
                f"scales is {self.scales!r}; expected one or more different ints, such as (256, 384, 512)"
            )
        mirror = self.kind != "center" if self.mirror is None else self.mirror
        if not isinstance(mirror, bool):
            raise TypeError(f"mirror is {mirror!r}; expected True, False or None")
        put = object.__setattr__  # frozen: the normalised values replace what came
        put(self, "scales", scales)
        put(self, "mirror", mirror)
        put(self, "grid", _integer("grid", self.grid, 2))
        put(self, "batch", _integer("batch", self.batch, 1))
        put(self, "memory", _integer("memory", self.memory, 1))

    @classmethod
    def paper(cls, kind: str, scales: Sequence[int] | int = PAPER_SCALES) -> Protocol:
        """The protocol of the paper's tables: "dense", "multi-crop" or "combined" ("center" and "ten-crop"
        are for comparison).

        A net trained at a fixed S was tested at ``scales=S`` and at ``(S - 32, S, S + 32)``; one trained with
        S from [256, 512] at 384 and at ``(256, 384, 512)`` (paper, section 4).
        """
        return cls(kind, scales)  # type: ignore[arg-type]  # __post_init__ makes the tuple

    @classmethod
    def for_model(cls, kind: str, model: VGG, scales: Sequence[int] | int | None = None) -> Protocol:
        """The paper's protocol for a net of any input size, at the scales that go with its training.

        Without ``scales`` (paper, section 4): for a net trained at a fixed S, Q is S - 32, S and S + 32, with
        32 in proportion to the input size, or S alone where S - 32 would be below that; for S from a range,
        its ends and its middle.
        "center" and "ten-crop" take the paper's single scale: S, or the middle. Where the model does not tell
        its S: 256, 384 and 512 in proportion to the input size, or the first of them.
        """
        if scales is None:
            scales = _scales(model, single=kind in ("center", "ten-crop"))
        return cls.paper(kind, scales)

    def parts(self) -> tuple[Protocol, ...]:
        """The protocols whose posteriors are averaged: two for "combined", else this one."""
        if self.kind != "combined":
            return (self,)
        return replace(self, kind="dense"), replace(self, kind="multi-crop")

    def describe(self) -> str:
        """The protocol in words, with the choices that the paper leaves open."""
        lines = [
            f"{self.kind}, Q = {', '.join(map(str, self.scales))}.",
            "Images are rescaled isotropically to shorter side Q, longer side = floor(longer * Q / shorter",
            f"+ 0.5) (our inference), by Pillow's antialiased {self.filter} filter; the mean is subtracted.",
        ]
        for part in self.parts():
            if part.kind == "dense":
                whole = "image and on its mirror image" if self.mirror else "image"
                lines.append(f"Dense: the net runs fully convolutionally on the whole {whole};")
                if self.averaging == "scores":
                    lines.append(
                        "class scores averaged over positions (we read 'sum-pooled' so), then soft-max."
                    )
                else:
                    lines.append(
                        "soft-max at each position, averaged over the positions (not the paper's order)."
                    )
                if self.mirror:
                    lines.append("Posteriors are averaged over the image and its mirror image.")
                continue
            mirror = ", each also mirrored" if self.mirror else ""
            if part.kind == "multi-crop":
                n = self.grid
                lines.append(
                    f"Multi-crop: a regular {n} x {n} grid of crops{mirror}; offsets on each axis are"
                )
                lines.append(
                    f"floor(linspace(0, side - crop, {n}) + 0.5), repeated ones count (our inference)."
                )
            elif part.kind == "ten-crop":
                lines.append(f"Ten-crop: four corners and the centre{mirror}.")
            else:
                mirror = " and its mirror image" if self.mirror else ""
                lines.append(f"Centre crop{mirror}, at floor((side - crop) / 2) on each axis.")
            one = part.kind == "center" and not self.mirror
            lines.append("Then soft-max." if one else "Soft-max outputs of the crops are averaged.")
        if self.kind == "combined":
            lines.append("Combined: mean of the dense and the multi-crop posteriors.")
        if len(self.scales) > 1:
            lines.append("Posteriors are averaged over the scales Q.")
        return "\n".join(lines)


def _scales(model: VGG, *, single: bool) -> list[int]:
    """Test scales of a model, see `Protocol.for_model`."""
    size = model.input_size
    if model.scale is None:
        low, middle, high = ((q * size + 112) // 224 for q in PAPER_SCALES)
        return [low] if single else [low, middle, high]
    if isinstance(model.scale, int):
        middle, step = model.scale, (32 * size + 112) // 224
        if middle - step < size:  # too little room for crops to have taught it other scales
            return [middle]
        low, high = middle - step, middle + step
    else:
        low, high = model.scale
        middle = (low + high) // 2
    return [middle] if single else sorted({low, middle, high})


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; expected an int")
    if value < least:
        raise ValueError(f"{name} is {value}; expected at least {least}")
    return int(value)


# ------------------------------------------------------------------------------------------------ from images
# to posteriors


def grid_offsets(size: int, crop: int, grid: int) -> npt.NDArray[np.int64]:
    """Where the crops of a regular grid start on an axis of ``size`` pixels: floor(linspace(0, size - crop,
    grid) + 0.5)."""
    return np.floor(np.linspace(0, size - crop, grid) + 0.5).astype(np.int64)


def crops(
    protocol: Protocol, height: int, width: int, crop: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The crops of one image at one scale.

    Returns
    -------
    (crops, weights)
        (N, 3) int64: top, left, mirrored (0 or 1), all different; (N,) float64: the share of each, their sum
        is 1. A grid that is finer than the image's margin meets the same place several times: it is computed
        once and counted as often.
    """
    if protocol.kind == "multi-crop":
        rows, columns = (grid_offsets(side, crop, protocol.grid) for side in (height, width))
        places = [(t, c) for t in rows for c in columns]
    else:
        bottom, right = height - crop, width - crop
        places = [(bottom // 2, right // 2)]
        if protocol.kind == "ten-crop":
            places += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    flips = (0, 1) if protocol.mirror else (0,)
    every = np.array([(t, c, flip) for t, c in places for flip in flips], np.int64)
    unique, counts = np.unique(every, axis=0, return_counts=True)
    return unique, counts / len(every)


def _key(model: VGG, protocol: Protocol, scale: int) -> Key:
    return model.preprocessing.channels, protocol.filter, scale


def _pyramid(image: Image, keys: Iterable[Key]) -> Pyramid:
    """The image at every scale and with every filter asked for; pure, runs in any thread."""
    for channels in {key[0] for key in keys}:
        check_image(image, channels)
    return {key: rescale(image, key[2], filter=key[1]) for key in keys}


def _softmax(scores: npt.NDArray[np.floating[Any]]) -> Array:
    return _C.softmax(np.ascontiguousarray(scores, np.float32)).numpy()


def _crop_posteriors(model: VGG, pyramids: Sequence[Pyramid], protocol: Protocol) -> Array:
    """Mean of the crops' soft-max outputs, (N, classes); batches are filled across images and scales."""
    size = model.input_size
    total = np.zeros((len(pyramids), model.num_classes))
    images: list[Image] = []
    owners: list[int] = []
    places: list[npt.NDArray[np.int64]] = []
    weights: list[float] = []

    def flush() -> None:
        x = _C.augment(images, np.stack(places), size, model.preprocessing.mean, device=model.device)
        posterior = _C.softmax(model.forward(x)).numpy().astype(np.float64)
        np.add.at(total, owners, posterior * np.array(weights)[:, None])
        for batch in (images, owners, places, weights):
            batch.clear()

    for scale in protocol.scales:
        for owner, pyramid in enumerate(pyramids):
            image = pyramid[_key(model, protocol, scale)]
            for place, weight in zip(*crops(protocol, image.shape[0], image.shape[1], size), strict=True):
                images.append(image)
                owners.append(owner)
                places.append(place)
                weights.append(weight)
                if len(images) == protocol.batch:
                    flush()
    if images:
        flush()
    return (total / len(protocol.scales)).astype(np.float32)


def _dense_posteriors(model: VGG, pyramids: Sequence[Pyramid], protocol: Protocol) -> Array:
    """Posteriors of the fully-convolutional net, (N, classes); an image and its mirror share a pass, so do
    images of one shape."""
    mean = np.asarray(model.preprocessing.mean, np.float32)
    flips = 2 if protocol.mirror else 1
    total = np.zeros((len(pyramids), model.num_classes))
    for scale in protocol.scales:
        shapes: dict[tuple[int, ...], list[int]] = {}
        key = _key(model, protocol, scale)
        for owner, pyramid in enumerate(pyramids):
            shapes.setdefault(pyramid[key].shape, []).append(owner)
        for (height, width, channels), owners in shapes.items():
            plan = model.memory_plan(flips, size=(height, width))
            together = min(
                protocol.batch * model.input_size**2 // (flips * height * width),
                protocol.memory // (plan["maps"] + plan["outputs"]),
            )
            together = max(1, together)
            for start in range(0, len(owners), together):
                part = owners[start : start + together]
                x = np.empty((flips * len(part), height, width, channels), np.float32)
                for row, owner in enumerate(part):
                    image = pyramids[owner][key]
                    for flip in range(flips):
                        np.subtract(image[:, ::-1] if flip else image, mean, out=x[flips * row + flip])
                scores = model.dense(x, memory=protocol.memory).numpy()
                if protocol.averaging == "scores":
                    posterior = _softmax(scores.mean(axis=(1, 2), dtype=np.float64))
                else:
                    posterior = _softmax(scores).mean(axis=(1, 2), dtype=np.float64)
                total[part] += posterior.reshape(len(part), flips, -1).mean(axis=1, dtype=np.float64)
    return (total / len(protocol.scales)).astype(np.float32)


def _mean(posteriors: Sequence[Array]) -> Array:
    """Mean over models or techniques: summed in float64, in the order given, rounded once."""
    total = np.zeros(posteriors[0].shape)
    for posterior in posteriors:
        total += posterior
    return (total / len(posteriors)).astype(np.float32)


def _posteriors(model: VGG, pyramids: Sequence[Pyramid], protocol: Protocol) -> Array:
    """One part (anything but "combined") on images that share a chunk."""
    compute = _dense_posteriors if protocol.kind == "dense" else _crop_posteriors
    return compute(model, pyramids, protocol)


def _check(model: VGG, protocol: Protocol) -> None:
    if min(protocol.scales) < model.input_size:
        raise ValueError(
            f"scales is {protocol.scales}; expected at least the model's input size, {model.input_size}: "
            "Protocol.for_model gives scales in proportion to it"
        )


def resolve(protocol: Protocol | str, model: VGG) -> Protocol:
    """A Protocol as it is; "paper" means dense at the paper's scales; a kind means
    :meth:`Protocol.for_model`."""
    if isinstance(protocol, Protocol):
        return protocol
    return Protocol.for_model("dense" if protocol == "paper" else protocol, model)


def posteriors(model: VGG, images: Sequence[Image], protocol: Protocol | str = "paper") -> Array:
    """Class probabilities of images under a protocol: the one core of ``model.predict`` and :func:`evaluate`.

    Parameters
    ----------
    model : the net; its preprocessing says channels and mean
    images : uint8 (H, W, C) arrays, of any sizes, on the 0..255 scale
    protocol : a Protocol, "paper" or a kind (see :func:`resolve`)

    Returns
    -------
    (N, classes) float32

    Raises
    ------
    ValueError
        A scale is smaller than the net's input size, or an image does not fit the net's channels.
    """
    protocol = resolve(protocol, model)
    _check(model, protocol)
    keys = [_key(model, protocol, scale) for scale in protocol.scales]
    result = np.empty((len(images), model.num_classes), np.float32)
    row = 0
    for chunk in _chunks((_pyramid(image, keys) for image in images), protocol.batch):
        result[row : row + len(chunk)] = _mean([_posteriors(model, chunk, part) for part in protocol.parts()])
        row += len(chunk)
    return result


CHUNK_BATCHES = 16  # forward passes of a full batch on one group of images, at most about
CHUNK_BYTES = 1 << 26  # rescaled images held at once by a consumer; one image is always taken


def _chunks(pyramids: Iterable[Pyramid], count: int) -> Iterator[list[Pyramid]]:
    """Groups of at most ``count`` images and about CHUNK_BYTES bytes."""
    chunk: list[Pyramid] = []
    held = 0
    for pyramid in pyramids:
        chunk.append(pyramid)
        held += sum(image.nbytes for image in pyramid.values())
        if len(chunk) == count or held >= CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


# ------------------------------------------------------------------------------------------------ reports


@dataclass
class Report:
    """What an evaluation found. ``str(report)`` is a table, ``to_json()`` everything but the posteriors.

    A class is among the k best when fewer than k classes have a greater posterior or an equal one and a
    smaller index; k is 1, and the smaller of 5 and the number of classes. A posterior row with NaN in it is
    wrong. Errors divide by all images listed, broken ones included.

    Attributes
    ----------
    top1, top5 : errors, %
    count : images listed
    broken : (name, reason) of images that could not be read; they count as wrong
    not_finite : images whose posteriors held NaN or infinity; they count as wrong
    seconds : time for this report's forward passes and for waiting on images (shared by the reports of one
        pass)
    posteriors : (count, classes) float32, rows of broken images NaN; None unless kept
    labels : (count,) int64, in the order of the model's classes
    models : for each model its config, sizes, pool rounding and mean
    protocols : the Protocol of each model
    """

    top1: float
    top5: float
    count: int
    broken: list[tuple[str, str]]
    not_finite: int
    seconds: float
    labels: npt.NDArray[np.int64]
    models: list[dict[str, Any]]
    protocols: list[Protocol]
    posteriors: Array | None = field(default=None, repr=False)
    version: str = field(default_factory=lambda: str(_C.build_info()["version"]))

    @property
    def images_per_second(self) -> float:
        return self.count / self.seconds if self.seconds > 0 else 0.0

    @property
    def protocol(self) -> Protocol | list[Protocol]:
        """The protocol, or a list of them where the fused models had different ones."""
        first = self.protocols[0]
        return first if all(p == first for p in self.protocols) else self.protocols

    @property
    def name(self) -> str:
        """A short name: the nets and the kind, as in "D + E dense"."""
        kinds = list(dict.fromkeys(p.kind for p in self.protocols))
        nets = [str(m["config"]) for m in self.models]
        if len(kinds) == 1:
            return f"{' + '.join(nets)} {kinds[0]}"
        if len(set(nets)) == 1:
            return f"{nets[0]} {' + '.join(p.kind for p in self.protocols)}"
        return " + ".join(f"{net} {p.kind}" for net, p in zip(nets, self.protocols, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, as JSON needs them; posteriors and labels are left out."""
        return {
            "name": self.name,
            "top1": self.top1,
            "top5": self.top5,
            "count": self.count,
            "broken": [{"name": name, "reason": reason} for name, reason in self.broken],
            "not_finite": self.not_finite,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "models": self.models,
            "protocols": [
                asdict(p) | {"scales": list(p.scales), "description": p.describe()} for p in self.protocols
            ],
            "version": self.version,
        }

    def to_json(self, indent: int | None = 2) -> str:
        return json.dumps(self.to_dict(), indent=indent)

    def __str__(self) -> str:
        lines = [table([self]), ""]
        if self.broken:
            lines.append(
                f"{len(self.broken)} broken images, counted as wrong; the first: {self.broken[0][1]}"
            )
        if self.not_finite:
            lines.append(f"{self.not_finite} images had posteriors that are not finite, counted as wrong")
        for model in self.models:
            side, channels, classes = (model[name] for name in ("input_size", "in_channels", "classes"))
            lines.append(
                f"Net {model['config']}: {side} x {side} x {channels}, {classes} classes; "
                f"pool rounding {model['pool_rounding']}; vggnet {self.version}."
            )
        lines += dict.fromkeys(protocol.describe() for protocol in self.protocols)
        if len(self.models) > 1:
            lines.append("Fusion: mean of the posteriors.")
        return "\n".join(lines)


def table(reports: Sequence[Report], names: Sequence[str] | None = None) -> str:
    """Several reports as one aligned table, under their own names or others."""
    rows = [("", "Q", "top-1 error", "top-5 error", "images", "images/s")]
    for name, r in zip([r.name for r in reports] if names is None else names, reports, strict=True):
        scales = list(dict.fromkeys(", ".join(map(str, p.scales)) for p in r.protocols))
        rows.append(
            (
                name,
                " / ".join(scales),
                f"{r.top1:.2f} %",
                f"{r.top5:.2f} %",
                f"{r.count}",
                f"{r.images_per_second:.1f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def wrong(posteriors: Array, labels: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.bool_]:
    """For each row of (N, classes): is the label not among the k best? Ties go to the smaller index; rows
    with NaN are wrong."""
    own = posteriors[np.arange(len(labels)), labels][:, None]
    before = np.arange(posteriors.shape[1]) < labels[:, None]
    better = ((posteriors > own) | ((posteriors == own) & before)).sum(axis=1)
    result: npt.NDArray[np.bool_] = (better >= min(k, posteriors.shape[1])) | np.isnan(posteriors).any(axis=1)
    return result


class _Count:
    """Errors of one report, chunk by chunk, so that posteriors need not be kept."""

    def __init__(self, n: int, classes: int, keep: bool) -> None:
        self.top1 = self.top5 = self.not_finite = 0
        self.posteriors = np.full((n, classes), np.nan, np.float32) if keep else None

    def add(self, rows: Rows, posteriors: Array, labels: npt.NDArray[np.int64]) -> None:
        self.top1 += int(wrong(posteriors, labels, 1).sum())
        self.top5 += int(wrong(posteriors, labels, 5).sum())
        self.not_finite += int((~np.isfinite(posteriors)).any(axis=1).sum())
        if self.posteriors is not None:
            self.posteriors[rows] = posteriors


# ------------------------------------------------------------------------------------------------ over a data
# set

Pair = tuple["VGG", Protocol | str]
Progress = Callable[[int, int], object]


def evaluate(
    model_or_list: VGG | Sequence[VGG | Pair],
    dataset: Dataset,
    protocol: Protocol | str = "paper",
    *,
    progress: Progress | None = None,
    keep_posteriors: bool = True,
    strict: bool = False,
) -> Report:
    """Top-1 and top-5 error of a net, or of the fusion of several, on a data set.

    Parameters
    ----------
    model_or_list : a VGG; or several VGGs or (VGG, Protocol) pairs, whose posteriors are averaged (paper,
        section 4.4)
    dataset : see :class:`vggnet.data.Dataset`
    protocol : a Protocol, "paper" or a kind; for the models that come without their own
    progress : called as ``progress(done, total)`` with numbers of images
    keep_posteriors : keep (N, classes) float32 in the report: 200 MB for 50,000 images and 1000 classes
    strict : the first broken image raises; otherwise they count as wrong, and more than 1 % of them raises

    Raises
    ------
    ValueError
        Scales below the input size, or classes of data and model that do not fit.
    ImageError
        Too many broken images.
    """
    return compare(
        [model_or_list], dataset, protocol, progress=progress, keep_posteriors=keep_posteriors, strict=strict
    )[0]


def compare(
    entries: Sequence[VGG | Pair | Sequence[VGG | Pair]],
    dataset: Dataset,
    protocol: Protocol | str = "paper",
    *,
    progress: Progress | None = None,
    keep_posteriors: bool = True,
    strict: bool = False,
) -> list[Report]:
    """Several evaluations in one pass over the data: one report for each entry.

    An entry is a model, a (model, protocol) pair, or a list of those (fusion). Images are read and rescaled
    once, and what entries have in common (the same model under the same protocol; the dense part of
    "combined") is computed once. The rest is as in :func:`evaluate`.
    """
    groups = [_pairs(entry, protocol) for entry in entries]
    if not groups:
        raise ValueError("entries is empty; expected at least one model")
    n = len(dataset)
    if n == 0:
        raise ValueError("dataset is empty; expected at least one image")
    for model, p in (pair for group in groups for pair in group):
        _check(model, p)
        if model.num_classes != groups[0][0][0].num_classes:
            raise ValueError(
                f"models have {groups[0][0][0].num_classes} and {model.num_classes} classes; "
                "expected the same classes for all"
            )
    labels = _labels(dataset, [pair[0] for group in groups for pair in group])
    # What is to be computed for each chunk, once: (model, part) pairs by identity; and what each image must
    # be rescaled to.
    parts = {(id(m), part): (m, part) for group in groups for m, p in group for part in p.parts()}
    keys = list(dict.fromkeys(_key(m, p, scale) for m, p in parts.values() for scale in p.scales))
    batch = max(p.batch for _, p in parts.values())
    # Images that are computed together: enough to fill batches, few enough that progress shows.
    together = int(CHUNK_BATCHES * batch / sum(_crops_per_image(m, p) for m, p in parts.values()))
    together = min(max(together, 1), batch)

    counts = [_Count(n, group[0][0].num_classes, keep_posteriors) for group in groups]
    spent = dict.fromkeys(parts, 0.0)
    waited = 0.0
    # The loader carries whatever its transform makes of an image: here the image at every scale.
    loader = Loader(
        dataset,
        together,
        transform=lambda image, _: cast(Any, _pyramid(image, keys)),
        strict=strict or None,
    )
    clock = time.perf_counter()
    for rows, chunk, _ in cast("Iterable[tuple[Rows, list[Pyramid], Rows]]", loader):
        waited += time.perf_counter() - clock
        results = {}
        for key, (model, part) in parts.items():
            clock = time.perf_counter()
            results[key] = _posteriors(model, chunk, part)
            spent[key] += time.perf_counter() - clock
        for group, count in zip(groups, counts, strict=True):
            each = [_mean([results[id(m), part] for part in p.parts()]) for m, p in group]
            count.add(rows, _mean(each), labels[rows])
        if progress is not None:
            progress(int(rows[-1]) + 1, n)
        clock = time.perf_counter()
    broken = [(item.name, item.reason) for item in loader.broken]
    return [
        _report(count, group, labels, broken, waited + sum(spent[key] for key in _used(group)))
        for group, count in zip(groups, counts, strict=True)
    ]


def fuse(reports: Sequence[Report]) -> Report:
    """The report of the averaged posteriors of reports on the same images (paper, section 4.4), each with
    equal weight.

    Raises
    ------
    ValueError
        Posteriors were not kept, or the reports are on different images or classes.
    """
    if not reports:
        raise ValueError("reports is empty; expected at least one")
    kept = [r.posteriors for r in reports if r.posteriors is not None]
    if len(kept) < len(reports):
        raise ValueError("a report has no posteriors: evaluate with keep_posteriors=True to fuse")
    first = reports[0]
    for r, p in zip(reports, kept, strict=True):
        if p.shape != kept[0].shape:
            raise ValueError(f"reports have {kept[0].shape} and {p.shape} posteriors; expected equal shapes")
        if not np.array_equal(r.labels, first.labels):
            raise ValueError("reports have different labels; expected the same images in the same order")
    broken = list(dict.fromkeys(item for r in reports for item in r.broken))
    posteriors = _mean(kept)
    # A row of NaN is a broken image's or a net's; both are wrong, only the second is counted as not finite.
    not_finite = int((~np.isfinite(posteriors)).any(axis=1).sum()) - len(broken)
    return Report(
        top1=100.0 * float(wrong(posteriors, first.labels, 1).mean()),
        top5=100.0 * float(wrong(posteriors, first.labels, 5).mean()),
        count=first.count,
        broken=broken,
        not_finite=not_finite,
        seconds=sum(r.seconds for r in reports),
        labels=first.labels,
        models=[m for r in reports for m in r.models],
        protocols=[p for r in reports for p in r.protocols],
        posteriors=posteriors,
    )


def _pairs(entry: Any, protocol: Protocol | str) -> list[tuple[VGG, Protocol]]:
    """An entry of compare as (model, Protocol) pairs."""
    if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Protocol | str):
        return [(entry[0], resolve(entry[1], entry[0]))]
    if isinstance(entry, list | tuple):
        if not entry:
            raise ValueError("a list of models is empty; expected at least one model")
        return [pair for item in entry for pair in _pairs(item, protocol)]
    return [(entry, resolve(protocol, entry))]


def _used(group: Sequence[tuple[VGG, Protocol]]) -> list[tuple[int, Protocol]]:
    return list(dict.fromkeys((id(m), part) for m, p in group for part in p.parts()))


def _crops_per_image(model: VGG, part: Protocol) -> float:
    """What an image costs, in forward passes of one crop."""
    flips = 2 if part.mirror else 1
    if part.kind == "dense":
        return flips * sum(scale**2 for scale in part.scales) / model.input_size**2
    return flips * len(part.scales) * {"center": 1, "ten-crop": 5, "multi-crop": part.grid**2}[part.kind]


def _report(
    count: _Count,
    group: Sequence[tuple[VGG, Protocol]],
    labels: npt.NDArray[np.int64],
    broken: list[tuple[str, str]],
    seconds: float,
) -> Report:
    n = len(labels)
    return Report(
        top1=100.0 * (count.top1 + len(broken)) / n,
        top5=100.0 * (count.top5 + len(broken)) / n,
        count=n,
        broken=list(broken),
        not_finite=count.not_finite,
        seconds=seconds,
        labels=labels,
        models=[_facts(model) for model, _ in group],
        protocols=[p for _, p in group],
        posteriors=count.posteriors,
    )


def _facts(model: VGG) -> dict[str, Any]:
    return {
        "config": model.config,
        "classes": model.num_classes,
        "input_size": model.input_size,
        "in_channels": model.in_channels,
        "pool_rounding": model.pool_rounding,
        "channels": model.preprocessing.channels,
        "mean": [float(m) for m in model.preprocessing.mean],
    }


def _labels(dataset: Dataset, models: Sequence[VGG]) -> npt.NDArray[np.int64]:
    """The data set's labels in the model's numbering: by class names where both have them, else by number."""
    names, labels = list(dataset.classes or []), np.asarray(dataset.labels, np.int64)
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
