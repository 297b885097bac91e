"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from .. import _C
from ..checkpoint import Checkpoints

if TYPE_CHECKING:
    from types import TracebackType

    from ..history import History

log = logging.getLogger("vggnet")


class Writer:
    """Writes checkpoints in a thread, one at a time, from a copy of weights and velocities. Leaving the with-block waits.

    The copy takes as many bytes of the machine's memory as a checkpoint has, from the first `save` on.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.copies: dict[str, dict[str, _C.Tensor]] = {}
        self.thread = ThreadPoolExecutor(1, "vggnet-checkpoint")
        self.under_way: Future[Path] | None = None

    def save(
        self,
        iteration: int,
        parameters: Mapping[str, _C.Tensor],
        velocities: Mapping[str, _C.Tensor],
        metadata: Mapping[str, str],
        history: History,
    ) -> None:
        """Copy what a checkpoint holds, and begin to write it, after history.csv and history.jsonl.

        Waits for the checkpoint before it, and raises what went wrong with that. `history` must not change.
        """
        self.wait()
        for kind, tensors in (("parameters", parameters), ("velocities", velocities)):
            copies = self.copies.setdefault(kind, {})
            for name, tensor in tensors.items():
                copies.setdefault(name, _C.empty(tensor.shape)).copy_(tensor)
        self.under_way = self.thread.submit(self._write, iteration, metadata, history)

    def _write(self, iteration: int, metadata: Mapping[str, str], history: History) -> Path:
        history.write(self.checkpoints.directory)
        return self.checkpoints.save(iteration, **self.copies, metadata=metadata)

    def look(self) -> None:
        """Raise what went wrong with a checkpoint, if that is known by now."""
        if self.under_way is not None and self.under_way.done():
            self.wait()

    def wait(self) -> Path | None:
        """Return when nothing is being written; the file that was written last. Raises what went wrong with it."""
        if self.under_way is None:
            return None
        try:
            return self.under_way.result()
        except BaseException:
            self.under_way = None
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.thread.shutdown()
        try:
            self.wait()
        except Exception as failed:
            if error is None:
                raise
            log.error("the last checkpoint was not written: %s", failed)
