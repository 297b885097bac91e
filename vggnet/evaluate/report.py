"""What an evaluation found: counts, reports, tables, and the fusion of reports."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _C
from ..data import Broken
from .passes import Array, Rows, average
from .presets import Preset, preset
from .protocol import Protocol

FORMAT = "vggnet-report-1"  # of stored reports


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
    broken : index, name and reason of images that could not be read; they count as wrong
    not_finite : images whose posteriors held NaN or infinity; they count as wrong
    seconds : time for this report's forward passes and for waiting on images (shared by the reports of one
        pass)
    posteriors : (count, classes) float32, rows of broken images NaN; None unless kept
    labels : (count,) int64, in the order of the model's classes
    names_sha256 : of the images' names without folders, in order: by it and the labels `fuse` knows the data
    models : for each model its config, sizes, S of its training, pool rounding, mean
    protocols : the Protocol of each model
    paper : the row of the paper's tables that this is, or None
    """

    top1: float
    top5: float
    count: int
    broken: list[Broken]
    not_finite: int
    seconds: float
    labels: npt.NDArray[np.int64]
    names_sha256: str
    models: list[dict[str, Any]]
    protocols: list[Protocol]
    posteriors: Array | None = field(default=None, repr=False)
    paper: Preset | None = None
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
        """Plain Python values, as JSON needs them; posteriors and labels are left out, and `paper` where there is none."""
        row = {} if self.paper is None else {"paper": self.paper.to_dict()}
        if row:
            del row["paper"]["inferences"]  # those that were made are in the protocols
        return {
            "name": self.name,
            "top1": self.top1,
            "top5": self.top5,
            "count": self.count,
            "broken": [asdict(item) for item in self.broken],
            "not_finite": self.not_finite,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "models": self.models,
            "protocols": [
                asdict(p)
                | {"scales": list(p.scales), "description": p.describe(), "inferences": p.inferences()}
                for p in self.protocols
            ],
            "names_sha256": self.names_sha256,
            "version": self.version,
        } | row

    def to_json(self, indent: int | None = 2) -> str:
        return json.dumps(self.to_dict(), indent=indent)

    def beside(self, row: Preset) -> Report:
        """The same report, as that of a row of the paper: for posteriors that were fused from stored ones.

        Raises
        ------
        ValueError
            The posteriors are of other nets or another protocol.
        """
        row.check(self.models, self.protocols)
        return replace(self, paper=row)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report with labels and posteriors to an .npz file, for :meth:`load` and :func:`fuse`.

        The arrays are "posteriors" (count, classes) float32, "labels" (count,) int64, and "report", a JSON text.
        The file appears whole or not at all.

        Raises
        ------
        ValueError
            The posteriors were not kept.
        """
        from ..checkpoint import replace_file

        if self.posteriors is None:
            raise ValueError(
                "save: the report has no posteriors: evaluate with keep_posteriors=True to store it"
            )
        arrays = {"posteriors": self.posteriors, "labels": self.labels}
        text = json.dumps({"format": FORMAT} | self.to_dict())

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:  # of whatever name: savez would add .npz to a path
                np.savez(file, report=np.array(text), **arrays)  # type: ignore[arg-type]

        replace_file(path, write)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Read what `save` wrote; nothing is unpickled.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        VggError
            The file is none of these, or is damaged.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no such file: {os.fspath(path)}")
        try:
            with Path(path).open("rb") as file, np.load(file) as arrays:
                values = json.loads(str(arrays["report"]))
                return cls._restore(values, arrays["posteriors"], arrays["labels"])
        except (KeyError, IndexError, TypeError, ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise _C.VggError(
                f"{os.fspath(path)}: no posteriors that Report.save or vggnet evaluate --posteriors wrote, or damaged "
                f"({error})"
            ) from error

    @classmethod
    def _restore(cls, values: dict[str, Any], posteriors: Array, labels: npt.NDArray[np.int64]) -> Report:
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r}; expected {FORMAT!r}")
        n, classes = values["count"], values["models"][0]["classes"]
        for name, array, shape, dtype in (
            ("posteriors", posteriors, (n, classes), np.float32),
            ("labels", labels, (n,), np.int64),
        ):
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{name} is {array.dtype} {array.shape}; expected {np.dtype(dtype)} {shape}")
        row = values.get("paper")
        if row is not None:
            row = preset(row["name"]).scaled(row["input_size"])
        told = ("description", "inferences")
        return cls(
            top1=values["top1"],
            top5=values["top5"],
            count=n,
            broken=[Broken(**item) for item in values["broken"]],
            not_finite=values["not_finite"],
            seconds=values["seconds"],
            labels=labels,
            names_sha256=values["names_sha256"],
            models=values["models"],
            protocols=[
                Protocol(**{key: value for key, value in p.items() if key not in told})
                for p in values["protocols"]
            ],
            posteriors=posteriors,
            paper=row,
            version=values["version"],
        )

    def __str__(self) -> str:
        lines = [table([self]), ""]
        if self.paper is not None:
            lines.append(self.paper.describe())
            if any(model["scale"] is None for model in self.models):
                lines.append(
                    "A net does not tell the S that it was trained with: it is taken to be that of the row."
                )
        if self.broken:
            lines.append(
                f"{len(self.broken)} broken images, counted as wrong; the first: {self.broken[0].reason}"
            )
        if self.not_finite:
            lines.append(f"{self.not_finite} images had posteriors that are not finite, counted as wrong")
        for model in self.models:
            side, channels, classes = (model[name] for name in ("input_size", "in_channels", "classes"))
            lines.append(
                f"Net {model['config']}: {side} x {side} x {channels}, {classes} classes; "
                f"pool rounding {model['pool_rounding']} (our inference); vggnet {self.version}."
            )
        lines += dict.fromkeys(protocol.describe() for protocol in self.protocols)
        if len(self.models) > 1:
            lines.append("Fusion: mean of the posteriors.")
        return "\n".join(lines)


def table(reports: Sequence[Report], names: Sequence[str] | None = None) -> str:
    """Several reports as one aligned table, under their own names or others; rows of the paper with its errors beside."""
    told = ["top1", "top5"] if any(tells_top5(m["classes"]) for r in reports for m in r.models) else ["top1"]
    paper = any(r.paper is not None for r in reports)
    header = ["", "Q"]
    for which in told:
        header += [f"top-{which[-1]} error", *(["paper"] if paper else [])]
    rows = [[*header, "images", "images/s"]]
    for name, r in zip([r.name for r in reports] if names is None else names, reports, strict=True):
        row = [name, " / ".join(dict.fromkeys(", ".join(map(str, p.scales)) for p in r.protocols))]
        for which in told:
            row.append(f"{getattr(r, which):.2f} %")
            if paper:
                row.append("" if r.paper is None else f"{getattr(r.paper, which):.1f} %")
        rows.append([*row, f"{r.count}", f"{r.images_per_second:.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def tells_top5(classes: int) -> bool:
    """Whether the top-5 error is worth printing: five guesses at one of ten classes are rarely all wrong."""
    return classes > 10


def fuse(reports: Sequence[Report]) -> Report:
    """The report of the averaged posteriors of reports on the same images (paper, section 4.4).

    Every net has equal weight: a report that is a fusion itself counts as often as it has nets. Nothing is computed anew, so
    stored reports (:meth:`Report.load`) fuse at no cost.

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
    known = {model["classes_sha256"] for r in reports for model in r.models} - {None}
    if len(known) > 1:
        raise ValueError("reports are of nets with different class names, or the same in another order")
    for r, p in zip(reports, kept, strict=True):
        if p.shape != kept[0].shape:
            raise ValueError(f"reports have {kept[0].shape} and {p.shape} posteriors; expected equal shapes")
        if not np.array_equal(r.labels, first.labels):
            raise ValueError("reports have different labels; expected the same images in the same order")
        if r.names_sha256 != first.names_sha256:
            raise ValueError(
                "reports are on images of different names; expected the same images in the same order"
            )
    broken = {item.index: item for r in reports for item in r.broken}
    posteriors = average([p for r, p in zip(reports, kept, strict=True) for _ in r.models])
    # A row of NaN is a broken image's or a net's; both are wrong, only the second is counted as not finite.
    not_finite = int((~np.isfinite(posteriors)).any(axis=1).sum()) - len(broken)
    return Report(
        top1=100.0 * float(wrong(posteriors, first.labels, 1).mean()),
        top5=100.0 * float(wrong(posteriors, first.labels, 5).mean()),
        count=first.count,
        broken=[broken[i] for i in sorted(broken)],
        not_finite=not_finite,
        seconds=sum(r.seconds for r in reports),
        labels=first.labels,
        names_sha256=first.names_sha256,
        models=[m for r in reports for m in r.models],
        protocols=[p for r in reports for p in r.protocols],
        posteriors=posteriors,
    )


def wrong(posteriors: Array, labels: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.bool_]:
    """For each row of (N, classes): is the label not among the k best? Ties go to the smaller index; rows
    with NaN are wrong."""
    own = posteriors[np.arange(len(labels)), labels][:, None]
    before = np.arange(posteriors.shape[1]) < labels[:, None]
    better = ((posteriors > own) | ((posteriors == own) & before)).sum(axis=1)
    result: npt.NDArray[np.bool_] = (better >= min(k, posteriors.shape[1])) | np.isnan(posteriors).any(axis=1)
    return result


class Count:
    """Errors of one report on images `first` to `last` - 1, chunk by chunk, so that posteriors need not be kept."""

    def __init__(self, first: int, last: int, classes: int, keep: bool) -> None:
        self.first = first
        self.wrong = [
            0,
            0,
            0,
        ]  # images that are wrong by top-1, by top-5, and whose posteriors are not finite
        self.posteriors = np.full((last - first, classes), np.nan, np.float32) if keep else None

    @property
    def top1(self) -> int:
        return self.wrong[0]

    @property
    def top5(self) -> int:
        return self.wrong[1]

    @property
    def not_finite(self) -> int:
        return self.wrong[2]

    def add(self, rows: Rows, posteriors: Array, labels: npt.NDArray[np.int64]) -> None:
        found = (
            wrong(posteriors, labels, 1),
            wrong(posteriors, labels, 5),
            (~np.isfinite(posteriors)).any(axis=1),
        )
        self.wrong = [total + int(mask.sum()) for total, mask in zip(self.wrong, found, strict=True)]
        if self.posteriors is not None:
            self.posteriors[rows - self.first] = posteriors
