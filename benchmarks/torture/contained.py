"""Runs attacks in forked processes, so that a crash, a hang or a hunger for memory ends one input and not the measurement."""

from __future__ import annotations

import contextlib
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
"""What may happen; everything else is a find."""


@dataclass(frozen=True)
class Limits:
    """What one attack may use.

    Args:
        seconds: of wall time.
        megabytes: of memory above what the process held before.
    """

    seconds: float = 10.0
    megabytes: int = 1024


DEFAULT = Limits()
PATIENCE_S = 5.0
"""How long beyond its limit an attack is waited for: one that ends late is still told apart from one that never does."""


@dataclass(frozen=True)
class Outcome:
    """What one attack led to.

    Attributes:
        number: of the attack.
        kind: ``"ok"`` (used), ``"refused"`` (a one-line error), ``"harmless"`` (used, with the same result), ``"edited"`` (a
            file that people edit, read as its new content says), ``"accepted"`` (used, with another result), or what must
            not happen: an uncaught exception, a hang, a crash of the process, too much memory, a network connection or a shell.
        detail: text of the error, or where it arose.
        seconds: of wall time.
        megabytes: peak of memory above what the process held before.
    """

    number: int
    kind: Kind
    detail: str
    seconds: float
    megabytes: float = 0.0


def judged(attack: Callable[[], Kind]) -> tuple[Kind, str]:
    """Runs an attack and says what came of it; what it returns is taken, errors for users are refusals."""
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
    """Type of an error and the innermost place in this package that led to it."""
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
    """Runs attacks one after the other in a forked process; forks anew after one that killed or hung it.

    Args:
        attacks: closures; the process has the memory image of this one.
        limits: for each of them.
        until: reading of ``time.monotonic`` after which no further attack begins.

    Yields:
        one outcome per attack that began, in order.
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
            return
        code = os.waitstatus_to_exitcode(status)
        text = f"no answer after {seconds:.0f} s" if ended else f"the process ended with {_name(code)}"
        yield Outcome(done, ended or "crash", text, seconds)
        first = done + 1


def _name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _work(attacks: Sequence[Callable[[], Kind]], first: int, writer: int, limits: Limits, until: float) -> None:
    """The child: never returns."""
    code = 1
    try:
        faulthandler.disable()  # a crash is part of the measurement
        silence()
        reached = _watch_for_reaching_out()
        held = resident_megabytes()
        soft = (_virtual_megabytes() + 2 * limits.megabytes) << 20
        resource.setrlimit(resource.RLIMIT_AS, (soft, resource.getrlimit(resource.RLIMIT_AS)[1]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in range(first, len(attacks)):
            if time.monotonic() >= until:
                break
            _forget_peak()
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
        code = 0
    finally:
        os._exit(code)


def _watch_for_reaching_out() -> list[str]:
    """Notes every attempt to open a connection or run a shell from now on, and forbids it."""
    noted: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "os.system", "os.exec"):
            noted.append(f"{event} {arguments[:2]}")
            raise PermissionError(f"{event} is forbidden here")

    sys.addaudithook(hook)
    return noted


def silence() -> None:
    """Sends both standard streams to nowhere, for this process and native code in it."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)


def _lines(reader: int, timeout: float) -> Iterator[str | None]:
    """Lines of a pipe; None once when nothing came for so long."""
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
    """Memory that this process holds."""
    return _status("VmRSS")


def _virtual_megabytes() -> int:
    return int(_status("VmSize"))


def _peak_megabytes() -> float:
    return _status("VmHWM")


def _forget_peak() -> None:
    """Starts the peak of memory anew, where the kernel lets us."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
