"""The results of a run of the suite as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gft_edge.benchmarks.experiments.markdown import render, table, verdict

TEMPLATE = Path(__file__).with_suffix(".md.j2")
VERSIONS = ("python", "torch", "onnxruntime", "onnx", "timm", "gft_edge")
SMALLEST_SHARE = 0.01
WAYS = ("mean key", "matrix")

Rows = Iterable[Mapping[str, Any]]


def markdown(data: Mapping[str, Any]) -> str:
    """Returns the page: targets, latencies, options, importance, and where the time goes.

    Args:
        data: of :func:`gft_edge.benchmarks.experiments.peers.suite.run`.
    """
    judged = [target["met"] for target in data["targets"] if target["met"] is not None]
    return render(
        TEMPLATE,
        machine=data["machine"],
        model=data["model"],
        protocol=data["protocol"],
        versions=", ".join(f"{name} {data['machine'][name]}" for name in VERSIONS),
        met=sum(judged),
        judged=len(judged),
        targets=_targets(data["targets"]),
        latency=_latency(data["latency"]),
        options=_options(data["options"]),
        importance=_importance(data["costs"]["importance"]["rows"]),
        profiles=list(_profiles(data["profiles"])),
    )


def _targets(rows: Rows) -> str:
    cells = ((r["what"], r["target"], r["value"], r["interval"], verdict(r["met"])) for r in rows)
    return table(("what", "target", "measured", "interval", ""), cells)


def _latency(rows: Rows) -> str:
    def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
        gmacs = "" if row["macs"] is None else f"{row['macs'] / 1e9:.2f}"
        times = (f"{row['p50_ms']:.2f}", f"{row['p90_ms']:.2f}")
        return (row["name"], row["threads"], gmacs, *times, f"{row['variation']:.1%}")

    return table(("model", "threads", "GMAC", "p50 ms", "p90 ms", "variation"), map(cells, rows))


def _options(rows: Rows) -> str:
    def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
        ratio, low, high = row["speedup"]
        return row["option"], f"{row['ms']:.2f}", f"{ratio:.3f}x", f"{low:.3f} to {high:.3f}"

    return table(("option", "p50 ms", "speed", "interval"), map(cells, rows))


def _importance(rows: Rows) -> str:
    def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
        times = (f"{row['ms'][way]:.3f}" for way in WAYS)
        sizes = (f"{row['bytes'][way] / 1e6:.2f}" for way in WAYS)
        return (row["patches"], *times, *sizes)

    header = ("tokens", *(f"{way} ms" for way in WAYS), *(f"{way} MB" for way in WAYS))
    return table(header, map(cells, rows))


def _profiles(entries: Rows) -> Iterator[tuple[str, str]]:
    for entry in entries:
        plural = "s" if entry["threads"] > 1 else ""
        rows = (
            (o["operator"], o["count"], f"{o['ms']:.2f}", f"{o['share']:.1%}")
            for o in entry["operators"]
            if o["share"] >= SMALLEST_SHARE
        )
        heading = f"{entry['candidate']}, {entry['threads']} thread{plural}"
        yield heading, table(("operator", "count", "ms", "share"), rows)
