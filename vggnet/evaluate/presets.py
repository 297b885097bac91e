"""The rows of the paper's tables 3 to 6: which net, tested how, and the errors that the paper reports."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from .protocol import PAPER_SIZE, Protocol, in_proportion

if TYPE_CHECKING:
    from ..models import VGG

Scale = int | tuple[int, int]  # S of training: fixed, or drawn from a range
Errors = tuple[float, float]  # top-1 and top-5, %

JITTER: Scale = (256, 512)

# Net and S; errors at the single Q (table 3), and at three (table 4) where they were reported.
SCALES: tuple[tuple[str, Scale, Errors, Errors | None], ...] = (
    ("A", 256, (29.6, 10.4), None),
    ("A-LRN", 256, (29.7, 10.5), None),
    ("B", 256, (28.7, 9.9), (28.2, 9.6)),
    ("C", 256, (28.1, 9.4), (27.7, 9.2)),
    ("C", 384, (28.1, 9.3), (27.8, 9.2)),
    ("C", JITTER, (27.3, 8.8), (26.3, 8.2)),
    ("D", 256, (27.0, 8.8), (26.6, 8.6)),
    ("D", 384, (26.8, 8.7), (26.5, 8.6)),
    ("D", JITTER, (25.6, 8.1), (24.8, 7.5)),
    ("E", 256, (27.3, 9.0), (26.9, 8.7)),
    ("E", 384, (26.9, 8.7), (26.7, 8.6)),
    ("E", JITTER, (25.5, 8.0), (24.8, 7.5)),
)
# Nets trained with jitter; errors of dense, multi-crop, and both combined (tables 5 and 6).
TECHNIQUES: tuple[tuple[int, tuple[str, ...], tuple[Errors, Errors, Errors]], ...] = (
    (5, ("D",), ((24.8, 7.5), (24.6, 7.5), (24.4, 7.2))),
    (5, ("E",), ((24.8, 7.5), (24.6, 7.4), (24.4, 7.1))),
    (6, ("D", "E"), ((24.0, 7.1), (23.9, 7.2), (23.7, 6.8))),
)
KIND_NAMES = {"dense": "dense", "multi-crop": "multi-crop", "both": "combined"}


@dataclass(frozen=True)
class Preset:
    """One row of the paper's tables 3 to 6 (paper, section 4).

    Take it from :func:`preset`, and give it to :func:`evaluate` in place of a protocol: the nets are checked, and the
    report tells the paper's errors beside its own.

    Attributes
    ----------
    name : table, nets, and what else tells the row from others, as in "table4:D:jitter"
    table : number of the paper's table
    nets : configurations; several are fused
    train_scale : S, or the range that S was drawn from
    protocol : how the nets are tested
    top1, top5 : the paper's errors on the validation images of ILSVRC-2012, %
    input_size : of the nets; other than 224 only after `scaled`

    Examples
    --------
    >>> row = preset("table4:D:jitter")
    >>> row.nets, row.train_scale, row.protocol.scales, row.top5
    (('D',), (256, 512), (256, 384, 512), 7.5)
    >>> row.scaled(32).protocol.scales
    (37, 55, 73)
    """

    name: str
    table: int
    nets: tuple[str, ...]
    train_scale: Scale
    protocol: Protocol
    top1: float
    top5: float
    input_size: int = PAPER_SIZE

    def scaled(self, input_size: int) -> Preset:
        """The row for nets of another input size: S and every Q in proportion to it, floor(scale * input_size / 224 + 0.5).

        Such a row is none of the paper's; its reports say so.
        """
        original = preset(self.name)
        low, high = (in_proportion(s, input_size) for s in _ends(original.train_scale))
        scales = tuple(in_proportion(q, input_size) for q in original.protocol.scales)
        return replace(
            self,
            train_scale=low if isinstance(original.train_scale, int) else (low, high),
            protocol=replace(self.protocol, scales=scales),
            input_size=input_size,
        )

    def fits(self, model: VGG) -> bool:
        """Whether a model is a net of the row, as far as it tells what it was trained with."""
        return model.config in self.nets and (
            model.scale is None or _ends(model.scale) == _ends(self.train_scale)
        )

    def pairs(self, models: VGG | Sequence[VGG]) -> list[tuple[VGG, Protocol]]:
        """The models with the protocol of the row, as :func:`evaluate` takes them.

        Raises
        ------
        ValueError
            The models are not the nets of the row, or tell that they were trained at another S.
        TypeError
            They come with protocols of their own.
        """
        group = list(models) if isinstance(models, Sequence) else [models]
        if any(isinstance(model, tuple) for model in group):
            raise TypeError(
                f"{self.name} brings its protocol; expected models alone, no (model, protocol) pairs"
            )
        self._check_nets([model_facts(model) for model in group])
        return [(model, self.protocol) for model in group]

    def check(self, models: Sequence[dict[str, Any]], protocols: Sequence[Protocol]) -> None:
        """Raise ValueError unless posteriors averaged over these (facts of a model, protocol) pairs are those of the row.

        "combined" and the mean of "dense" and "multi-crop" are the same; the filter is not part of a row, since the paper
        does not tell it.
        """
        facts = list({json.dumps(m): m for m in models}.values())  # each net once
        self._check_nets(facts)
        found = _shares(zip([m["config"] for m in models], protocols, strict=True))
        if found != _shares((net, self.protocol) for net in self.nets):
            described = "; ".join(
                f"{m['config']} {_in_short(p)}" for m, p in zip(models, protocols, strict=True)
            )
            raise ValueError(
                f"{self.name} is the mean of {' and '.join(self.nets)} {_in_short(self.protocol)}; these posteriors are "
                f"of {described}"
            )

    def _check_nets(self, models: Sequence[dict[str, Any]]) -> None:
        given = ", ".join(
            f"net {m['config']}" + ("" if m["scale"] is None else f" ({_scale_text(m['scale'])})")
            for m in models
        )
        expected = " and ".join(f"net {net}" for net in self.nets)
        expected += f" trained with {_scale_text(self.train_scale)}"
        if sorted(m["config"] for m in models) != sorted(self.nets):
            raise ValueError(f"{self.name} needs {expected}; given: {given}")
        for model in models:
            if model["input_size"] != self.input_size:
                size = model["input_size"]
                raise ValueError(
                    f"{self.name} is for nets of input size {self.input_size}; that of net {model['config']} is {size}. "
                    f"preset({self.name!r}).scaled({size}), --scaled on the command line, has its scales in proportion"
                )
            if model["scale"] is not None and _ends(model["scale"]) != _ends(self.train_scale):
                raise ValueError(f"{self.name} needs {expected}; given: {given}")

    def describe(self) -> str:
        """The row in words, with the paper's errors."""
        text = (
            f"Paper, table {self.table} ({self.name}): {self._conditions()}: {self.top1} % top-1 and {self.top5} % top-5 "
            "error on the 50,000 validation images of ILSVRC-2012."
        )
        if self.input_size == PAPER_SIZE:
            return text
        original = preset(self.name)
        return (
            f"{original.describe()}\nHere scales are in proportion to the input size, {self.input_size} instead of "
            f"{PAPER_SIZE}, so this is none of the paper's rows: {self._conditions()}."
        )

    def _conditions(self) -> str:
        nets = f"net {self.nets[0]}" if len(self.nets) == 1 else f"nets {' and '.join(self.nets)} fused"
        return f"{nets}, {_scale_text(self.train_scale)}, {_in_short(self.protocol)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, as JSON needs them."""
        return {
            "name": self.name,
            "table": self.table,
            "nets": list(self.nets),
            "train_scale": self.train_scale if isinstance(self.train_scale, int) else list(self.train_scale),
            "kind": self.protocol.kind,
            "scales": list(self.protocol.scales),
            "input_size": self.input_size,
            "top1": self.top1,
            "top5": self.top5,
            "inferences": self.protocol.inferences(),
        }


def paper_rows() -> list[Preset]:
    """Every row of the paper's tables 3 (one scale), 4 (several), 5 (techniques) and 6 (fusion), in their order."""
    single, several = [], []
    count = Counter(net for net, *_ in SCALES)
    for net, s, at_one, at_several in SCALES:
        row = f":{net}" if count[net] == 1 else f":{net}:{s if isinstance(s, int) else 'jitter'}"
        if isinstance(s, int):
            one, three = s, (s - 32, s, s + 32)
        else:
            one, three = sum(s) // 2, (s[0], sum(s) // 2, s[1])
        single.append(Preset(f"table3{row}", 3, (net,), s, Protocol.paper("dense", one), *at_one))
        if at_several is not None:
            several.append(Preset(f"table4{row}", 4, (net,), s, Protocol.paper("dense", three), *at_several))
    techniques = [
        Preset(f"table{table}:{'+'.join(nets)}:{name}", table, nets, JITTER, Protocol.paper(kind), *errors)
        for table, nets, each in TECHNIQUES
        for (name, kind), errors in zip(KIND_NAMES.items(), each, strict=True)
    ]
    return single + several + techniques


def preset(name: str) -> Preset:
    """The row of the paper's tables of that name.

    Raises
    ------
    ValueError
        There is none; the message names the nearest.
    """
    rows = {row.name: row for row in paper_rows()}
    if name not in rows:
        near = difflib.get_close_matches(str(name), rows, n=3, cutoff=0.0)
        raise ValueError(
            f"no row of the paper is called {name!r}; near to it: {', '.join(near)} (see paper_rows())"
        )
    return rows[name]


def model_facts(model: VGG) -> dict[str, Any]:
    """What a report tells of a model."""
    return {
        "config": model.config,
        "classes": model.num_classes,
        "classes_sha256": None
        if model.classes is None
        else hashlib.sha256("\n".join(model.classes).encode()).hexdigest(),
        "input_size": model.input_size,
        "in_channels": model.in_channels,
        "scale": model.scale if model.scale is None or isinstance(model.scale, int) else list(model.scale),
        "pool_rounding": model.pool_rounding,
        "channels": model.preprocessing.channels,
        "mean": [float(m) for m in model.preprocessing.mean],
    }


def _shares(entries: Iterable[tuple[str, Protocol]]) -> dict[tuple[str, Protocol], Fraction]:
    """The share that each net under each part of a protocol has in the mean of posteriors."""
    shares: Counter[tuple[str, Protocol]] = Counter()
    for net, protocol in entries:
        for part in protocol.parts():
            plain = replace(part, filter="bicubic", batch=1, memory=1)
            shares[net, plain] += Fraction(1, len(protocol.parts()))  # type: ignore[assignment]
    total = sum(shares.values())
    return {key: Fraction(share) / total for key, share in shares.items()}


def _ends(scale: int | Sequence[int]) -> tuple[int, int]:
    return (scale, scale) if isinstance(scale, int) else (scale[0], scale[-1])


def _scale_text(scale: int | Sequence[int]) -> str:
    low, high = _ends(scale)
    return f"S = {low}" if low == high else f"S from {low} to {high}"


def _in_short(protocol: Protocol) -> str:
    return f"{protocol.kind} at Q = {', '.join(map(str, protocol.scales))}"
