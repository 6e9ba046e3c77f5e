"""What surrounds a verb in its process: signals that end it in good order, and standard streams that may be closed."""

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
    """SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt in the block, so that everything cleans up on the way out.

    Yields what has arrived: a library may turn the exception into one of its own. A signal that somebody ignores (nohup) or
    handles already is left alone, and so are all outside the main thread, where Python takes none.
    """
    received: list[signal.Signals] = []
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner and number != signal.SIGINT:  # a forked worker has nothing to clean up
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


def how_ended(received: list[signal.Signals]) -> tuple[str, int]:
    """Word and exit code (128 + the signal's number) of the first signal, that of Ctrl-C where none was seen."""
    number = received[0] if received else signal.SIGINT
    return _WORDS[number], 128 + number


def prepare_streams() -> None:
    """Makes printing safe: no closed descriptor is left for a file to take its number, no character is unprintable."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    if sys.stderr is None:  # print would fall back to standard output
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (as long as the process)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def abandon_stdout() -> None:
    """Where standard output cannot take what waits for it, leads it nowhere, so that the end of the process does not fail too."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
        return
    except (OSError, ValueError):
        pass
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
