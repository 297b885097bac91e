"""What a training run tells: the rows of its history, and what the user sees meanwhile."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .checkpoint import write_text

log = logging.getLogger("vggnet")


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


class Reporter:
    """What the user sees while training: a bar on a terminal, plain lines elsewhere, or nothing; on stderr.

    Parameters
    ----------
    progress : bool or None
        True: a bar; False: nothing; None: a bar on a terminal or in a notebook, else lines.
    epochs : int or None
        How many there will be at most.
    """

    EVERY = 30.0  # seconds between plain lines within an epoch

    def __init__(self, progress: bool | None, epochs: int | None) -> None:
        terminal = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.bar_wanted = terminal if progress is None else progress
        self.silent = progress is False
        self.epochs = epochs
        self.bar: Any = None
        self.last = 0.0

    def __enter__(self) -> Reporter:
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

    def update(self, count: int, *, seen: int, loss: float, error: float, lr: float, speed: float) -> None:
        """After an update of `count` images; the rest describes the epoch so far."""
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.3f}, error {error:.1f} %, lr {lr:g}", refresh=False)
            self.bar.update(count)
        elif not self.silent and time.monotonic() - self.last > self.EVERY:
            self.last = time.monotonic()
            self.note(
                f"{self.name}, {seen} of {self.total} images: loss {loss:.3f}, error {error:.1f} %, "
                f"{speed:.0f} images/s"
            )

    def epoch(self, row: Row) -> None:
        held_out = (
            "" if row.val_top1 is None else f", held out {row.val_top1:.2f} % (top-5 {row.val_top5:.2f} %)"
        )
        self.note(
            f"{self._epoch_name(row.epoch)}: lr {row.lr:g}, loss {row.train_loss:.4f}, "
            f"error {row.train_error:.2f} %{held_out}, "
            f"{row.images_per_second:.0f} images/s, {row.seconds:.1f} s"
        )

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
