"""Kills verbs at every file event and at random moments, and interrupts them: what stands, can one go on, what is left?"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gft_edge.benchmarks.torture.flips import checkpoint, text_of
from gft_edge.benchmarks.torture.forks import Ended, run_verb
from gft_edge.benchmarks.torture.materials import Materials
from gft_edge.errors import GFTEdgeError

Standing = Literal["absent", "old", "new", "refused", "torn"]
PROMPT_S = 5.0
"""Within so many seconds a signal must end a verb."""
QUICK = ("--rounds", 2, "--runs", 1, "--warmup", 0.01, "--skip", "process", "throughput", "--power", "none")


@dataclass(frozen=True)
class Job:
    """A verb that writes.

    Args:
        verb: its name.
        prepare: puts what it needs into a folder.
        argv: the command, run in that folder.
        state: digest of what stands there, read as the toolkit reads it; raises GFTEdgeError where that refuses it, and
            FileNotFoundError where there is nothing.
        further: what may be added to the command to go on; the plain command is tried first.
        between: further digests that are right, of states between the first and the last.
        seconds: how long it may take before it counts as hung.
    """

    verb: str
    prepare: Callable[[Path], None]
    argv: tuple[object, ...]
    state: Callable[[Path], object]
    further: tuple[tuple[str, ...], ...] = ()
    between: Callable[[Path], Sequence[object]] = lambda folder: ()
    seconds: float = 120.0


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


def jobs(made: Materials) -> list[Job]:
    """All verbs that write, on what stands in ``made``, which is copied."""
    data = ("--data", made.data)

    def nothing(folder: Path) -> None:
        del folder

    def artifact(folder: Path) -> None:
        shutil.copytree(made.plain, folder / "artifact")

    def run(folder: Path) -> None:
        shutil.copytree(made.run, folder / "run", ignore=shutil.ignore_patterns("fp32-pruned", "report.html"))

    exported = ("export", made.checkpoint, *data, "--out", "out")
    built = ("build", "artifact", "--target", "rtx", "--compute-capability", "8.6")
    every = [
        Job(
            "train",
            nothing,
            ("train", "--config", made.recipe, "--out", "out"),
            _training,
            (("--resume",),),
            lambda folder: _best_states(made, folder),
        ),
        Job("export", nothing, exported, lambda folder: _artifact(folder / "out")),
        Job(
            "quantize",
            nothing,
            ("quantize", made.checkpoint, *data, "--images", 16, "--out", "out"),
            lambda folder: _checkpoint(folder / "out"),
        ),
        Job(
            "calibrate", artifact, ("calibrate", "artifact", *data, "--images", 16), lambda f: _artifact(f / "artifact")
        ),
        Job("verify", artifact, ("verify", "artifact"), lambda folder: _artifact(folder / "artifact")),
        Job("build", artifact, built, lambda folder: _artifact(folder / "artifact")),
        Job("report", run, ("report", "run"), lambda folder: _page(folder / "run/report.html")),
        Job("bench", artifact, ("bench", "artifact", *QUICK, "--out", "out.json"), lambda f: _bench(f / "out.json")),
        Job(
            "predict",
            artifact,
            ("predict", "artifact", made.image, "--out", "out.json"),
            lambda folder: _json(folder / "out.json"),
        ),
    ]
    return [job for job in every if job.verb != "build" or made.key()]


class _Stage:
    """A job's folder, made anew for each attack, and what an undisturbed run gives.

    Raises:
        RuntimeError: the undisturbed run fails.
    """

    def __init__(self, job: Job, root: Path) -> None:
        self.job, self.folder = job, root / job.verb
        self.fresh()
        self.old = self.digest()
        self.between = [text_of(state) for state in job.between(self.folder)]
        self.fresh()
        self.run = run_verb(job.argv, self.folder, limit=job.seconds)
        if self.run.code:
            raise RuntimeError(f"{job.verb}: exit code {self.run.code}: {self.run.said[-2000:]}")
        self.new, self.names = self.digest(), self.listing()

    def fresh(self) -> None:
        """The folder as it is before the verb."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.job.prepare(self.folder)

    def listing(self) -> set[str]:
        """Names of all files and folders."""
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}

    def digest(self) -> str | None:
        """What stands, None where nothing does."""
        try:
            return text_of(self.job.state(self.folder))
        except FileNotFoundError:
            return None

    def standing(self) -> tuple[Standing, str]:
        """What stands after an attack."""
        try:
            found = self.digest()
        except GFTEdgeError as error:
            return "refused", str(error)
        except Exception as error:
            return "torn", f"{type(error).__name__}: {error}"
        if found is None:
            return "absent", ""
        if found == self.new:
            return "new", ""
        return ("old", "") if found == self.old or found in self.between else ("torn", "another result is accepted")

    def go_on(self) -> tuple[bool, str]:
        """Whether the same command, or one with a flag more, leads to the whole result; and what they said."""
        said = ""
        for more in ((), *self.job.further):
            ended = run_verb((*self.job.argv, *more), self.folder, limit=self.job.seconds)
            said += ended.said[-300:]
            if ended.code == 0:
                standing, detail = self.standing()
                return standing == "new", detail or said
        return False, said

    def left(self) -> tuple[str, ...]:
        """What nobody needs, outermost names only."""
        extra = sorted(self.listing() - self.names)
        return tuple(name for name in extra if not any(name.startswith(f"{other}/") for other in extra))


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
    chosen = [job for job in jobs(made) if not verbs or job.verb in verbs]
    end = time.monotonic() + seconds
    for number, job in enumerate(chosen):
        if results and time.monotonic() > end:
            break
        until = time.monotonic() + (end - time.monotonic()) / (len(chosen) - number)
        stage = _Stage(job, root)
        rng = random.Random(f"{seed}/{job.verb}")
        count = stage.run.events
        points = (
            sorted({1 + n * count // min(events, count) for n in range(min(events, count))}) if count and events else []
        )
        found = [_kill(stage, float(point), point, None) for point in points if time.monotonic() < until]
        if found:
            results.append(_summary(job.verb, "event", found))
        found = []
        for _ in range(moments):
            if time.monotonic() < until or not found:
                moment = rng.uniform(0, stage.run.seconds)
                found.append(_kill(stage, moment, 0, moment))
        if found:
            results.append(_summary(job.verb, "moment", found))
        shutil.rmtree(stage.folder, ignore_errors=True)
    return results


def _kill(stage: _Stage, shown: float, event: int, moment: float | None) -> Killed:
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
    chosen = [job for job in jobs(made) if not verbs or job.verb in verbs]
    end = time.monotonic() + seconds
    for number, job in enumerate(chosen):
        if results and time.monotonic() > end:
            break
        until = time.monotonic() + (end - time.monotonic()) / (len(chosen) - number)
        stage = _Stage(job, root)
        for which in (signal.SIGINT, signal.SIGTERM):
            rng = random.Random(f"{seed}/{job.verb}/{which}")
            found: list[tuple[Ended, tuple[str, ...]]] = []
            for _ in range(count):
                if time.monotonic() < until or not found:
                    stage.fresh()
                    moment = rng.uniform(0.01, 0.95 * stage.run.seconds)
                    ended = run_verb(job.argv, stage.folder, 0, (which, moment), job.seconds)
                    if ended.signalled:
                        found.append((ended, stage.left()))
            results.append(_signals(job.verb, which, found))
        shutil.rmtree(stage.folder, ignore_errors=True)
    return results


def _signals(verb: str, which: signal.Signals, found: Sequence[tuple[Ended, tuple[str, ...]]]) -> SignalResult:
    code = 128 + which
    right = [ended.code == code for ended, _ in found]
    lines = [_said_so(verb, ended) for ended, _ in found]
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


def _said_so(verb: str, ended: Ended) -> bool:
    lines = [line for line in ended.said.splitlines() if line.strip()]
    return bool(lines) and lines[-1].startswith(f"gft-edge {verb}: ") and "Traceback" not in ended.said


def _artifact(folder: Path) -> object:
    """Every listed file, by content; figures that differ from run to run left out."""
    from gft_edge.manifest import load_artifact

    if not folder.exists():
        raise FileNotFoundError(folder)
    artifact = load_artifact(folder)
    return {name: _sha256(artifact.file(name)) for name in artifact.manifest.files}


def _checkpoint(folder: Path) -> object:
    if not folder.exists():
        raise FileNotFoundError(folder)
    return checkpoint(folder)


def _training(folder: Path) -> object:
    """Weights and figures of the result, and of ``best`` as a pair; the time it took is left out."""
    out = folder / "out"
    final = _pair(out) if (out / "config.json").exists() or (out / "model.safetensors").exists() else None
    best = _pair(out / "best") if (out / "best").exists() else None
    if final is None and best is None:
        raise FileNotFoundError(out)
    return [final, best]


def _pair(folder: Path) -> object:
    from gft_edge.checkpoint import load_checkpoint

    loaded = load_checkpoint(folder)
    return [loaded.sha256, loaded.info.metrics]


def _best_states(made: Materials, folder: Path) -> Sequence[object]:
    """What stands when a training is left after each of its evaluations, and with either of these as ``best`` at its end."""
    from gft_edge.config.recipe import load_recipe
    from gft_edge.train.loop import train

    states: list[object] = []
    for steps in (2, 3, 4):
        out = folder / f"left-{steps}"
        train(load_recipe(made.recipe), out, stop_after=steps)
        states.append([None, _pair(out / "best")])
        shutil.rmtree(out)
    return states


def _page(file: Path) -> object:
    text = file.read_text(encoding="utf-8")
    if not text.rstrip().endswith("</html>"):
        raise ValueError(f"{file} is cut off")
    return "whole"


def _bench(file: Path) -> object:
    from gft_edge.benchmarks.measuring.bench_files import read_bench

    if not file.exists():
        raise FileNotFoundError(file)
    return [row["name"] for row in read_bench(file)["results"]]


def _json(file: Path) -> object:
    return json.loads(file.read_text(encoding="utf-8"))


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
