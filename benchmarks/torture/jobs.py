"""Defines the verbs that write, their working folders, and digests of the files before and after."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gft_edge.benchmarks.torture.flips import checkpoint, text_of
from gft_edge.benchmarks.torture.forks import run_verb
from gft_edge.benchmarks.torture.materials import Materials
from gft_edge.errors import GFTEdgeError

Standing = Literal["absent", "old", "new", "refused", "torn"]
QUICK = ("--rounds", 2, "--runs", 1, "--warmup", 0.01, "--skip", "process", "throughput", "--power", "none")


@dataclass(frozen=True)
class Job:
    """A verb that writes.

    Args:
        verb: name of the verb.
        prepare: copies the verb's input into a folder.
        argv: the command, run in that folder.
        state: digest of the result, read as the toolkit reads it; raises GFTEdgeError if the toolkit refuses the result, and
            FileNotFoundError if there is no result.
        further: flags that may resume the command; the command without them is tried first.
        between: digests of valid intermediate states.
        seconds: time after which the verb counts as hung.
    """

    verb: str
    prepare: Callable[[Path], None]
    argv: tuple[object, ...]
    state: Callable[[Path], object]
    further: tuple[tuple[str, ...], ...] = ()
    between: Callable[[Path], Sequence[object]] = lambda folder: ()
    seconds: float = 120.0


def jobs(made: Materials) -> list[Job]:
    """Returns all verbs that write; they use copies of the files in ``made``."""
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
            training_state,
            (("--resume",),),
            lambda folder: _best_states(made, folder),
        ),
        Job(
            "quantize",
            nothing,
            ("quantize", made.checkpoint, *data, "--images", 16, "--out", "out"),
            lambda folder: checkpoint_state(folder / "out"),
        ),
        Job(
            "calibrate",
            artifact,
            ("calibrate", "artifact", *data, "--images", 16),
            lambda f: artifact_state(f / "artifact"),
        ),
        Job("verify", artifact, ("verify", "artifact"), lambda folder: artifact_state(folder / "artifact")),
        Job("build", artifact, built, lambda folder: artifact_state(folder / "artifact")),
        Job("report", run, ("report", "run"), lambda folder: page_state(folder / "run/report.html")),
        Job("bench", artifact, ("bench", "artifact", *QUICK, "--out", "out.json"), lambda f: _bench(f / "out.json")),
        Job(
            "predict",
            artifact,
            ("predict", "artifact", made.image, "--out", "out.json"),
            lambda folder: json_state(folder / "out.json"),
        ),
        # the slowest comes last: it gets the remaining time
        Job("export", nothing, exported, lambda folder: artifact_state(folder / "out")),
    ]
    return [job for job in every if job.verb != "build" or made.key()]


class Stage:
    """A job's folder, created again for each attack, and the result of an undisturbed run.

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
        """Creates the folder again in its state before the verb."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.job.prepare(self.folder)

    def listing(self) -> set[str]:
        """Returns the names of all files and folders."""
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}

    def digest(self) -> str | None:
        """Returns the digest of the result, None if there is no result."""
        try:
            return text_of(self.job.state(self.folder))
        except FileNotFoundError:
            return None

    def standing(self) -> tuple[Standing, str]:
        """Returns the state of the result after an attack, and a description of the fault."""
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
        return ("old", "") if found == self.old or found in self.between else ("torn", "a different result is accepted")

    def go_on(self) -> tuple[bool, str]:
        """Runs the command again, also with further flags; returns True for the complete result, and the output."""
        output = ""
        for more in ((), *self.job.further):
            ended = run_verb((*self.job.argv, *more), self.folder, limit=self.job.seconds)
            output += ended.said[-300:]
            if ended.code == 0:
                standing, detail = self.standing()
                return standing == "new", detail or output
        return False, output

    def left(self) -> tuple[str, ...]:
        """Returns the names of leftover files and folders; omits the content of leftover folders."""
        extra = sorted(self.listing() - self.names)
        return tuple(name for name in extra if not any(name.startswith(f"{other}/") for other in extra))


def artifact_state(folder: Path) -> object:
    """Returns the hash of every file in the manifest, and for engines the result of :func:`_engine_state`."""
    from gft_edge.manifest import load_artifact

    if not folder.exists():
        raise FileNotFoundError(folder)
    artifact = load_artifact(folder)
    files = artifact.manifest.files
    keys = {Path(name).stem for name in files if name.endswith(".engine")}
    plain = [name for name in files if Path(name).parent.name != "engines"]
    return {name: _sha256(artifact.file(name)) for name in plain} | {key: _engine_state(folder, key) for key in keys}


def _engine_state(folder: Path, key: str) -> object:
    """Returns the record, without the hash, of an engine that passes every check before it is loaded.

    Two builds of the same graph differ in a few bytes of the engine (TensorRT-RTX 1.7: 70 of 9 million), so the contents of
    two builds cannot be compared. The check compares the engine with the hashes in its record and in the manifest.
    """
    from gft_edge.manifest import load_artifact
    from gft_edge.runtime.backends.engine_files import EngineHost, check_engine

    version, capability = key.removeprefix("rtx").split("_")[:2]
    host = EngineHost("tensorrt_rtx", version, f"{capability[2:-1]}.{capability[-1]}")
    _, record = check_engine(load_artifact(folder), key, host)
    return {name: value for name, value in record.items() if name != "engine_sha256"}


def checkpoint_state(folder: Path) -> object:
    """Returns a checkpoint's information and digests of its weights."""
    if not folder.exists():
        raise FileNotFoundError(folder)
    return checkpoint(folder)


def training_state(folder: Path) -> object:
    """Returns weight hashes and metrics of a training's result and of its ``best``; omits times."""
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
    """Returns the states of a training that stops after 2, 3 and 4 steps."""
    from gft_edge.config.recipe import load_recipe
    from gft_edge.train.loop import train

    states: list[object] = []
    for steps in (2, 3, 4):
        out = folder / f"left-{steps}"
        train(load_recipe(made.recipe), out, stop_after=steps)
        states.append([None, _pair(out / "best")])
        shutil.rmtree(out)
    return states


def page_state(file: Path) -> object:
    """Returns ``"whole"`` for a complete page; the content differs between runs."""
    text = file.read_text(encoding="utf-8")
    if not text.rstrip().endswith("</html>"):
        raise ValueError(f"{file} is cut off")
    return "whole"


def _bench(file: Path) -> object:
    from gft_edge.benchmarks.measuring.bench_files import read_bench

    if not file.exists():
        raise FileNotFoundError(file)
    return [row["name"] for row in read_bench(file)["results"]]


def json_state(file: Path) -> object:
    """Returns the values of a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
