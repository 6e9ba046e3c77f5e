"""Figures of quantized graphs against the FP32 graph, in ONNX Runtime on the same images."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from gft_edge.benchmarks.experiments.modelopt.candidates import FULL, OURS, Prepared
from gft_edge.benchmarks.measuring.latency import measure
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, ratio_interval
from gft_edge.cli.console import track
from gft_edge.data.batches import batch_count, evaluation_batches
from gft_edge.data.datasets import match_labels, open_images
from gft_edge.export.graph.autotune import has_placeholder_scales
from gft_edge.export.graph.qdq_boundaries import compare_boundary_files
from gft_edge.export.lint.files import lint_file
from gft_edge.export.onnx.artifact import save_npz
from gft_edge.hardware.tensorrt_versions import Platform
from gft_edge.manifest import LOGITS
from gft_edge.runtime.backends.sessions import Session, onnxruntime_session
from gft_edge.stats.agreement import Arrays, Comparison, Computation, compare

BATCH = 32


def outputs(graph: Path, labels: npt.NDArray[Any], images: Any, prepared: Prepared, store: Path) -> Arrays:
    """Returns logits and kept patches of a graph on all images, from the store where they are there already."""
    if not store.is_file():
        session = _session(graph)
        found: dict[str, list[npt.NDArray[Any]]] = {}
        batches = evaluation_batches(images, prepared.checkpoint.info.preprocess, BATCH)
        for pixels, _ in track(batches, graph.stem, batch_count(len(labels), BATCH)):
            for name, value in session(pixels).items():
                if name == LOGITS or name.startswith("kept_"):
                    found.setdefault(name, []).append(value)
        save_npz(store, {name: np.concatenate(parts) for name, parts in found.items()})
    return dict(np.load(store))


def _session(graph: Path) -> Session:
    return onnxruntime_session(graph, quantized=True, threads=1)


def judge(graphs: Mapping[str, Path], prepared: Prepared, out: Path, count: int) -> dict[str, dict[str, Any]]:
    """Returns the figures of every graph by name: accuracy, agreement with FP32, kept sets, lint and boundaries."""
    info = prepared.checkpoint.info
    images = match_labels(open_images(info.data, "test", count, info.model.image_size), info.labels, info.data)
    labels = np.concatenate([part for _, part in evaluation_batches(images, info.preprocess, BATCH)])
    (out / "outputs").mkdir(exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    for name, graph in graphs.items():
        store = out / "outputs" / f"{name}-{len(labels)}.npz"
        found = outputs(graph, labels, images, prepared, store)
        if name == FULL:
            reference = found
        sides = (Computation("onnxruntime", "fp32", FULL), Computation("onnxruntime", "int8", name))
        patches = info.model.budget.num_patches
        rows[name] = {
            **_figures(compare(sides, reference, found, labels, patches)),
            **_findings(graph),
            "megabytes": graph.stat().st_size / 1e6,
            "boundaries": compare_boundary_files(graphs[OURS], graph).to_json(),
            "placeholder_scales": has_placeholder_scales(onnx.load(graph)),
        }
    return rows


def _figures(found: Comparison) -> dict[str, Any]:
    assert found.top1 is not None
    return {
        "images": found.images,
        "top1": found.top1_candidate,
        "top1_difference": found.top1.difference,
        "top1_interval": list(found.top1.interval),
        "logit_sqnr_db": found.logit_sqnr_db,
        "not_finite": found.not_finite,
        "jaccard": [stage.jaccard for stage in found.stages],
    }


def _findings(graph: Path) -> dict[str, Any]:
    report = lint_file(graph, Platform())
    counts = Counter(finding.rule for finding in report.findings)
    return {"lint": dict(sorted(counts.items())), "lint_errors": len(report.errors)}


def latencies(graphs: Mapping[str, Path], prepared: Prepared, protocol: BenchProtocol) -> dict[str, dict[str, Any]]:
    """Returns the median of each graph on one image and one thread, and its speed-up over FP32; measured interleaved."""
    image = prepared.images[:1]
    calls = {name: functools.partial(_session(graph), image) for name, graph in graphs.items()}
    found = measure(calls, protocol, track)
    return {
        name: {"ms": latency.p50_ms, "speedup": list(ratio_interval(found[FULL], latency)), "verdict": latency.verdict}
        for name, latency in found.items()
    }
