"""Bench files as a page: of one run or several, of this machine and of boards, beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gft_edge import __version__
from gft_edge.benchmarks.merge import machine_label, merge
from gft_edge.benchmarks.tables import Row, columns
from gft_edge.files import replacing, write_json

PAGE = "bench.html"
MERGED = "bench-merged.json"


def write_bench_page(paths: Sequence[Path], out: Path) -> tuple[Path, Path]:
    """Writes ``bench.html`` and ``bench-merged.json`` into a folder and returns their paths.

    Raises:
        ArtifactError: a bench file is missing, damaged or of another schema.
    """
    merged = merge(paths)
    html = environment().get_template("bench.html.j2").render(**collect(merged))
    write_json(out / MERGED, merged)
    with replacing(out / PAGE) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return out / PAGE, out / MERGED


def environment() -> Any:
    """What renders the templates of this folder."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    made.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f} %"
    made.filters["megabytes"] = lambda size: f"{size / 1e6:.2f} MB"
    return made


def points(data: Mapping[str, Any], colors: Mapping[str, str]) -> list[dict[str, Any]]:
    """One bench file taken apart into what was interleaved: rows of one batch and number of threads, with their figure."""
    from gft_edge.report import plots

    groups: dict[tuple[object, object], list[Row]] = {}
    for row in data["results"]:
        groups.setdefault((row.get("batch"), row.get("threads")), []).append(row)
    found = []
    for (batch, threads), rows in groups.items():
        shown = labelled(rows)
        backends = ", ".join(dict.fromkeys(row["backend"] for row in rows))
        count = "" if threads is None else f", {threads or 'all'} thread(s)"
        found.append(
            {
                "title": f"{backends}, batch {batch}{count}, {machine_label(data)}",
                "protocol": rows[0].get("protocol"),
                "results": shown,
                "table": columns(shown),
                "note": notes(rows),
                "figure": plots.distributions(shown, [colors.get(row["name"], plots.COLORS[0]) for row in rows]),
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
    disabled = dict.fromkeys(name for o in options for name in o.get("disabled_optimizers", ()))
    text = f"{', '.join(versions)}." if versions else ""
    if disabled:
        text += f" Switched off for the INT8 graphs: {', '.join(disabled)}, which can turn INT8 products back into float ones."
    unstable = [row["name"] for row in rows if row.get("verdict") == "unstable"]
    if unstable:
        text += f" Unstable, rounds varying by more than 2.5 %: {', '.join(dict.fromkeys(unstable))}."
    return text.strip()


def collect(merged: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the template shows, from merged bench files."""
    from gft_edge.report import plots

    rows = labelled(merged["results"])
    colors = plots.color_of(dict.fromkeys(row["name"] for row in rows))
    shades = [colors[row["name"]] for row in rows]
    nothing: dict[str, Any] = {"commit": None, "load_average": None, "clocks": {}}
    machines = {file: {**nothing, **machine} for file, machine in merged["machines"].items()}
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["file"], []).append(row)
    tables = [(machines[file], file, notes(found), columns(labelled(found))) for file, found in groups.items()]
    energy = [row for row in rows if (row.get("energy") or {}).get("mj_per_image") is not None]
    staged = [row for row in rows if (row.get("stages") or {}).get("preprocessing")]
    rates = [{**row, "images_per_s": (row.get("throughput") or {}).get("images_per_s")} for row in rows]
    compared = [row for row in rows if row.get("speedup_interval") and row["name"] != row.get("baseline")]
    return {
        "version": __version__,
        "groups": tables,
        "comparisons": merged["comparisons"],
        "int8": merged["int8"],
        "warnings": merged["warnings"],
        "layered": [(row, plots.layers(row["layers"])) for row in rows if row.get("layers")],
        "implausible": [row for row in rows if row.get("implausible")],
        "energy": energy,
        "no_energy": sorted({reason for row in rows if (reason := (row.get("energy") or {}).get("refused"))}),
        "figures": {
            "latency": plots.distributions(rows, shades),
            "tokens": plots.over(series(rows, "mean_tokens"), "tokens per block, on average", "p50, ms"),
            "batches": plots.over(series(rates, "batch", "images_per_s"), "images per request", "images/s"),
            "speedups": plots.speedups(compared) if compared else None,
            "energy": plots.energy(energy) if energy else None,
            "stages": plots.stages(staged) if staged else None,
        },
    }


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
