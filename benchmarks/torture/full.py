"""Runs verbs on full disks, with a full standard output, and without permissions; each must fail cleanly."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gft_edge.benchmarks.torture.forks import Ended, Surroundings, run_verb, said_so
from gft_edge.benchmarks.torture.jobs import QUICK, Stage, jobs
from gft_edge.benchmarks.torture.materials import Materials
from gft_edge.benchmarks.torture.repeat import hashes_of
from gft_edge.errors import EXIT_USER_ERROR

TMPFS_MB = 256
PAGE_BYTES = 4096
"""Allocation unit of a tmpfs."""
NOBODY = 65534
FULL = Path("/dev/full")
FILLER = "filler"


@dataclass(frozen=True)
class FullResult:
    """Outcomes of one fault for one verb.

    Attributes:
        verb: name of the verb.
        trouble: name of the fault.
        tried: number of attempts.
        whole: attempts with exit code 0 and the complete result.
        refused: attempts with exit code 2, a one-line message, no extra and no torn file; after a full disk, the same command
            with enough space also gives the complete result.
        examples: failures.
        note: reason why attempts were skipped.
    """

    verb: str
    trouble: str
    tried: int
    whole: int = 0
    refused: int = 0
    examples: tuple[str, ...] = ()
    note: str = ""

    @property
    def failed(self) -> int:
        """Returns the number of attempts that are neither complete nor refused."""
        return self.tried - self.whole - self.refused


@dataclass(frozen=True)
class Denial:
    """A command that accesses a file or folder without permission.

    Args:
        trouble: description of the missing permission.
        path: path without permission, relative to the working folder.
        mode: permission bits of the path.
        argv: the command, run in the working folder.
    """

    trouble: str
    path: str
    mode: int
    argv: tuple[object, ...]


def measure(
    made: Materials, root: Path, seed: int, sizes: int, seconds: float = float("inf"), verbs: Sequence[str] = ()
) -> list[FullResult]:
    """Runs every verb that writes with too little disk space, a full standard output, and missing permissions.

    Args:
        made: input files of the verbs.
        root: working folder.
        seed: seed of the sizes of free space.
        sizes: number of sizes for each verb.
        seconds: time for all attempts; full disks come last and get what is left.
        verbs: verbs to test; empty for all.
    """
    end = time.monotonic() + seconds
    found = _full_output(made, root / "output", verbs) + _denied(made, verbs)
    return _full_disks(made, root / "full", seed, sizes, end, verbs) + found


def _full_disks(
    made: Materials, root: Path, seed: int, sizes: int, end: float, verbs: Sequence[str]
) -> list[FullResult]:
    results: list[FullResult] = []
    with _tmpfs(root) as problem:
        if problem:
            return [FullResult("all", "full disk", 0, note=f"Full disks were not tried: {problem}.")]
        chosen = [job for job in jobs(made) if not verbs or job.verb in verbs]
        for number, job in enumerate(chosen):
            if results and time.monotonic() > end:
                break
            until = time.monotonic() + (end - time.monotonic()) / (len(chosen) - number)
            stage = Stage(job, root)
            rng = random.Random(f"{seed}/{job.verb}")
            rooms = [0, PAGE_BYTES, *(rng.randrange(_written(stage)) for _ in range(sizes - 2))][:sizes]
            judged = [_run_with_room(stage, room) for room in rooms if room == 0 or time.monotonic() < until]
            results.append(_summary(job.verb, "full disk", judged))
            shutil.rmtree(stage.folder)
    return results


@contextlib.contextmanager
def _tmpfs(folder: Path) -> Iterator[str]:
    """Mounts a small file system in memory; yields an empty text, or the reason if the mount fails."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MB}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        yield f"mount cannot be run ({error.strerror})"
        return
    if done.returncode:
        yield f"a tmpfs cannot be mounted ({' '.join(done.stderr.split())})"
        return
    try:
        yield ""
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def _free(folder: Path) -> int:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize


def _written(stage: Stage) -> int:
    """Returns the bytes that the undisturbed verb adds to its folder, at least two pages.

    The result of the undisturbed verb must still exist; the folder is then reset.
    """
    after = _free(stage.folder)
    stage.fresh()
    return max(_free(stage.folder) - after, 2 * PAGE_BYTES)


def _run_with_room(stage: Stage, room: int) -> tuple[str, str]:
    """Runs the verb with ``room`` bytes free, and again with enough."""
    stage.fresh()
    filler = stage.folder.parent / FILLER
    with filler.open("wb") as file:
        if _free(stage.folder) > room:
            os.posix_fallocate(file.fileno(), 0, _free(stage.folder) - room)
    try:
        ended = run_verb(stage.job.argv, stage.folder, limit=stage.job.seconds)
        kind, text = judge(stage, ended)
    finally:
        filler.unlink()
    if kind == "refused":
        resumed, output = stage.go_on()
        if not resumed or stage.left():
            kind, text = "failed", f"run again with free space: {output[-200:]} leftovers: {list(stage.left())}"
    return kind, f"{room} bytes free: {text}"


def judge(stage: Stage, ended: Ended) -> tuple[str, str]:
    """Returns ``"whole"``, ``"refused"`` or ``"failed"``, and a description of the failure."""
    standing, detail = stage.standing()
    if standing == "torn":
        return "failed", f"exit code {ended.code}, torn: {detail}"
    if stage.left():
        return "failed", f"exit code {ended.code}, leftovers: {list(stage.left())}"
    if ended.code == 0 and (standing == "new" or stage.new is None):
        return "whole", ""
    if ended.code == EXIT_USER_ERROR and said_so(stage.job.verb, ended):
        return "refused", ""
    return "failed", f"exit code {ended.code}, {standing}: {ended.said[-300:]}"


def _summary(verb: str, trouble: str, judged: Sequence[tuple[str, str]]) -> FullResult:
    kinds = [kind for kind, _ in judged]
    examples = tuple(text for kind, text in judged if kind == "failed")
    return FullResult(verb, trouble, len(judged), kinds.count("whole"), kinds.count("refused"), examples[:3])


def _full_output(made: Materials, root: Path, verbs: Sequence[str]) -> list[FullResult]:
    """Runs every verb with standard output on a device that is always full."""
    if not FULL.exists():
        return [FullResult("all", "full standard output", 0, note=f"This system has no {FULL}.")]
    results = []
    for job in jobs(made):
        if verbs and job.verb not in verbs:
            continue
        stage = Stage(job, root)
        kept = root / "printed"
        stage.fresh()
        run_verb(job.argv, stage.folder, limit=job.seconds, around=Surroundings(stdout=kept))
        prints = kept.stat().st_size > 0
        stage.fresh()
        ended = run_verb(job.argv, stage.folder, limit=job.seconds, around=Surroundings(stdout=FULL))
        kind, text = judge(stage, ended)
        if kind == "whole" and prints:
            kind, text = "failed", "exit code 0 although the output was lost"
        results.append(_summary(job.verb, "full standard output", [(kind, text)]))
    shutil.rmtree(root, ignore_errors=True)
    return results


def denials() -> list[Denial]:
    """Returns all commands that access a path without permission."""
    data = ("--data", "data")
    predict = ("predict", "artifact", "image.png", "--out", "out.json")
    export = ("export", "checkpoint", *data, "--out", "out")
    quantize = ("quantize", "checkpoint", *data, "--images", 16, "--out", "out")
    calibrate = ("calibrate", "artifact", *data, "--images", 16)
    build = ("build", "artifact", "--target", "rtx", "--compute-capability", "8.6")
    bench = ("bench", "artifact", *QUICK, "--out", "out.json")
    train = ("train", "--config", "recipe.toml", "--out", "out")
    unreadable = {
        "artifact": (predict, ("verify", "artifact"), bench, build, calibrate),
        "artifact/manifest.json": (predict, ("verify", "artifact")),
        "artifact/model.onnx": (predict, ("verify", "artifact"), bench, build, ("lint", "artifact/model.onnx")),
        "artifact/golden.npz": (("verify", "artifact"),),
        "image.png": (predict,),
        "checkpoint": (export, quantize),
        "checkpoint/config.json": (export, quantize),
        "checkpoint/model.safetensors": (export, quantize),
        "data": (calibrate, quantize, train),
        "recipe.toml": (train,),
        "run": (("report", "run"),),
    }
    read_only = {
        "artifact": (("verify", "artifact"), build, calibrate),
        "artifact/reports": (("verify", "artifact"),),
        ".": (predict, export, quantize, bench, train),
        "run": (("report", "run"),),
    }
    return [
        *(Denial(f"unreadable {path}", path, 0o000, argv) for path, many in unreadable.items() for argv in many),
        *(Denial(f"read-only {path}", path, 0o555, argv) for path, many in read_only.items() for argv in many),
    ]


def _denied(made: Materials, verbs: Sequence[str]) -> list[FullResult]:
    """Runs all commands without permission as a user who is not root."""
    root = Path(tempfile.mkdtemp(prefix="gft-denied-"))
    root.chmod(0o755)  # another user needs access to the subfolder
    user = NOBODY if os.geteuid() == 0 else None
    folder = root / "work"
    try:
        _prepare(made, folder, user)
        around = Surroundings(user=user)
        first = run_verb(("predict", "artifact", "image.png"), folder, around=around)
        if first.code:
            why = f"a user without rights cannot run the toolkit here (exit code {first.code})"
            return [FullResult("all", "no permission", 0, note=f"Missing permissions were not tried: {why}.")]
        chosen = [
            one for one in denials() if (not verbs or one.argv[0] in verbs) and (made.key() or one.argv[0] != "build")
        ]
        return _by_verb([(one, _deny(made, folder, user, one)) for one in chosen])
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _by_verb(judged: Sequence[tuple[Denial, tuple[str, str]]]) -> list[FullResult]:
    verbs = dict.fromkeys(str(one.argv[0]) for one, _ in judged)
    return [_summary(verb, "no permission", [how for one, how in judged if one.argv[0] == verb]) for verb in verbs]


def _prepare(made: Materials, folder: Path, user: int | None) -> None:
    """Copies all files that the commands use; the user owns the copies."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    shutil.copytree(made.plain, folder / "artifact")
    (folder / "artifact/reports").mkdir()
    shutil.copytree(made.checkpoint, folder / "checkpoint")
    shutil.copytree(made.data, folder / "data")
    shutil.copytree(made.run, folder / "run", ignore=shutil.ignore_patterns("fp32-pruned", "report.html"))
    shutil.copyfile(made.image, folder / "image.png")
    recipe = made.recipe.read_text(encoding="utf-8").replace(f'name = "{made.data}"', 'name = "data"')
    start = made.root / "start"
    shutil.copytree(start, folder / "start")
    (folder / "recipe.toml").write_text(recipe.replace(str(start), "start"), encoding="utf-8")
    if user is not None:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user, user)


def _deny(made: Materials, folder: Path, user: int | None, one: Denial) -> tuple[str, str]:
    _prepare(made, folder, user)
    before = hashes_of(folder)
    path = folder / one.path
    mode = path.stat().st_mode & 0o777
    path.chmod(one.mode)
    try:
        ended = run_verb(one.argv, folder, around=Surroundings(user=user))
    finally:
        path.chmod(mode)
    verb = str(one.argv[0])
    if ended.code != EXIT_USER_ERROR or not said_so(verb, ended):
        return "failed", f"{one.trouble}: exit code {ended.code}: {ended.said[-300:]}"
    after = hashes_of(folder)
    if after != before:
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        return "failed", f"{one.trouble}: exit code 2, but files changed: {' '.join(changed[:4])}"
    return "refused", ""
