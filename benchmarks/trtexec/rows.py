"""Runs of trtexec as results of a bench file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gft_edge import __version__
from gft_edge.benchmarks.measuring.bench_files import SCHEMA
from gft_edge.benchmarks.measuring.protocol import UNSTABLE, commit
from gft_edge.benchmarks.trtexec.output import TrtexecLog
from gft_edge.benchmarks.trtexec.times import latency_of


def bench_file(
    log: TrtexecLog,
    name: str,
    known: Mapping[str, Any],
    queries: Sequence[Mapping[str, float]] | None = None,
    layers: Mapping[str, Any] | None = None,
    batch: int = 1,
) -> dict[str, Any]:
    """Returns one run of trtexec as the content of a bench file.

    Args:
        log: its output.
        name: of the row.
        known: identity of the artefact, empty if there is none.
        queries: its --exportTimes; without them there are no raw samples and no interval.
        layers: summary of its layer files.
        batch: images per query; images/s is qps times batch.
    """
    row = result_row(log, name, known, queries, batch)
    if layers is not None:
        row["layers"] = dict(layers)
    return file_of([row], log)


def file_of(rows: list[dict[str, Any]], log: TrtexecLog) -> dict[str, Any]:
    """Returns the content of a bench file of such rows; its machine is that of the log."""
    return {
        "schema": SCHEMA,
        "source": "trtexec",
        "machine": {**log.device, "versions": {"tensorrt": _version_text(log)}},
        "read_by": {"gft_edge": __version__, "commit": commit()},
        "results": rows,
        "warnings": [f"{row['name']}: {warning}" for row in rows for warning in row["warnings"]],
    }


def _version_text(log: TrtexecLog) -> str | None:
    return ".".join(map(str, log.version)) if log.version else None


def result_row(
    log: TrtexecLog,
    name: str,
    known: Mapping[str, Any],
    queries: Sequence[Mapping[str, float]] | None,
    batch: int,
) -> dict[str, Any]:
    """Returns the result of one run; for the arguments see :func:`bench_file`."""
    transfers = {"h2d": "H2D Latency", "d2h": "D2H Latency"}
    stages = {
        stage: {"p50_ms": log.metrics[metric]["median"]}
        for stage, metric in {**transfers, "inference": "GPU Compute Time"}.items()
        # Without transfers trtexec prints 0 ms: absent, not zero. A line that is cut off has no median.
        if log.metrics.get(metric, {}).get("max", 0) > 0 and "median" in log.metrics[metric]
    }
    settings = log.settings
    meaning = "one query enqueued ahead of time: host work is hidden, this is no request latency"
    if settings.streams > 1:
        meaning = f"one query while {settings.streams} streams run at a time; {meaning}"
    rate = log.numbers["throughput_qps"] * (1 if settings.implicit_batch else batch)
    return {
        "name": name,
        **known,
        "backend": "trtexec",
        "options": {
            "version": _version_text(log),
            "command": log.command,
            "timing": None if log.timing is None else dict(log.timing),
            "streams": settings.streams,
            "shapes": {name: list(shape) for name, shape in settings.shapes.items()},
            **log.numbers,
        },
        "batch": batch,
        "threads": None,
        **_figures_of(log, queries),
        "meaning": meaning,
        "stages": stages,
        "throughput": {
            "images_per_s": rate if rate > 0 else None,
            "in_flight": settings.streams if settings.streams > 1 else None,
        },
        "baseline": name,
        "speedup": 1.0,
        "speedup_interval": [1.0, 1.0] if queries else None,
        "warnings": list(log.warnings),
    }


def _figures_of(log: TrtexecLog, queries: Sequence[Mapping[str, float]] | None) -> dict[str, Any]:
    if queries:
        latency = latency_of(queries)
        return {**latency.__dict__, "rounds_ms": [list(r) for r in latency.rounds_ms], "verdict": latency.verdict}
    figures = log.metrics["Latency"]
    return {
        "rounds_ms": [],
        "p50_ms": figures["median"],
        **{f"p{p}_ms": figures.get(str(p)) for p in (90, 95, 99)},
        "min_ms": figures["min"],
        "mean_ms": figures["mean"],
        "variation": log.variance,
        "sample_variation": log.variance,
        "warmup": None,
        "verdict": "unstable" if (log.variance or 0) > UNSTABLE else "stable",
    }
