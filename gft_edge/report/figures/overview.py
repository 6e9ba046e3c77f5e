"""One picture for a first look: accuracy against latency at several budgets, beside images with the patches kept."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from gft_edge.benchmarks.measuring.bench_files import machine_label
from gft_edge.report.figures.svg import COLORS, SOFT, STYLE
from gft_edge.report.results.records import UNSTABLE

DPI = 130
PALETTE = 160
"""Colours of the written picture; more of them enlarge the file and are not seen."""
NAMES = {"fp32": "FP32", "int8": "INT8"}
MARKED = (1.0, 0.5, 0.2, 0.05)
"""Shares of patches that are written beside their points."""


@dataclass(frozen=True)
class Scene:
    """An image and what budgets keep of it.

    Args:
        panels: the image and one picture per budget, each (H, H, 3) uint8.
        labels: the true class and the predicted one per budget.
    """

    panels: tuple[npt.NDArray[np.uint8], ...]
    labels: tuple[str, ...]


def overview(data: Mapping[str, Any], scenes: Sequence[Scene], shares: Sequence[float]) -> bytes:
    """Draws the picture and returns it as a PNG file.

    Args:
        data: of :func:`gft_edge.benchmarks.experiments.overview.run`.
        scenes: one row each.
        shares: of the patches kept, one for each further panel of a scene.
    """
    from PIL import Image

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.6, 4.5), layout="constrained", facecolor="white")
        halves: Any = figure.subfigures(1, 2, width_ratios=(1.22, 1), wspace=0.03)
        _curves(halves[0].subplots(), data)
        _panels(halves[1], scenes, shares)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=DPI)
    small = Image.open(out).convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE)
    out = io.BytesIO()
    small.save(out, format="PNG", optimize=True)
    return out.getvalue()


def _curves(axes: Axes, data: Mapping[str, Any]) -> None:
    rows = data["rows"]
    for (precision, name), color, above in zip(NAMES.items(), COLORS[1:], (True, False)):
        own = [row for row in rows if row["precision"] == precision]
        ms, top1 = [row["p50_ms"] for row in own], [100 * row["top1"] for row in own]
        for row, x in zip(own, ms):
            axes.plot([x, x], [100 * bound for bound in row["interval"]], color=color, lw=0.8, alpha=0.45, zorder=1)
        axes.plot(ms, top1, "o-", color=color, ms=6, label=name)
        for row, x, y in zip(own, ms, top1):
            if row["share"] in MARKED:
                text, place = f"{100 * row['share']:.0f} %", (0, 8 if above else -17)
                axes.annotate(text, (x, y), place, textcoords="offset points", color=color, ha="center", fontsize=9)
    lowest, highest = (pick(100 * row["interval"][side] for row in rows) for side, pick in ((0, min), (1, max)))
    room = max(highest - lowest, 1)
    axes.set_ylim(lowest - 0.22 * room, highest + 0.06 * room)
    axes.set_xscale("log")
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100) if _is_near(tick, [row["p50_ms"] for row in rows])]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="median milliseconds an image, one thread (logarithmic; left is faster)", ylabel="top-1, per cent")
    told = "per cent: patches kept; bars: 95 % intervals"
    axes.legend(frameon=False, loc="lower center", ncols=2, fontsize=9, title=told, title_fontsize=9)
    unstable = sum(row["verdict"] == UNSTABLE for row in rows)
    warning = f"; {unstable} of {len(rows)} latencies unstable" if unstable else ""
    note = f"{data['images']} test images of {data['data']}, ONNX Runtime, {machine_label(data)}{warning}"
    axes.set_title(f"Accuracy against latency, one set of weights\n{note}", fontsize=9, loc="left")


def _is_near(tick: float, values: Sequence[float]) -> bool:
    return 0.8 * min(values) <= tick <= 1.25 * max(values)


def _panels(figure: Any, scenes: Sequence[Scene], shares: Sequence[float]) -> None:
    grid = figure.subplots(len(scenes), 1 + len(shares), squeeze=False)
    titles = ["image", *(f"{100 * share:.0f} % of the patches" for share in shares)]
    for row, scene in enumerate(scenes):
        for column, (panel, label) in enumerate(zip(scene.panels, scene.labels)):
            axes = grid[row][column]
            axes.imshow(panel, interpolation="nearest")
            axes.set_axis_off()
            text = f"class {label}" if column == 0 else f"says {label}"
            color = SOFT if column == 0 else COLORS[2] if label == scene.labels[0] else COLORS[3]
            axes.set_title(f"{titles[column]}\n{text}" if row == 0 else text, fontsize=9, color=color)
