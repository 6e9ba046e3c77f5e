"""Targets and printed tables of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from gft_edge.benchmarks.experiments.gpu.candidates import EVIT, EVIT_FUSED, GFT, VIT
from gft_edge.benchmarks.measuring.protocol import Latency, ratio_interval
from gft_edge.cli.console import table

Data = Mapping[str, Any]

LEAST_OVER: tuple[tuple[str, int, str, float], ...] = (
    ("inference", 1, VIT, 1.0),
    ("inference", 8, VIT, 1.15),
    ("inference", 64, VIT, 1.6),
    ("inference", 256, VIT, 1.75),
    ("inference", 64, EVIT, 1.08),
    ("inference", 256, EVIT, 1.08),
    ("inference", 64, EVIT_FUSED, 1.0),
    ("inference", 256, EVIT_FUSED, 1.0),
    ("resolution", 32, VIT, 3.5),
    ("training", 64, VIT, 1.15),
)
"""Part, batch, what the focal model is compared with, and the least ratio of times that meets the target."""
VERDICTS = {True: "met", False: "missed", None: "not measured"}
MOST_COMPILE_RATIO = 1.5
SAME_LOGITS = 1e-4
"""Largest relative difference of logits in FP32."""


def targets(parts: Data, timed: bool) -> list[dict[str, Any]]:
    """Returns each target with the measured value and whether it is met; None where it was not measured.

    Args:
        parts: results by part.
        timed: the times mean something; otherwise only equal logits are targets.
    """
    rows = _of_times(parts) if timed else []
    for name, value in _exact(parts):
        rows.append({"what": name, "target": f"<= {SAME_LOGITS:g}", "value": value, "met": value <= SAME_LOGITS})
    return rows


def _of_times(parts: Data) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for part, batch, over, least in LEAST_OVER:
        found = {r["name"]: r for r in parts.get(part, {}).get("rows", ()) if r["batch"] == batch and "p50_ms" in r}
        row: dict[str, Any] = {
            "what": f"{part}, batch {batch}: GFT over {over}",
            "target": f">= {least:g}x",
            "value": None,
            "met": None,
        }
        if over in found and GFT in found:
            value, low, high = ratio_interval(_latency(found[over]), _latency(found[GFT]))
            row |= {"value": value, "interval": [low, high], "met": value >= least}
        rows.append(row)
    compiled = parts.get("compile", {})
    ratio = compiled.get("ratio")
    met = None if ratio is None else ratio <= MOST_COMPILE_RATIO
    rows.append(
        {"what": "compile time: GFT over ViT", "target": f"<= {MOST_COMPILE_RATIO:g}x", "value": ratio, "met": met}
    )
    return rows


def _exact(parts: Data) -> Iterator[tuple[str, float]]:
    """Yields what must agree in FP32, with its difference."""
    for name, value in parts.get("inference", {}).get("exact", {}).items():
        if name != "error":
            yield f"logits in FP32, {name}", value
    calls = [c for c in parts.get("compile", {}).get("calls", ()) if c["name"] == GFT]
    if calls:
        yield "logits in FP32, compiled", max(c["difference"] for c in calls)


def _latency(row: Data) -> Latency:
    return Latency.of(row["rounds_ms"])


def text(data: Data) -> str:
    """Returns the tables of a run: where it ran, targets, and each part that was measured."""
    parts = data["parts"]
    gpu = data["gpu"] or {}
    lines = [", ".join(f"{name} {value}" for name, value in {**gpu, **data["versions"]}.items())]
    if data["scale"] != "full":
        lines.append("quick run: its times mean nothing")
    rows = ((r["what"], r["target"], _number(r["value"]), VERDICTS[r["met"]]) for r in data["targets"])
    if data["targets"]:
        lines += ["", table(("target", "", "measured", ""), rows)]
    for part in ("inference", "resolution", "training", "compiled", "pieces"):
        if parts.get(part, {}).get("rows"):
            unit = "microseconds of one call" if part == "pieces" else "ms (times faster than the plain ViT)"
            lines += ["", f"{part}, {unit}", _times(parts[part]["rows"])]
    for part, columns in _COLUMNS.items():
        found = parts.get(part, {}).get("calls" if part == "compile" else "rows", ())
        if found:
            lines += ["", part, table(columns, ([_number(row.get(c)) for c in columns] for row in found))]
    lines += [f"{part}: {problem}" for part, found in parts.items() for problem in _problems(found)]
    return "\n".join(lines)


_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "kernels": ("name", "kernels", "beyond_vit", "microseconds"),
    "compile": ("name", "seconds", "graphs", "breaks", "difference"),
    "numerics": ("name", "logit_sqnr_db", "max_relative_error", "top1_agreement", "jaccard"),
}


def _times(rows: Iterable[Data]) -> str:
    timed = [row for row in rows if "p50_ms" in row]
    batches = sorted({row["batch"] for row in timed})
    cells: dict[str, dict[int, str]] = {}
    for row in timed:
        over = f" ({row['over_vit'][0]:.2f}x)" if "over_vit" in row else ""
        memory = f", {row['peak_gb']:.2f} GB" if row.get("peak_gb") else ""
        value = f"{row['us']:.1f}" if "us" in row else f"{row['p50_ms']:.3f}"
        cells.setdefault(row["name"], {})[row["batch"]] = f"{value}{over}{memory}"
    header = ("", *(f"batch {batch}" for batch in batches))
    return table(header, ((name, *(found.get(batch, "") for batch in batches)) for name, found in cells.items()))


def _problems(found: Data) -> Iterator[str]:
    if "error" in found:
        yield found["error"]
    for one in found.get("errors", ()):
        yield ", ".join(str(value) for value in one.values())
    for row in found.get("rows", ()):
        if row.get("finite") is False:
            yield f"{row['name']}, batch {row['batch']}: the graph's logits are not finite"


def _number(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return " ".join(_number(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def plain(data: Any) -> Any:
    """Returns a value with numbers that JSON cannot express (NaN, infinity) as None."""
    if isinstance(data, Mapping):
        return {str(name): plain(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    if isinstance(data, np.generic):
        data = data.item()
    return None if isinstance(data, float) and not math.isfinite(data) else data
