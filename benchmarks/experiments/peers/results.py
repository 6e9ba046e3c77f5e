"""The results of a run of the suite as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SMALLEST_SHARE = 0.01


def markdown(data: Mapping[str, Any]) -> str:
    """The page: targets, latencies, options, importance, where the time goes.

    Args:
        data: of :func:`gft_edge.benchmarks.experiments.peers.suite.run`.
    """
    machine, model, protocol = data["machine"], data["model"], data["protocol"]
    cpu = machine["cpu"]
    versions = ", ".join(f"{n} {machine[n]}" for n in ("python", "torch", "onnxruntime", "onnx", "timm", "gft_edge"))
    kept = "-".join(str(k) for k in model["budget"]["keep"])
    judged = [target["met"] for target in data["targets"] if target["met"] is not None]
    parts = [
        "# Benchmark results",
        "Written by `make bench`; not edited by hand. Batch 1, ONNX Runtime on the CPU, random weights and images.",
        f"- machine: {cpu['model']}, {cpu['cores']} cores, {machine['system']}; load average at the start "
        f"{machine['load_average'][0]:.1f}\n- versions: {versions}\n"
        f"- GFT: {model['backbone']}, {model['image_size']} px, stages after blocks "
        f"{', '.join(map(str, model['stages']))} of {model['depth']}, keeping {kept} patches\n"
        f"- protocol: {protocol['rounds']} rounds of {protocol['runs_per_round']} requests each, candidates interleaved in "
        "alternating order; a ratio is the median of the rounds' ratios, with its 95 % bootstrap interval",
        f"## Targets: {sum(judged)} of {len(judged)} met",
        _table(
            ("what", "target", "measured", "interval", ""),
            ((t["what"], t["target"], t["value"], t["interval"], _verdict(t)) for t in data["targets"]),
        ),
        "## Latency",
        _table(
            ("model", "threads", "GMAC", "p50 ms", "p90 ms", "variation"),
            (
                (
                    r["name"],
                    r["threads"],
                    "" if r["macs"] is None else f"{r['macs'] / 1e9:.2f}",
                    f"{r['p50_ms']:.2f}",
                    f"{r['p90_ms']:.2f}",
                    f"{r['variation']:.1%}",
                )
                for r in data["latency"]
            ),
        ),
        "## Options tried on GFT INT8, 1 thread",
        "Speed against the shipped form; below 1 is slower. Where a session lies in memory is worth some per cent by itself: the "
        "row of the shipped form opened once more shows what a difference must exceed to mean anything.",
        _table(
            ("option", "p50 ms", "speed", "interval"),
            (
                (
                    r["option"],
                    f"{r['ms']:.2f}",
                    f"{r['speedup'][0]:.3f}x",
                    f"{r['speedup'][1]:.3f} to {r['speedup'][2]:.3f}",
                )
                for r in data["options"]
            ),
        ),
        "## Importance alone, queries and keys given, 1 thread",
        _table(
            ("tokens", "mean key ms", "matrix ms", "mean key MB", "matrix MB"),
            (
                (
                    r["patches"],
                    *(f"{r['ms'][way]:.3f}" for way in ("mean key", "matrix")),
                    *(f"{r['bytes'][way] / 1e6:.2f}" for way in ("mean key", "matrix")),
                )
                for r in data["costs"]["importance"]["rows"]
            ),
        ),
        "## Where the time goes",
        "ONNX Runtime's own profile, median of each operator; what is under one per cent is left out.",
    ]
    for entry in data["profiles"]:
        parts.append(f"### {entry['candidate']}, {entry['threads']} thread{'s' if entry['threads'] > 1 else ''}")
        rows = (
            (o["operator"], o["count"], f"{o['ms']:.2f}", f"{o['share']:.1%}")
            for o in entry["operators"]
            if o["share"] >= SMALLEST_SHARE
        )
        parts.append(_table(("operator", "count", "ms", "share"), rows))
    return "\n\n".join(parts) + "\n"


def _verdict(target: Mapping[str, Any]) -> str:
    return {True: "met", False: "**missed**", None: ""}[target["met"]]


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
