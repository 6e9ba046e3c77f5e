"""Process of a verb: signals that end it cleanly, and standard streams that may be closed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


@contextlib.contextmanager
def ended_by_signals() -> Iterator[list[signal.Signals]]:
    """Makes SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt in the block, so that all code cleans up.

    Yields the received signals, since a library may replace the exception. Signals that are already ignored (nohup) or handled
    stay unchanged, and so do all signals outside the main thread, where Python cannot handle them.
    """
    received: list[signal.Signals] = []
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner and number != signal.SIGINT:  # a forked worker must not clean up
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        received.append(signal.Signals(number))
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in _WORDS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, handle)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Ignores the signals that end a verb from now on: its work is complete, and libraries take a moment to shut down."""
    for number in _WORDS:
        signal.signal(number, signal.SIG_IGN)


def how_ended(received: list[signal.Signals]) -> tuple[str, int]:
    """Returns word and exit code (128 + signal number) of the first signal; those of Ctrl-C without a signal."""
    number = received[0] if received else signal.SIGINT
    return _WORDS[number], 128 + number


def prepare_streams() -> None:
    """Makes printing safe: opens closed standard descriptors, so that no file gets their numbers, and escapes unprintable text."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stderr is None:  # else print writes to standard output
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (stays open until the process ends)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def abandon_stdout() -> None:
    """Redirects a broken standard output to the null device, so that the flush at exit does not fail too."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
        return
    except (OSError, ValueError):
        pass
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
