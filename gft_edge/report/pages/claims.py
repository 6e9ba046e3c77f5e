"""Claims about the run as a whole, each from files of this run: title, verdicts, first figures, evidence, what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from gft_edge.report.pages.tables import TONES, VERDICTS, Cell, is_ratio_unstable, is_unstable, percent, table
from gft_edge.report.pages.view import Section, View, name_of_folder, verdict_of

MOST_CARDS = 3
FROM_A_LOG = ("trtexec",)
"""Backends whose figures were read from another program's output."""


@dataclass(frozen=True)
class LeftOut:
    """A part of a page that this run has nothing for, why, and the command that makes it."""

    what: str
    why: str
    command: str = ""


def title(view: View, shown: Sequence[Section]) -> str:
    """Name of the run and the parts that its page has."""
    names = {
        "training": "training",
        "accuracy": "accuracy",
        "quantization": "quantization",
        "sensitivities": "sensitivity",
        "verification": "verification",
        "latency": "latency",
    }
    parts = [names[section.kind] for section in shown if section.kind in names]
    if any(entry.engines for _, entry in view.artifacts):
        parts.append("engines")
    joined = (
        ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] if parts else "what the folder holds"
    )
    return f"{name_of_folder(view.found.folder)}: {joined}"


def contents(view: View) -> list[str]:
    """Numbers of what was found, in words."""
    found = view.found
    counts = (
        (len(found.artifacts), "artefact"),
        (len(found.checkpoints), "checkpoint"),
        (len(found.evaluations), "file of accuracies"),
        (len(view.verifications), "verification record"),
        (len(found.benches), "bench file"),
        (len(found.predictions), "file of predictions"),
        (len(found.sensitivities), "sensitivity measurement"),
    )
    plural = {"file of accuracies": "files of accuracies", "file of predictions": "files of predictions"}
    return [f"{n} {what if n == 1 else plural.get(what, what + 's')}" for n, what in counts if n]


def verdicts(view: View) -> list[Cell]:
    """How many verification records passed, are inconclusive, failed; and artefacts without one. Empty without artefacts."""
    counts = Counter(verdict_of(record) for _, record in view.verifications)
    cells = [Cell(f"{VERDICTS[key]} {counts[key]}", TONES[key] if counts[key] else "soft") for key in VERDICTS_ORDER]
    missing = [name for name, entry in view.artifacts if not entry.verifications]
    if missing:
        cells.append(Cell(f"not verified {len(missing)}", "warn"))
    return cells if counts or missing else []


VERDICTS_ORDER = ("pass", "inconclusive", "fail")


def cards(view: View) -> list[dict[str, Any]]:
    """The figures to see first: accuracies on one set of images, and the fastest latency of the first bench file."""
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
    """Claims of this page and what each rests on; None where there are none."""
    rows: list[tuple[str, Cell, str]] = []
    run, compiled, read = Cell("run", "run"), Cell("compiled", "compiled"), Cell("read from a log", "soft")
    for backend in dict.fromkeys(row.backend for row in view.rows):
        names = dict.fromkeys(row.name for row in view.rows if row.backend == backend)
        rows.append((f"accuracy of {', '.join(names)}", run, f"images classified by {_backend(backend)}"))
    if view.verifications:
        names = dict.fromkeys(name for name, _ in view.verifications)
        sources = dict.fromkeys(record["source"] for _, record in view.verifications)
        rows.append((f"verification of {', '.join(names)}", run, f"both sides executed on {'; '.join(sources)}"))
    for file, bench in view.found.benches:
        for backend in dict.fromkeys(row["backend"] for row in bench["results"]):
            names = dict.fromkeys(row["name"] for row in bench["results"] if row["backend"] == backend)
            how = f"{_backend(backend)} on {_machine(bench)}, {file}"
            rows.append((f"latency of {', '.join(names)}", read if backend in FROM_A_LOG else run, how))
        measured = [row for row in bench["results"] if (row.get("energy") or {}).get("mj_per_image") is not None]
        if measured:
            names = dict.fromkeys(row["name"] for row in measured)
            rows.append((f"energy of {', '.join(names)}", run, f"power measured on {_machine(bench)}, {file}"))
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
        rows.append((f"{module} accepts {', '.join(names)}", compiled, "an engine was built; building runs no image"))
    return table(("claim", "evidence", "how"), rows) if rows else None


def _backend(name: str) -> str:
    return {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}.get(name, name)


def _machine(bench: Mapping[str, Any]) -> str:
    from gft_edge.benchmarks.measuring.bench_files import machine_label

    return machine_label(bench)


def left_out(view: View) -> list[LeftOut]:
    """Parts that the page could have and this folder has no file for."""
    found = view.found
    gone = []
    if not view.rows:
        gone.append(LeftOut("accuracy", "no file of evaluate --out", "gft-edge evaluate MODEL --data D --out FILE"))
    elif not any(row.result["per_class"] or row.result["confusion"] for row in view.rows):
        gone.append(
            LeftOut(
                "classes and wrong predictions",
                "no evaluation here has figures per class",
                "gft-edge evaluate MODEL --data D --out FILE",
            )
        )
    if not found.benches:
        gone.append(LeftOut("latency", "no bench file", "gft-edge bench ARTIFACT --out FILE"))
    if view.rows and found.benches and view.tradeoff is None:
        gone.append(
            LeftOut(
                "accuracy against latency", "fewer than two models have both, on the same images and in one bench file"
            )
        )
    if not any(entry.log for entry in found.checkpoints.values()):
        gone.append(
            LeftOut("training curve", "no checkpoint with its log.jsonl", "gft-edge train --config RECIPE --out DIR")
        )
    if not found.artifacts:
        gone.append(LeftOut("graphs and engines", "no artefact", "gft-edge export CKPT --out DIR"))
    elif not any(entry.engines for entry in found.artifacts.values()):
        gone.append(LeftOut("engines", "none was built", "gft-edge build ARTIFACT --target TARGET"))
    if found.artifacts and not view.verifications:
        gone.append(
            LeftOut("verification", "no artefact has a record of it", "gft-edge verify ARTIFACT --checkpoint CKPT")
        )
    shown = any(row["map"] for _, record in found.predictions for row in record["predictions"])
    if not shown:
        command = "gft-edge predict ARTIFACT IMAGE --maps DIR --out FILE"
        gone.append(LeftOut("pictures of what was kept", "no file of predict --maps --out", command))
    if not any(
        (row.get("energy") or {}).get("mj_per_image") is not None for _, b in found.benches for row in b["results"]
    ):
        reasons = {
            reason
            for _, b in found.benches
            for row in b["results"]
            if (reason := (row.get("energy") or {}).get("refused"))
        }
        if found.benches:
            gone.append(LeftOut("energy", "; ".join(sorted(reasons)) or "the bench files hold none"))
    return gone
