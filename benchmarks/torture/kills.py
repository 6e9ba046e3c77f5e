"""Kills verbs at every file event and at random moments, and interrupts them: what stands, can one go on, what is left?"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gft_edge.benchmarks.torture.forks import Ended, run_verb, said_so
from gft_edge.benchmarks.torture.jobs import Stage, Standing, jobs
from gft_edge.benchmarks.torture.materials import Materials

PROMPT_S = 5.0
"""Within so many seconds a signal must end a verb."""


@dataclass(frozen=True)
class Killed:
    """What came of one kill.

    Attributes:
        moment: number of the file event, or seconds.
        standing: what stood afterwards; ``"torn"`` is neither old nor new and yet accepted.
        went_on: whether one command then led to the whole result.
        left: names of files that stay although nobody needs them.
        detail: what was said where something is wrong.
    """

    moment: float
    standing: Standing
    went_on: bool
    left: tuple[str, ...]
    detail: str = ""


@dataclass(frozen=True)
class KillResult:
    """Kills of one verb; ``how`` is ``"event"`` or ``"moment"``."""

    verb: str
    how: str
    tried: int
    standing: dict[str, int]
    dead_ends: int
    with_leftovers: int
    examples: tuple[str, ...] = ()

    @property
    def failed(self) -> int:
        """Kills after which something is torn, is a dead end, or stays behind."""
        return self.standing.get("torn", 0) + self.dead_ends + self.with_leftovers


@dataclass(frozen=True)
class SignalResult:
    """Interrupts of one verb by one signal.

    Attributes:
        tried: that came while it ran.
        right_code: ended with 128 + the signal's number.
        one_line: said so in a last line, without a traceback.
        clean: left nothing behind.
        slowest_s: longest time from the signal to the end.
    """

    verb: str
    signal: str
    tried: int
    right_code: int
    one_line: int
    clean: int
    slowest_s: float
    examples: tuple[str, ...] = ()

    @property
    def failed(self) -> int:
        """Interrupts with another code, without a line, with leftovers, or too slow."""
        late = 1 if self.slowest_s > PROMPT_S else 0
        return 3 * self.tried - self.right_code - self.one_line - self.clean + late


def measure(
    made: Materials,
    root: Path,
    seed: int,
    events: int,
    moments: int,
    seconds: float = float("inf"),
    verbs: Sequence[str] = (),
) -> list[KillResult]:
    """Kills each verb at up to ``events`` of its file events (evenly spread where it has more) and at ``moments`` moments.

    Args:
        made: what the verbs work on.
        root: folder to work in.
        seed: of the moments.
        events, moments: how many.
        seconds: for all verbs; each gets an equal part of what is left.
        verbs: only these.
    """
    results: list[KillResult] = []
    for stage, until in _stages(made, root, seconds, verbs):
        rng = random.Random(f"{seed}/{stage.job.verb}")
        points = spread(stage.run.events, events)
        found = [_kill(stage, float(point), point, None) for point in points if time.monotonic() < until]
        if found:
            results.append(_summary(stage.job.verb, "event", found))
        found = []
        for _ in range(moments):
            if time.monotonic() < until or not found:
                moment = rng.uniform(0, stage.run.seconds)
                found.append(_kill(stage, moment, 0, moment))
        if found:
            results.append(_summary(stage.job.verb, "moment", found))
    return results


def _stages(made: Materials, root: Path, seconds: float, verbs: Sequence[str]) -> Iterator[tuple[Stage, float]]:
    """Stages of the verbs that still fit, each with the reading of ``time.monotonic`` at which its part of the time ends."""
    chosen = [job for job in jobs(made) if not verbs or job.verb in verbs]
    end = time.monotonic() + seconds
    for number, job in enumerate(chosen):
        if number and time.monotonic() > end:
            return
        until = time.monotonic() + (end - time.monotonic()) / (len(chosen) - number)
        stage = Stage(job, root)
        yield stage, until
        shutil.rmtree(stage.folder, ignore_errors=True)


def spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers 1 to ``count``, evenly spread."""
    chosen = min(count, most)
    return [1 + number * count // chosen for number in range(chosen)]


def _kill(stage: Stage, shown: float, event: int, moment: float | None) -> Killed:
    stage.fresh()
    send = None if moment is None else (signal.SIGKILL, moment)
    run_verb(stage.job.argv, stage.folder, event, send, limit=stage.job.seconds)
    standing, detail = stage.standing()
    went_on, said = (True, "") if standing == "new" else stage.go_on()
    if standing == "new":  # the next command of the same folder is what removes leftovers
        run_verb(stage.job.argv, stage.folder, limit=stage.job.seconds)
    return Killed(shown, standing, went_on, stage.left(), detail if standing == "torn" else "" if went_on else said)


def _summary(verb: str, how: str, found: Sequence[Killed]) -> KillResult:
    bad = [one for one in found if one.standing == "torn" or not one.went_on or one.left]
    return KillResult(
        verb,
        how,
        len(found),
        dict(Counter(one.standing for one in found)),
        sum(not one.went_on for one in found),
        sum(bool(one.left) for one in found),
        tuple(
            f"at {one.moment:g}: {one.standing} {' '.join(one.left[:2])} {one.detail[-300:]}".strip() for one in bad[:4]
        ),
    )


def interrupt(
    made: Materials, root: Path, seed: int, count: int, seconds: float = float("inf"), verbs: Sequence[str] = ()
) -> list[SignalResult]:
    """Sends SIGINT and SIGTERM at random moments, ``count`` each to every verb."""
    results: list[SignalResult] = []
    for stage, until in _stages(made, root, seconds, verbs):
        for which in (signal.SIGINT, signal.SIGTERM):
            rng = random.Random(f"{seed}/{stage.job.verb}/{which}")
            found: list[tuple[Ended, tuple[str, ...]]] = []
            for _ in range(count):
                if time.monotonic() < until or not found:
                    stage.fresh()
                    moment = rng.uniform(0.01, 0.95 * stage.run.seconds)
                    ended = run_verb(stage.job.argv, stage.folder, 0, (which, moment), stage.job.seconds)
                    if ended.signalled:
                        found.append((ended, stage.left()))
            results.append(_signals(stage.job.verb, which, found))
    return results


def _signals(verb: str, which: signal.Signals, found: Sequence[tuple[Ended, tuple[str, ...]]]) -> SignalResult:
    code = 128 + which
    right = [ended.code == code for ended, _ in found]
    lines = [said_so(verb, ended) for ended, _ in found]
    examples = [
        f"exit code {ended.code} after {ended.seconds:.1f} s, left {list(left)}: {ended.said[-200:].strip()}"
        for (ended, left), good, line in zip(found, right, lines)
        if not good or not line or left
    ]
    return SignalResult(
        verb,
        which.name,
        len(found),
        sum(right),
        sum(lines),
        sum(not left for _, left in found),
        max((ended.seconds for ended, _ in found), default=0.0),
        tuple(examples[:3]),
    )
