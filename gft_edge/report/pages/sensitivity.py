"""Page of a sensitivity measurement: one offline HTML file; all its numbers come from sensitivity.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gft_edge.files import replacing
from gft_edge.report.figures import plots
from gft_edge.report.pages.html import render
from gft_edge.report.pages.tables import Cell, Table, decibels, number, table
from gft_edge.report.pages.view import Section
from gft_edge.report.results.checks import read_object
from gft_edge.report.results.records import SENSITIVITY

DATA = "sensitivity.json"
FIGURE = "sensitivity.svg"
PAGE = "sensitivity.html"


def write_sensitivity_page(folder: Path) -> Path:
    """Writes ``sensitivity.html`` and ``sensitivity.svg`` beside ``sensitivity.json`` and returns the page's path.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    record = SENSITIVITY.read(read_object(folder / DATA))
    shown = section(record)
    parts = [Section("Sensitivity of each layer", "layers", shown)]
    if record["search"]:
        parts.append(Section("Mixed precision", "mixed", shown))
    page = {
        "title": "gft_edge: sensitivity of layers to INT8",
        "kind": "Sensitivity to INT8",
        "heading": "Sensitivity of layers to INT8",
        "sensitivity": shown,
        "sections": parts,
    }
    html = render("sensitivity.html.j2", page)
    for name, text in ((FIGURE, plots.sensitivity_file(record)), (PAGE, html)):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder / PAGE


def section(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the data of the section: the record, its figure, its tables, and the chosen layers.

    Args:
        record: checked against its form.
    """
    chosen = plots.chosen_layers(record)
    return {
        **record,
        "figure": plots.sensitivity(record),
        "chosen": chosen,
        "table": _layers(record, chosen),
        "tries": _tries(record),
    }


def _points(lost: float) -> str:
    """Returns a loss of top-1 in points as a signed change; never -0.00."""
    return f"{round(0 - lost, 2) + 0:+.2f}"


def _layers(record: Mapping[str, Any], chosen: list[str] | None) -> Table:
    heads = (
        "layer",
        "chosen",
        number("SQNR alone"),
        number("SQNR without"),
        number(f"{record['times']['high']}, ms"),
        number("INT8, ms"),
        number("top-1 alone"),
        number("top-1 without"),
        "kept sets alone, by stage",
        "rows x in x out",
    )
    rows = [
        (
            Cell(row["name"], is_code=True),
            "" if chosen is None else "INT8" if row["name"] in chosen else "high",
            decibels(row["only"]["sqnr_db"]),
            decibels(row["all_but"]["sqnr_db"]),
            f"{row['high_ms']:.4f}",
            f"{row['int8_ms']:.4f}",
            _points(row["only"]["lost_points"]),
            _points(row["all_but"]["lost_points"]),
            " ".join(f"{share:.3f}" for share in row["only"]["jaccard"]) or "all kept",
            row["shape"],
        )
        for row in record["layers"]
    ]
    return table(heads, rows)


def _tries(record: Mapping[str, Any]) -> Table | None:
    search = record["search"]
    if search is None or not search["tries"]:
        return None
    heads = (
        "set",
        "within the limit",
        number("layers in INT8"),
        number("SQNR predicted"),
        number("SQNR observed"),
        number("top-1 predicted, points"),
        number("top-1 observed (95 %)"),
        number("time saved, ms"),
    )
    rows = []
    for count, found in enumerate(search["tries"]):
        seen = found["observed"]
        low, high = (100 * value for value in seen["paired"]["interval"])
        rows.append(
            (
                f"{count + 1}" + (", chosen" if count == search["best"] else ""),
                Cell("yes", "good") if found["holds"] else Cell("no", "bad"),
                f"{len(found['int8'])} of {len(record['layers'])}",
                decibels(found["sqnr_db"], 2),
                decibels(seen["sqnr_db"], 2),
                _points(found["lost_points"]),
                f"{_points(seen['lost_points'])} ({low:+.2f} to {high:+.2f})",
                f"{found['saved_ms']:.3f}",
            )
        )
    return table(heads, rows)
