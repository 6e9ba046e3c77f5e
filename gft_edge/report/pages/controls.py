"""Files, page and page section of a comparison of the selection with other rules; all numbers come from controls.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gft_edge.control_results import gain_text, rule_table, static_text
from gft_edge.files import replacing, write_json
from gft_edge.report.figures import plots
from gft_edge.report.pages.html import render
from gft_edge.report.pages.tables import Head, number, table
from gft_edge.report.pages.view import Section
from gft_edge.report.results.checks import cleaned
from gft_edge.report.results.records import CONTROLS

DATA = "controls.json"
FIGURE = "controls.svg"
PAGE = "controls.html"


def write_controls(folder: Path, data: Mapping[str, Any]) -> None:
    """Writes ``controls.json``, ``controls.svg`` and ``controls.html`` into a folder.

    Args:
        folder: is made if it does not exist; files of these names are replaced.
        data: what :meth:`gft_edge.control_results.Controls.to_json` returns, and ``model``.

    Raises:
        OutputError: a file cannot be written.
    """
    write_json(folder / DATA, data)
    record = CONTROLS.read(cleaned(dict(data)))
    for name, text in ((FIGURE, plots.controls_file(record)), (PAGE, _page(record))):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _page(record: Mapping[str, Any]) -> str:
    shown = section(record)
    parts = [Section("Does the selection matter", "answer", shown)]
    parts += [
        Section(f"{at['budget']} patches kept", "rules", at, name=f"rules-{at['budget']}") for at in shown["budgets"]
    ]
    parts.append(Section("How the rules choose", "legend", shown))
    page = {
        "title": "gft_edge: does the selection matter",
        "kind": "Comparison of selections",
        "heading": "The selection against other rules",
        "controls": shown,
        "sections": parts,
    }
    return render("controls.html.j2", page)


def section(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the data of the section: the record, its figure, and a table for each budget.

    Args:
        record: checked against its form.
    """
    shown = []
    for at in record["budgets"]:
        titles, rows = rule_table(at)
        heads: list[Head | str] = [titles[0], *(number(title) for title in titles[1:])]
        gain = gain_text(at, record["has_marks"])
        shown.append({"budget": at["budget"], "verdict": at["verdict"], "gain": gain, "table": table(heads, rows)})
    return {
        **record,
        "figure": plots.controls(record),
        "budgets": shown,
        "how_static": static_text(record),
        "has_smaller": any(at["lower_resolution"] for at in record["budgets"]),
    }
