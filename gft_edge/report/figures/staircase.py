"""The staircase: milliseconds against tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gft_edge.report.figures.svg import COLORS, PALE, WIDE, svg


def staircase(tokens: Sequence[int], ms: Sequence[float], free: Collection[int], xlabel: str) -> str:
    """Draws latency over tokens; counts that cost no more than a smaller one are filled rings of another colour.

    Args:
        tokens: ascending.
        ms: of each.
        free: tokens that cost nothing more.
        xlabel: of the axis of tokens.
    """

    def draw(_: Figure, axes: Axes) -> None:
        axes.plot(tokens, ms, "-", color=PALE, lw=1, drawstyle="steps-pre")
        for is_free, color, label in (
            (False, COLORS[1], "measured"),
            (True, COLORS[3], "costs no more than fewer tokens"),
        ):
            chosen = [(count, value) for count, value in zip(tokens, ms) if (count in free) == is_free]
            if chosen:
                axes.plot(*zip(*chosen), "o", color=color, ms=5, label=label)
        axes.set(xlabel=xlabel, ylabel="median latency, ms", xlim=(0, 1.03 * max(tokens)), ylim=(0, 1.1 * max(ms)))
        axes.legend(frameon=False, fontsize=8, loc="upper left")

    return svg(draw, WIDE, 3.6, "latency against tokens")
