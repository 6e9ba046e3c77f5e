"""Locks the clocks of a Jetson at their maximum for a measurement, and restores them in every case."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from gft_edge.errors import ConfigError, GFTEdgeError

PROGRAM = "jetson_clocks"
TIMEOUT_S = 30


@contextlib.contextmanager
def locked_clocks() -> Iterator[None]:
    """Runs the block with the clocks of the current power mode locked at their maximum by ``jetson_clocks``.

    The state before is stored first and restored at the end, also after an exception, an interrupt or SIGTERM. Choose the
    power mode (``nvpmodel``) before: it sets the maximum.

    Raises:
        ConfigError: no jetson_clocks here, or it refuses (most often without root); nothing is changed then.
        GFTEdgeError: the clocks cannot be restored, with the command that does it.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise ConfigError(f"clocks: {PROGRAM} is not on PATH; only clocks of a Jetson can be locked")
    folder = Path(tempfile.mkdtemp(prefix="gft-edge-clocks-"))
    stored = folder / "stored"  # must not exist: jetson_clocks asks before it overwrites
    with _terminated_as_exit():
        if (problem := _run(program, "--store", str(stored))) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            raise ConfigError(f"clocks: {PROGRAM} --store failed ({problem}); run with sudo")
        try:
            if (problem := _run(program)) is not None:
                raise ConfigError(f"clocks: {PROGRAM} failed ({problem}); run with sudo")
            yield
        finally:
            if (problem := _run(program, "--restore", str(stored))) is not None:
                raise GFTEdgeError(
                    f"clocks: still locked, {PROGRAM} --restore failed ({problem}); "
                    f"run: sudo {PROGRAM} --restore {stored}"
                )
            shutil.rmtree(folder, ignore_errors=True)


def _run(program: str, *arguments: str) -> str | None:
    """Runs the program without input; returns the reason of a failure, or None."""
    try:
        done = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {TIMEOUT_S} s"
    except OSError as error:
        return error.strerror or str(error)
    if done.returncode == 0:
        return None
    return " ".join((done.stderr or done.stdout).split())[:200] or f"exit code {done.returncode}"


@contextlib.contextmanager
def _terminated_as_exit() -> Iterator[None]:
    """Ends the block by SystemExit on SIGTERM, so that ``finally`` runs; only the main thread can arrange it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
