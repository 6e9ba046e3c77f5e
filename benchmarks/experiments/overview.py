"""One checkpoint at ten token budgets, in FP32 and INT8: accuracy against latency, beside the patches kept, as one picture.

python -m gft_edge.benchmarks.experiments.overview builtin runs/overview

Writes overview.json and overview.png. Every point is a graph that ONNX Runtime ran: its accuracy on test images, and its median
latency for one image on one thread, all graphs interleaved. Run again with the same folder, it keeps what it has exported.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.benchmarks.experiments.elastic import SHARES, budgets
from gft_edge.benchmarks.measuring.latency import measure
from gft_edge.benchmarks.measuring.protocol import BenchProtocol
from gft_edge.benchmarks.measuring.subjects import random_images
from gft_edge.budget import TokenBudget
from gft_edge.bundle import open_artifact
from gft_edge.checkpoint import load_checkpoint, read_info, resolve_checkpoint
from gft_edge.cli.console import say, table, track
from gft_edge.cli.main import main as gft_edge
from gft_edge.config.model import GFTConfig
from gft_edge.data.datasets import open_images
from gft_edge.data.sets import spread
from gft_edge.errors import CheckFailed, exit_code
from gft_edge.export.onnx.artifact import export_artifact
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.files import replacing, require_writable_folder, write_json
from gft_edge.hardware.environment import machine
from gft_edge.report.figures.overlays import overlay
from gft_edge.report.figures.overview import Scene, overview
from gft_edge.runtime.accuracy import measure_accuracy
from gft_edge.runtime.backends.sessions import Session, open_session
from gft_edge.runtime.classifier import Classifier

SHOWN = (0.3, 0.08)
"""Shares of the patches in the pictures."""
SCENES = 3
PROTOCOL = BenchProtocol(threads=1, rounds=20, runs_per_round=5)


def run(name: str, out: Path, num_images: int = 800, data: str = "scenes") -> dict[str, Any]:
    """Returns top-1 with its interval, and latency, per precision and budget, as plain JSON values.

    Raises:
        CheckFailed: the checkpoint cannot be quantized.
    """
    info = read_info(resolve_checkpoint(name))
    config = info.model
    every = budgets(len(config.stages), config.num_patches)
    shown = [TokenBudget.from_ratios((share,) * len(config.stages), config.num_patches) for share in SHOWN]
    if not (out / "checkpoint-int8").exists():
        status = gft_edge(["quantize", name, "--out", str(out / "checkpoint-int8")])
        if status:
            raise CheckFailed(f"quantize {name}: exit code {status}")
    for folder, source, chosen, options in (
        ("fp32", name, every, GraphOptions()),
        ("int8", str(out / "checkpoint-int8"), every, GraphOptions()),
        ("maps", name, shown, GraphOptions("compact")),
    ):
        if not (out / folder).exists():
            say(f"export {folder}: {len(chosen)} budgets")
            _export(source, out / folder, config, chosen, options)
    graphs = {(p, budget.id): open_artifact(f"{out / p}@{budget.id}") for p in ("fp32", "int8") for budget in every}
    sessions = {key: open_session(artifact, threads=1) for key, artifact in graphs.items()}
    image = random_images(next(iter(graphs.values())), 1, np.random.default_rng(PROTOCOL.seed))
    times = measure({" ".join(key): partial(session, image) for key, session in sessions.items()}, PROTOCOL, track)
    images = open_images(data, "test", num_images, info.model.image_size)
    models = [(" ".join(key), partial(_logits, session)) for key, session in sessions.items()]
    found = measure_accuracy(models, images, info.labels, info.preprocess, track=track)
    share_of = dict(zip((budget.id for budget in every), SHARES))
    rows = [
        {
            "precision": precision,
            "budget": budget,
            "share": share_of[budget],
            "right": accuracy.right,
            "top1": accuracy.top1,
            "interval": list(accuracy.interval),
            "p50_ms": times[f"{precision} {budget}"].p50_ms,
            "verdict": times[f"{precision} {budget}"].verdict,
        }
        for (precision, budget), accuracy in zip(sessions, found)
    ]
    return {"checkpoint": name, "data": data, "images": found[0].count, "machine": machine(), "rows": rows}


def _logits(session: Session, pixels: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    return session(pixels)["logits"]


def _export(source: str, out: Path, config: GFTConfig, chosen: Sequence[TokenBudget], options: GraphOptions) -> None:
    golden = np.zeros((2, 3, config.image_size, config.image_size), np.float32)
    export_artifact(load_checkpoint(source), out, golden, chosen, options)


def scenes(out: Path, name: str, data: str) -> list[Scene]:
    """Returns test images, spread over the set, with the patches that the last stage keeps at the budgets of :data:`SHOWN`."""
    info = read_info(resolve_checkpoint(name))
    images = open_images(data, "test", 96, info.model.image_size)
    pictures = [images[place] for place in spread(len(images), SCENES)]
    seen: list[npt.NDArray[np.uint8]] = [info.preprocess.geometry(image) for image, _ in pictures]
    panels: list[list[npt.NDArray[np.uint8]]] = [[image] for image in seen]
    words: list[list[str]] = [[info.labels[label]] for _, label in pictures]
    config = info.model
    for share in SHOWN:
        budget = TokenBudget.from_ratios((share,) * len(config.stages), config.num_patches)
        classifier = Classifier.open(f"{out / 'maps'}@{budget.id}", backend="onnxruntime", threads=1)
        for place, image in enumerate(seen):
            (prediction,) = classifier.predict([image])
            drawn = overlay(image, prediction, classifier.artifact.manifest)
            panels[place].append(drawn[:, -drawn.shape[0] :])
            words[place].append(prediction.label)
    return [Scene(tuple(found), tuple(said)) for found, said in zip(panels, words)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes overview.json and overview.png and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="CKPT", help="checkpoint folder, or 'builtin'")
    parser.add_argument("out", type=Path, metavar="DIR", help="output folder")
    parser.add_argument("--images", type=int, default=800, metavar="N", help="test images per graph (800)")
    args = parser.parse_args(arguments)
    require_writable_folder(args.out)
    data = run(args.name, args.out, args.images)
    write_json(args.out / "overview.json", data)
    picture = overview(data, scenes(args.out, args.name, data["data"]), SHOWN)
    with replacing(args.out / "overview.png") as temporary:
        temporary.write_bytes(picture)
    cells = [
        (r["precision"], r["budget"], f"{r['top1']:.2%}", f"{r['p50_ms']:.2f}", r["verdict"]) for r in data["rows"]
    ]
    print(table(("precision", "budget", "top-1", "median ms", "rounds"), cells))
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
