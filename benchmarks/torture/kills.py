"""Kills and interrupts verbs; checks the remaining result, the next run and the leftover files."""

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
"""Maximum seconds from a signal to the end of the verb."""


@dataclass(frozen=True)
class Killed:
    """Outcome of one kill.

    Attributes:
        moment: number of the file event, or seconds from the start.
        standing: state of the result after the kill; ``"torn"`` is neither old nor new but is accepted.
        went_on: True if one command then gave the complete result.
        left: names of leftover files.
        detail: error or output that describes a failure.
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
        """Returns the number of torn results, dead ends and kills with leftover files."""
        return self.standing.get("torn", 0) + self.dead_ends + self.with_leftovers


@dataclass(frozen=True)
class SignalResult:
    """Interrupts of one verb by one signal.

    Attributes:
        tried: number of signals that arrived while the verb ran, and had not finished its work.
        right_code: ends with exit code 128 + the signal's number.
        one_line: ends with a message in the last line and without a traceback.
        clean: ends without leftover files.
        slowest_s: longest time from the signal to the end.
        finished: further signals, which came after the work: exit code 0, the complete result, no leftover files.
    """

    verb: str
    signal: str
    tried: int
    right_code: int
    one_line: int
    clean: int
    slowest_s: float
    examples: tuple[str, ...] = ()
    finished: int = 0

    @property
    def failed(self) -> int:
        """Returns the number of wrong exit codes, missing messages and leftovers, plus one if an end was too slow."""
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
    """Kills each verb at file events and at random times.

    Args:
        made: input files of the verbs.
        root: working folder.
        seed: seed of the random times.
        events: maximum number of file events for each verb, evenly spread.
        moments: number of random times for each verb.
        seconds: time for all verbs; each gets an equal part of the remaining time.
        verbs: verbs to test; empty for all.
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
    """Yields a stage for each verb while time remains, with the value of ``time.monotonic`` at which its time ends."""
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
    """Returns at most ``most`` of the numbers 1 to ``count``, evenly spread."""
    chosen = min(count, most)
    return [1 + number * count // chosen for number in range(chosen)]


def _kill(stage: Stage, shown: float, event: int, moment: float | None) -> Killed:
    stage.fresh()
    send = None if moment is None else (signal.SIGKILL, moment)
    run_verb(stage.job.argv, stage.folder, event, send, limit=stage.job.seconds)
    standing, detail = stage.standing()
    went_on, output = (True, "") if standing == "new" else stage.go_on()
    if standing == "new":  # the next command in the same folder removes leftovers
        run_verb(stage.job.argv, stage.folder, limit=stage.job.seconds)
    return Killed(shown, standing, went_on, stage.left(), detail if standing == "torn" else "" if went_on else output)


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
    """Sends ``count`` SIGINT and ``count`` SIGTERM signals to every verb at random times."""
    results: list[SignalResult] = []
    for stage, until in _stages(made, root, seconds, verbs):
        for which in (signal.SIGINT, signal.SIGTERM):
            rng = random.Random(f"{seed}/{stage.job.verb}/{which}")
            found: list[tuple[Ended, tuple[str, ...]]] = []
            finished = 0
            for _ in range(count):
                if time.monotonic() < until or not found:
                    stage.fresh()
                    moment = rng.uniform(0.01, 0.95 * stage.run.seconds)
                    ended = run_verb(stage.job.argv, stage.folder, 0, (which, moment), stage.job.seconds)
                    left = stage.left()
                    if ended.code == 0 and not left and stage.standing()[0] == "new":
                        finished += ended.signalled
                    elif ended.signalled:
                        found.append((ended, left))
            results.append(_signals(stage.job.verb, which, found, finished))
    return results


def _signals(
    verb: str, which: signal.Signals, found: Sequence[tuple[Ended, tuple[str, ...]]], finished: int = 0
) -> SignalResult:
    code = 128 + which
    right = [ended.code == code for ended, _ in found]
    lines = [said_so(verb, ended) for ended, _ in found]
    examples = [
        f"exit code {ended.code} after {ended.seconds:.1f} s, leftovers {list(left)}: {ended.said[-200:].strip()}"
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
        finished,
    )
