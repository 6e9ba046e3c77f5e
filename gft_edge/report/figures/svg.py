"""Draws figures with matplotlib as inline SVG, without network or script, in the colours of the page."""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("svg")

COLORS = ("#5f6673", "#2563eb", "#0f766e", "#c2410c", "#7c3aed", "#be185d")
"""Readable as letters on white: contrast of 4.5 or more (WCAG 2.1, AA)."""
INK, SOFT, EDGE, GRID, PALE = "#1f2937", "#374151", "#9ca3af", "#e5e7eb", "#d1d5db"
WIDE, NARROW = 7.6, 4.5
"""Widths in inches of figures for desktops and telephones; letters have the same size in both."""
Draw = Callable[[Figure, Axes], None]

STYLE = {
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
    "text.parse_math": False,  # a dollar sign in the name of a class or file starts no formula
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
"""Custom property of the style sheet for each colour, so that a dark page has its own colours."""
_PAPER = '<rect width="100%" height="100%" style="fill: var(--behind, #ffffff)"/>'
"""Behind a figure: nothing on a page, white in a file, which a dark page may show as a picture."""
_TIP = "tip: "
"""Begins the id of a group that shows a text under the pointer."""


def color_of(names: Iterable[str]) -> dict[str, str]:
    """Returns one colour per name, the same in every figure of a page."""
    return dict(zip(names, itertools.cycle(COLORS)))


def is_narrow(figure: Figure) -> bool:
    """Returns whether the figure is for a narrow page."""
    return bool(figure.get_figwidth() < 6)


def short(text: str, most: int = 34) -> str:
    """Returns the text on one line of at most ``most`` characters, cut in the middle."""
    flat = " ".join(text.split())
    half = (most - 3) // 2
    return flat if len(flat) <= most else f"{flat[:half]}...{flat[-half:]}"


def tip(artist: Any, text: str) -> None:
    """Shows a text where the pointer is on an artist of matplotlib, as a line or a bar."""
    artist.set_gid(_TIP + text)


def point_tip(axes: Axes, x: float, y: float, text: str) -> None:
    """Shows a text where the pointer is near a point in data coordinates."""
    (target,) = axes.plot([x], [y], "o", ms=13, mfc="none", mec="none", label="_", zorder=9)
    tip(target, text)


def svg(draw: Draw, width: float, height: float, title: str) -> str:
    """Returns a figure as an ``<svg>`` element; it uses the colours of the page, or its own on white outside of a page.

    Args:
        draw: draws on a figure and its axes.
        width, height: inches.
        title: what the figure shows, for screen readers.
    """
    salt = {"svg.hashsalt": f"gft_edge {title} {width}"}  # both widths of a figure are on the page, so ids must differ
    with matplotlib.rc_context({**STYLE, **salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser has more fonts
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure, figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(rf"<g id=([\"']){_TIP}(.*?)\1>", r'<g class="tip"><title>\2</title>', text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # unused, and equal in every figure
    for color, name in _VARIABLES.items():
        text = text.replace(f": {color}", f": var({name}, {color})")
    opening = f'<svg role="img" aria-label="{escape(" ".join(title.split()))}" '
    text = re.sub(
        r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg ', lambda found: opening + (found[1] or ""), text, count=1
    )
    return re.sub(r">", f">\n {_PAPER}", text, count=1)


def responsive(draw: Draw, height: float, title: str, narrow_height: float | None = None) -> str:
    """Returns the figure for wide and for narrow pages; the style sheet displays one of them."""
    wide = svg(draw, WIDE, height, title)
    narrow = svg(draw, NARROW, narrow_height or height, title)
    return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'
