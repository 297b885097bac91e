"""What the user sees while work goes on: a bar on a terminal or in a notebook, plain lines elsewhere, or nothing; on stderr."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

log = logging.getLogger("vggnet")


class Progress:
    """Call it as ``progress(done, total)``, with numbers of images; leaving its with-block ends the bar.

    Parameters
    ----------
    what : str
        The name of the work.
    show : bool or None
        True: a bar; False: nothing; None: a bar on a terminal or in a notebook, else lines.
    """

    EVERY = 30.0  # seconds between plain lines

    def __init__(self, what: str, show: bool | None = None) -> None:
        terminal = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.what = what
        self.bars = terminal if show is None else show
        self.silent = show is False
        self.bar: Any = None
        self.since: float | None = None  # when the work began; None before

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, what: str, done: int, total: int) -> None:
        """Begin with other work, or with what was partly done earlier."""
        self.stop()
        self.what, self.first = what, done
        self.since = self.last = time.monotonic()
        if self.bars:
            from tqdm.auto import tqdm

            self.bar = tqdm(
                total=total,
                initial=done,
                desc=what,
                unit=" images",
                leave=False,
                file=sys.stderr,
                dynamic_ncols=True,
            )

    def __call__(self, done: int, total: int, facts: str = "") -> None:
        if self.since is None:
            self.start(self.what, 0, total)
        assert self.since is not None
        now = time.monotonic()
        if self.bar is not None:
            self.bar.set_postfix_str(facts, refresh=False)
            self.bar.update(done - self.bar.n)
        elif not self.silent and now - self.last > self.EVERY:
            self.last = now
            speed = f"{(done - self.first) / (now - self.since):.0f} images/s"
            self.note(f"{self.what}, {done} of {total} images: {facts + ', ' if facts else ''}{speed}")

    def stop(self) -> None:
        """The work is done: its bar goes."""
        self.since = None
        if self.bar is not None:
            self.bar.close()
            self.bar = None

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
