"""Figures of a run: training, accuracy, accuracy against latency, quantization, maps, sizes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gft_edge.budget import patches_per_block
from gft_edge.report.figures.svg import COLORS, EDGE, INK, WIDE, Draw, is_narrow, point_tip, responsive, short, svg, tip

CONTROLS_HEIGHT = 3.6
MOST_TIPS = 40
"""Largest number of points of a curve that show their value under the pointer."""
SMOOTHED = 0.2
"""Weight of a new value in the smoothed curve of a training log."""


@dataclass(frozen=True)
class Point:
    """A model with a measured accuracy and a measured latency.

    Args:
        name: of the model.
        ms: median latency.
        ms_interval: 95 % interval of ``ms``.
        top1: share of correct images.
        top1_interval: 95 % interval of ``top1``.
        is_unstable: whether the rounds of the latency vary by more than the protocol allows.
        color: of the model on the page.
    """

    name: str
    ms: float
    ms_interval: tuple[float, float]
    top1: float
    top1_interval: tuple[float, float]
    is_unstable: bool
    color: str


def tradeoff(points: Sequence[Point]) -> str:
    """Draws top-1 against latency, one point per model, with the intervals of both."""

    def draw(figure: Figure, axes: Axes) -> None:
        for before, after in itertools.pairwise(points):
            arrow = {"arrowstyle": "->", "color": EDGE, "lw": 1.4, "shrinkA": 9, "shrinkB": 9}
            axes.annotate("", (after.ms, 100 * after.top1), (before.ms, 100 * before.top1), arrowprops=arrow)
        for point in points:
            low, high = point.top1_interval
            left, right = point.ms_interval
            axes.errorbar(
                point.ms,
                100 * point.top1,
                xerr=[[max(point.ms - left, 0)], [max(right - point.ms, 0)]],
                yerr=[[100 * (point.top1 - low)], [100 * (high - point.top1)]],
                fmt="o",
                mfc="none" if point.is_unstable else point.color,
                color=point.color,
                capsize=3,
                ms=9,
            )
            point_tip(axes, point.ms, 100 * point.top1, _told(point))
        right = 1.15 * max(max(point.ms, point.ms_interval[1]) for point in points)
        low, high = min(p.top1_interval[0] for p in points), max(p.top1_interval[1] for p in points)
        room = max(high - low, 0.02)
        texts = [f"{short(p.name, 26)}\n{p.ms:.1f} ms" + (" (unstable)" if p.is_unstable else "") for p in points]
        letter = right / (95 if not is_narrow(figure) else 52)  # width of a letter on the axis, roughly
        widths = [letter * max(map(len, text.splitlines())) for text in texts]
        levels = _levels([p.ms for p in points], widths, right)
        for point, text, width, level in zip(points, texts, widths, levels):
            half = width / 2
            middle = min(max(point.ms, half), right - half) if 2 * half < right else right / 2
            height = 100 * (high + room * (0.05 + 0.2 * level))
            axes.text(middle, height, text, ha="center", va="bottom", fontsize=9, color=point.color)
            axes.plot([point.ms] * 2, [100 * point.top1_interval[1], height], ":", color=point.color, lw=1)
        axes.set_xlim(0, right)
        axes.set_ylim(100 * (low - 0.08 * room), 100 * (high + room * (0.28 + 0.2 * max(levels))))
        axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 100 and 100 * low - 8 * room <= tick])
        axes.set(xlabel="median latency, ms (left is faster)", ylabel="top-1, per cent")

    told = "; ".join(" ".join(_told(point).split()) for point in points)
    return responsive(draw, 3.4, f"accuracy against latency: {told}")


def _told(point: Point) -> str:
    """Returns both figures of a model as text."""
    low, high = point.top1_interval
    accuracy = f"top-1 {100 * point.top1:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    return f"{point.name}\n{accuracy}\n{point.ms:.2f} ms" + (", unstable" if point.is_unstable else "")


def _levels(middles: Sequence[float], widths: Sequence[float], right: float) -> list[int]:
    """Returns for each label the lowest line on which it overlaps no label to its left."""
    ends: list[float] = []
    levels = [0] * len(middles)
    for number in sorted(range(len(middles)), key=lambda place: middles[place]):
        start = min(max(middles[number] - widths[number] / 2, 0), max(right - widths[number], 0))
        level = next((line for line, end in enumerate(ends) if end <= start), len(ends))
        ends[level : level + 1] = [start + widths[number]]
        levels[number] = level
    return levels


def training(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draws loss and accuracy over steps, from a training log; logged values pale, smoothed ones strong."""
    accuracies = {
        label: [(row["step"], 100 * row[key]) for row in rows if row.get(key) is not None]
        for key, label in (
            ("train_top1", "training batches"),
            ("val_top1_full", "validation, every patch"),
            ("val_top1_budget", "validation, the budget"),
        )
    }
    accuracies = {label: values for label, values in accuracies.items() if values}

    def draw(figure: Figure, axes: Axes) -> None:
        axes.remove()
        panels = figure.subplots(2 if accuracies else 1, 1, sharex=True, squeeze=False)[:, 0]
        _curve(panels[0], [(row["step"], row["loss"]) for row in rows], COLORS[1], "")
        for row in rows[:: 1 + len(rows) // MOST_TIPS]:
            point_tip(panels[0], row["step"], row["loss"], f"step {row['step']}: loss {row['loss']:.4g}")
        panels[0].set(ylabel="loss", ylim=(0, 1.1 * max(row["loss"] for row in rows) or 1))
        if accuracies:
            for (label, values), color in zip(accuracies.items(), (COLORS[1], COLORS[3], COLORS[2])):
                _curve(panels[1], values, color, label, label.startswith("validation"))
                for step, value in values[:: 1 + len(values) // MOST_TIPS]:
                    point_tip(panels[1], step, value, f"step {step}, {label}: {value:.2f} %")
            panels[1].set(ylabel="top-1, per cent", ylim=(0, 104))
            panels[1].legend(frameon=False, fontsize=8, loc="best")
        panels[-1].set_xlabel("step")
        panels[-1].xaxis.get_major_locator().set_params(integer=True)

    what = "loss and accuracy" if accuracies else "loss"
    return responsive(draw, 3.8 if accuracies else 2.4, f"{what} over {rows[-1]['step']} steps of training")


def _curve(axes: Axes, values: Sequence[tuple[float, float]], color: str, label: str, is_exact: bool = False) -> None:
    """Draws a curve over steps; a long one is pale, with a smoothed curve on top, unless ``is_exact``."""
    steps, heights = zip(*values)
    if is_exact or len(values) < 12:
        axes.plot(steps, heights, "o-" if len(values) < 40 else "-", color=color, ms=4, label=label)
        return
    smooth = [heights[0]]
    for height in heights[1:]:
        smooth.append((1 - SMOOTHED) * smooth[-1] + SMOOTHED * height)
    axes.plot(steps, heights, color=color, alpha=0.3, lw=1)
    axes.plot(steps, smooth, color=color, lw=2, label=f"{label}, smoothed".removeprefix(", "))


def accuracy(results: Sequence[Mapping[str, Any]], colors: Mapping[str, str]) -> str:
    """Draws top-1 with its 95 % interval per model."""

    def draw(_: Figure, axes: Axes) -> None:
        for place, row in enumerate(results):
            low, high = (100 * value for value in row["interval"])
            top1 = 100 * row["top1"]
            color = colors.get(row["name"], COLORS[0])
            errors = [[max(top1 - low, 0)], [max(high - top1, 0)]]
            axes.errorbar(top1, place, xerr=errors, fmt="o", color=color, capsize=4, ms=7)
            axes.annotate(f"{top1:.1f} %", (top1, place), (0, 8), textcoords="offset points", ha="center")
            point_tip(axes, top1, place, f"{row['title']}\ntop-1 {top1:.2f} % ({low:.2f} to {high:.2f})")
        axes.set_yticks(range(len(results)), [short(row["title"], 30) for row in results], fontsize=9)
        axes.set(xlabel="top-1, per cent (bar: 95 % interval)", ylim=(len(results) - 0.5, -0.7))

    told = "; ".join(f"{row['title']} {100 * row['top1']:.1f} %" for row in results)
    return responsive(draw, 0.9 + 0.55 * len(results), f"top-1 with its 95 % interval: {told}")


def staircase(
    depth: int, stages: Sequence[int], budgets: Mapping[str, Sequence[int]], num_patches: int, is_inside: bool
) -> str:
    """Draws the number of patches along the blocks, for several budgets.

    Args:
        depth: number of blocks.
        stages: numbers of blocks.
        budgets: patches kept by each stage, by name.
        num_patches: of the whole image.
        is_inside: whether these blocks select, with the step in their middle; else the stages stand behind them.
    """

    def draw(_: Figure, axes: Axes) -> None:
        for (name, keep), color in zip(budgets.items(), itertools.cycle(COLORS)):
            leaving = dict(zip(stages, keep)) if is_inside else {}
            entering = patches_per_block(stages, keep, num_patches, depth)
            halves = [count for block, n in enumerate(entering, start=1) for count in (n, leaving.get(block, n))]
            edges = np.arange(2 * depth + 1) / 2 + 0.5
            axes.stairs(halves, edges, color=color, lw=2.2, label=name, baseline=None)
            for block, count in enumerate(entering, start=1):
                text = f"budget {name}, block {block}: {count} patches enter"
                leaves = leaving.get(block, count)
                point_tip(axes, block, leaves, text if leaves == count else f"{text}, {leaves} stay")
        ticks = range(1, depth + 1, 1 + depth // 13)
        axes.set(xlabel="block", ylabel="patches", ylim=(0, num_patches * 1.12), xticks=ticks)
        axes.legend(frameon=False, ncols=3, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))

    told = "; ".join(f"budget {name} keeps {', '.join(map(str, keep))}" for name, keep in budgets.items())
    return responsive(draw, 2.8, f"patches per block, of {num_patches}: {told}")


def elastic(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draws top-1 with its interval against multiply-accumulates, one point per budget, as an SVG file."""

    def draw(_: Figure, axes: Axes) -> None:
        macs = [row["macs"] / 1e6 for row in rows]
        top1 = [100 * row["top1"] for row in rows]
        errors = [
            [100 * (row["top1"] - row["interval"][0]) for row in rows],
            [100 * (row["interval"][1] - row["top1"]) for row in rows],
        ]
        axes.errorbar(macs, top1, yerr=errors, fmt="o-", color=COLORS[1], capsize=3)
        lowest = min(y - below for y, below in zip(top1, errors[0]))
        highest = max(y + above for y, above in zip(top1, errors[1]))
        for x, y, below, row in zip(macs, top1, errors[0], rows):
            place: dict[str, Any] = {
                "textcoords": "offset points",
                "rotation": 90,
                "ha": "center",
                "va": "top",
                "fontsize": 7,
            }
            axes.annotate(row["budget"], (x, y - below), (0, -5), **place)
        room = max(highest - lowest, 0.5)
        axes.set(xlabel="million multiply-accumulates", ylabel="top-1, per cent")
        axes.set_ylim(lowest - 0.4 * room, highest + 0.05 * room)

    return svg(draw, WIDE, 3.2, "accuracy by budget")


def controls_file(data: Mapping[str, Any]) -> str:
    """Draws the figure of :func:`controls` as an SVG file."""
    return svg(_controls(data), WIDE, CONTROLS_HEIGHT, "accuracy by selection")


def controls(data: Mapping[str, Any]) -> str:
    """Draws top-1 against multiply-accumulates, one line per rule that chooses the patches; from controls.json."""
    return responsive(_controls(data), CONTROLS_HEIGHT, "accuracy by selection")


def _controls(data: Mapping[str, Any]) -> Draw:
    full = data["full"]
    budgets = sorted(data["budgets"], key=lambda at: at["macs"])

    def draw(_: Figure, axes: Axes) -> None:
        for (name, color), marker in zip(_rule_colors(budgets).items(), itertools.cycle("osvD^PX*")):
            points = []
            for at in budgets:
                row = next((row for row in at["rules"] if row["rule"] == name), None)
                if row is not None:
                    smaller = at["lower_resolution"]
                    cost = smaller["macs"] if name == "lower resolution" and smaller is not None else at["macs"]
                    points.append((cost / 1e6, 100 * row["top1"], [100 * bound for bound in row["interval"]]))
            if full is not None:
                points.append((full["macs"] / 1e6, 100 * full["top1"], [100 * bound for bound in full["interval"]]))
            costs, heights, bounds = zip(*sorted(points))
            for cost, height, (low, high) in zip(costs, heights, bounds):
                text = f"{name}\n{cost:.0f} million MACs: {height:.2f} % ({low:.2f} to {high:.2f})"
                point_tip(axes, cost, height, text)
            is_own = name == budgets[0]["rules"][0]["rule"]
            axes.plot(costs, heights, f"{marker}-", color=color, lw=2.4 if is_own else 1.2, ms=5, label=name)
            if is_own:
                errors = [
                    [max(h - b[0], 0) for h, b in zip(heights, bounds)],
                    [max(b[1] - h, 0) for h, b in zip(heights, bounds)],
                ]
                axes.errorbar(costs, heights, yerr=errors, fmt="none", color=color, capsize=3)
        axes.set(xlabel="million multiply-accumulates", ylabel="top-1, per cent")
        axes.legend(frameon=False, fontsize=8, loc="best")

    return draw


def _rule_colors(budgets: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns a colour for each rule; the model's own comes first, in blue."""
    names = dict.fromkeys(row["rule"] for at in budgets for row in at["rules"])
    return dict(zip(names, itertools.cycle((COLORS[1], COLORS[0], COLORS[3], COLORS[2], COLORS[4], COLORS[5], INK))))


def convergence(images: Sequence[int], ranges: Mapping[str, Sequence[float]], needed: int) -> str:
    """Draws the range of each tensor, as a share of its last value, against the number of calibration images, as an SVG file."""

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

    return svg(draw, WIDE, 3.0, "ranges by number of images")


def sensitivity_file(data: Mapping[str, Any]) -> str:
    """Draws the figure of :func:`sensitivity` as an SVG file."""
    return svg(_sensitivity(data), 8.4, _sensitivity_height(data), "sensitivity of layers to INT8")


def sensitivity(data: Mapping[str, Any]) -> str:
    """Draws the logit SQNR of each layer alone in INT8, and the gain from leaving it out of INT8; from sensitivity.json."""
    height = _sensitivity_height(data)
    return responsive(_sensitivity(data), height, "sensitivity of layers to INT8", 2 * height)


def _sensitivity_height(data: Mapping[str, Any]) -> float:
    return 1.1 + 0.2 * len(data["layers"])


def _sensitivity(data: Mapping[str, Any]) -> Draw:
    rows, best = data["layers"], chosen_layers(data)
    everything = data["everything"]["sqnr_db"]

    def draw(figure: Figure, axes: Axes) -> None:
        axes.remove()
        alone = [row["only"]["sqnr_db"] or np.nan for row in rows]
        gained = [(row["all_but"]["sqnr_db"] or np.nan) - (everything or np.nan) for row in rows]
        colors = [COLORS[1] if best is None or row["name"] in best else COLORS[3] for row in rows]
        narrow = is_narrow(figure)
        panels = figure.subplots(*((2, 1) if narrow else (1, 2)), sharey=not narrow)
        for number, (panel, values) in enumerate(zip(panels, (alone, gained))):
            for bar, row, value in zip(panel.barh(range(len(rows)), values, 0.7, color=colors), rows, values):
                tip(bar, f"{row['name']}: {'bit-identical' if np.isnan(value) else f'{value:.2f} dB'}")
            panel.grid(False, axis="y")
            panel.set_ylim(len(rows) - 0.4, -0.6)
            if narrow or number == 0:
                panel.set_yticks(range(len(rows)), [short(row["name"], 30) for row in rows], fontsize=8)
        panels[0].set(title="alone in INT8", xlabel="logit SQNR, dB (longer is better)")
        panels[1].set(title="left out of INT8", xlabel="dB gained over all in INT8")
        if everything is not None:
            panels[0].axvline(everything, color=INK, lw=1.2)
            panels[0].set_title(f"alone in INT8 (line: all, {everything:.1f} dB)", fontsize=10)

    return draw


def chosen_layers(data: Mapping[str, Any]) -> list[str] | None:
    """Returns the layers that a search chose for INT8, from sensitivity.json; None without a result."""
    search = data["search"]
    return None if search is None or search["best"] is None else search["tries"][search["best"]]["int8"]


def fidelity(record: Mapping[str, Any]) -> str:
    """Draws insertion and deletion curves of both models; those of a random order are dashed."""

    def draw(figure: Figure, axes: Axes) -> None:
        axes.remove()
        share = [100 * value for value in record["fractions"]]
        panels = figure.subplots(*((2, 1) if is_narrow(figure) else (1, 2)))
        for panel, kind in zip(panels, ("insertion", "deletion")):
            for side, color in zip(record["sides"], COLORS[1:]):
                label = f"{short(side['name'])}, area {side[kind]['auc']:.3f}"
                panel.plot(share, side[kind]["curve"], color=color, label=label)
                for part, height in zip(share, side[kind]["curve"]):
                    point_tip(panel, part, height, f"{side['name']}, {part:.0f} % of the patches: {height:.3f}")
                label = f"random order, area {side[kind + '_random']['auc']:.3f}"
                panel.plot(share, side[kind + "_random"]["curve"], "--", color=color, alpha=0.6, label=label)
            change = "inserted into the blurred image" if kind == "insertion" else "removed"
            panel.set(title=kind, xlabel=f"patches {change}, per cent", ylabel="probability of the class", ylim=(0, 1))
            panel.legend(frameon=False, fontsize=8)

    return responsive(draw, 3.4, "insertion and deletion of patches", 6.6)


def sizes(rows: Sequence[tuple[str, float, float]], colors: Mapping[str, str]) -> str:
    """Draws the megabytes of graph and engine per artefact; 0 stands for no engine."""

    def draw(_: Figure, axes: Axes) -> None:
        for place, (name, graph, engine) in enumerate(rows):
            color = colors.get(name, COLORS[0])
            tip(axes.barh(place - 0.18, graph, 0.34, color=color)[0], f"{name}: graph {graph:.3f} MB")
            axes.annotate(f"graph {graph:.2f}", (graph, place - 0.18), (4, 0), textcoords="offset points", va="center")
            if engine:
                (bar,) = axes.barh(place + 0.18, engine, 0.34, color=color, alpha=0.4)
                tip(bar, f"{name}: engine {engine:.3f} MB")
                axes.annotate(
                    f"engine {engine:.2f}", (engine, place + 0.18), (4, 0), textcoords="offset points", va="center"
                )
        axes.set_yticks(range(len(rows)), [short(name, 24) for name, _, _ in rows])
        largest = max(max(row[1:]) for row in rows) or 1
        axes.set(xlabel="MB", ylim=(len(rows) - 0.4, -0.6), xlim=(0, largest * 1.4))
        axes.grid(False, axis="y")

    told = "; ".join(f"{name} {graph:.2f} MB" for name, graph, _ in rows)
    return responsive(draw, 0.9 + 0.6 * len(rows), f"sizes of the graphs: {told}")
