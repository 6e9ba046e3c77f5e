"""Draws with matplotlib and returns inline SVG: no network, no script, sharp at any size, in the colours of the page."""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterable

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("svg")

COLORS = ("#6b7280", "#2563eb", "#0d9488", "#c2410c", "#7c3aed", "#be185d")
INK, SOFT, EDGE, GRID, PALE = "#1f2937", "#374151", "#9ca3af", "#e5e7eb", "#d1d5db"
WIDE, NARROW = 7.6, 4.5
"""Inches: for a page of a desktop, and for one of a telephone, where the same letters are as large."""
Draw = Callable[[Figure, Axes], None]

_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "axes.edgecolor": EDGE,
    "text.color": INK,
    "text.parse_math": False,  # names of classes and files are no formulas, whatever dollars they hold
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
}
_VARIABLES = {
    INK: "--ink",
    SOFT: "--ink",
    EDGE: "--axis",
    GRID: "--line",
    PALE: "--axis",
    **{color: f"--c{number}" for number, color in enumerate(COLORS)},
}
"""Custom properties of the page's style sheet that stand for each colour, so that a dark page has its own."""


def color_of(names: Iterable[str]) -> dict[str, str]:
    """One colour per name, the same in every figure of a page."""
    return dict(zip(names, itertools.cycle(COLORS)))


def is_narrow(figure: Figure) -> bool:
    """Whether the figure is drawn for a narrow page."""
    return bool(figure.get_figwidth() < 6)


def short(text: str, most: int = 34) -> str:
    """The text on one line of at most ``most`` characters, cut in the middle."""
    flat = " ".join(text.split())
    half = (most - 3) // 2
    return flat if len(flat) <= most else f"{flat[:half]}...{flat[-half:]}"


def svg(draw: Draw, width: float, height: float, title: str) -> str:
    """One figure as an ``<svg>`` element; its colours are those of the page, or matplotlib's where it stands alone.

    Args:
        draw: draws on a figure and its axes.
        width, height: inches.
        title: for people who do not see the figure.
    """
    salt = {"svg.hashsalt": f"gft_edge {title} {width}"}  # ids of a figure that is not displayed must be its own
    with matplotlib.rc_context({**_STYLE, **salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser has other fonts
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure, figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Title": title}, transparent=True)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing refers to them, and every figure has the same
    for color, name in _VARIABLES.items():
        text = text.replace(f": {color}", f": var({name}, {color})")
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg ', r'<svg role="img" \1', text, count=1)


def responsive(draw: Draw, height: float, title: str, narrow_height: float | None = None) -> str:
    """The figure twice, for wide and for narrow pages; the style sheet displays one of them."""
    wide = svg(draw, WIDE, height, title)
    narrow = svg(draw, NARROW, narrow_height or height, title)
    return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'
