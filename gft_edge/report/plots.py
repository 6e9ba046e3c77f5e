"""Figures as inline SVG: no network, no script, sharp at any size."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("svg")

COLORS = ("#6b7280", "#2563eb", "#0d9488", "#c2410c", "#7c3aed", "#be185d")
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gft_edge",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "axes.edgecolor": "#9ca3af",
    "text.color": "#1f2937",
    "axes.labelcolor": "#374151",
    "xtick.color": "#374151",
    "ytick.color": "#374151",
}


def color_of(names: Iterable[str]) -> dict[str, str]:
    """One colour per name, the same in every figure of a page."""
    return dict(zip(names, itertools.cycle(COLORS)))


def _svg(draw: Callable[[Figure, Axes], None], width: float, height: float, title: str) -> str:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure, figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Title": title}, transparent=True)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg ', r'<svg role="img" \1', text, count=1)


def training(rows: Sequence[Mapping[str, float]]) -> str:
    """Loss over steps, from log.jsonl."""

    def draw(_: Figure, axes: Axes) -> None:
        steps = [row["step"] for row in rows]
        axes.plot(steps, [row["loss"] for row in rows], color=COLORS[1], marker="o" if len(rows) < 12 else "")
        axes.set(xlabel="step", ylabel="loss at full budget")

    return _svg(draw, 5.2, 2.4, "training loss")


def accuracy(results: Sequence[Mapping[str, Any]], colors: Mapping[str, str]) -> str:
    """Top-1 with its 95 % interval per model."""

    def draw(_: Figure, axes: Axes) -> None:
        for place, row in enumerate(results):
            low, high = (100 * value for value in row["interval"])
            top1 = 100 * row["top1"]
            color = colors.get(row["name"], COLORS[0])
            axes.errorbar(top1, place, xerr=[[top1 - low], [high - top1]], fmt="o", color=color, capsize=4, ms=7)
            axes.annotate(f"{top1:.1f} %", (top1, place), (0, 8), textcoords="offset points", ha="center")
        axes.set_yticks(range(len(results)), [row["name"] for row in results])
        axes.set(xlabel="top-1, per cent (bar: 95 % interval)", ylim=(len(results) - 0.5, -0.7))

    return _svg(draw, 7.6, 0.9 + 0.55 * len(results), "accuracy")


def latency(results: Sequence[Mapping[str, Any]], colors: Mapping[str, str]) -> str:
    """Every request as a dot, with p50, p90 and p99."""
    rng = np.random.default_rng(0)

    def draw(_: Figure, axes: Axes) -> None:
        limit = max(row["p99_ms"] for row in results) * 1.15
        for place, row in enumerate(results):
            samples = np.concatenate([np.asarray(r) for r in row["rounds_ms"]])
            shown = samples[samples <= limit]
            axes.plot(
                shown,
                place + rng.uniform(-0.22, 0.22, len(shown)),
                ".",
                color=colors[row["name"]],
                alpha=0.35,
                ms=4,
                mew=0,
            )
            for key, height in (("p50_ms", 0.34), ("p90_ms", 0.26), ("p99_ms", 0.18)):
                axes.plot([row[key]] * 2, [place - height, place + height], color="#111827", lw=1.6)
            axes.annotate(f"{row['p50_ms']:.2f} ms", (row["p50_ms"], place - 0.36), ha="center", va="bottom")
        axes.set_yticks(range(len(results)), [row["name"] for row in results])
        axes.set(xlabel="ms per request (lines: p50, p90, p99)", ylim=(len(results) - 0.5, -0.75), xlim=(0, limit))

    return _svg(draw, 7.6, 0.9 + 0.7 * len(results), "latency")


def staircase(depth: int, stages: Sequence[int], budgets: Mapping[str, Sequence[int]], num_patches: int) -> str:
    """Patches present in each block, for several budgets."""

    def draw(_: Figure, axes: Axes) -> None:
        for (name, keep), color in zip(budgets.items(), COLORS):
            patches, now, after = [], num_patches, dict(zip(stages, keep))
            for block in range(1, depth + 1):
                patches.append(now)
                now = after.get(block, now)
            edges = np.arange(depth + 1) + 0.5
            axes.stairs(patches, edges, color=color, lw=2.2, label=name, baseline=None)
        axes.set(xlabel="block", ylabel="patches", ylim=(0, num_patches * 1.12), xticks=range(1, depth + 1))
        axes.legend(frameon=False, loc="lower left")

    return _svg(draw, 5.2, 2.4, "patches per block")


def elastic(rows: Sequence[Mapping[str, Any]]) -> str:
    """Top-1 with its interval against multiply-accumulates, one point per budget."""

    def draw(_: Figure, axes: Axes) -> None:
        macs = [row["macs"] / 1e6 for row in rows]
        top1 = [100 * row["top1"] for row in rows]
        errors = [
            [100 * (row["top1"] - row["interval"][0]) for row in rows],
            [100 * (row["interval"][1] - row["top1"]) for row in rows],
        ]
        axes.errorbar(macs, top1, yerr=errors, fmt="o-", color=COLORS[1], capsize=3)
        for x, y, row in zip(macs, top1, rows):
            axes.annotate(row["budget"], (x, y), (4, -13), textcoords="offset points", fontsize=7)
        axes.set(xlabel="million multiply-accumulates", ylabel="top-1, per cent")

    return _svg(draw, 7.6, 3.2, "accuracy by budget")


def fidelity(record: Mapping[str, Any]) -> str:
    """Insertion and deletion curves of every side, those of a random order dashed."""

    def draw(figure: Figure, axes: Axes) -> None:
        axes.remove()
        share = [100 * value for value in record["fractions"]]
        for place, kind in enumerate(("insertion", "deletion")):
            panel = figure.add_subplot(1, 2, place + 1)
            for side, color in zip(record["sides"], COLORS[1:]):
                label = f"{side['name']}, area {side[kind]['auc']:.3f}"
                panel.plot(share, side[kind]["curve"], color=color, label=label)
                label = f"random order, area {side[kind + '_random']['auc']:.3f}"
                panel.plot(share, side[kind + "_random"]["curve"], "--", color=color, alpha=0.6, label=label)
            what = "back in the blurred image" if kind == "insertion" else "taken out"
            panel.set(title=kind, xlabel=f"patches {what}, per cent", ylabel="probability of the class", ylim=(0, 1))
            panel.legend(frameon=False, fontsize=7)

    return _svg(draw, 8.4, 3.2, "insertion and deletion of patches")


def sizes(rows: Sequence[tuple[str, float, float]], colors: Mapping[str, str]) -> str:
    """Megabytes of graph and engine per artefact."""

    def draw(_: Figure, axes: Axes) -> None:
        for place, (name, graph, engine) in enumerate(rows):
            axes.barh(place - 0.18, graph, 0.34, color=colors[name])
            axes.barh(place + 0.18, engine, 0.34, color=colors[name], alpha=0.4)
            axes.annotate(f"graph {graph:.2f}", (graph, place - 0.18), (4, 0), textcoords="offset points", va="center")
            if engine:
                axes.annotate(
                    f"engine {engine:.2f}", (engine, place + 0.18), (4, 0), textcoords="offset points", va="center"
                )
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.set(xlabel="MB", ylim=(len(rows) - 0.4, -0.6), xlim=(0, max(max(r[1:]) for r in rows) * 1.22))
        axes.grid(False, axis="y")

    return _svg(draw, 7.6, 0.9 + 0.6 * len(rows), "sizes")
