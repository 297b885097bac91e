"""What happened in a training run: one row for each epoch."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .checkpoint import write_text


@dataclass(frozen=True)
class Row:
    """One epoch. Errors in %; `val_*` are of the held-out images, one centre crop each, None without them.

    `train_error` and `val_top1` are those of the task (`train.Task`): the top-1 error in classification.
    """

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

    def describe(self, *, top5: bool) -> str:
        """The row but for its numbers of epoch and iteration, in words; with or without the top-5 error."""
        words = [f"lr {self.lr:g}", f"loss {self.train_loss:.4f}", f"error {self.train_error:.2f} %"]
        if self.val_top1 is not None:
            more = f" (top-5 {self.val_top5:.2f} %)" if top5 and self.val_top5 is not None else ""
            words.append(f"held out {self.val_top1:.2f} %{more}")
        return ", ".join([*words, f"{self.images_per_second:.0f} images/s", f"{self.seconds:.1f} s"])


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

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> History:
        """The rows that `write` left in a directory."""
        lines = Path(directory, "history.jsonl").read_text(encoding="utf-8").splitlines()
        return cls([Row(**json.loads(line)) for line in lines])

    def plot(self, path: str | os.PathLike[str] = "curves.png") -> None:
        """Draw loss and error over the epochs into a PNG file; dotted lines mark where the lr fell."""
        from . import picture

        picture.history(path, self.rows)
