"""The page of a sensitivity measurement: one offline HTML file, every number of it read from sensitivity.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gft_edge import __version__
from gft_edge.files import read_json, replacing
from gft_edge.report import plots
from gft_edge.report.bench import environment

DATA = "sensitivity.json"
FIGURE = "sensitivity.svg"
PAGE = "sensitivity.html"


def write_sensitivity_page(folder: Path) -> Path:
    """Writes ``sensitivity.html`` and ``sensitivity.svg`` beside ``sensitivity.json`` and returns the page's path.

    Raises:
        ArtifactError: no such file, or a damaged one.
    """
    shown = section(read_json(folder / DATA, "sensitivity"))
    html = environment().get_template("sensitivity.html.j2").render(version=__version__, sensitivity=shown)
    for name, text in ((FIGURE, shown["figure"]), (PAGE, html)):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder / PAGE


def section(data: Mapping[str, Any]) -> dict[str, Any]:
    """What the section shows: the file, its figure, and the layers chosen."""
    return {**data, "figure": plots.sensitivity(data), "chosen": plots.chosen_layers(data)}
