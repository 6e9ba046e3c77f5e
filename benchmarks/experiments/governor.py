"""A family of budgets behind the governor: memory shared and not, and a recorded run through heat and load.

python -m gft_edge.benchmarks.experiments.governor FAMILY runs/bench

FAMILY is an artefact with several budgets: ``gft-edge export builtin --budget A --budget B --out FAMILY``. Sessions and latencies
are real, measured here; the temperature is a ramp from 60 to 100 degrees and back, the load is the same work in other threads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gft_edge.errors import ArtifactError, exit_code
from gft_edge.files import replacing, require_writable_folder, write_json
from gft_edge.report.figures.svg import COLORS, WIDE, svg
from gft_edge.runtime.governed import FamilySessions, GovernedClassifier
from gft_edge.runtime.governor import GovernorOptions

MODULE = "gft_edge.benchmarks.experiments.governor"
FRAMES, LOAD = 600, (420, 500)
COOL_C, HOT_C, HEATED = 60.0, 100.0, 400
"""Degrees at the ends of the ramp, and the frames that it takes up and down."""
ROOM = 1.6
"""Deadline in latencies of the largest budget."""


def run(family: Path, frames: int = FRAMES) -> dict[str, Any]:
    """Returns memory per number of open budgets, latencies, and the run frame by frame, as plain JSON values."""
    budgets = list(FamilySessions.open(family).members)
    memory = {
        name: [_memory(family, budgets[: count + 1], shared) for count in range(len(budgets))]
        for name, shared in (("shared", True), ("own", False))
    }
    latencies = {
        name: FamilySessions.open(family, threads=1, share_memory=shared).measure_ms(runs=30)
        for name, shared in (("shared", True), ("own", False))
    }
    return {"budgets": budgets, "memory_bytes": memory, "latency_ms": latencies, **trace(family, frames)}


def trace(family: Path, frames: int = FRAMES) -> dict[str, Any]:
    """Runs frames through a temperature ramp and through the load of other threads.

    Returns:
        ``deadline_ms``, and ``rows`` with frame, temperature, whether there was load, budget and latency.
    """
    governed = GovernedClassifier.open(family, GovernorOptions(), threads=1)
    largest = governed.governor.budgets[0]
    deadline = ROOM * governed.governor.expected_ms(largest)
    spec = governed.sessions.members[largest].manifest.preprocess
    image = np.random.default_rng(0).integers(0, 256, (spec.height, spec.width, 3), np.uint8)
    start, end = (frame * frames // FRAMES for frame in LOAD)
    heated = HEATED * frames // FRAMES
    stop, rows = threading.Event(), []
    others: list[threading.Thread] = []
    for frame in range(frames):
        if frame == start:
            others = [threading.Thread(target=_work, args=(family, largest, image, stop)) for _ in range(2)]
            for other in others:
                other.start()
        if frame == end:
            stop.set()
            for other in others:
                other.join()
        share = max(0.0, 1 - abs(2 * frame / heated - 1))
        temperature = COOL_C + (HOT_C - COOL_C) * share
        began = time.perf_counter()
        budget, _ = governed.predict(image, deadline, temperature)
        ms = 1e3 * (time.perf_counter() - began)
        rows.append({"frame": frame, "celsius": temperature, "load": start <= frame < end, "budget": budget, "ms": ms})
    return {"deadline_ms": deadline, "rows": rows}


def _work(family: Path, budget: str, image: Any, stop: threading.Event) -> None:
    classifier = FamilySessions.open(family, threads=1).classifier(budget)
    while not stop.is_set():
        classifier.predict([image])


def _memory(family: Path, budgets: Sequence[str], shared: bool) -> int:
    """Returns the proportional memory (PSS) of a fresh process that has run these budgets, in bytes.

    Raises:
        ArtifactError: the process failed.
    """
    command = [sys.executable, "-m", MODULE, "--memory", str(family), str(int(shared)), *budgets]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ArtifactError(f"{family}: a process that loads it failed: {done.stderr.strip().splitlines()[-1]}")
    return int(json.loads(done.stdout))


def print_memory(family: str, shared: str, *budgets: str) -> None:
    """Opens budgets, runs each once and prints the memory that this took; the work of :func:`_memory`'s process."""
    sessions = FamilySessions.open(family, threads=1, share_memory=shared == "1")
    before = _pss()
    for budget in budgets:
        classifier = sessions.classifier(budget)
        spec = classifier.artifact.manifest.preprocess
        classifier.predict([np.zeros((spec.height, spec.width, 3), np.uint8)])
    print(_pss() - before)


def _pss() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])


def figure(data: dict[str, Any]) -> str:
    """Draws budget, latency and temperature over the frames, as an SVG file."""

    def draw(figure: Figure, axes: Axes) -> None:
        rows, budgets = data["rows"], data["budgets"]
        frames = [row["frame"] for row in rows]
        for budget, color in zip(budgets, COLORS[1:]):
            own = [row for row in rows if row["budget"] == budget]
            axes.plot([r["frame"] for r in own], [r["ms"] for r in own], ".", ms=3, color=color, label=budget)
        loaded = [row["frame"] for row in rows if row["load"]]
        axes.axvspan(loaded[0], loaded[-1] + 1, color=COLORS[0], alpha=0.15, lw=0)
        axes.axhline(data["deadline_ms"], color=COLORS[3], lw=1, ls="--")
        high = max(2 * data["deadline_ms"], 1.0)
        axes.set(xlabel="frame", ylabel="milliseconds", ylim=(0, high))
        axes.annotate("deadline", (0, data["deadline_ms"]), (2, 3), textcoords="offset points", fontsize=8)
        axes.legend(frameon=False, loc="upper left", ncols=len(budgets))
        heat = axes.twinx()
        heat.plot(frames, [row["celsius"] for row in rows], color=COLORS[0], lw=1)
        heat.set(ylabel="degrees Celsius", ylim=(40, 130))
        heat.grid(visible=False)

    return svg(draw, WIDE, 3.4, "budget and latency by frame")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes governor.json and governor.svg."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--memory"]:
        print_memory(*arguments[1:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", type=Path, help="artefact with several budgets")
    parser.add_argument("out", type=Path, help="folder to write to")
    args = parser.parse_args(arguments)
    require_writable_folder(args.out)
    data = run(args.family)
    write_json(args.out / "governor.json", data)
    with replacing(args.out / "governor.svg") as temporary:
        temporary.write_text(figure(data), encoding="utf-8")
    late = sum(row["ms"] > data["deadline_ms"] for row in data["rows"])
    print(f"{len(data['rows'])} frames, deadline {data['deadline_ms']:.1f} ms, {late} late")
    for name, sizes in data["memory_bytes"].items():
        print(
            f"memory {name}: {', '.join(f'{size / 1e6:.1f} MB' for size in sizes)} with 1 to {len(sizes)} budgets open"
        )
    for name, found in data["latency_ms"].items():
        print(f"memory {name}: {', '.join(f'{budget} {ms:.2f} ms' for budget, ms in found.items())}")
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
