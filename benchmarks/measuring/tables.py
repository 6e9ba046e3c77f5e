"""Results of bench files as tables and remarks, for the terminal and for pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gft_edge.benchmarks.measuring.bench_files import machine_label
from gft_edge.benchmarks.measuring.protocol import ONE_ROUND
from gft_edge.benchmarks.power.meter import NOT_ASKED_FOR

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A key that names the figure, a title and one text per row."""

    key: str
    title: str
    is_number: bool
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A heading and at least one column."""

    heading: str
    columns: tuple[Column, ...]


def point_tables(data: Mapping[str, Any]) -> list[Table]:
    """Returns the tables of a bench file, one per batch and number of threads."""
    points: dict[tuple[object, object], list[Row]] = {}
    for row in data["results"]:
        points.setdefault((row["batch"], row["threads"]), []).append(row)
    tables = []
    for (batch, threads), rows in points.items():
        backends = ", ".join(dict.fromkeys(row["backend"] for row in rows))
        count = "" if threads is None else f", {threads or 'all'} thread(s)"
        heading = f"{backends}, batch {batch}{count}, {machine_label(data)}"
        tables.append(Table(heading, tuple(columns(rows))))
    return tables


def remarks(data: Mapping[str, Any]) -> list[str]:
    """Returns what the tables of a bench file do not show: layers, implausible figures, missing figures, warnings."""
    rows = data["results"]
    lines = []
    for row in rows:
        if "layers" in row:
            lines.append(f"{row['name']}: {row['layers']['int8']}")
        if row.get("implausible"):
            lines.append(f"{row['name']}: {row['implausible']}")
    if any(row.get("verdict") == ONE_ROUND for row in rows):
        lines.append("one round: spread and intervals are unknown; give --rounds 5 or more")
    energies = [row["energy"] for row in rows if row.get("energy")]
    refused = {energy["refused"] for energy in energies if energy.get("refused")}
    lines += [f"energy: none, {reason}" for reason in sorted(refused) if NOT_ASKED_FOR not in reason]
    for what, asked in (("energy per correct image", True), ("top-1", False)):
        accuracies = [e.get("accuracy") or {} for e in energies if (e.get("mj_per_image") is not None) == asked]
        unknown = {accuracy["refused"] for accuracy in accuracies if accuracy.get("refused")}
        lines += [f"{what}: none, {reason}" for reason in sorted(unknown)]
    return [*lines, *lacking(rows), *data.get("warnings", [])]


def lacking(rows: Sequence[Row]) -> list[str]:
    """Returns what results lack and why, one sentence for all models that lack the same."""
    names: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.get("lacks"):
            names.setdefault(row["lacks"], {})[row["name"]] = None
    return [f"{', '.join(found)}: {text}" for text, found in names.items()]


def columns(rows: Sequence[Row]) -> list[Column]:
    """Returns the columns of some rows, without those that are empty in each row.

    Args:
        rows: at least one, of a checked bench file.
    """
    found = [Column(key, title, number, tuple(cell(row) for row in rows)) for key, title, number, cell in _COLUMNS]
    found.append(
        Column("speedup", f"against {rows[0].get('baseline') or rows[0]['name']}", False, tuple(map(_speedup, rows)))
    )
    several = len({row["backend"] for row in rows}) > 1
    return [column for column in found if any(column.cells) and (several or column.key != "backend")]


def _of(part: str, key: str, digits: int, scale: float = 1.0) -> Callable[[Row], str]:
    return lambda row: _number((row.get(part) or {}).get(key), digits, scale)


def _at(key: str) -> Callable[[Row], str]:
    return lambda row: _number(row.get(key), 2)


def _number(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "" if value is None else f"{value * scale:.{digits}f}"


def _name(row: Row) -> str:
    return ", ".join(str(row.get("label") or row["name"]).splitlines())


def _variation(row: Row) -> str:
    value = row.get("variation")
    if row.get("verdict") == ONE_ROUND:
        return ONE_ROUND
    return "" if value is None else f"{value:.1%}" + (" unstable" if row.get("verdict") == "unstable" else "")


def _end_to_end(row: Row) -> str:
    return _number(((row.get("stages") or {}).get("end_to_end") or {}).get("p50_ms"), 2)


def _top1(row: Row) -> str:
    value = ((row.get("energy") or {}).get("accuracy") or {}).get("top1")
    return "" if value is None else f"{value:.2%}"


def _speedup(row: Row) -> str:
    if row.get("speedup") is None:
        return ""
    interval = None if row["name"] == row.get("baseline") and row["speedup"] == 1 else row.get("speedup_interval")
    return f"{row['speedup']:.2f}x" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


_COLUMNS: tuple[tuple[str, str, bool, Callable[[Row], str]], ...] = (
    ("artefact", "artefact", False, _name),
    ("backend", "backend", False, lambda row: row["backend"]),
    ("precision", "precision", False, lambda row: row.get("precision") or ""),
    ("budget", "budget", False, lambda row: str(row.get("budget") or "")),
    ("top1", "top-1", True, _top1),
    ("p50_ms", "p50 ms", True, _at("p50_ms")),
    ("p90_ms", "p90 ms", True, _at("p90_ms")),
    ("p95_ms", "p95 ms", True, _at("p95_ms")),
    ("p99_ms", "p99 ms", True, _at("p99_ms")),
    ("variation", "variation", True, _variation),
    ("end_to_end_ms", "end to end ms", True, _end_to_end),
    ("images_per_s", "images/s", True, _of("throughput", "images_per_s", 1)),
    ("mj_per_image", "mJ/image", True, _of("energy", "mj_per_image", 2)),
    ("mj_per_correct_image", "mJ/correct image", True, _of("energy", "mj_per_correct_image", 2)),
    ("load_ms", "load ms", True, _of("process", "load_ms", 0)),
    ("cold_start_ms", "cold start ms", True, _of("process", "cold_start_ms", 0)),
    ("peak_mb", "peak MB", True, _of("process", "peak_rss_bytes", 0, 1e-6)),
)
