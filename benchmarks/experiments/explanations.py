"""Importance maps under INT8: whether they still explain the model, and what they cost.

python -m gft_edge.benchmarks.experiments.explanations runs/explanations benchmarks/EXPLANATIONS.md

The built-in checkpoint is quantized with the defaults, both are exported with every kind of maps, and ONNX Runtime runs them.
Figures that the folder already has are not computed again; `--latency` measures the latency again.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from gft_edge.benchmarks.experiments.markdown import render, show, table, verdict
from gft_edge.benchmarks.measuring.latency import measure
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, conditions, ratio_interval
from gft_edge.benchmarks.measuring.subjects import random_images
from gft_edge.checkpoint import BUILTIN, load_checkpoint
from gft_edge.cli.main import main as gft_edge
from gft_edge.data.batches import evaluation_batches
from gft_edge.data.datasets import open_images
from gft_edge.errors import exit_code
from gft_edge.export.verify.map_fidelity import Outputs, Run, assess_maps, map_fidelity
from gft_edge.files import read_json, require_writable_folder, write_json
from gft_edge.manifest import MODEL, Artifact, MapsMode, load_artifact
from gft_edge.runtime.backends.sessions import open_session
from gft_edge.runtime.compared_model import ComparedModel

IMAGES, CHUNK = 400, 16
BATCHES, THREADS, REPEATS = (1, 8), (1, 2), 3
COST = 0.01
"""Share of the latency that maps may cost."""
PRECISIONS = {"fp32": BUILTIN, "int8": "checkpoint-int8"}
MODES: tuple[MapsMode, ...] = get_args(MapsMode)


def artifacts(folder: Path) -> dict[tuple[str, MapsMode], Artifact]:
    """Returns the artefacts by precision and maps, and makes those that are missing."""
    found = {}
    for precision, source in PRECISIONS.items():
        checkpoint = source if source == BUILTIN else str(folder / source)
        if source != BUILTIN and not (folder / source).exists():
            _do("quantize", BUILTIN, "--out", checkpoint)
        for maps in MODES:
            path = folder / f"{precision}-{maps}"
            if not path.exists():
                _do("export", checkpoint, "--maps", maps, "--out", str(path))
            found[precision, maps] = load_artifact(path)
    return found


def _do(*command: str) -> None:
    if code := gft_edge(command):
        raise SystemExit(code)


def fidelity(made: dict[tuple[str, MapsMode], Artifact], count: int) -> dict[str, Any]:
    """Returns the agreement of the maps of INT8 and FP32 on test images, as plain JSON values."""
    info = load_checkpoint(BUILTIN).info
    images = open_images("scenes", "test", count, info.model.image_size)
    pixels = np.concatenate([batch for batch, _ in evaluation_batches(images, info.preprocess)])
    sides = [(precision, in_chunks(ComparedModel(made[precision, "compact"]))) for precision in PRECISIONS]
    return map_fidelity(sides[0], sides[1], pixels, info.model.grid)


def in_chunks(run: Run) -> Run:
    """Returns a function that runs a model on a few images at a time."""

    def outputs(images: npt.NDArray[np.float32]) -> Outputs:
        parts = [run(images[start : start + CHUNK]) for start in range(0, len(images), CHUNK)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return outputs


def latency(
    made: dict[tuple[str, MapsMode], Artifact], protocol: BenchProtocol, repeats: int, requests: int
) -> dict[str, Any]:
    """Returns the latency of graphs with maps over that of the graph without, several times each, as plain JSON values."""
    rows = []
    for precision in PRECISIONS:
        for threads in THREADS:
            for batch in BATCHES:
                runs = max(1, requests // batch)
                point = BenchProtocol(batch, threads, protocol.warmup_seconds, protocol.rounds, runs)
                for repeat in range(repeats):
                    found = measure(_calls(made, precision, batch, threads), point)
                    ratios = {maps: list(ratio_interval(found[maps], found["none"], repeat)) for maps in MODES[1:]}
                    rows.append(
                        {
                            "precision": precision,
                            "threads": threads,
                            "batch": batch,
                            "ms": found["none"].p50_ms,
                            "variation": found["none"].variation,
                            "ratios": ratios,
                        }
                    )
    return {"machine": conditions(), "rounds": protocol.rounds, "requests": requests, "rows": rows}


def _calls(
    made: dict[tuple[str, MapsMode], Artifact], precision: str, batch: int, threads: int
) -> dict[str, Callable[[], object]]:
    calls: dict[str, Callable[[], object]] = {}
    for maps in MODES:
        artifact = made[precision, maps]
        pixels = random_images(artifact, batch, np.random.default_rng(0))
        calls[maps] = functools.partial(open_session(artifact, threads=threads).compute, pixels)
    return calls


def page(found: dict[str, Any]) -> str:
    """Returns the figures as Markdown."""
    maps, times = found["fidelity"], found["latency"]
    areas = []
    for curve in ("insertion", "deletion"):
        change = maps["auc_change"][curve]
        low, high = change["interval"]
        sides = [f"{side[curve]['auc']:.4f}" for side in maps["sides"]]
        random = f"{maps['sides'][0][f'{curve}_random']['auc']:.4f}"
        areas.append([curve, *sides, random, f"{change['mean']:+.4f}", f"{low:+.4f} to {high:+.4f}"])
    ranks = [
        [s["stage"], f"{s['rank_correlation']:.4f}", f"{s['kept_overlap']:.1%}", f"{s['top_overlap']:.1%}"]
        for s in maps["stages"]
    ]
    cost_rows, met = costs(times["rows"])
    assessment = assess_maps(maps)
    return render(
        Path(__file__).with_name("explanations.md.j2"),
        images=maps["images"],
        areas=table(["curve", "FP32", "INT8", "random order, FP32", "change", "95 % interval"], areas),
        ranks=table(["stage", "rank correlation", "kept set in common", "first tenth in common"], ranks),
        fidelity="; ".join((*assessment.failures, *assessment.undecided)) or "met",
        costs=table(
            ["precision", "threads", "batch", "ms without", *(f"{m}, each run" for m in MODES[1:]), ""], cost_rows
        ),
        met=met,
        rows=len(cost_rows),
        nodes=", ".join(f"{name} {count}" for name, count in found["nodes"].items()),
        cpu=times["machine"]["cpu"]["model"],
        load=max(times["machine"]["load_average"]),
        rounds=times["rounds"],
        requests=times["requests"],
    )


def costs(rows: Sequence[dict[str, Any]]) -> tuple[list[list[str]], int]:
    """Returns the cells of the latencies, runs of the same point side by side, and how many points keep the limit."""
    points: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for row in rows:
        points.setdefault((row["precision"], row["threads"], row["batch"]), []).append(row)
    cells, met = [], 0
    for point, runs in points.items():
        kept = all(np.median([run["ratios"][maps][0] for run in runs]) < 1 + COST for maps in MODES[1:])
        met += kept
        texts = [
            ", ".join("{:+.1%} ({:+.1%} to {:+.1%})".format(*(x - 1 for x in run["ratios"][maps])) for run in runs)
            for maps in MODES[1:]
        ]
        cells.append([*map(str, point), f"{np.median([run['ms'] for run in runs]):.2f}", *texts, verdict(kept)])
    return cells, met


def count_nodes(made: dict[tuple[str, MapsMode], Artifact]) -> dict[str, int]:
    """Returns the number of operators of each graph."""
    import onnx

    return {
        f"{precision}-{maps}": len(onnx.load(artifact.file(MODEL)).graph.node)
        for (precision, maps), artifact in made.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes results.json and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of artefacts and results")
    parser.add_argument("page", type=Path, nargs="?", metavar="PAGE", help="Markdown page")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"test images ({IMAGES})")
    parser.add_argument("--rounds", type=int, default=60, help="of each latency measurement (60)")
    parser.add_argument("--latency", action="store_true", help="measure the latency again")
    args = parser.parse_args(arguments)
    require_writable_folder(args.run)
    file = args.run / "results.json"
    found: dict[str, Any] = read_json(file, "results") if file.exists() else {}
    made = artifacts(args.run)
    found["nodes"] = count_nodes(made)
    if found.get("fidelity", {}).get("images") != args.images:
        found["fidelity"] = fidelity(made, args.images)
        write_json(file, found)
    if args.latency or "latency" not in found:
        found["latency"] = latency(made, BenchProtocol(rounds=args.rounds), REPEATS, requests=8)
        write_json(file, found)
    show(page(found), args.page)
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
