"""Starts two writers of one artefact, folder or file at the same time; both results are kept or one writer is refused."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gft_edge.benchmarks.torture.flips import text_of
from gft_edge.benchmarks.torture.forks import Ended, run_together, run_verb, said_so
from gft_edge.benchmarks.torture.jobs import artifact_state, checkpoint_state, json_state, page_state, training_state
from gft_edge.benchmarks.torture.materials import LABELS, Materials
from gft_edge.errors import EXIT_USER_ERROR

Argv = tuple[object, ...]
LIMIT_S = 120.0
"""Time after which a verb counts as hung."""


@dataclass(frozen=True)
class Pair:
    """Two commands that write to the same place.

    Args:
        name: name in the table.
        prepare: copies the input of the commands into a folder.
        commands: the two commands, run in that folder.
        state: digest of the result, read as the toolkit reads it; raises an error if the result is refused or torn.
    """

    name: str
    prepare: Callable[[Path], None]
    commands: tuple[Argv, Argv]
    state: Callable[[Path], object]


@dataclass(frozen=True)
class WritersResult:
    """Outcomes of two writers at the same time.

    Attributes:
        pair: name of the pair.
        tried: number of attempts.
        both: attempts in which both end with exit code 0 and both results exist.
        one: attempts in which one ends with exit code 2 and a one-line message, and the result of the other exists.
        examples: failures.
    """

    pair: str
    tried: int
    both: int
    one: int
    examples: tuple[str, ...] = ()

    @property
    def failed(self) -> int:
        """Returns the number of attempts with a lost or torn result, a leftover file, or another end of a writer."""
        return self.tried - self.both - self.one


@dataclass
class _Right:
    """Valid results, from sequential runs of both commands.

    Attributes:
        states: digests of the results, by the exit codes of both commands.
        names: names of all files after any of these runs.
        seconds: duration of each command when it runs alone.
    """

    states: dict[tuple[int, int], set[str]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)


def pairs(made: Materials) -> list[Pair]:
    """Returns all pairs of writers."""
    data = ("--data", made.data, "--images", 16)
    images = sorted((made.data / "test" / LABELS[1]).iterdir())
    verify, calibrate = ("verify", "artifact"), ("calibrate", "artifact", *data)
    builds = [("build", "artifact", "--target", "rtx", "--compute-capability", gpu) for gpu in ("8.6", "8.9")]
    export = ("export", made.checkpoint, "--data", made.data, "--out", "out")
    quantize = ("quantize", made.checkpoint, *data, "--out", "out")
    train = ("train", "--config", made.recipe, "--out", "out")
    predict = [("predict", "artifact", image, "--out", "out.json") for image in images[:2]]
    report = ("report", "run")

    def artifact(folder: Path) -> None:
        shutil.copytree(made.plain, folder / "artifact")

    def nothing(folder: Path) -> None:
        del folder

    def run(folder: Path) -> None:
        shutil.copytree(made.run, folder / "run", ignore=shutil.ignore_patterns("fp32-pruned", "report.html"))

    def on_artifact(name: str, first: Argv, second: Argv) -> Pair:
        return Pair(name, artifact, (first, second), lambda folder: artifact_state(folder / "artifact"))

    export_twice = Pair(
        "export twice into one folder", nothing, (export, export), lambda folder: artifact_state(folder / "out")
    )
    found = [
        on_artifact("verify and calibrate one artefact", verify, calibrate),
        on_artifact("verify one artefact twice", verify, verify),
        on_artifact("calibrate one artefact twice", calibrate, calibrate),
        Pair("quantize twice into one folder", nothing, (quantize, quantize), lambda f: checkpoint_state(f / "out")),
        Pair("train twice into one folder", nothing, (train, train), _training_with_log),
        Pair("predict twice into one file", artifact, (predict[0], predict[1]), lambda f: json_state(f / "out.json")),
        Pair("report of one run twice", run, (report, report), lambda folder: page_state(folder / "run/report.html")),
    ]
    if made.key():
        found += [
            on_artifact("verify and build one artefact", verify, builds[0]),
            on_artifact("build the same engine twice", builds[0], builds[0]),
            on_artifact("build two engines of one artefact", builds[0], builds[1]),
        ]
    return [*found, export_twice]  # the slowest comes last: it gets the remaining time


def _training_with_log(folder: Path) -> object:
    """Returns a training's results and the steps of its log; two writers would duplicate the steps."""
    lines = [json.loads(line) for line in (folder / "out/log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [training_state(folder), [(sorted(line), line.get("step")) for line in lines]]


def measure(
    made: Materials, root: Path, seed: int, count: int, seconds: float = float("inf"), names: Sequence[str] = ()
) -> list[WritersResult]:
    """Starts every pair ``count`` times; the second command starts at a random time after or before the first.

    Args:
        made: input files of the commands.
        root: working folder.
        seed: seed of the random times.
        count: number of attempts for each pair.
        seconds: time for all pairs; each gets an equal part of the remaining time.
        names: pairs to test; empty for all.
    """
    results: list[WritersResult] = []
    chosen = [pair for pair in pairs(made) if not names or pair.name in names]
    end = time.monotonic() + seconds
    for number, pair in enumerate(chosen):
        if results and time.monotonic() > end:
            break
        until = time.monotonic() + (end - time.monotonic()) / (len(chosen) - number)
        results.append(_measure(pair, root / "writers", random.Random(f"{seed}/{pair.name}"), count, until))
    return results


def _measure(pair: Pair, folder: Path, rng: random.Random, count: int, until: float) -> WritersResult:
    right = _right(pair, folder)
    found = [_attempt(pair, folder, right, delay, until) for delay in _delays(right, rng, count)]
    shutil.rmtree(folder, ignore_errors=True)
    tried = [one for one in found if one is not None]
    examples = tuple(text for codes, text in tried if text)
    good = [codes for codes, text in tried if not text]
    return WritersResult(pair.name, len(tried), good.count((0, 0)), len(good) - good.count((0, 0)), examples[:5])


def _delays(right: _Right, rng: random.Random, count: int) -> Iterator[float]:
    """Yields the seconds from the first start to the second; a negative value starts the second command first."""
    for number in range(count):
        yield rng.uniform(-right.seconds[1], right.seconds[0]) if number else 0.0


def _right(pair: Pair, folder: Path) -> _Right:
    """Runs each command alone, and both commands in sequence in both orders.

    Raises:
        RuntimeError: a command fails when it runs alone.
    """
    right = _Right()
    for order in ((0,), (1,), (0, 1), (1, 0)):
        _fresh(pair, folder)
        codes = [EXIT_USER_ERROR, EXIT_USER_ERROR]
        for which in order:
            ended = run_verb(pair.commands[which], folder, limit=LIMIT_S)
            codes[which] = ended.code
            if which == order[0] and ended.code:
                raise RuntimeError(f"{pair.name}: exit code {ended.code}: {ended.said[-2000:]}")
            if len(order) == 1:
                right.seconds.append(ended.seconds)
        right.states.setdefault((codes[0], codes[1]), set()).add(text_of(pair.state(folder)))
        right.names |= _listing(folder)
    return right


def _attempt(pair: Pair, folder: Path, right: _Right, delay: float, until: float) -> tuple[tuple[int, int], str] | None:
    """Returns both exit codes and the problem, empty if there is none; returns None if no time remains."""
    if time.monotonic() > until and delay:  # the first attempt has no delay and always runs
        return None
    _fresh(pair, folder)
    first, second = run_together(pair.commands, folder, (max(0.0, -delay), max(0.0, delay)), LIMIT_S)
    problem = _problem(pair, folder, right, (first, second))
    return (first.code, second.code), f"{pair.name}, second after {delay:.2f} s: {problem}" if problem else ""


def _problem(pair: Pair, folder: Path, right: _Right, ended: tuple[Ended, Ended]) -> str:
    """Returns the problem of an attempt, empty if there is none."""
    codes = (ended[0].code, ended[1].code)
    for argv, one in zip(pair.commands, ended):
        if one.code and (one.code != EXIT_USER_ERROR or not said_so(str(argv[0]), one)):
            return f"exit code {one.code}: {one.said[-300:]}"
    if codes not in right.states:
        return (
            f"exit codes {codes}, which no order of the commands gives: {ended[0].said[-150:]} {ended[1].said[-150:]}"
        )
    try:
        state = text_of(pair.state(folder))
    except Exception as error:  # a reader may raise any error for a torn result
        return f"exit codes {codes}: {type(error).__name__}: {error}"
    leftovers = sorted(_listing(folder) - right.names)
    if leftovers:
        return f"leftovers: {' '.join(leftovers[:3])}"
    return "" if state in right.states[codes] else f"exit codes {codes}: another result than sequential runs give"


def _fresh(pair: Pair, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pair.prepare(folder)


def _listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
