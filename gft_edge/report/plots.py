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


def convergence(images: Sequence[int], ranges: Mapping[str, Sequence[float]], needed: int) -> str:
    """Each tensor's range, as a share of its last, against the number of calibration images."""

    def draw(_: Figure, axes: Axes) -> None:
        for values in ranges.values():
            if values[-1] > 0:
                axes.plot(images, [100 * value / values[-1] for value in values], color=COLORS[1], alpha=0.35, lw=1)
        axes.axhspan(99, 101, color=COLORS[2], alpha=0.25, lw=0)
        axes.axvline(needed, color=COLORS[3], lw=1.2)
        axes.annotate(f" {needed} images", (needed, 1), xycoords=("data", "axes fraction"), color=COLORS[3], va="top")
        axes.set_xscale("log", base=2)
        axes.set_xticks(images, [str(count) for count in images])
        axes.set(xlabel="calibration images", ylabel="range, per cent of the last")

    return _svg(draw, 7.6, 3.0, "ranges by number of images")


def sensitivity(data: Mapping[str, Any]) -> str:
    """Logit SQNR of each layer alone in INT8, and what leaving it out of an INT8 model gains; from sensitivity.json."""
    rows, best = data["layers"], chosen_layers(data)

    def draw(figure: Figure, axes: Axes) -> None:
        axes.remove()
        everything = data["everything"]["sqnr_db"]
        alone = [row["only"]["sqnr_db"] or np.nan for row in rows]
        gained = [(row["all_but"]["sqnr_db"] or np.nan) - (everything or np.nan) for row in rows]
        colors = [COLORS[1] if best is None or row["name"] in best else COLORS[3] for row in rows]
        panels = figure.subplots(1, 2, sharey=True)
        for panel, values in zip(panels, (alone, gained)):
            panel.barh(range(len(rows)), values, 0.7, color=colors)
            panel.grid(False, axis="y")
            panel.set_ylim(len(rows) - 0.4, -0.6)
        panels[0].set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
        panels[0].set(title="alone in INT8", xlabel="logit SQNR, dB (longer is better)")
        panels[1].set(title="left out of INT8", xlabel="dB gained over all in INT8")
        if everything is not None:
            panels[0].axvline(everything, color=COLORS[0], lw=1.2)
            panels[0].set_title(f"alone in INT8 (line: all, {everything:.1f} dB)")

    return _svg(draw, 8.4, 1.1 + 0.2 * len(rows), "sensitivity of layers to INT8")


def chosen_layers(data: Mapping[str, Any]) -> list[str] | None:
    """Layers that a search put into INT8, from sensitivity.json; None without a search that found some."""
    search = data["search"]
    return None if search is None or search["best"] is None else search["tries"][search["best"]]["int8"]


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


def distributions(rows: Sequence[Mapping[str, Any]], colors: Sequence[str]) -> str:
    """Every request as a dot, with p50, p90 and p99; rows carry a ``label`` and may have no raw samples."""
    rng = np.random.default_rng(0)

    def draw(_: Figure, axes: Axes) -> None:
        limit = max(row.get("p99_ms") or row["p50_ms"] for row in rows) * 1.15
        for place, (row, color) in enumerate(zip(rows, colors)):
            samples = np.concatenate([np.asarray(r, dtype=float) for r in row["rounds_ms"]] or [np.empty(0)])
            shown = samples[samples <= limit]
            height = place + rng.uniform(-0.22, 0.22, len(shown))
            axes.plot(shown, height, ".", color=color, alpha=0.35, ms=4, mew=0)
            for key, half in (("p50_ms", 0.34), ("p90_ms", 0.26), ("p99_ms", 0.18)):
                if row.get(key) is not None:
                    axes.plot([row[key]] * 2, [place - half, place + half], color="#111827", lw=1.6)
            axes.annotate(f"{row['p50_ms']:.2f} ms", (row["p50_ms"], place - 0.36), ha="center", va="bottom")
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=8)
        axes.set(xlabel="ms per request (lines: p50, p90, p99)", ylim=(len(rows) - 0.5, -0.75), xlim=(0, limit))

    return _svg(draw, 7.6, 0.9 + 0.7 * len(rows), "latency")


def over(curves: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str) -> str | None:
    """One line per curve, from zero; None without a curve."""
    if not curves:
        return None

    def draw(_: Figure, axes: Axes) -> None:
        for (name, curve), color in zip(curves.items(), itertools.cycle(COLORS)):
            axes.plot(*zip(*curve), "o-", color=color, label=name)
        points = sorted({x for curve in curves.values() for x, _ in curve})
        highest = max(y for curve in curves.values() for _, y in curve)
        axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 1.08 * highest), xlim=(0, 1.04 * points[-1]), xticks=points)
        axes.xaxis.set_major_formatter("{x:g}")
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=8)

    return _svg(draw, 7.6, 3.4, ylabel)


def speedups(rows: Sequence[Mapping[str, Any]]) -> str:
    """Times faster than the row's baseline, with its 95 % interval."""

    def draw(_: Figure, axes: Axes) -> None:
        for place, row in enumerate(rows):
            middle, (low, high) = row["speedup"], row["speedup_interval"]
            errors = [[max(middle - low, 0)], [max(high - middle, 0)]]
            axes.errorbar(middle, place, xerr=errors, fmt="o", color=COLORS[1], capsize=4, ms=7)
            axes.annotate(f"{middle:.2f}x", (middle, place), (0, 8), textcoords="offset points", ha="center")
        axes.axvline(1, color=COLORS[0], lw=1)
        axes.set_yticks(range(len(rows)), [f"{row['label']}, over {row['baseline']}" for row in rows], fontsize=8)
        axes.set(xlabel="times as fast (bar: 95 % interval)", ylim=(len(rows) - 0.5, -0.7))
        axes.set_xlim(0, max(row["speedup_interval"][1] for row in rows) * 1.12)

    return _svg(draw, 7.6, 0.9 + 0.6 * len(rows), "speed-ups")


def stages(rows: Sequence[Mapping[str, Any]]) -> str:
    """Medians of the stages of a request, one bar per row."""
    names = ("preprocessing", "h2d", "inference", "d2h", "postprocessing")

    def draw(_: Figure, axes: Axes) -> None:
        for name, color in zip(names, COLORS):
            widths = [(row["stages"].get(name) or {}).get("p50_ms", 0) for row in rows]
            lefts = [
                sum((row["stages"].get(before) or {}).get("p50_ms", 0) for before in names[: names.index(name)])
                for row in rows
            ]
            if any(widths):
                axes.barh(range(len(rows)), widths, 0.6, left=lefts, color=color, label=name)
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=8)
        axes.set(xlabel="ms", ylim=(len(rows) - 0.4, -0.6))
        axes.grid(False, axis="y")
        axes.legend(frameon=False, ncols=3, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))

    return _svg(draw, 7.6, 1.3 + 0.45 * len(rows), "stages")


def energy(rows: Sequence[Mapping[str, Any]]) -> str:
    """Millijoules per image, and with idle power taken off where it was measured."""

    def draw(_: Figure, axes: Axes) -> None:
        for place, row in enumerate(rows):
            whole, net = row["energy"]["mj_per_image"], row["energy"].get("net_mj_per_image")
            axes.barh(place - 0.17, whole, 0.32, color=COLORS[2])
            axes.annotate(f"{whole:.3g}", (whole, place - 0.17), (4, 0), textcoords="offset points", va="center")
            if net is not None:
                axes.barh(place + 0.17, net, 0.32, color=COLORS[2], alpha=0.4)
                axes.annotate(f"{net:.3g}", (net, place + 0.17), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=8)
        axes.set(xlabel="mJ per image", ylim=(len(rows) - 0.4, -0.6))
        axes.grid(False, axis="y")

    return _svg(draw, 7.6, 0.9 + 0.6 * len(rows), "energy")


ROLES = ("gemm", "convolution", "attention", "softmax", "reformat", "region", "other")


def layers(summary: Mapping[str, Any], most: int = 16) -> str | None:
    """The layers that take most of the time, by role; None without times."""
    timed = [layer for layer in summary["table"] if layer["share"] is not None]
    if not timed:
        return None
    shown = sorted(timed, key=lambda layer: -layer["share"])[:most]
    colors = dict(zip(ROLES, (*COLORS[1:], COLORS[0], "#d1d5db")))

    def draw(_: Figure, axes: Axes) -> None:
        for role in dict.fromkeys(layer["role"] for layer in shown):
            places = [place for place, layer in enumerate(shown) if layer["role"] == role]
            shares = [100 * shown[place]["share"] for place in places]
            axes.barh(places, shares, 0.7, color=colors[role], label=role)
        for place, layer in enumerate(shown):
            text = f"{layer['precision']}, {layer['time_ms']:.3g} ms"
            axes.annotate(
                text, (100 * layer["share"], place), (4, 0), textcoords="offset points", va="center", fontsize=8
            )
        names = [
            layer["name"] if len(layer["name"]) <= 44 else f"{layer['name'][:20]}...{layer['name'][-21:]}"
            for layer in shown
        ]
        axes.set_yticks(range(len(shown)), names, fontsize=8)
        axes.set(xlabel="per cent of the layers' time", ylim=(len(shown) - 0.4, -0.6))
        axes.set_xlim(0, 100 * shown[0]["share"] * 1.3)
        axes.grid(False, axis="y")
        axes.legend(frameon=False, fontsize=8, loc="lower right")

    return _svg(draw, 7.6, 0.9 + 0.3 * len(shown), "layers")
