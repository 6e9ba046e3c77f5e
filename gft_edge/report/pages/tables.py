"""Tables as data: a head and rows of cells, which one template draws for wide and narrow pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gft_edge.benchmarks.measuring.tables import columns

UNSTABLE = "unstable"
VERDICTS = {"pass": "passed", "fail": "failed", "inconclusive": "inconclusive"}
TONES = {"pass": "good", "fail": "bad", "inconclusive": "warn"}
"""Class of the style sheet for each verdict: inconclusive is neither good nor bad."""


@dataclass(frozen=True)
class Cell:
    """A text, its tone (``"good"``, ``"warn"``, ``"bad"``, ``"soft"`` or none), and whether it is code."""

    text: str
    tone: str = ""
    is_code: bool = False


@dataclass(frozen=True)
class Table:
    """Titles of columns, which of them hold numbers, and rows of as many cells."""

    heads: tuple[str, ...]
    numbers: frozenset[int]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def columns(self) -> list[tuple[str, bool]]:
        """Title of each column and whether it holds numbers."""
        return [(title, place in self.numbers) for place, title in enumerate(self.heads)]


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell | str]]) -> Table:
    """A table; a title that ends in ``#`` is of a column of numbers, and columns that are empty in every row are left out."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    kept = [place for place in range(len(heads)) if any(row[place].text for row in cells)]
    titles = tuple(heads[place].removesuffix("#") for place in kept)
    numbers = frozenset(number for number, place in enumerate(kept) if heads[place].endswith("#"))
    return Table(titles, numbers, tuple(tuple(row[place] for place in kept) for row in cells))


def is_unstable(row: Mapping[str, Any]) -> bool:
    """Whether the rounds of a bench result vary by more than the protocol allows."""
    return row.get("verdict") == UNSTABLE


def is_ratio_unstable(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a speed-up rests on an unstable figure: the row's own or its baseline's."""
    return is_unstable(row) or any(is_unstable(other) for other in rows if other["name"] == row.get("baseline"))


def bench_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of a bench file, what matters most in the first columns, with the conditions that a figure depends on.

    Args:
        rows: at least one, checked and labelled.
    """
    found = {column.title: column for column in columns(rows)}
    baselines = {row.get("baseline") or row["name"] for row in rows}
    first = rows[0].get("baseline") or rows[0]["name"]
    titles = list(found)
    against = f"against {first}"
    if against in found:
        titles.remove(against)
        titles.insert(titles.index("p50 ms") + 1, against)
    flights = {(row.get("throughput") or {}).get("in_flight") for row in rows} - {None}
    heads, cells = [], []
    for title in titles:
        column = found[title]
        texts: list[Cell] = [Cell(text) for text in column.cells]
        head = title
        if title == "p50 ms":
            texts = [_marked(cell, is_unstable(row)) for cell, row in zip(texts, rows)]
        elif title == against:
            head = against if len(baselines) == 1 else "speed-up"
            if len(baselines) > 1:
                texts = [
                    replace(c, text=f"{c.text} over {r.get('baseline')}") if c.text else c for c, r in zip(texts, rows)
                ]
            texts = [_ratio(cell, row, rows) for cell, row in zip(texts, rows)]
        elif title == "variation":
            texts = [_variation(cell, row) for cell, row in zip(texts, rows)]
        elif title == "images/s" and flights != {1}:
            if len(flights) == 1:
                head = f"images/s, {flights.copy().pop()} in flight"
            elif flights:
                texts = [_in_flight(cell, row) for cell, row in zip(texts, rows)]
        heads.append(head + ("#" if column.is_number else ""))
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
        return Cell("one round", "warn")  # a spread of nothing is no stability
    return replace(cell, tone="warn") if is_unstable(row) else cell


def _in_flight(cell: Cell, row: Mapping[str, Any]) -> Cell:
    flight = (row.get("throughput") or {}).get("in_flight")
    return replace(cell, text=f"{cell.text}, {flight} in flight") if cell.text and flight else cell


def percent(share: float, digits: int = 1) -> str:
    """A share in per cent."""
    return f"{100 * share:.{digits}f} %"


def decibels(value: float | None, digits: int = 1) -> str:
    """A ratio in dB; None stands for bit-identical values."""
    return "exact" if value is None else f"{value:.{digits}f} dB"


def megabytes(size: int) -> str:
    """A size in MB."""
    return f"{size / 1e6:.2f} MB"
