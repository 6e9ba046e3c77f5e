"""Runs the same commands in different environments and compares every output file byte by byte."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gft_edge.benchmarks.torture.materials import Materials

CODE = """
import sys, json
from gft_edge.cli.main import main
for argv in json.loads(sys.argv[1]):
    code = main(argv)
    if code:
        sys.exit(code)
"""


@dataclass(frozen=True)
class Surroundings:
    """An environment of a run: environment variables and the working folder."""

    name: str
    variables: Mapping[str, str] = field(default_factory=dict)
    elsewhere: bool = False


SURROUNDINGS = (
    Surroundings("1 thread, hash seed 0", {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}),
    Surroundings("2 threads", {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "0"}),
    Surroundings("4 threads", {"OMP_NUM_THREADS": "4", "PYTHONHASHSEED": "0"}),
    Surroundings("hash seed 1", {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1"}),
    Surroundings("locale C, time zone of Kiritimati", {"LC_ALL": "C", "LANG": "C", "TZ": "Pacific/Kiritimati"}),
    Surroundings("another working folder", {}, elsewhere=True),
)


@dataclass(frozen=True)
class RepeatResult:
    """Comparison of one command's files in one environment with those in the first."""

    command: str
    surroundings: str
    files: int
    differing: tuple[str, ...]

    @property
    def failed(self) -> int:
        """Returns the number of files that differ, are missing or are additional."""
        return len(self.differing)


def commands(made: Materials, out: Path) -> dict[str, list[str]]:
    """Returns the commands whose results must not depend on the environment, by the name of the output folder."""
    checkpoint, data = str(made.checkpoint), ["--data", str(made.data)]
    return {
        "calibrate": ["calibrate", checkpoint, *data, "--images", "16", "--out", str(out / "calibrate")],
        "quantize": ["quantize", checkpoint, *data, "--images", "16", "--out", str(out / "quantize")],
        "export": ["export", checkpoint, *data, "--maps", "compact", "--out", str(out / "export")],
        "export INT8": ["export", str(made.quantized), *data, "--out", str(out / "export INT8")],
    }


def measure(
    made: Materials,
    root: Path,
    surroundings: Sequence[Surroundings] = SURROUNDINGS,
    seconds: float = float("inf"),
    names: Sequence[str] = (),
) -> list[RepeatResult]:
    """Runs all commands in each environment and compares every file with that of the first.

    Raises:
        RuntimeError: a command fails.
    """
    import json

    end = time.monotonic() + seconds
    results: list[RepeatResult] = []
    first: dict[str, dict[str, str]] = {}
    out = root / "repeat"
    for where in surroundings:
        if results and time.monotonic() > end:
            break
        shutil.rmtree(out, ignore_errors=True)  # the path stays the same because a result may contain it
        out.mkdir(parents=True)
        folder = out / "elsewhere" if where.elsewhere else root
        folder.mkdir(exist_ok=True)
        chosen = {name: argv for name, argv in commands(made, out).items() if not names or name in names}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", **where.variables}
        done = subprocess.run(
            [sys.executable, "-c", CODE, json.dumps(list(chosen.values()))],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"repeat, {where.name}: exit code {done.returncode}: {done.stderr[-2000:]}")
        for name in chosen:
            hashes = hashes_of(out / name)
            reference = first.setdefault(name, hashes)
            differing = sorted(f for f in hashes.keys() | reference.keys() if hashes.get(f) != reference.get(f))
            if hashes is not reference:
                results.append(RepeatResult(name, where.name, len(hashes), tuple(differing)))
    shutil.rmtree(out, ignore_errors=True)
    return results


def hashes_of(folder: Path) -> dict[str, str]:
    """Returns the sha256 of every file in a folder and its subfolders, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
