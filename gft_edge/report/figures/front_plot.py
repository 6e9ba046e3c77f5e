"""The Pareto front of a search: accuracy against cost, from front.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gft_edge.report.figures.svg import COLORS, GRID, INK, PALE, WIDE, Draw, point_tip, responsive, svg

AXIS_TITLES = {
    "ms": "milliseconds an image",
    "mj": "millijoules an image",
    "gmac": "billion multiply-accumulates an image",
}
HEIGHT = 4.2


def front_file(data: Mapping[str, Any]) -> str:
    """Draws the figure of :func:`front` as an SVG file."""
    return svg(_draw(data), WIDE, HEIGHT, "accuracy against cost")


def front(data: Mapping[str, Any]) -> str:
    """Draws top-1 against cost with 95 % intervals: dominated points grey, the front in colour, the recommended point marked."""
    return responsive(_draw(data), HEIGHT, "accuracy against cost")


def series(data: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Returns the points of the front by checkpoint and precision, with a name each."""
    several = len(data["checkpoints"]) > 1
    found: dict[str, list[Mapping[str, Any]]] = {}
    for point in data["points"]:
        if point["is_front"]:
            size = data["checkpoints"][point["checkpoint"]]["image_size"]
            name = f"{point['precision']}, {size} px" if several else str(point["precision"])
            found.setdefault(name, []).append(point)
    return list(found.items())


def _draw(data: Mapping[str, Any]) -> Draw:
    axis = data["cost"]["axis"]

    def bars(axes: Axes, points: Sequence[Mapping[str, Any]], **style: Any) -> None:
        middles = [100 * p["top1"] for p in points]
        below = [max(100 * (p["top1"] - p["interval"][0]), 0) for p in points]
        above = [max(100 * (p["interval"][1] - p["top1"]), 0) for p in points]
        axes.errorbar([p[axis] for p in points], middles, yerr=[below, above], **style)

    def draw(_: Figure, axes: Axes) -> None:
        front = [p for p in data["points"] if p["is_front"]]
        rest = [p for p in data["points"] if not p["is_front"] and p[axis] is not None]
        if rest:
            bars(axes, rest, fmt="o", ms=3, color=PALE, ecolor=GRID, elinewidth=0.8, label="dominated", zorder=1)
        axes.plot([p[axis] for p in front], [100 * p["top1"] for p in front], color=COLORS[1], lw=1, zorder=2)
        for (name, points), color in zip(series(data), COLORS[1:] * len(front)):
            bars(axes, points, fmt="o", ms=6, color=color, capsize=3, label=f"front, {name}", zorder=3)
        for p in front + rest:
            low, high = (100 * value for value in p["interval"])
            name, top1 = f"{p['budget']}, {p['precision']}", 100 * p["top1"]
            text = f"{name}\n{p[axis]:.4g} {AXIS_TITLES[axis]}\ntop-1 {top1:.2f} % ({low:.2f} to {high:.2f})"
            point_tip(axes, p[axis], top1, text)
        if data["recommended"] is not None:
            chosen = data["points"][data["recommended"]["point"]]
            axes.plot(
                chosen[axis],
                100 * chosen["top1"],
                "o",
                ms=14,
                mfc="none",
                mec=INK,
                mew=1.6,
                label=f"recommended, {chosen['budget']}",
                zorder=4,
            )
        limit = data["limits"].get(axis)
        if limit is not None and limit <= 1.3 * max(p[axis] for p in front + rest):
            axes.axvline(limit, color=COLORS[3], ls="--", lw=1.2, label="limit")
        lows = [p["interval"][0] for p in front]
        highs = [p["interval"][1] for p in data["points"]]
        room = max(max(highs) - min(lows), 0.02)
        axes.set_ylim(100 * (min(lows) - 0.06 * room), 100 * min(max(highs) + 0.04 * room, 1.005))
        bound = " (a bound)" if data["cost"]["kind"] == "bound" else ""
        axes.set(xlabel=AXIS_TITLES[axis] + bound, ylabel="top-1, per cent")
        axes.set_xlim(left=0)
        axes.legend(frameon=False, fontsize=8, loc="lower right")

    return draw
