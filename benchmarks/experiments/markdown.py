"""Markdown pages of results: a jinja2 template for the text, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from gft_edge.files import writing


def render(template: Path, **values: Any) -> str:
    """Returns a template with these values in it; a name without value is an error."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def verdict(met: bool | None) -> str:
    """Returns the cell of a target: met, missed, or nothing where there is no target."""
    return {True: "met", False: "**missed**", None: ""}[met]


def show(text: str, page: Path | None) -> None:
    """Prints a page and writes it where a file is given; raises OutputError where that cannot be written."""
    if page is not None:
        with writing(page):
            page.write_text(text, encoding="utf-8")
    print(text)
