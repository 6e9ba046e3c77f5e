"""Tests the toolkit against damaged files, kills, hostile input and long use; writes figures and a page.

Example: python -m gft_edge.benchmarks.torture runs/torture/torture.json docs/promises.md --seconds 3600
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gft_edge.benchmarks.measuring.protocol import commit
from gft_edge.benchmarks.torture import flips, forks, full, kills, mutants, repeat, soak, writers
from gft_edge.benchmarks.torture.materials import Materials, make_apart
from gft_edge.benchmarks.torture.page import markdown
from gft_edge.benchmarks.torture.readers import readers
from gft_edge.files import replacing, write_json
from gft_edge.hardware.environment import machine, versions

PARTS = {
    "flips": 300.0,
    "kills": 900.0,
    "signals": 350.0,
    "writers": 350.0,
    "full": 350.0,
    "mutants": 750.0,
    "soak": 250.0,
    "repeat": 150.0,
}
"""Parts and the seconds that each takes on one core with the default counts; shorter times are divided in proportion."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the attacks; returns 1 if an attack failed or a part could not be measured, else 0."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(1)  # a fork does not keep threads
    began = time.monotonic()
    folder = args.materials or Path(tempfile.mkdtemp(prefix="gft-torture-"))
    about: dict[str, Any] = {"seed": args.seed, "machine": _machine(), "versions": versions(), "commit": commit()}
    try:
        made = Materials(folder / "made")
        if not made.root.exists():
            say("creates the files to attack")
            make_apart(made.root, args.seed)
        forks.warm_up()
        found: dict[str, Any] = {}
        for found in _in_lanes(lanes(args.part, args.jobs), made, folder, args):
            write_json(args.out, {**about, **found, "seconds": time.monotonic() - began})
    finally:
        if args.materials is None:
            shutil.rmtree(folder, ignore_errors=True)
    data = {**about, **found, "seconds": time.monotonic() - began}
    with replacing(args.page) as temporary:
        temporary.write_text(markdown(data), encoding="utf-8")
    failed = any(one["failed"] for name in PARTS for one in data.get(name, ()))
    return 1 if failed or data["broken"] else 0


def lanes(parts: Sequence[str], count: int) -> list[list[str]]:
    """Distributes parts over at most ``count`` processes that run at the same time.

    Each process runs its shortest part first; time that a part does not use goes to the longer parts.
    """
    found: list[list[str]] = [[] for _ in range(count)]
    for name in sorted((name for name in PARTS if name in parts), key=lambda name: -PARTS[name]):
        min(found, key=lambda lane: sum(PARTS[one] for one in lane)).append(name)
    return [sorted(lane, key=lambda name: PARTS[name]) for lane in found if lane]


def _in_lanes(every: Sequence[Sequence[str]], made: Materials, folder: Path, args: argparse.Namespace) -> Any:
    """Runs each lane in its own process; yields all results so far each time a part ends."""
    results = folder / "results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()
    running: set[int] = set()
    try:
        for lane in every:
            child = os.fork()
            if child == 0:
                _run_lane(lane, made, folder, args)
            running.add(child)
        known = -1
        while running or known < len(list(results.iterdir())):
            ended = {child for child in running if os.waitpid(child, os.WNOHANG)[0]}
            running -= ended
            files = sorted(results.glob("*.json"))
            if len(files) > known or not running:
                known = len(files)
                yield _collected(files, [name for lane in every for name in lane], not running)
            time.sleep(0.2)
    finally:
        for child in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def _collected(files: Sequence[Path], wanted: Sequence[str], ended: bool) -> dict[str, Any]:
    """Returns the results by part, and under ``broken`` the reason for each part that was not measured."""
    read = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    found: dict[str, Any] = {name: one["found"] for name, one in read.items() if "found" in one}
    broken = {name: one["error"] for name, one in read.items() if "error" in one}
    broken |= {name: "its process ended without a result" for name in wanted if ended and name not in read}
    return {**found, "broken": broken}


def _run_lane(lane: Sequence[str], made: Materials, folder: Path, args: argparse.Namespace) -> None:
    """Measures the parts of a lane in sequence, in the child process; never returns."""
    end = time.monotonic() + args.seconds
    try:
        for number, name in enumerate(lane):
            remaining = sum(PARTS[later] for later in lane[number:])
            seconds = max((end - time.monotonic()) * PARTS[name] / remaining, 1.0)
            say(f"{name}, at most {seconds:.0f} s")
            began = time.monotonic()
            one = _measured(name, made, folder / f"scratch-{name}", args, seconds)
            write_json(folder / "results" / f"{name}.json", one)
            say(f"{name}: {_failures(one)} after {time.monotonic() - began:.0f} s")
    finally:
        os._exit(0)


def _failures(one: Mapping[str, Any]) -> str:
    return f"{sum(result['failed'] for result in one['found'])} failed" if "found" in one else "not measured"


def _measured(name: str, made: Materials, scratch: Path, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Returns the results of one part, or the error that stopped it, so that the other parts continue."""
    try:
        found = _measure(name, made, scratch, args, seconds)
        return {"found": [{**asdict(one), "failed": one.failed} for one in found]}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.json", help="file for the figures")
    parser.add_argument("page", type=Path, metavar="PAGE.md", help="file for the page")
    parser.add_argument("--seconds", type=float, default=1980.0, help="approximate time limit (1980)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (0)")
    parser.add_argument("--part", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), help="parts to measure (all)")
    parser.add_argument("--flips", type=int, default=1000, metavar="N", help="changes for each kind of file (1000)")
    parser.add_argument("--mutants", type=int, default=50_000, metavar="N", help="inputs over all readers (50000)")
    parser.add_argument("--events", type=int, default=40, metavar="N", help="kills at file events for each verb (40)")
    parser.add_argument(
        "--moments", type=int, default=12, metavar="N", help="kills and interrupts at random times for each verb (12)"
    )
    parser.add_argument("--writers", type=int, default=8, metavar="N", help="starts for each pair of writers (8)")
    parser.add_argument("--sizes", type=int, default=6, metavar="N", help="sizes of free space for each verb (6)")
    parser.add_argument(
        "--jobs", type=int, default=min(2, os.cpu_count() or 1), metavar="N", help="parts at the same time (2)"
    )
    parser.add_argument(
        "--finds", type=Path, default=Path("runs/torture/finds"), metavar="DIR", help="folder for finds"
    )
    parser.add_argument("--materials", type=Path, metavar="DIR", help="folder that keeps the files to attack for reuse")
    return parser


def _measure(name: str, made: Materials, scratch: Path, args: argparse.Namespace, seconds: float) -> list[Any]:
    def damaged() -> list[Any]:
        copy = Materials(scratch / "made")  # other parts read the files at the same time
        shutil.copytree(made.root, copy.root)
        return flips.measure(copy, args.flips, args.seed, seconds)

    parts: dict[str, Callable[[], list[Any]]] = {
        "flips": damaged,
        "kills": lambda: kills.measure(made, scratch, args.seed, args.events, args.moments, seconds),
        "signals": lambda: kills.interrupt(made, scratch, args.seed, args.moments, seconds),
        "writers": lambda: writers.measure(made, scratch, args.seed, args.writers, seconds),
        "full": lambda: full.measure(made, scratch, args.seed, args.sizes, seconds),
        "mutants": lambda: mutants.measure(
            readers(made, scratch), args.mutants, args.seed, scratch, args.finds, seconds
        ),
        "soak": lambda: soak.measure(made.artifact, 8, 10_000, 100_000, 500, seconds),
        "repeat": lambda: repeat.measure(made, scratch, seconds=seconds),
    }
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        return parts[name]()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _machine() -> str:
    found = machine()
    cpu = found.get("cpu")
    model = cpu.get("model") if isinstance(cpu, dict) else None
    return f"{model or 'an unknown processor'}, {os.cpu_count()} cores"


def say(text: str) -> None:
    """Prints a line of progress to stderr."""
    print(f"torture: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
