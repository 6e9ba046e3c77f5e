"""Tables as data: columns and rows of cells. One template draws them for wide and narrow pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gft_edge.benchmarks.measuring.tables import columns
from gft_edge.report.results.records import UNSTABLE, is_unstable

VERDICTS = {"pass": "passed", "fail": "failed", "inconclusive": "inconclusive"}
TONES = {"pass": "good", "fail": "bad", "inconclusive": "warn"}
"""Class of the style sheet for each verdict."""


@dataclass(frozen=True)
class Cell:
    """Text of a table cell, its tone (``"good"``, ``"warn"``, ``"bad"``, ``"soft"`` or none), and whether it is code."""

    text: str
    tone: str = ""
    is_code: bool = False


@dataclass(frozen=True)
class Head:
    """Title of a column, and whether the column holds numbers."""

    title: str
    is_number: bool = False


@dataclass(frozen=True)
class Table:
    """Heads of columns, and rows with one cell per column."""

    heads: tuple[Head, ...]
    rows: tuple[tuple[Cell, ...], ...]


def number(title: str) -> Head:
    """Returns the head of a column of numbers."""
    return Head(title, is_number=True)


def table(heads: Sequence[Head | str], rows: Sequence[Sequence[Cell | str]]) -> Table:
    """Returns a table without the columns that are empty in every row."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    kept = [place for place in range(len(heads)) if any(row[place].text for row in cells)]
    typed = [head if isinstance(head, Head) else Head(head) for head in heads]
    return Table(tuple(typed[place] for place in kept), tuple(tuple(row[place] for place in kept) for row in cells))


def is_ratio_unstable(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether a speed-up uses an unstable figure: the row's own or its baseline's."""
    return is_unstable(row) or any(is_unstable(other) for other in rows if other["name"] == row.get("baseline"))


def bench_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns the rows of a bench file as a table: the most important figures first, each with its conditions.

    Args:
        rows: at least one, checked and labelled.
    """
    found = {column.key: column for column in columns(rows)}
    baselines = {row.get("baseline") or row["name"] for row in rows}
    keys = list(found)
    if "speedup" in found:
        keys.remove("speedup")
        keys.insert(keys.index("p50_ms") + 1, "speedup")
    flights = {(row.get("throughput") or {}).get("in_flight") for row in rows} - {None}
    heads, cells = [], []
    for key in keys:
        column = found[key]
        texts: list[Cell] = [Cell(text) for text in column.cells]
        title = column.title
        if key == "p50_ms":
            texts = [_marked(cell, is_unstable(row)) for cell, row in zip(texts, rows)]
        elif key == "speedup":
            if len(baselines) > 1:
                title = "speed-up"
                texts = [
                    replace(c, text=f"{c.text} over {r.get('baseline')}") if c.text else c for c, r in zip(texts, rows)
                ]
            texts = [_ratio(cell, row, rows) for cell, row in zip(texts, rows)]
        elif key == "variation":
            texts = [_variation(cell, row) for cell, row in zip(texts, rows)]
        elif key == "images_per_s" and flights != {1}:
            if len(flights) == 1:
                title = f"{title}, {flights.copy().pop()} in flight"
            elif flights:
                texts = [_in_flight(cell, row) for cell, row in zip(texts, rows)]
        heads.append(Head(title, column.is_number))
        cells.append(texts)
    return table(heads, list(zip(*cells)))


def _marked(cell: Cell, unstable: bool) -> Cell:
    return Cell(f"{cell.text} {UNSTABLE}", "warn") if unstable and cell.text else cell


def _ratio(cell: Cell, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Cell:
    if row["name"] == row.get("baseline"):
        return Cell("baseline" if len(rows) > 1 else "", "soft")
    return _marked(cell, is_ratio_unstable(row, rows))


def _variation(cell: Cell, row: Mapping[str, Any]) -> Cell:
    if len(row["rounds_ms"]) == 1:
        return Cell("one round", "warn")  # one round has no spread, so it is not stable
    return replace(cell, tone="warn") if is_unstable(row) else cell


def _in_flight(cell: Cell, row: Mapping[str, Any]) -> Cell:
    flight = (row.get("throughput") or {}).get("in_flight")
    return replace(cell, text=f"{cell.text}, {flight} in flight") if cell.text and flight else cell


def percent(share: float, digits: int = 1) -> str:
    """Returns a share in per cent."""
    return f"{100 * share:.{digits}f} %"


def decibels(value: float | None, digits: int = 1) -> str:
    """Returns a ratio in dB; None stands for bit-identical values."""
    return "exact" if value is None else f"{value:.{digits}f} dB"


def megabytes(size: int) -> str:
    """Returns a size in MB."""
    return f"{size / 1e6:.2f} MB"
