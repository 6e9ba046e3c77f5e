"""A copy of the working tree whose package is the one that its tests import, and runs of tests in it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gft_edge.errors import ConfigError

MAPPED = ("benchmarks", "calibration", "export")
"""Folders of the tree that are installed inside the package."""
_OUTCOME = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True)
class RunResult:
    """End of a run of tests.

    Attributes:
        passed: whether all passed.
        reason: what did not: the id of a test, the time limit, or a signal; empty when all passed.
        seconds: that the run took.
        output: end of its output.
    """

    passed: bool
    reason: str
    seconds: float
    output: str


@dataclass(frozen=True)
class Tree:
    """A copy of the tracked files.

    Attributes:
        files: folder of the copy.
        scratch: folder for the tests' own files.
    """

    files: Path
    scratch: Path

    def environment(self) -> dict[str, str]:
        """Returns environment variables under which Python imports this tree's package, also in processes of tests.

        No bytecode is written: two changes of a file within one second and of one length would have the same.
        """
        own = {"PYTHONPATH": str(self.files), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        return {**os.environ, **own}

    def run_tests(self, tests: Sequence[str], limit: float, stop: bool = True) -> RunResult:
        """Runs tests in a process of their own; all its processes end with it.

        Args:
            tests: files, folders or ids, relative to the tree.
            limit: seconds after which it is killed.
            stop: end at the first test that fails.
        """
        command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", "--color=no"]
        command += ["-x"] * stop + [f"--basetemp={self.scratch / 'tests'}", *tests]
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=self.files,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_default_signals,
        )
        try:
            output = process.communicate(timeout=limit)[0]
            return RunResult(
                process.returncode == 0, _reason(process.returncode, output), _since(began), output[-3000:]
            )
        except subprocess.TimeoutExpired:
            return RunResult(False, f"time limit of {limit:.0f} s", _since(began), "")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _default_signals() -> None:
    """Undoes what a shell sets for commands in the background, and nohup: signals that the tests' processes would ignore too."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _since(began: float) -> float:
    return round(time.monotonic() - began, 1)


def _reason(code: int, output: str) -> str:
    """Returns the first test that failed, or what ended pytest by its exit code; empty for 0."""
    if code == 0:
        return ""
    if code < 0:
        return f"signal {-code}"
    found = _OUTCOME.search(output)
    return found[1] if found else f"pytest ended with exit code {code}"


@contextlib.contextmanager
def copied_tree(root: Path, folder: Path) -> Iterator[Tree]:
    """Copies the files that git tracks, as they are on disk, and yields the copy; it is deleted at the end.

    Args:
        root: working tree.
        folder: new folder.

    Raises:
        ConfigError: ``root`` is no working tree of git, or Python does not import the package of the copy.
    """
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode:
        raise ConfigError(f"{root}: is no working tree of git ({listed.stderr.strip()[:200]})")
    tree = Tree(folder / "tree", folder / "scratch")
    try:
        tree.scratch.mkdir(parents=True)
        for name in filter(None, listed.stdout.split("\0")):
            if (root / name).is_file():  # one that is deleted and still tracked is not there
                (tree.files / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, tree.files / name, follow_symlinks=False)
        _link_package(tree)
        yield tree
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _link_package(tree: Tree) -> None:
    """Makes the package importable from the tree itself, which comes before an editable installation.

    The links are inside the package: a program that starts in the tree finds ``gft_edge`` there, whatever PYTHONPATH says.
    """
    mapped = [name for name in MAPPED if (tree.files / name).is_dir()]
    for name in mapped:
        (tree.files / "gft_edge" / name).symlink_to(tree.files / name)
    modules = ["gft_edge", *(f"gft_edge.{name}" for name in mapped)]
    code = f"import importlib\nfor name in {modules!r}:\n    print(importlib.import_module(name).__file__)"
    for place in (tree.files, tree.scratch):
        found = subprocess.run(
            [sys.executable, "-c", code], cwd=place, env=tree.environment(), capture_output=True, text=True
        )
        files = found.stdout.splitlines()
        if found.returncode or not all(Path(file).resolve().is_relative_to(tree.files.resolve()) for file in files):
            shown = " ".join((found.stdout + found.stderr[-300:]).split())
            raise ConfigError(f"the copy in {tree.files} is not what Python imports: {shown}")
