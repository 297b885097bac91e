"""Pictures drawn with Pillow alone: training curves, images with what the net says about them, and bars."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from .checkpoint import replace_file

if TYPE_CHECKING:
    from .history import Row

_SCALE = 3  # drawn this much larger, then reduced: Pillow's lines are not antialiased
_INK, _SOFT, _GRID, _PAPER = "#1f2430", "#6b7280", "#e5e7eb", "#ffffff"
_BLUE, _ORANGE, _GREEN, _RED, _BAR = "#2563eb", "#ea7317", "#15803d", "#c02626", "#dbe3f4"


class _Canvas:
    """A drawing whose coordinates are those of the finished picture."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * _SCALE, height * _SCALE), _PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1.0) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self.draw.line(scaled, fill=colour, width=max(1, round(width * _SCALE)), joint="curve")

    def box(
        self, left: float, top: float, right: float, bottom: float, colour: str, radius: float = 0
    ) -> None:
        if right > left and bottom > top:
            corners = [v * _SCALE for v in (left, top, right, bottom)]
            self.draw.rounded_rectangle(corners, radius * _SCALE, fill=colour)

    def frame(self, box: npt.NDArray[np.float64], colour: str, width: float, dash: float = 0) -> None:
        """The outline of a box (left, top, right, bottom); with `dash`, in strokes and gaps of that length."""
        left, top, right, bottom = box.tolist()
        corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        for (x0, y0), (x1, y1) in pairwise(corners):
            length = math.hypot(x1 - x0, y1 - y0)
            for start in np.arange(0, length, 2 * (dash or length or 1)):
                a, b = start / length, min(start + (dash or length), length) / length
                self.line([(x0 + t * (x1 - x0), y0 + t * (y1 - y0)) for t in (a, b)], colour, width)

    def dot(self, x: float, y: float, radius: float, colour: str) -> None:
        self.draw.ellipse([v * _SCALE for v in (x - radius, y - radius, x + radius, y + radius)], fill=colour)

    def text(
        self, x: float, y: float, text: str, size: float, colour: str = _INK, anchor: str = "lm"
    ) -> None:
        font = ImageFont.load_default(size * _SCALE)
        self.draw.text((x * _SCALE, y * _SCALE), text, fill=colour, font=font, anchor=anchor)

    def paste(
        self, pixels: npt.NDArray[np.uint8], left: float, top: float, width: float, height: float
    ) -> None:
        """An image (H, W, 1 or 3) at another size."""
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
        self.image.paste(
            image.resize((round(width * _SCALE), round(height * _SCALE)), Image.Resampling.BICUBIC),
            (round(left * _SCALE), round(top * _SCALE)),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        small = self.image.resize(
            (self.image.width // _SCALE, self.image.height // _SCALE), Image.Resampling.LANCZOS
        )
        replace_file(path, lambda temporary: small.save(temporary, format="PNG", optimize=True))


@dataclass(frozen=True)
class Line:
    """One curve: a name and its (x, y) points; points that are not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw)
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _panel(
    canvas: _Canvas,
    left: float,
    top: float,
    width: float,
    height: float,
    title: str,
    lines: Sequence[Line],
    marks: Sequence[float],
) -> None:
    points = {
        line.name: [
            (x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and math.isfinite(y)
        ]
        for line in lines
    }
    every = [p for each in points.values() for p in each]
    x0, y0, x1, y1 = left + 46, top + 44, left + width - 16, top + height - 42
    canvas.text(left + 46, top + 14, title, 15)
    if not every:
        canvas.text((x0 + x1) / 2, (y0 + y1) / 2, "no points yet", 12, _SOFT, "mm")
        return
    low_x, high_x = min(p[0] for p in every), max(p[0] for p in every)
    high_x = high_x if high_x > low_x else low_x + 1
    high_y = max(p[1] for p in every) * 1.06 or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return x0 + (x - low_x) / (high_x - low_x) * (x1 - x0), y1 - y / high_y * (y1 - y0)

    for tick in _ticks(0, high_y):
        y = at(low_x, tick)[1]
        canvas.line([(x0, y), (x1, y)], _GRID)
        canvas.text(x0 - 7, y, f"{tick:g}", 11, _SOFT, "rm")
    for tick in (t for t in _ticks(low_x, high_x, 8) if t == int(t)):
        canvas.text(at(tick, 0)[0], y1 + 13, f"{tick:g}", 11, _SOFT, "mm")
    canvas.text((x0 + x1) / 2, y1 + 31, "epoch", 11, _SOFT, "mm")
    for mark in marks:  # where the learning rate fell
        x = at(mark, 0)[0]
        for k in range(int(y1 - y0) // 7):
            canvas.line([(x, y0 + 7 * k), (x, y0 + 7 * k + 3)], _SOFT, 0.7)
    legend = x0
    for line, colour in zip(lines, (_BLUE, _ORANGE, _GREEN, _RED), strict=False):
        path = [at(*p) for p in points[line.name]]
        if len(path) > 1:
            canvas.line(path, colour, 2)
        for p in path if len(path) <= 30 else path[-1:]:
            canvas.dot(*p, 2.4, colour)
        canvas.line([(legend, top + 34), (legend + 16, top + 34)], colour, 2.5)
        canvas.text(legend + 21, top + 34, line.name, 11, _SOFT)
        legend += 34 + 6.2 * len(line.name)


def curves(
    path: str | os.PathLike[str],
    panels: Sequence[tuple[str, Sequence[Line]]],
    marks: Sequence[float] = (),
    caption: str = "",
) -> None:
    """Panels (title, lines) side by side over a shared meaning of x (epochs); ``marks`` are dotted verticals
    (the learning rate fell)."""
    width, height = 430, 300
    canvas = _Canvas(width * len(panels), height + (24 if caption else 0))
    for i, (title, lines) in enumerate(panels):
        _panel(canvas, i * width, 6, width, height - 6, title, lines, marks)
    if caption:
        canvas.text(46, height + 6, caption, 11, _SOFT)
    canvas.save(path)


def history(path: str | os.PathLike[str], rows: Sequence[Row]) -> None:
    """The curves of a training run: loss and error over the epochs, dotted where the learning rate fell."""
    epochs = [row.epoch for row in rows]

    def line(name: str, field: str) -> Line:
        values = [getattr(row, field) for row in rows]
        return Line(name, epochs, [math.nan if value is None else value for value in values])

    drops = [(before.epoch + after.epoch) / 2 for before, after in pairwise(rows) if after.lr < before.lr]
    curves(
        path,
        [
            ("loss", [line("training", "train_loss"), line("held out", "val_loss")]),
            ("top-1 error, %", [line("training", "train_error"), line("held out", "val_top1")]),
        ],
        drops,
        "Training images are cropped at random and dropout is on; held-out images take one centre crop."
        + (" Dotted: the learning rate fell." if drops else ""),
    )


def bars(
    path: str | os.PathLike[str],
    panels: Sequence[tuple[str, Sequence[tuple[str, float]]]],
    first: str,
    caption: str = "",
    *,
    columns: int = 2,
) -> None:
    """Panels (title, bars) of named values, each on a scale of its own; the bar named `first` stands out, and the others tell
    how many times it they are."""
    width, row = 430, 24
    heights = [46 + row * len(values) for _, values in panels]
    height = max(heights)
    canvas = _Canvas(width * columns, height * -(-len(panels) // columns) + 30)
    for number, (title, values) in enumerate(panels):
        left, top = width * (number % columns) + 16, height * (number // columns) + 8
        canvas.text(left, top + 14, title, 15)
        longest = max(value for _, value in values)
        unit = dict(values).get(first)
        for k, (name, value) in enumerate(values):
            y = top + 36 + row * k
            ours = name == first
            length = 170 * value / longest
            canvas.text(left, y + 8, name, 12, _INK if ours else _SOFT)
            canvas.box(left + 100, y, left + 100 + length, y + 16, _BLUE if ours else "#b6bfd0", 2)
            ratio = "" if unit is None or ours else f"   {value / unit:.1f} x"
            canvas.text(left + 106 + length, y + 8, f"{value:.1f}{ratio}", 12, _INK if ours else _SOFT)
    canvas.text(16, canvas.image.height / _SCALE - 16, caption, 11, _SOFT)
    canvas.save(path)


def predictions(
    path: str | os.PathLike[str],
    images: Sequence[npt.NDArray[np.uint8]],
    posteriors: npt.NDArray[np.floating[Any]],
    labels: Sequence[int],
    classes: Sequence[str],
    *,
    columns: int = 3,
    title: str = "",
) -> None:
    """Images with their true class (green when the net is right, red when not) and bars for the three
    likeliest classes.

    Parameters
    ----------
    images : uint8 (H, W, 1 or 3), each is drawn square
    posteriors : (N, classes), 0..1
    """
    cell_w, cell_h, head = 292, 124, 44 if title else 12
    rows = -(-len(images) // columns)
    canvas = _Canvas(cell_w * columns + 12, cell_h * rows + head)
    if title:
        canvas.text(14, 23, title, 15)
    for i, (image, posterior, label) in enumerate(zip(images, posteriors, labels, strict=True)):
        left, top = 12 + cell_w * (i % columns), head + cell_h * (i // columns)
        side = min(image.shape[:2])
        y, x = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        square = image[y : y + side, x : x + side]
        canvas.paste(square, left + 2, top + 2, 106, 106)
        best = np.argsort(-posterior, kind="stable")[:3]
        right = best[0] == label
        colour = _GREEN if right else _RED
        text_x, text_w = left + 120, cell_w - 120 - 18
        verdict = classes[label] if right else f"{classes[label]}, taken for"
        canvas.text(text_x, top + 12, _shorten(verdict, 26), 13, colour)
        for k, index in enumerate(best):
            y0 = top + 30 + 26 * k
            canvas.box(text_x, y0, text_x + text_w, y0 + 20, "#f4f5f7", 3)
            canvas.box(
                text_x,
                y0,
                text_x + text_w * float(posterior[index]),
                y0 + 20,
                _bar(index == label, k == 0, right),
                3,
            )
            canvas.text(text_x + 6, y0 + 10, _shorten(classes[index], 18), 11)
            canvas.text(text_x + text_w - 6, y0 + 10, f"{100 * posterior[index]:.0f} %", 11, _SOFT, "rm")
    canvas.save(path)


def boxes(
    path: str | os.PathLike[str],
    images: Sequence[npt.NDArray[np.uint8]],
    guesses: Sequence[Sequence[tuple[str | int, float, npt.NDArray[np.float64]]]],
    true: Sequence[npt.NDArray[np.float64]] | None = None,
    *,
    columns: int = 4,
    title: str = "",
) -> None:
    """Images with the boxes that a net found, blue, the first guess thick; true ones, where they are known, dotted orange.

    Parameters
    ----------
    path : path of the PNG file to write
    images : N uint8 (H, W, 1 or 3)
    guesses : N lists of (class, probability, box)
        As of `vggnet.localize.locate`: boxes are left, top, right, bottom in pixels of the image. The first one's class and
        probability stand under the image.
    true : N arrays (M, 4), optional
    columns : int
    title : str
    """
    cell, gap, foot, head = 150, 12, 24, 44 if title else 12
    rows = -(-len(images) // columns)
    canvas = _Canvas((cell + gap) * columns + gap, (cell + foot) * rows + head)
    if title:
        canvas.text(gap, 23, title, 15)
    for i, (image, found) in enumerate(zip(images, guesses, strict=True)):
        height, width = image.shape[:2]
        scale = cell / max(height, width)
        left = gap + (cell + gap) * (i % columns) + (cell - scale * width) / 2
        top = head + (cell + foot) * (i // columns)
        canvas.paste(image, left, top, scale * width, scale * height)

        start = np.array([left, top, left, top])
        for guess, (_, _, box) in reversed(list(enumerate(found))):
            canvas.frame(scale * box + start, _BLUE, 1 if guess else 2.2)
        for box in () if true is None else true[i]:
            canvas.frame(scale * box + start, _ORANGE, 1.4, dash=4)
        if found:
            label, probability, _ = found[0]
            name = _shorten(str(label), 18)
            canvas.text(
                left + scale * width / 2,
                top + cell + 10,
                f"{name} {100 * probability:.0f} %",
                11,
                anchor="mm",
            )
    canvas.save(path)


def _bar(true: bool, first: bool, right: bool) -> str:
    """Pale green under the true class, pale red under a wrong first choice, pale blue elsewhere."""
    return "#bfe3c9" if true else "#f3c3c0" if first and not right else _BAR


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
