"""Sections of a run's page. Each has a title, the name of its macro in sections.html.j2, and the data of the macro."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gft_edge.manifest import MODEL
from gft_edge.report.figures import plots
from gft_edge.report.pages.controls import section as controls_section
from gft_edge.report.pages.front import section as front_section
from gft_edge.report.pages.picture_sections import classes, maps, predictions
from gft_edge.report.pages.sensitivity import section as sensitivity_section
from gft_edge.report.pages.tables import TONES, VERDICTS, Cell, Table, decibels, megabytes, number, percent, table
from gft_edge.report.pages.view import Section, View, verdict_of
from gft_edge.report.results.checks import printable
from gft_edge.report.results.records import UNSTABLE


def sections(view: View) -> list[Section]:
    """Returns the sections that this run has data for, in the order of the page."""
    makers = (
        _tradeoff,
        _fronts,
        _models,
        _training,
        _accuracy,
        classes,
        _controls,
        predictions,
        _quantization,
        _sensitivity,
        _verification,
        maps,
        _latency,
        _files,
    )
    return [section for maker in makers for section in maker(view)]


def _tradeoff(view: View) -> Iterator[Section]:
    if view.tradeoff is not None:
        points = view.tradeoff.points
        unstable = [point.name for point in points if point.is_unstable]
        rows = [
            (
                point.name,
                percent(point.top1, 2),
                f"{percent(point.top1_interval[0])} to {percent(point.top1_interval[1])}",
                Cell(
                    f"{point.ms:.2f}{' ' + UNSTABLE if point.is_unstable else ''}", "warn" if point.is_unstable else ""
                ),
                f"{point.ms_interval[0]:.2f} to {point.ms_interval[1]:.2f}",
                f"{points[0].ms / point.ms:.2f}x" if point is not points[0] else "",
            )
            for point in points
        ]
        heads = (
            "model",
            number("top-1"),
            "95 % interval of top-1",
            number("median ms"),
            "95 % interval of ms",
            number(f"times as fast as {points[0].name}"),
        )
        data = {"table": table(heads, rows), "measured": view.tradeoff, "unstable": unstable}
        yield Section("Accuracy against latency", "tradeoff", data)


def _fronts(view: View) -> Iterator[Section]:
    shown = [{"file": file, **front_section(record)} for file, record in view.found.fronts]
    if shown:
        yield Section("The smallest model that is still right", "fronts", {"records": shown}, name="front")


def _models(view: View) -> Iterator[Section]:
    models: dict[Any, dict[str, Any]] = {}
    entries = [(name, entry.artifact.manifest.model, entry.artifact.manifest.labels) for name, entry in view.artifacts]
    entries += [(view.names[path], entry.model, entry.labels) for path, entry in view.found.checkpoints.items()]
    budgets = {
        name: (manifest.budget.id, manifest.budget.keep)
        for name, entry in view.artifacts
        if (manifest := entry.artifact.manifest).budget.keep
    }
    for name, config, labels in entries:
        key = (
            config.backbone,
            config.image_size,
            config.depth,
            config.embed_dim,
            config.stages,
            config.variant,
            config.score,
            config.num_prefix_tokens,
            labels,
        )
        shown: dict[str, Any] = {"config": config, "labels": [printable(str(label)) for label in labels], "names": []}
        models.setdefault(key, shown)["names"].append(name)
    for shown in models.values():
        config = shown["config"]
        kept = dict(budgets[name] for name in shown["names"] if name in budgets)
        kept = kept or ({config.budget.id: config.budget.keep} if config.budget.keep else {})
        shown["figure"] = None
        if kept and not config.is_baseline:
            sizes = config.depth, config.stages, kept, config.num_patches
            shown["figure"] = plots.staircase(*sizes, is_inside=config.variant == "focal")
    if models:
        yield Section("The model" if len(models) == 1 else "The models", "models", {"models": list(models.values())})


def _training(view: View) -> Iterator[Section]:
    logs = []
    for path, entry in view.found.checkpoints.items():
        if entry.log:
            last = entry.log[-1]
            logs.append(
                {
                    "name": view.names[path],
                    "steps": entry.steps or last["step"],
                    "start": entry.start,
                    "data": entry.data,
                    "figure": plots.training(entry.log),
                    "is_smoothed": len(entry.log) >= 12,
                    "is_known_data": (entry.start, entry.data) == ("builtin", "scenes"),
                    "is_level": _is_level([row["loss"] for row in entry.log]),
                    "first": entry.log[0],
                    "last": last,
                }
            )
    if logs:
        yield Section("Training", "training", {"logs": logs})


def _is_level(losses: Sequence[float]) -> bool:
    """Returns whether the mean of the last third of the losses is within 20 % of the mean of the first third."""
    third = max(1, len(losses) // 3)
    before, after = sum(losses[:third]) / third, sum(losses[-third:]) / third
    return abs(after - before) <= 0.2 * abs(before)


def _accuracy(view: View) -> Iterator[Section]:
    groups = []
    for on in dict.fromkeys(row.on for row in view.rows):
        rows = [row for row in view.rows if row.on == on]
        drawn = [{"name": row.name, "title": row.title, **row.result} for row in rows]
        shown = table(
            (
                "model",
                number("top-1"),
                "95 % interval",
                number("top-5"),
                "backend",
                "precision",
                "patches kept",
                number("correct"),
                number("million MACs"),
            ),
            [
                (
                    row.title,
                    percent(row.result["top1"], 2),
                    f"{percent(row.result['interval'][0])} to {percent(row.result['interval'][1])}",
                    "" if row.result["top5"] is None else percent(row.result["top5"], 2),
                    row.backend,
                    row.result["precision"],
                    row.result["budget"],
                    f"{row.result['right']} of {on[2]}",
                    "" if row.macs is None else f"{row.macs / 1e6:.0f}",
                )
                for row in rows
            ],
        )
        groups.append(
            {
                "where": rows[0].where,
                "split": on[1],
                "is_training": on[1] == "train",
                "several": len(rows) > 1,
                "unreadable": max(row.unreadable for row in rows),
                "figure": plots.accuracy(drawn, view.colors),
                "table": shown,
            }
        )
    if groups:
        yield Section("Accuracy", "accuracy", {"groups": groups})


def _controls(view: View) -> Iterator[Section]:
    shown = [{"file": file, **controls_section(record)} for file, record in view.found.controls]
    if shown:
        yield Section("Does the selection matter", "controls", {"records": shown})


def _quantization(view: View) -> Iterator[Section]:
    from gft_edge.report.pages.quantization import quantization

    data = quantization(view)
    if data["models"] or data["calibrations"]:
        yield Section("Quantization", "quantization", data)


def _sensitivity(view: View) -> Iterator[Section]:
    shown = [{"file": file, **sensitivity_section(record)} for file, record in view.found.sensitivities]
    if shown:
        yield Section("Sensitivity of each layer to INT8", "sensitivities", {"records": shown})


def _verification(view: View) -> Iterator[Section]:
    records = view.verifications
    if not records:
        return
    rows = []
    for name, record in records:
        verdict = verdict_of(record)
        text = VERDICTS[verdict]
        if record["images_needed"]:
            text += f", about {record['images_needed']} images needed"
        for count, c in enumerate(record["comparisons"]):
            rows.append(
                (
                    name,
                    Cell(text, TONES[verdict]) if count == 0 else Cell(""),
                    f"{c['reference']}, {c['images']} images",
                    c["candidate"],
                    decibels(c["logit_sqnr_db"]),
                    f"{c['max_relative_error']:.1e}",
                    percent(c["top1_agreement"]),
                    " ".join(f"{s['jaccard']:.4f}" for s in c["stages"]) or "all kept",
                )
            )
        if not record["comparisons"]:
            rows.append((name, Cell(text, TONES[verdict]), "", "", "", "", "", ""))
    heads = (
        "artefact",
        "verdict",
        "reference",
        "candidate",
        number("logit SQNR"),
        number("largest error"),
        number("same class"),
        "kept patches in common, by stage",
    )
    places = [(name, place["text"]) for name, record in records for place in record["places"] or ()]
    failures = [(name, text) for name, record in records for text in record["failures"] or ()]
    data = {
        "table": table(heads, rows),
        "problems": list(dict.fromkeys([*places, *failures])),
        "undecided": [(name, text) for name, record in records for text in record["undecided"] or ()],
        "sources": list(dict.fromkeys(record["source"] for _, record in records)),
        "unreadable": [(name, record["unreadable"]) for name, record in records if record["unreadable"]],
    }
    yield Section("Verification: artefacts compared with a reference", "verification", data)


def _latency(view: View) -> Iterator[Section]:
    if view.benches:
        yield Section("Latency", "latency", {"benches": view.benches})


def _files(view: View) -> Iterator[Section]:
    if not view.artifacts:
        return
    rows: list[tuple[Cell | str, ...]] = []
    sizes = []
    for name, entry in view.artifacts:
        manifest = entry.artifact.manifest
        size = manifest.files[MODEL].size
        whole = size + sum(info.size for file, info in manifest.files.items() if file == "weights.bin")
        sizes.append((name, whole / 1e6, max((e["engine_bytes"] for e in entry.engines), default=0) / 1e6))
        start = (name, manifest.precision, manifest.rest, manifest.budget.id, manifest.maps, megabytes(whole))
        for engine in entry.engines or (None,):
            if engine is None:
                rows.append((*start, Cell("none", "soft"), "", "", ""))
            else:
                capabilities = ", ".join(engine["compute_capabilities"])
                layers = "" if engine["layers"] is None else str(engine["layers"])
                compiler = f"{engine['module']} {engine['version']}"
                rows.append((*start, megabytes(engine["engine_bytes"]), capabilities, layers, compiler))
    heads = (
        "artefact",
        "precision of layers",
        "precision of the rest",
        "patches kept",
        "maps",
        number("graph"),
        number("engine"),
        "compute capabilities",
    )
    shown: Table = table((*heads, number("layers"), "compiler"), rows)
    engines = [(name, engine) for name, entry in view.artifacts for engine in entry.engines]
    data = {
        "figure": plots.sizes(sizes, view.colors),
        "table": shown,
        "engines": len(engines),
        "rtx_int8": any(
            engine["module"] == "tensorrt_rtx" and entry.artifact.manifest.is_quantized
            for _, entry in view.artifacts
            for engine in entry.engines
        ),
        "modules": list(dict.fromkeys(engine["module"] for _, engine in engines)),
    }
    yield Section("Files and engines" if engines else "Files", "files", data)
