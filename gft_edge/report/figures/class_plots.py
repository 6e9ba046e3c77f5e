"""Figures of classes: the confusion matrix and the share of correct answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gft_edge.report.figures.svg import COLORS, INK, WIDE, is_narrow, responsive, short, svg, tip
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

    def draw(figure: Figure, axes: Axes) -> None:
        narrow, size = is_narrow(figure), len(labels)
        letters = 9 if size <= 10 else 8 if size <= MOST_ON_A_TELEPHONE else 6
        names = [short(label, 16 if narrow else 24) for label in labels]
        for row, column in np.argwhere(counts > 0):
            color = COLORS[2] if row == column else COLORS[3]
            alpha = 0.15 + 0.35 * share[row, column]  # numbers on it stay readable on light and dark pages
            cell = Rectangle((column - 0.5, row - 0.5), 1, 1, color=color, alpha=alpha, lw=0)
            count, whole = counts[row, column], counts[row].sum()
            tip(axes.add_patch(cell), f"{labels[row]}, predicted {labels[column]}: {count:.0f} of {whole:.0f}")
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
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

    told = f"confusion matrix of {len(labels)} classes: {np.trace(counts):.0f} of {counts.sum():.0f} images correct"
    height = min(7.4, 2.6 + 0.26 * len(labels))
    if len(labels) > MOST_ON_A_TELEPHONE:
        return svg(draw, WIDE, height, told)
    return responsive(draw, height, told, min(height, 4.9))


def per_class(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draws the share of correct answers per class with its 95 % interval, the worst first, at most :data:`MOST_BARS`."""
    shown = worst_first(rows)[:MOST_BARS]

    def draw(figure: Figure, axes: Axes) -> None:
        for place, row in enumerate(shown):
            share = row["right"] / row["count"]
            low, high = wilson_interval(row["right"], row["count"])
            (bar,) = axes.barh(place, 100 * share, 0.7, color=COLORS[1], alpha=0.55)
            tip(bar, f"{row['label']}: {row['right']} of {row['count']} ({100 * low:.1f} to {100 * high:.1f} %)")
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
