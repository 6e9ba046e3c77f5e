"""Files and page section of a search; all numbers come from front.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gft_edge.errors import ConfigError
from gft_edge.files import replacing, require_writable, write_json
from gft_edge.report.figures import front_plot
from gft_edge.report.pages.html import render
from gft_edge.report.pages.tables import Cell, number, table
from gft_edge.report.pages.view import Section
from gft_edge.report.results.checks import cleaned
from gft_edge.report.results.records import FRONT

UNITS = {"ms": "ms", "mj": "mJ", "gmac": "GMAC"}


def require_front_writable(out: Path) -> None:
    """Refuses an output of a search that cannot be written.

    Raises:
        ConfigError: it is no name of a JSON file, or a path is in the way.
    """
    if out.suffix != ".json":
        raise ConfigError(f"output {out}: give the name of a .json file; the plot and the page are written beside it")
    for path in (out, out.with_suffix(".svg"), out.with_suffix(".html")):
        require_writable(path)


def write_front(out: Path, data: Mapping[str, Any]) -> None:
    """Writes ``front.json`` and beside it ``front.svg`` and ``front.html``, by the name of the first.

    Args:
        out: name of the JSON file.
        data: of :class:`gft_edge.search.search.Found`.

    Raises:
        OutputError: a file cannot be written.
    """
    write_json(out, data)
    record = FRONT.read(cleaned(dict(data)))
    shown = section(record)
    parts = [
        Section("Recommendation", "recommendation", shown),
        Section("Accuracy against cost", "cost", shown),
        Section("Points of the front", "points", shown),
    ]
    page = {
        "title": "gft_edge: the smallest model that is still right",
        "kind": "Search of budgets",
        "heading": "The smallest model that is still right",
        "front": shown,
        "sections": parts,
    }
    html = render("front.html.j2", page)
    for path, text in ((out.with_suffix(".svg"), front_plot.front_file(record)), (out.with_suffix(".html"), html)):
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def front_table(data: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns titles and rows of the points of the front, by cost, and of every patch."""
    shown = [key for key in UNITS if any(point[key] is not None for point in data["points"])]
    several = len(data["checkpoints"]) > 1
    titles = [
        *(["checkpoint"] if several else []),
        "budget",
        "precision",
        *(UNITS[key] for key in shown),
        "top-1",
        "95 % interval",
        "",
    ]
    chosen = None if data["recommended"] is None else data["recommended"]["point"]
    rows = []
    for place, point in enumerate(data["points"]):
        if not (point["is_front"] or point["is_reference"]):
            continue
        low, high = point["interval"]
        words = ["recommended"] * (place == chosen) + ["every patch"] * point["is_reference"]
        words += ["outside the limits"] * (not point["is_within"])
        rows.append(
            [
                *([data["checkpoints"][point["checkpoint"]]["name"]] if several else []),
                point["budget"],
                point["precision"],
                *("" if point[key] is None else f"{point[key]:.4g}" for key in shown),
                f"{point['top1']:.2%}",
                f"{low:.2%} to {high:.2%}",
                ", ".join(words),
            ]
        )
    return titles, rows


def section(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the data of the section: the record, its figure, and the table of the front.

    Args:
        record: checked against its form.
    """
    titles, rows = front_table(record)
    texts = {"budget", "precision", "checkpoint", "95 % interval", ""}
    heads = [title if title in texts else number(title) for title in titles]
    cells = [[Cell(cell, "good") if cell.startswith("recommended") else cell for cell in row] for row in rows]
    return {
        **record,
        "figure": front_plot.front(record),
        "table": table(heads, cells),
        "measured": len(record["points"]),
        "total": sum(row["budgets"] for row in record["candidates"]),
        "inside": sum(row["within"] for row in record["candidates"]),
        "limit_text": " and ".join(
            f"{value:g} {UNITS[name]}" for name, value in record["limits"].items() if value is not None
        ),
    }
