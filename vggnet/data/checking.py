"""Finding, before a training of weeks begins, the files that would spoil it."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .._C import ImageError
from ..preprocess import Pixels, load_image
from .files import ImageFiles
from .loader import Loader

#: What `check` looks for.
KINDS = ("broken", "cmyk", "suffix", "tiny", "duplicate")

_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
}
_STUB = np.zeros((1, 1, 1), np.uint8)


@dataclass(frozen=True)
class Finding:
    """What is wrong with a file.

    Attributes
    ----------
    kind : "broken" | "cmyk" | "suffix" | "tiny" | "duplicate"
    name : str
        The file.
    what : str
        In words.
    """

    kind: str
    name: str
    what: str


def check(
    dataset: ImageFiles,
    *,
    tiny: int = 64,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Finding]:
    """Read every file of a data set and list what is wrong.

    Parameters
    ----------
    dataset : ImageFiles
        `ImageFolder`, `ILSVRC2012` or `Shards`.
    tiny : int
        Images with a side below this are listed, in pixels.
    workers : int, optional
        As of `Loader`.
    progress : callable, optional
        ``progress(done, images)``.

    Returns
    -------
    list of Finding
        In the order of the data set; duplicates at the end.

        broken
            It cannot be decoded: training would leave it out, and evaluation count it as an error.
        cmyk
            A JPEG file for printing: it is converted by formula, which may not be the colours that were meant.
        suffix
            Its name ends like that of another type of file. It is read by its contents.
        tiny
            It would be enlarged very much.
        duplicate
            The same contents lie in another class, too: at least one of the two labels is wrong.
    """
    examination = _Examination(dataset, tiny)
    loader = Loader(examination, 256, workers=workers)
    with contextlib.closing(loader.batches()) as batches:
        for indices, _, _ in batches:
            if progress is not None:
                progress(int(indices[-1]) + 1, len(dataset))
    found = [finding for i in sorted(examination.found) for finding in examination.found[i]]
    return found + examination.duplicates()


class _Examination:
    """A data set whose reading is examining the files, so that `Loader` does it in threads."""

    def __init__(self, files: ImageFiles, tiny: int) -> None:
        self.files, self.tiny = files, tiny
        self.classes, self.labels = files.classes, files.labels
        self.found: dict[int, list[Finding]] = {}
        self.digests = np.zeros(len(files), np.uint64)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, i: int) -> str:
        return self.files.name(i)

    def image(self, i: int) -> Pixels:
        findings = [Finding(kind, self.name(i), what) for kind, what in self._examine(i)]
        if findings:
            self.found[i] = findings
        return _STUB

    def _examine(self, i: int) -> list[tuple[str, str]]:
        from PIL import Image

        name = self.name(i)
        found: list[tuple[str, str]] = []
        try:
            content = self.files.content(i)
            self.digests[i] = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
            load_image(content, self.files.channels, name)
        except ImageError as error:
            return [("broken", str(error).removeprefix(f"{name}: "))]
        with Image.open(io.BytesIO(content)) as image:  # which load_image has found possible
            form, mode, (width, height) = str(image.format), image.mode, image.size
        if mode == "CMYK":
            found.append(("cmyk", "four colours for printing; converted by formula"))
        if not name.lower().endswith(_SUFFIXES.get(form, ())):
            found.append(("suffix", f"in truth a {form} file"))
        if min(width, height) < self.tiny:
            found.append(("tiny", f"{width} x {height} pixels"))
        return found

    def duplicates(self) -> list[Finding]:
        """Files whose contents lie in an earlier class, too."""
        order = np.argsort(self.digests, kind="stable")
        same = np.flatnonzero(np.diff(self.digests[order].astype(np.int64)) == 0)
        starts: dict[int, list[int]] = {}
        for place in same.tolist():
            starts.setdefault(int(self.digests[order[place]]), [int(order[place])]).append(
                int(order[place + 1])
            )
        found = []
        for group in starts.values():
            first = group[0]
            for i in group[1:]:
                if self.labels[i] != self.labels[first] and self._equal(first, i):
                    where = f"of class {self.classes[self.labels[first]]!r}"
                    found.append(
                        (
                            i,
                            Finding(
                                "duplicate", self.name(i), f"the same file as {self.name(first)}, {where}"
                            ),
                        )
                    )
        return [finding for _, finding in sorted(found, key=lambda entry: entry[0])]

    def _equal(self, i: int, j: int) -> bool:
        """Whether two files are one, also where 64 bits of a digest are not enough to say."""
        try:
            return self.files.content(i) == self.files.content(j)
        except ImageError:
            return False


__all__ = ["KINDS", "Finding", "check"]
