"""Page of bench files: one run or several, on this machine and on boards, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gft_edge.benchmarks.measuring.bench_files import machine_label, merge
from gft_edge.benchmarks.measuring.protocol import UNSTABLE
from gft_edge.benchmarks.measuring.tables import Row, lacking
from gft_edge.files import replacing
from gft_edge.report.figures import bench_plots
from gft_edge.report.figures.svg import COLORS, color_of
from gft_edge.report.pages.html import render
from gft_edge.report.pages.tables import Cell, Table, bench_table, is_ratio_unstable, number, table
from gft_edge.report.pages.view import Figure, Section
from gft_edge.report.results import forms
from gft_edge.report.results.checks import checked, cleaned
from gft_edge.report.results.records import clean_bench, has_energy, is_unstable, refused_energy, usable_bench
from gft_edge.storage.seals import write_sealed

PAGE = "bench.html"
MERGED = "bench-merged.json"


def write_bench_page(paths: Sequence[Path], out: Path) -> tuple[Path, Path]:
    """Writes ``bench.html`` and ``bench-merged.json`` into a folder and returns their paths.

    Raises:
        ArtifactError: a bench file is missing, damaged or of another schema.
    """
    for path in paths:
        usable_bench(path, f"bench file {path}: ")
    merged = cleaned(merge(paths))
    html = render("bench.html.j2", collect(merged))
    write_sealed(out / MERGED, merged)
    with replacing(out / PAGE) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return out / PAGE, out / MERGED


def points(data: Mapping[str, Any], colors: Mapping[str, str]) -> list[dict[str, Any]]:
    """Splits a bench file into groups of interleaved rows (one batch, one number of threads), each with its figure."""
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
    """Returns the rows, each with its label."""
    return [{**row, "label": label} for row, label in zip(rows, labels(rows))]


def labels(rows: Sequence[Row]) -> list[str]:
    """Returns a label per row: the artefact's name, and on a second line the conditions that differ between the rows."""
    conditions: dict[str, Callable[[Row], str]] = {
        "backend": lambda row: row["backend"],
        "batch": lambda row: f"batch {row.get('batch')}",
        "threads": lambda row: "" if row.get("threads") is None else f"{row['threads'] or 'all'} thread(s)",
        "machine": lambda row: row.get("machine", ""),
    }
    differing = [describe for key, describe in conditions.items() if len({str(row.get(key)) for row in rows}) > 1]
    found = [[text for describe in differing if (text := describe(row))] for row in rows]
    texts = [f"{row['name']}\n{', '.join(second)}" if second else row["name"] for row, second in zip(rows, found)]
    if len(set(texts)) == len(texts):
        return texts
    return [f"{text}\n{row.get('file', count)}" for count, (text, row) in enumerate(zip(texts, rows), start=1)]


def notes(rows: Sequence[Row]) -> str:
    """Returns the versions of the backends, disabled optimizers, unstable rows and missing parts in a few sentences."""
    options = [row.get("options") or {} for row in rows]
    versions = dict.fromkeys(f"{row['backend']} {o['version']}" for row, o in zip(rows, options) if o.get("version"))
    disabled = dict.fromkeys(name for o in options for name in (o.get("disabled_optimizers") or ()))
    text = f"{', '.join(versions)}." if versions else ""
    if disabled:
        text += f" Disabled for INT8 graphs: {', '.join(disabled)}, which can replace INT8 products by float ones."
    unstable = [row["name"] for row in rows if is_unstable(row)]
    if unstable:
        text += f" Unstable (rounds vary by more than {100 * UNSTABLE:g} %): {', '.join(dict.fromkeys(unstable))}."
    return " ".join([text, *(f"{sentence}." for sentence in lacking(rows))]).strip()


def collect(merged: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the data of the template, from merged bench files."""
    rows = labelled([{**old, **new} for old, new in zip(merged["results"], clean_bench(merged)["results"])])
    files = len({row["file"] for row in rows})
    return {
        "title": "gft_edge: benchmarks",
        "kind": "Comparison of benchmarks" if files > 1 else "Benchmarks",
        "heading": f"Benchmarks: {', '.join(dict.fromkeys(row['name'] for row in rows))}",
        "files": files,
        "sections": list(_sections(merged, rows)),
        "warnings": merged["warnings"],
        "implausible": [row for row in rows if row.get("implausible")],
    }


def _sections(merged: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[Section]:
    """Yields the sections that the files have data for, in the order of the page."""
    yield _latency(merged, rows)
    yield from _speedups(rows)
    if merged["comparisons"]:
        text = "Ratio of medians of separate runs. The interval covers the spread within each run, not changes between runs."
        yield Section(
            "The same graph in other runs", text=text, table=_comparisons(merged["comparisons"]), name="elsewhere"
        )
    yield from _curves(rows)
    yield from _stages(rows)
    yield _energy(rows)
    if merged["int8"]:
        text = (
            "INT8 engines compared with the same budget in higher precision, on the same machine and at the same batch."
        )
        yield Section("Is INT8 faster?", text=text, table=_int8(merged["int8"]), name="int8")
    for count, row in enumerate((row for row in rows if row.get("layers")), start=1):
        figure = bench_plots.layers(row["layers"])
        figures = (Figure(figure),) if figure else ()
        title = f"Layers of {', '.join(row['label'].splitlines())}"
        yield Section(title, "layers", row["layers"], figures=figures, name=f"layers-{count}")


def _by_file(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["file"], []).append(row)
    return groups


def _latency(merged: Mapping[str, Any], rows: Sequence[Row]) -> Section:
    colors = color_of(dict.fromkeys(row["name"] for row in rows))
    machines = {
        file: {**checked(machine, forms.BENCH_MACHINE, file), "label": machine["label"]}
        for file, machine in merged["machines"].items()
    }
    data = {
        "figure": bench_plots.distributions(rows, [colors[row["name"]] for row in rows]),
        "groups": [
            (machines[file], file, notes(found), bench_table(labelled(found))) for file, found in _by_file(rows).items()
        ],
        "has_samples": any(row["rounds_ms"] for row in rows),
        "has_trtexec": any(row["backend"] == "trtexec" for row in rows),
    }
    return Section("Latency", "latency", data)


def _speedups(rows: Sequence[Row]) -> Iterator[Section]:
    groups = _by_file(rows)
    compared = [
        {**row, "is_unstable_ratio": is_ratio_unstable(row, groups[row["file"]])}
        for row in rows
        if row.get("speedup") is not None and row.get("speedup_interval") and row["name"] != row.get("baseline")
    ]
    if compared:
        text = (
            "Speed-up over the baseline of the same run: median of the ratios of interleaved rounds, "
            "with its 95 % bootstrap interval."
        )
        yield Section("Side by side", text=text, figures=(Figure(bench_plots.speedups(compared)),))


def _curves(rows: Sequence[Row]) -> Iterator[Section]:
    tokens = bench_plots.over(series(rows, "mean_tokens"), "tokens per block, on average", "p50, ms")
    if tokens:
        caption = "One point per budget. Steps show where the hardware works in tiles."
        yield Section("Latency over tokens", figures=(Figure(tokens, caption),), name="tokens")
    throughputs = [row.get("throughput") or {} for row in rows]
    rates = [{**row, "images_per_s": found.get("images_per_s")} for row, found in zip(rows, throughputs)]
    batches = bench_plots.over(series(rates, "batch", "images_per_s"), "images per request", "images/s")
    if batches:
        flights = sorted({count for found in throughputs if (count := found.get("in_flight")) is not None})
        caption = f"Requests in flight: {', '.join(map(str, flights))}." if flights else ""
        yield Section("Throughput over batch", figures=(Figure(batches, caption),), name="batches")


def _stages(rows: Sequence[Row]) -> Iterator[Section]:
    staged = [row for row in rows if (row.get("stages") or {}).get("preprocessing")]
    if staged:
        caption = (
            "Medians of the stages, each measured separately, from a picture in memory to a label. "
            "A CPU needs no transfers."
        )
        yield Section("Stages of a request", figures=(Figure(bench_plots.stages(staged), caption),), name="stages")


def _energy(rows: Sequence[Row]) -> Section:
    measured = [row for row in rows if has_energy(row)]
    if measured:
        caption = "Millijoules per image of the whole module or board; light bars: without idle power."
        return Section("Energy", figures=(Figure(bench_plots.energy(measured), caption),))
    return Section(
        "Energy", "no_energy", {"reasons": sorted({reason for row in rows if (reason := refused_energy(row))})}
    )


def _interval(interval: Sequence[float] | None) -> str:
    return "no raw samples" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def _comparisons(found: Sequence[Mapping[str, Any]]) -> Table:
    heads = ("artefact", number("times as fast"), "95 % interval", "in", "compared with", number("batch"))
    rows = [
        (c["name"], f"{c['speedup']:.2f}x", _interval(c["speedup_interval"]), c["against"], c["of"], str(c["batch"]))
        for c in found
    ]
    return table(heads, rows)


def _int8(found: Sequence[Mapping[str, Any]]) -> Table:
    tones = {"yes": "good", "no": "bad"}
    heads = (
        "INT8",
        "faster",
        number("times as fast"),
        "95 % interval",
        "compared with",
        "machine",
        number("batch"),
        "reason",
    )
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
    """Returns curves of two points or more over one condition, all others equal, named by the conditions that differ."""
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
