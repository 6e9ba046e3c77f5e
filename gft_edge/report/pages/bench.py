"""Bench files as a page: of one run or several, of this machine and of boards, beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gft_edge import __version__
from gft_edge.benchmarks.measuring.bench_files import machine_label, merge
from gft_edge.benchmarks.measuring.tables import Row
from gft_edge.errors import ArtifactError
from gft_edge.files import replacing
from gft_edge.report.figures import bench_plots
from gft_edge.report.figures.svg import COLORS, color_of
from gft_edge.report.pages.html import environment
from gft_edge.report.pages.tables import Cell, Table, bench_table, is_ratio_unstable, table
from gft_edge.report.results import forms
from gft_edge.report.results.checks import checked, cleaned
from gft_edge.report.results.records import clean_bench, usable_bench
from gft_edge.seals import write_sealed

PAGE = "bench.html"
MERGED = "bench-merged.json"


def write_bench_page(paths: Sequence[Path], out: Path) -> tuple[Path, Path]:
    """Writes ``bench.html`` and ``bench-merged.json`` into a folder and returns their paths.

    Raises:
        ArtifactError: a bench file is missing, damaged or of another schema.
    """
    for path in paths:
        _require_usable(path)
    merged = cleaned(merge(paths))
    html = environment().get_template("bench.html.j2").render(**collect(merged))
    write_sealed(out / MERGED, merged)
    with replacing(out / PAGE) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return out / PAGE, out / MERGED


def _require_usable(path: Path) -> None:
    try:
        usable_bench(path)
    except ArtifactError as error:
        text = str(error)
        raise ArtifactError(text if str(path) in text else f"bench file {path}: {text}") from None


def points(data: Mapping[str, Any], colors: Mapping[str, str]) -> list[dict[str, Any]]:
    """One bench file taken apart into what was interleaved: rows of one batch and number of threads, with their figure."""
    groups: dict[tuple[object, object], list[Row]] = {}
    for row in data["results"]:
        groups.setdefault((row.get("batch"), row.get("threads")), []).append(row)
    found = []
    for (batch, threads), rows in groups.items():
        shown = labelled(rows)
        backends = ", ".join(dict.fromkeys(row["backend"] for row in rows))
        count = "" if threads is None else f", {threads or 'all'} thread(s)"
        images = "" if batch is None else f", batch {batch}"
        found.append(
            {
                "title": f"{backends}{images}{count}, {machine_label(data)}",
                "protocol": rows[0].get("protocol"),
                "is_trtexec": all(row["backend"] == "trtexec" for row in rows),
                "is_compared": len(rows) > 1 and any(row.get("speedup_interval") for row in rows),
                "results": shown,
                "table": bench_table(shown),
                "note": notes(rows),
                "figure": bench_plots.distributions(shown, [colors.get(row["name"], COLORS[0]) for row in rows]),
            }
        )
    return found


def labelled(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows with their label."""
    return [{**row, "label": label} for row, label in zip(rows, labels(rows))]


def labels(rows: Sequence[Row]) -> list[str]:
    """A name for each row: the artefact's, and on a second line those of the conditions that differ between the rows."""
    tells: dict[str, Callable[[Row], str]] = {
        "backend": lambda row: row["backend"],
        "batch": lambda row: f"batch {row.get('batch')}",
        "threads": lambda row: "" if row.get("threads") is None else f"{row['threads'] or 'all'} thread(s)",
        "machine": lambda row: row.get("machine", ""),
    }
    telling = [text for key, text in tells.items() if len({str(row.get(key)) for row in rows}) > 1]
    found = [[text for tell in telling if (text := tell(row))] for row in rows]
    texts = [
        f"{row['name']}\n{', '.join(conditions)}" if conditions else row["name"] for row, conditions in zip(rows, found)
    ]
    if len(set(texts)) == len(texts):
        return texts
    return [f"{text}\n{row.get('file', number)}" for number, (text, row) in enumerate(zip(texts, rows), start=1)]


def notes(rows: Sequence[Row]) -> str:
    """Version and options that matter, in a line or two."""
    options = [row.get("options") or {} for row in rows]
    versions = dict.fromkeys(f"{row['backend']} {o['version']}" for row, o in zip(rows, options) if o.get("version"))
    disabled = dict.fromkeys(name for o in options for name in (o.get("disabled_optimizers") or ()))
    text = f"{', '.join(versions)}." if versions else ""
    if disabled:
        text += f" Switched off for the INT8 graphs: {', '.join(disabled)}, which can turn INT8 products back into float ones."
    unstable = [row["name"] for row in rows if row.get("verdict") == "unstable"]
    if unstable:
        text += f" Unstable, rounds varying by more than 2.5 %: {', '.join(dict.fromkeys(unstable))}."
    return text.strip()


def collect(merged: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the template shows, from merged bench files."""
    rows = labelled([{**old, **new} for old, new in zip(merged["results"], clean_bench(merged)["results"])])
    colors = color_of(dict.fromkeys(row["name"] for row in rows))
    shades = [colors[row["name"]] for row in rows]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["file"], []).append(row)
    machines = {
        file: {**checked(machine, forms.BENCH_MACHINE, file), "label": machine["label"]}
        for file, machine in merged["machines"].items()
    }
    tables = [(machines[file], file, notes(found), bench_table(labelled(found))) for file, found in groups.items()]
    energy = [row for row in rows if (row.get("energy") or {}).get("mj_per_image") is not None]
    staged = [row for row in rows if (row.get("stages") or {}).get("preprocessing")]
    rates = [{**row, "images_per_s": (row.get("throughput") or {}).get("images_per_s")} for row in rows]
    flights = [flight for row in rows if (flight := (row.get("throughput") or {}).get("in_flight")) is not None]
    compared = [
        {**row, "is_unstable_ratio": is_ratio_unstable(row, groups[row["file"]])}
        for row in rows
        if row.get("speedup") is not None and row.get("speedup_interval") and row["name"] != row.get("baseline")
    ]
    figures = {
        "latency": bench_plots.distributions(rows, shades),
        "tokens": bench_plots.over(series(rows, "mean_tokens"), "tokens per block, on average", "p50, ms"),
        "batches": bench_plots.over(series(rates, "batch", "images_per_s"), "images per request", "images/s"),
        "speedups": bench_plots.speedups(compared) if compared else None,
        "energy": bench_plots.energy(energy) if energy else None,
        "stages": bench_plots.stages(staged) if staged else None,
    }
    layered = {
        f"layers-{number}": (row, bench_plots.layers(row["layers"]))
        for number, row in enumerate((row for row in rows if row.get("layers")), start=1)
    }
    comparisons = _comparisons(merged["comparisons"]) if merged["comparisons"] else None
    int8 = _int8(merged["int8"]) if merged["int8"] else None
    sections = (
        ("latency", "Latency", True),
        ("side-by-side", "Side by side", compared),
        ("elsewhere", "The same graph elsewhere", comparisons),
        ("tokens", "Latency over tokens", figures["tokens"]),
        ("batches", "Throughput over batch", figures["batches"]),
        ("stages", "Where a request spends its time", staged),
        ("energy", "Energy", True),
        ("int8", "Does INT8 pay?", int8),
        *((name, f"Layers of {', '.join(row['label'].splitlines())}", True) for name, (row, _) in layered.items()),
    )
    return {
        "version": __version__,
        "models": list(dict.fromkeys(row["name"] for row in rows)),
        "sections": [(anchor, title) for anchor, title, there in sections if there],
        "groups": tables,
        "has_samples": any(row["rounds_ms"] for row in rows),
        "has_trtexec": any(row["backend"] == "trtexec" for row in rows),
        "flights": sorted(set(flights)),
        "comparisons": comparisons,
        "int8": int8,
        "warnings": merged["warnings"],
        "layered": layered,
        "implausible": [row for row in rows if row.get("implausible")],
        "no_energy": sorted({reason for row in rows if (reason := (row.get("energy") or {}).get("refused"))}),
        "figures": figures,
    }


def _interval(interval: Sequence[float] | None) -> str:
    return "no raw samples" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def _comparisons(found: Sequence[Mapping[str, Any]]) -> Table:
    heads = ("artefact", "times as fast#", "95 % interval", "there", "compared with", "batch#")
    rows = [
        (c["name"], f"{c['speedup']:.2f}x", _interval(c["speedup_interval"]), c["against"], c["of"], str(c["batch"]))
        for c in found
    ]
    return table(heads, rows)


def _int8(found: Sequence[Mapping[str, Any]]) -> Table:
    tones = {"yes": "good", "no": "bad"}
    heads = ("INT8", "pays", "times as fast#", "95 % interval", "against", "machine", "batch#", "why")
    rows = [
        (
            c["name"],
            Cell(c["pays"], tones.get(c["pays"], "warn")),
            f"{c['speedup']:.2f}x",
            _interval(c["speedup_interval"]),
            c["twin"],
            c["machine"],
            str(c["batch"]),
            c["why"] or "no layers given",
        )
        for c in found
    ]
    return table(heads, rows)


def series(rows: Sequence[Row], x: str, y: str = "p50_ms") -> dict[str, list[tuple[float, float]]]:
    """Curves over one condition with all others equal, named by what differs; only those of two points or more."""
    others = [key for key in ("machine", "backend", "precision", "batch", "threads") if key != x]
    if x == "batch":
        others.append("name")
    curves: dict[tuple[str, ...], dict[float, float]] = {}
    for row in rows:
        if row.get(x) is not None and row.get(y) is not None:
            curves.setdefault(tuple(str(row.get(key)) for key in others), {})[float(row[x])] = float(row[y])
    kept = {key: sorted(curve.items()) for key, curve in curves.items() if len(curve) > 1}
    differing = [i for i in range(len(others)) if len({key[i] for key in kept}) > 1]
    units = {"batch": "batch {}", "threads": "{} thread(s)"}
    return {
        ", ".join(units.get(others[i], "{}").format(key[i]) for i in differing) or key[others.index("precision")]: curve
        for key, curve in kept.items()
    }
