"""Peers measured in one run, and the speed targets: writes RESULTS.md and its JSON. Needs no data.

python -m gft_edge.benchmarks.experiments.peers.suite runs/bench/peers.json benchmarks/RESULTS.md [--quick]
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import timm

from gft_edge.benchmarks.experiments import calibration_speed as calibration
from gft_edge.benchmarks.experiments.peers import footprint
from gft_edge.benchmarks.experiments.peers.operators import profile
from gft_edge.benchmarks.experiments.peers.results import markdown
from gft_edge.benchmarks.experiments.peers.scale import Scale, full_scale, quick_scale
from gft_edge.benchmarks.experiments.peers.session_options import measure_options
from gft_edge.benchmarks.experiments.peers.targets import cost_targets, int8_gains, latency_targets
from gft_edge.benchmarks.experiments.peers.timed_models import (
    Images,
    TimedModel,
    focal_group,
    published_group,
    smaller_group,
)
from gft_edge.benchmarks.measuring.latency import measure
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, Latency, conditions
from gft_edge.checkpoint import load_checkpoint
from gft_edge.cli.console import say, track
from gft_edge.errors import exit_code
from gft_edge.export.onnx.artifact import export_artifact, tool_versions
from gft_edge.files import replacing, require_writable, write_json
from gft_edge.runtime.backends.sessions import onnxruntime_session


def timed(group: Mapping[str, TimedModel], scale: Scale, images: Images) -> dict[int, dict[str, Latency]]:
    """Returns latencies of a group by number of threads, its models interleaved."""
    found = {}
    for threads in scale.threads:
        calls = {name: model.open(threads, images[:1]) for name, model in group.items()}
        protocol = BenchProtocol(
            threads=threads,
            rounds=scale.rounds,
            runs_per_round=scale.runs,
            warmup_seconds=scale.warmup_seconds,
        )
        found[threads] = measure(calls, protocol, track)
        del calls
        gc.collect()
    return found


def measure_groups(scale: Scale, images: Images) -> tuple[dict[str, TimedModel], dict[int, dict[str, Latency]]]:
    """Exports and measures one group of models after the other; returns every model, and latencies by threads."""
    timings: dict[int, dict[str, Latency]] = {threads: {} for threads in scale.threads}
    models: dict[str, TimedModel] = {}
    groups: Sequence[tuple[str, Callable[[], dict[str, TimedModel]]]] = (
        ("focal", lambda: focal_group(scale, images)),
        ("published", lambda: published_group(scale)),
        ("smaller", lambda: smaller_group(scale, images)),
    )
    for name, make in groups:
        say(f"bench: exporting the {name} group")
        group = make()
        for threads, found in timed(group, scale, images).items():
            timings[threads].update(found)
        models.update(group)
    return models, timings


def measure_costs(scale: Scale) -> dict[str, Any]:
    """Measures start-up, export, calibration and importance."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = load_checkpoint("builtin")
        size = checkpoint.info.model.image_size
        artifact = export_artifact(checkpoint, Path(folder, "builtin"), np.zeros((2, 3, size, size), np.float32))
        starts = footprint.start_up(artifact.path, scale.repeats)
    config = scale.config
    return {
        "start_up": starts,
        "export": footprint.export_and_verify(scale.preset),
        "calibration": calibration.run(scale.threads[0], scale.rounds, scale.calibrated),
        "importance": footprint.importance(scale.patches, config.embed_dim, config.num_heads, scale.rounds),
    }


def profile_missed(
    models: Mapping[str, TimedModel], targets: Sequence[Mapping[str, Any]], scale: Scale, images: Images
) -> list[dict[str, Any]]:
    """Profiles the models that miss a target, and the focal model in any case."""
    names = {(r["candidate"], r["threads"]) for r in targets if "candidate" in r and r["met"] is False}
    names |= {("GFT INT8", scale.threads[0]), ("GFT FP32", scale.threads[0])}
    profiles = []
    for name, threads in sorted(names):
        model = models[name]
        disabled = list(onnxruntime_session(model.model, model.quantized, 1).options["disabled_optimizers"])
        operators = profile(model.model, disabled, images[:1], threads)
        profiles.append({"candidate": name, "threads": threads, "operators": operators})
    return profiles


def run(scale: Scale) -> dict[str, Any]:
    """Returns all measurements as plain JSON values."""
    side = scale.config.image_size
    images = np.random.default_rng(0).standard_normal((2, 3, side, side), dtype=np.float32)
    where = {**conditions(), "onnxruntime": ort.__version__, **tool_versions(), "timm": timm.__version__}
    models, timings = measure_groups(scale, images)
    say("bench: options of the INT8 session")
    options = measure_options(models["GFT INT8"], images, scale, track)
    say("bench: start-up, export, importance")
    costs = measure_costs(scale)
    targets = latency_targets(timings) + int8_gains(timings) + cost_targets(costs)
    return {
        "machine": where,
        "protocol": {"rounds": scale.rounds, "runs_per_round": scale.runs, "warmup_seconds": scale.warmup_seconds},
        "model": scale.config.to_json(),
        "targets": targets,
        "latency": [
            {"name": name, "threads": threads, "macs": models[name].macs, **asdict(latency)}
            for threads, found in timings.items()
            for name, latency in found.items()
        ],
        "options": options,
        "costs": costs,
        "profiles": profile_missed(models, targets, scale, images),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and writes both files; returns 0 even if targets are missed, which the table shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path, help="raw samples and figures")
    parser.add_argument("markdown", type=Path, help="the table")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few rounds, only to show that it runs")
    args = parser.parse_args(arguments)
    for path in (args.json, args.markdown):
        require_writable(path)
    data = run(quick_scale() if args.quick else full_scale())
    write_json(args.json, data)
    text = markdown(data)
    with replacing(args.markdown) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
