"""Runs attacks in forked processes: a crash, a hang or too much memory ends one attack, not the measurement."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from gft_edge.errors import GFTEdgeError

Kind = Literal["ok", "refused", "harmless", "edited", "accepted", "traceback", "hang", "crash", "memory", "reached out"]
GOOD: tuple[Kind, ...] = ("ok", "refused", "harmless", "edited")
"""Accepted outcomes; all others are finds."""


@dataclass(frozen=True)
class Limits:
    """Limits of one attack.

    Args:
        seconds: wall time.
        megabytes: memory in addition to what the process used before.
    """

    seconds: float = 10.0
    megabytes: int = 1024


DEFAULT = Limits()
PATIENCE_S = 5.0
"""Extra time after the limit, which distinguishes a late end from no end."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of one attack.

    Attributes:
        number: index of the attack.
        kind: ``"ok"`` (input used), ``"refused"`` (one-line error), ``"harmless"`` (used, same result), ``"edited"`` (a file
            that people edit, read with its new content), ``"accepted"`` (used, different result), or a failure: uncaught
            exception, hang, crash of the process, too much memory, network connection or shell.
        detail: text or location of the error.
        seconds: wall time.
        megabytes: peak memory in addition to what the process used before.
    """

    number: int
    kind: Kind
    detail: str
    seconds: float
    megabytes: float = 0.0


def judged(attack: Callable[[], Kind]) -> tuple[Kind, str]:
    """Runs an attack; returns the kind of its outcome and the error's text. User errors count as refusals."""
    try:
        return attack(), ""
    except GFTEdgeError as error:
        return "refused", " ".join(str(error).split())[:300]
    except MemoryError:
        return "memory", place_of(sys.exc_info()[1])
    except (SystemExit, KeyboardInterrupt) as stop:
        return "traceback", f"{type(stop).__name__} {stop} escaped"
    except Exception as error:
        return "traceback", place_of(error)


def place_of(error: BaseException | None) -> str:
    """Returns an error's type, text and innermost location in this package."""
    frames = traceback.extract_tb(error.__traceback__ if error else None)
    root = str(Path(__file__).parents[2])
    own = [
        f for f in frames if f.filename.startswith(root) and "/torture/" not in f.filename and ".venv" not in f.filename
    ]
    frame = own[-1] if own else frames[-1] if frames else None
    where = f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.name}" if frame else "?"
    return f"{type(error).__name__} in {where}: {' '.join(str(error).split())[:160]}"


def run_contained(
    attacks: Sequence[Callable[[], Kind]], limits: Limits = DEFAULT, until: float = float("inf")
) -> Iterator[Outcome]:
    """Runs attacks in sequence in a forked process; forks again after an attack that ended or blocked it or took too much
    memory.

    Args:
        attacks: closures; the forked process has a copy of this process's memory.
        limits: limits of each attack.
        until: value of ``time.monotonic`` after which no attack starts.

    Yields:
        one outcome per started attack, in order.
    """
    first = 0
    while first < len(attacks) and time.monotonic() < until:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _work(attacks, first, writer, limits, until)
        os.close(writer)
        began = time.monotonic()
        lines = _lines(reader, limits.seconds + PATIENCE_S)
        done = first
        ended: Kind | None = None
        for line in lines:
            if line is None:
                ended = "hang"
                break
            outcome = Outcome(**json.loads(line))
            done, began = outcome.number + 1, time.monotonic()
            yield outcome
        seconds = time.monotonic() - began
        if ended == "hang":
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(reader)
        if ended is None and os.waitstatus_to_exitcode(status) == 0:
            first = done
            continue
        code = os.waitstatus_to_exitcode(status)
        text = f"no answer after {seconds:.0f} s" if ended else f"the process ended with {_name(code)}"
        yield Outcome(done, ended or "crash", text, seconds)
        first = done + 1


def _name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _work(attacks: Sequence[Callable[[], Kind]], first: int, writer: int, limits: Limits, until: float) -> None:
    """Runs attacks in the child process; never returns."""
    code = 1
    try:
        faulthandler.disable()  # a crash is part of the measurement
        silence()
        reached = _watch_for_reaching_out()
        _return_free_memory()
        held = resident_megabytes()
        soft = (_virtual_megabytes() + 2 * limits.megabytes) << 20
        resource.setrlimit(resource.RLIMIT_AS, (soft, resource.getrlimit(resource.RLIMIT_AS)[1]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in range(first, len(attacks)):
            if time.monotonic() >= until:
                break
            _reset_peak()
            began = time.monotonic()
            reached.clear()
            kind, detail = judged(attacks[number])
            if reached:
                kind, detail = "reached out", f"{reached[0]} {detail}"
            seconds = time.monotonic() - began
            grown = _peak_megabytes() - held
            if kind in GOOD and grown > limits.megabytes:
                kind, detail = "memory", f"{grown:.0f} MB"
            if kind in GOOD and seconds > limits.seconds:
                kind, detail = "hang", f"{seconds:.0f} s"
            line = json.dumps(asdict(Outcome(number, kind, detail, seconds, grown))) + "\n"
            os.write(writer, line.encode())
            if kind == "memory":  # the next attack must not be blamed for what this process still holds
                break
        code = 0
    finally:
        os._exit(code)


def _watch_for_reaching_out() -> list[str]:
    """Records and blocks every later attempt to open a connection or run a shell."""
    noted: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "os.system", "os.exec"):
            noted.append(f"{event} {arguments[:2]}")
            raise PermissionError(f"{event} is forbidden here")

    sys.addaudithook(hook)
    return noted


def silence() -> None:
    """Redirects the standard streams of this process, including its native code, to the null device."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)


def _lines(reader: int, timeout: float) -> Iterator[str | None]:
    """Yields the lines of a pipe; yields None and ends if no data arrives within the timeout."""
    kept = b""
    while True:
        ready, _, _ = select.select([reader], [], [], timeout)
        if not ready:
            yield None
            return
        chunk = os.read(reader, 1 << 16)
        if not chunk:
            return
        *lines, kept = (kept + chunk).split(b"\n")
        yield from (line.decode() for line in lines)


def _status(name: str) -> float:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition(f"{name}:")[2].split()[0]) / 1024


def resident_megabytes() -> float:
    """Returns the resident memory of this process in megabytes."""
    return _status("VmRSS")


def _virtual_megabytes() -> int:
    return int(_status("VmSize"))


def _peak_megabytes() -> float:
    return _status("VmHWM")


def _return_free_memory() -> None:
    """Returns free memory of the heap to the system; memory that an attack takes would otherwise not count if it fits there."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def _reset_peak() -> None:
    """Resets the peak of memory if the kernel permits it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
