"""Ctrl-C, SIGTERM and SIGUSR1 while training."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn


class Interrupts:
    """Ctrl-C while training, and with `terminate` SIGTERM, which schedulers send before they kill, and SIGUSR1, which they can
    be told to send, and which mpirun passes on to all processes: at once, between layers, except inside `held()`, where they
    wait for its end.

    An update of the weights and its counters must be one: a checkpoint written between them could not go on
    bit for bit.
    """

    def __init__(self, *, terminate: bool) -> None:
        self.depth = 0
        self.waiting = 0  # number of a signal that arrived while they were held; 0: none
        self.defaults: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
        if terminate:
            self.defaults[signal.SIGTERM] = signal.SIG_DFL
            self.defaults[signal.SIGUSR1] = signal.SIG_DFL
        self.installed: list[int] = []

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # only there signals arrive
            self.installed = [n for n, default in self.defaults.items() if signal.getsignal(n) == default]
        for number in self.installed:
            signal.signal(number, self._arrived)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self.installed:
            signal.signal(number, self.defaults[number])

    def _arrived(self, number: int, _: object) -> None:
        self.waiting = number
        if not self.depth:
            self.stop(number)

    def stop(self, number: int) -> NoReturn:
        """Raise what that signal means."""
        self.waiting = 0
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(0)

    @contextlib.contextmanager
    def held(self, when: bool = True) -> Iterator[None]:
        """Within, signals wait."""
        self.depth += when
        try:
            yield
        finally:
            self.depth -= when
        if self.waiting and not self.depth:
            self.stop(self.waiting)
