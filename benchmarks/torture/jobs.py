"""Verbs that write, the folder each of them works in, and digests of what stands there before and after."""

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
        # the slowest comes last: it gets the time that the others leave
        Job("export", nothing, exported, lambda folder: artifact_state(folder / "out")),
    ]
    return [job for job in every if job.verb != "build" or made.key()]


class Stage:
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


def artifact_state(folder: Path) -> object:
    """Every listed file, by content; of engines what :func:`_engine_state` says."""
    from gft_edge.manifest import load_artifact

    if not folder.exists():
        raise FileNotFoundError(folder)
    artifact = load_artifact(folder)
    files = artifact.manifest.files
    keys = {Path(name).stem for name in files if name.endswith(".engine")}
    plain = [name for name in files if Path(name).parent.name != "engines"]
    return {name: _sha256(artifact.file(name)) for name in plain} | {key: _engine_state(folder, key) for key in keys}


def _engine_state(folder: Path, key: str) -> object:
    """Size and record of an engine that passes every check before it is loaded.

    Two builds of the same graph differ in a few bytes of the engine (TensorRT-RTX 1.7: 70 of 9 million), so that its content
    cannot be compared with that of another build. The check compares it with the hashes in its record and in the manifest.
    """
    from gft_edge.manifest import load_artifact
    from gft_edge.runtime.engine_files import EngineHost, check_engine

    version, capability = key.removeprefix("rtx").split("_")[:2]
    host = EngineHost("tensorrt_rtx", version, f"{capability[2:-1]}.{capability[-1]}")
    _, record = check_engine(load_artifact(folder), key, host)
    return {name: value for name, value in record.items() if name != "engine_sha256"}


def checkpoint_state(folder: Path) -> object:
    """Weights and everything else of a checkpoint."""
    if not folder.exists():
        raise FileNotFoundError(folder)
    return checkpoint(folder)


def training_state(folder: Path) -> object:
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


def page_state(file: Path) -> object:
    """A whole page; its content differs from run to run."""
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
    """The values of a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
