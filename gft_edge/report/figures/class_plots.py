"""Figures of classes: the confusion matrix and the share of correct answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gft_edge.report.figures.svg import COLORS, INK, WIDE, is_narrow, responsive, short, svg
from gft_edge.stats.metrics import wilson_interval

MOST_IN_MATRIX = 50
MOST_ON_A_TELEPHONE = 20
"""Largest number of classes in a narrow matrix; a larger matrix is drawn once and scrolled."""
MOST_BARS = 40
NUMBERED = 16
"""Largest number of classes in a matrix with numbers in its cells."""


def confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Draws the matrix of true classes (rows) and predicted ones (columns), shaded by the share of the row.

    Args:
        matrix: (C, C) counts.
        labels: of the C classes, at most :data:`MOST_IN_MATRIX`.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shade = np.zeros((*share.shape, 4))
    right = np.eye(len(share), dtype=bool)
    for mask, color in ((right, COLORS[2]), (~right, COLORS[3])):
        shade[mask, :3] = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    shade[..., 3] = np.where(share > 0, 0.15 + 0.75 * share, 0)  # transparent where empty, on light and dark pages

    def draw(figure: Figure, axes: Axes) -> None:
        narrow, size = is_narrow(figure), len(labels)
        letters = 9 if size <= 10 else 8 if size <= MOST_ON_A_TELEPHONE else 6
        names = [short(label, 16 if narrow else 24) for label in labels]
        axes.imshow(shade, interpolation="nearest", aspect="equal")
        axes.set_xticks(range(size), names, rotation=90, fontsize=letters)
        axes.set_yticks(range(size), names, fontsize=letters)
        axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        axes.grid(False, which="major")
        axes.grid(True, which="minor", lw=0.6)
        axes.tick_params(which="both", length=0)
        axes.set(xlabel="predicted", ylabel="true class")
        if size <= NUMBERED:
            for row, column in np.argwhere(counts > 0):
                text = f"{counts[row, column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=8 if narrow else letters)

    height = min(7.4, 2.6 + 0.26 * len(labels))
    if len(labels) > MOST_ON_A_TELEPHONE:
        return svg(draw, WIDE, height, "confusion matrix")
    return responsive(draw, height, "confusion matrix", min(height, 4.9))


def per_class(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draws the share of correct answers per class with its 95 % interval, the worst first, at most :data:`MOST_BARS`."""
    shown = worst_first(rows)[:MOST_BARS]

    def draw(figure: Figure, axes: Axes) -> None:
        for place, row in enumerate(shown):
            share = row["right"] / row["count"]
            low, high = wilson_interval(row["right"], row["count"])
            axes.barh(place, 100 * share, 0.7, color=COLORS[1], alpha=0.55)
            axes.plot([100 * low, 100 * high], [place, place], color=INK, lw=1.2)
        most = 20 if is_narrow(figure) else 34
        names = [f"{short(row['label'], most)} ({row['right']}/{row['count']})" for row in shown]
        axes.set_yticks(range(len(shown)), names, fontsize=8)
        axes.set(xlabel="correct, per cent (line: 95 % interval)", ylim=(len(shown) - 0.4, -0.6), xlim=(0, 100))
        axes.grid(False, axis="y")

    return responsive(draw, 0.8 + 0.24 * len(shown), "correct answers per class")


def worst_first(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the classes with images, by their share of correct answers; the larger class first on a tie."""
    return sorted((row for row in rows if row["count"]), key=lambda row: (row["right"] / row["count"], -row["count"]))


def confused_pairs(matrix: Sequence[Sequence[int]], labels: Sequence[str], most: int = 12) -> list[dict[str, Any]]:
    """Returns pairs of a true class and a wrong predicted one, the most frequent first."""
    counts = np.asarray(matrix)
    found = [
        {
            "truth": labels[row],
            "predicted": labels[column],
            "count": int(counts[row, column]),
            "of": int(counts[row].sum()),
        }
        for row, column in np.argwhere(counts > 0)
        if row != column
    ]
    return sorted(found, key=lambda pair: -pair["count"])[:most]
