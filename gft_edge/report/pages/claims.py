"""Claims about the run as a whole, each from files of this run: title, verdicts, first figures, evidence, missing parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from gft_edge.benchmarks.measuring.bench_files import machine_label
from gft_edge.report.pages.tables import TONES, VERDICTS, Cell, is_ratio_unstable, percent, table
from gft_edge.report.pages.view import Section, View, name_of_folder, verdict_of
from gft_edge.report.results.records import has_energy, is_unstable, refused_energy

MOST_CARDS = 3
FROM_A_LOG = ("trtexec",)
"""Backends whose figures come from another program's output."""


@dataclass(frozen=True)
class LeftOut:
    """A part of a page that this run has no data for, the reason, and the command that makes the data."""

    what: str
    why: str
    command: str = ""


def title(view: View, shown: Sequence[Section]) -> str:
    """Returns the name of the run and the parts of its page."""
    names = {
        "training": "training",
        "accuracy": "accuracy",
        "controls": "selection",
        "fronts": "search",
        "quantization": "quantization",
        "sensitivities": "sensitivity",
        "verification": "verification",
        "latency": "latency",
    }
    parts = [names[section.kind] for section in shown if section.kind in names]
    if any(entry.engines for _, entry in view.artifacts):
        parts.append("engines")
    joined = (
        ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] if parts else "contents of the folder"
    )
    return f"{name_of_folder(view.found.folder)}: {joined}"


def contents(view: View) -> list[str]:
    """Returns the number of files of each kind, as text."""
    found = view.found
    counts = (
        (len(found.artifacts), "artefact"),
        (len(found.checkpoints), "checkpoint"),
        (len(found.evaluations), "file of accuracies"),
        (len(view.verifications), "verification record"),
        (len(found.benches), "bench file"),
        (len(found.predictions), "file of predictions"),
        (len(found.sensitivities), "sensitivity measurement"),
        (len(found.controls), "comparison of selections"),
        (len(found.fronts), "search of budgets"),
    )
    plural = {
        "file of accuracies": "files of accuracies",
        "file of predictions": "files of predictions",
        "comparison of selections": "comparisons of selections",
        "search of budgets": "searches of budgets",
    }
    return [f"{n} {what if n == 1 else plural.get(what, what + 's')}" for n, what in counts if n]


def verdicts(view: View) -> list[Cell]:
    """Returns the counts of passed, inconclusive and failed verifications, and of artefacts without one."""
    counts = Counter(verdict_of(record) for _, record in view.verifications)
    cells = [Cell(f"{VERDICTS[key]} {counts[key]}", TONES[key] if counts[key] else "soft") for key in VERDICTS_ORDER]
    missing = [name for name, entry in view.artifacts if not entry.verifications]
    if missing:
        cells.append(Cell(f"not verified {len(missing)}", "warn"))
    return cells if counts or missing else []


VERDICTS_ORDER = ("pass", "inconclusive", "fail")


def cards(view: View) -> list[dict[str, Any]]:
    """Returns the most important figures: accuracies on one set of images, and the lowest latency of the first bench file."""
    found: list[dict[str, Any]] = []
    first = next((row.on for row in view.rows if row.backend != "torch"), view.rows[0].on if view.rows else None)
    group = [row for row in view.rows if row.on == first]
    for row in ([row for row in group if row.backend != "torch"] or group)[:MOST_CARDS]:
        head = f"{row.title}: {row.result['precision'].upper()}, {row.result['budget']} patches kept"
        if row.result["budget"] in ("all", "full"):
            head = f"{row.title}: {row.result['precision'].upper()}, every patch"
        found.append(
            {"head": head, "figure": percent(row.result["top1"]), "note": f"top-1 on {row.where}", "unstable": False}
        )
    if view.benches:
        rows = view.benches[0]["results"]
        fastest = min(rows, key=lambda row: row["p50_ms"])
        note = f"median, {view.benches[0]['title']}"
        is_compared = fastest.get("speedup") is not None and fastest["name"] != fastest.get("baseline")
        if is_compared and fastest.get("baseline"):
            note += f"; {fastest['speedup']:.2f}x as fast as {fastest['baseline']}"
            if fastest.get("speedup_interval"):
                note += " ({:.2f} to {:.2f})".format(*fastest["speedup_interval"])
        found.append(
            {
                "head": f"{fastest['name']}: latency",
                "figure": f"{fastest['p50_ms']:.2f} ms",
                "note": note,
                "unstable": is_ratio_unstable(fastest, rows) if is_compared else is_unstable(fastest),
            }
        )
    return found


def evidence(view: View) -> Any:
    """Returns the claims of this page and the evidence for each; None without claims."""
    rows: list[tuple[str, Cell, str]] = []
    run, compiled, read = Cell("run", "run"), Cell("compiled", "compiled"), Cell("read from a log", "soft")
    for backend in dict.fromkeys(row.backend for row in view.rows):
        names = dict.fromkeys(row.name for row in view.rows if row.backend == backend)
        rows.append((f"accuracy of {', '.join(names)}", run, f"{_backend(backend)} classified the images"))
    if view.verifications:
        names = dict.fromkeys(name for name, _ in view.verifications)
        sources = dict.fromkeys(record["source"] for _, record in view.verifications)
        rows.append((f"verification of {', '.join(names)}", run, f"both models ran on {'; '.join(sources)}"))
    for file, record in view.found.controls:
        how = f"{_backend(record['backend'] or 'torch')} ran every rule on the same images, {file}"
        rows.append((f"value of the selection of {record['model']}", run, how))
    for file, record in view.found.fronts:
        rows.append((f"accuracy of {len(record['points'])} budgets", run, f"PyTorch classified the images, {file}"))
    for file, bench in view.found.benches:
        for backend in dict.fromkeys(row["backend"] for row in bench["results"]):
            names = dict.fromkeys(row["name"] for row in bench["results"] if row["backend"] == backend)
            how = f"{_backend(backend)} on {machine_label(bench)}, {file}"
            rows.append((f"latency of {', '.join(names)}", read if backend in FROM_A_LOG else run, how))
        measured = [row for row in bench["results"] if has_energy(row)]
        if measured:
            names = dict.fromkeys(row["name"] for row in measured)
            rows.append((f"energy of {', '.join(names)}", run, f"power measured on {machine_label(bench)}, {file}"))
    for _, record in view.found.predictions:
        if any(row["map"] for row in record["predictions"]):
            rows.append(
                (
                    "kept patches and importance of single images",
                    run,
                    f"outputs of {PurePosixPath(record['artifact']).name}",
                )
            )
    engines = [(name, engine) for name, entry in view.artifacts for engine in entry.engines]
    for module in dict.fromkeys(engine["module"] for _, engine in engines):
        names = dict.fromkeys(name for name, engine in engines if engine["module"] == module)
        rows.append((f"{module} accepts {', '.join(names)}", compiled, "the engine was built; a build runs no image"))
    return table(("claim", "evidence", "how"), rows) if rows else None


def _backend(name: str) -> str:
    return {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}.get(name, name)


def left_out(view: View) -> list[LeftOut]:
    """Returns the parts that the page could have but the folder has no file for."""
    found = view.found
    missing = []
    if not view.rows:
        missing.append(LeftOut("accuracy", "no file of evaluate --out", "gft-edge evaluate MODEL --data D --out FILE"))
    elif not any(row.result["per_class"] or row.result["confusion"] for row in view.rows):
        missing.append(
            LeftOut(
                "classes and wrong predictions",
                "no evaluation has figures per class",
                "gft-edge evaluate MODEL --data D --out FILE",
            )
        )
    if not found.benches:
        missing.append(LeftOut("latency", "no bench file", "gft-edge bench ARTIFACT --out FILE"))
    if view.rows and found.benches and view.tradeoff is None:
        missing.append(
            LeftOut(
                "accuracy against latency", "fewer than two models have both on the same images and in one bench file"
            )
        )
    if not any(entry.log for entry in found.checkpoints.values()):
        missing.append(
            LeftOut("training curve", "no checkpoint with its log.jsonl", "gft-edge train --config RECIPE --out DIR")
        )
    if not found.artifacts:
        missing.append(LeftOut("graphs and engines", "no artefact", "gft-edge export CKPT --out DIR"))
    elif not any(entry.engines for entry in found.artifacts.values()):
        missing.append(LeftOut("engines", "no artefact has one", "gft-edge build ARTIFACT --target TARGET"))
    if found.artifacts and not view.verifications:
        missing.append(
            LeftOut(
                "verification", "no artefact has a verification record", "gft-edge verify ARTIFACT --checkpoint CKPT"
            )
        )
    shown = any(row["map"] for _, record in found.predictions for row in record["predictions"])
    if not shown:
        command = "gft-edge predict ARTIFACT IMAGE --maps DIR --out FILE"
        missing.append(LeftOut("pictures of kept patches", "no file of predict --maps --out", command))
    results = [row for _, bench in found.benches for row in bench["results"]]
    if results and not any(map(has_energy, results)):
        reasons = sorted({reason for row in results if (reason := refused_energy(row))})
        missing.append(LeftOut("energy", "; ".join(reasons) or "the bench files hold none"))
    return missing
