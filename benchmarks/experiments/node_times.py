"""Kernel time of a graph's operators in ONNX Runtime, on one thread."""

from __future__ import annotations

import collections
import json
import tempfile
from pathlib import Path

import numpy as np

from gft_edge.benchmarks.measuring.subjects import random_images
from gft_edge.manifest import MODEL, Artifact
from gft_edge.runtime.backends.sessions import DISABLED_FOR_INT8


def kernel_times(artifact: Artifact, runs: int = 200) -> dict[str, tuple[int, float]]:
    """Returns for each operator how many nodes the optimized graph has and their kernel time in microseconds, batch 1.

    The time of a node is its median over the runs; the profiler adds about one microsecond to it.
    """
    import onnxruntime as ort

    pixels = random_images(artifact, 1, np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        disabled = list(DISABLED_FOR_INT8) if artifact.manifest.is_quantized else None
        session = ort.InferenceSession(
            str(artifact.file(MODEL)), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
        for _ in range(runs):
            session.run(None, {session.get_inputs()[0].name: pixels})
        events = json.loads(Path(session.end_profiling()).read_bytes())
    durations: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            durations[event["args"]["op_name"], event["name"]].append(event["dur"])
    found: dict[str, tuple[int, float]] = {}
    for (operator, _), times in durations.items():
        count, total = found.get(operator, (0, 0.0))
        found[operator] = count + 1, total + float(np.median(times))
    return found


def added_by_maps(without: dict[str, tuple[int, float]], with_maps: dict[str, tuple[int, float]]) -> list[list[object]]:
    """Returns operator, nodes more and microseconds more of each operator that maps add nodes of, most expensive first."""
    rows = [
        (name, count - without.get(name, (0, 0.0))[0], time - without.get(name, (0, 0.0))[1])
        for name, (count, time) in with_maps.items()
    ]
    return [[name, count, f"{time:.0f}"] for name, count, time in sorted(rows, key=lambda row: -row[2]) if count > 0]
