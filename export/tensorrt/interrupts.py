"""Ctrl-C while native code runs: it is noted, the code is asked to stop, and it is raised when the code has returned."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted:
    """Signals that arrived while they were held back; true with at least one."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    def __bool__(self) -> bool:
        return bool(self.signals)

    def note(self) -> None:
        """Notes a Ctrl-C that was raised as an exception inside a callback."""
        self.signals.append(signal.SIGINT)


@contextlib.contextmanager
def interrupts_held() -> Iterator[Interrupted]:
    """Holds Ctrl-C and SIGTERM back while native code runs, which swallows exceptions of its callbacks.

    The block stops when the yielded value is true. After the block the signal is delivered as if it had just arrived: to
    Python's handler, which raises KeyboardInterrupt, or to the installed one. A second signal of either kind
    ends the process at once. In threads other than the main one, where Python runs no handlers, nothing is held back.

    Raises:
        KeyboardInterrupt: Ctrl-C arrived, or a callback noted one.
    """
    interrupted = Interrupted()
    previous = {}

    def hold(number: int, frame: FrameType | None) -> None:
        if interrupted:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        interrupted.signals.append(number)

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous[number] = signal.signal(number, hold)
    try:
        yield interrupted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if interrupted:
            first = interrupted.signals[0]
            if first in previous:
                signal.raise_signal(first)
            raise KeyboardInterrupt
