"""Sections of a run's page: each has a title, the name of its macro in sections.html.j2, and the data of this run that it shows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from gft_edge.manifest import MODEL
from gft_edge.report import class_plots, plots
from gft_edge.report.checks import printable
from gft_edge.report.models import Evaluated, Tradeoff, place
from gft_edge.report.pictures import data_url
from gft_edge.report.run_files import FoundArtifact, RunFiles, as_path, picture
from gft_edge.report.sensitivity import section as sensitivity_section
from gft_edge.report.tables import TONES, VERDICTS, Cell, Table, decibels, megabytes, percent, table

MOST_PICTURES = 24
WIDE_PICTURE, SMALL_PICTURE = 1400, 192
"""Pixels of overlays with several panels, and of single images."""


@dataclass(frozen=True)
class View:
    """What all sections read: the files of a run, names and colours of its models, and figures derived from several files."""

    found: RunFiles
    names: Mapping[str, str]
    colors: Mapping[str, str]
    rows: Sequence[Evaluated]
    benches: Sequence[Mapping[str, Any]]
    tradeoff: Tradeoff | None

    @property
    def artifacts(self) -> list[tuple[str, FoundArtifact]]:
        """Artefacts by name, the demo's in the order of its story."""
        pairs = [(self.names[path], entry) for path, entry in self.found.artifacts.items()]
        return sorted(pairs, key=lambda pair: place(pair[0]))

    @property
    def verifications(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Verification records by name: those in artefacts, and those of artefacts that are not here."""
        records = [
            (name if record["artifact"].partition("@")[0] == name else record["artifact"] or name, record)
            for name, entry in self.artifacts
            for record in entry.verifications
        ]
        have = {name for name, _ in records}
        return records + [(r["artifact"], r) for _, r in self.found.verifications if r["artifact"] not in have]


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        title: its heading, without number.
        kind: name of its macro.
        data: what the macro shows.
    """

    title: str
    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def anchor(self) -> str:
        """What links to the section name."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def sections(view: View) -> list[Section]:
    """The sections that this run has something for, in the order of the page."""
    makers = (
        _tradeoff,
        _models,
        _training,
        _accuracy,
        _classes,
        _predictions,
        _quantization,
        _sensitivity,
        _verification,
        _maps,
        _latency,
        _files,
    )
    return [section for maker in makers for section in maker(view)]


def _tradeoff(view: View) -> Iterator[Section]:
    if view.tradeoff is not None:
        points = view.tradeoff.points
        unstable = [point.name for point in points if point.is_unstable]
        data = {"figure": plots.tradeoff(points), "measured": view.tradeoff, "unstable": unstable}
        yield Section("Accuracy against latency", "tradeoff", data)


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
            labels,
        )
        shown: dict[str, Any] = {"config": config, "labels": [printable(str(label)) for label in labels], "names": []}
        models.setdefault(key, shown)["names"].append(name)
    for shown in models.values():
        config = shown["config"]
        kept = dict(budgets[name] for name in shown["names"] if name in budgets)
        kept = kept or ({config.budget.id: config.budget.keep} if config.budget.keep else {})
        is_drawn = bool(kept) and not config.is_baseline
        shown["figure"] = plots.staircase(config.depth, config.stages, kept, config.num_patches) if is_drawn else None
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
                    "is_level": _is_level([row["loss"] for row in entry.log]),
                    "first": entry.log[0],
                    "last": last,
                }
            )
    if logs:
        yield Section("Training", "training", {"logs": logs})


def _is_level(losses: Sequence[float]) -> bool:
    """Whether the last third of a course is within a fifth of its first third, on average."""
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
                "top-1#",
                "95 % interval",
                "top-5#",
                "run by",
                "precision",
                "patches kept",
                "right#",
                "million MACs#",
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


def _classes(view: View) -> Iterator[Section]:
    rows = [row for row in view.rows if row.result["per_class"] or row.result["confusion"] or row.result["wrong"]]
    if not rows:
        return
    rows.sort(key=lambda row: row.backend == "torch")  # of artefacts before those of checkpoints
    artifacts = [row for row in rows if row.backend != "torch"]
    main = artifacts[-1] if artifacts else rows[0]  # the most compressed one, by the order of accuracies
    shown = [_class_figures(view, main, with_pictures=True)]
    shown += [_class_figures(view, row, with_pictures=False) for row in rows if row is not main]
    yield Section("Which classes go wrong", "classes", {"models": shown})


def _class_figures(view: View, row: Evaluated, with_pictures: bool) -> dict[str, Any]:
    result = row.result
    per_class, matrix = result["per_class"] or [], result["confusion"]
    labels = row.labels or tuple(entry["label"] for entry in per_class)
    if matrix is not None and len(labels) != len(matrix):
        labels = tuple(f"class {number}" for number in range(len(matrix)))
    with_images = class_plots.worst_first(per_class)
    wrong = result["wrong"] or []
    pairs = class_plots.confused_pairs(matrix, labels) if matrix else []
    pictures: list[dict[str, Any]] = []
    beside = (view.found.folder / row.file).parent
    for entry in wrong[:MOST_PICTURES] if with_pictures else ():
        file = picture(view.found.folder, beside, entry["picture"]) if entry["picture"] else None
        url = data_url(file, SMALL_PICTURE) if file else None
        pictures.append({**entry, "short": "/".join(as_path(entry["image"]).parts[-2:]), "url": url})
    total = result["wrong_total"] if result["wrong_total"] is not None else row.on[2] - result["right"]
    return {
        "title": row.title,
        "where": row.where,
        "backend": row.backend,
        "is_large": len(labels) > class_plots.MOST_ON_A_TELEPHONE,
        "without_images": len(per_class) - len(with_images),
        "bars": class_plots.per_class(per_class) if with_images else None,
        "bars_shown": min(len(with_images), class_plots.MOST_BARS),
        "bars_of": len(with_images),
        "matrix": class_plots.confusion(matrix, labels)
        if matrix and len(matrix) <= class_plots.MOST_IN_MATRIX
        else None,
        "pairs": table(
            ("true class", "predicted", "images#"),
            [(p["truth"], p["predicted"], f"{p['count']} of {p['of']}") for p in pairs],
        )
        if pairs
        else None,
        "wrong": pictures,
        "wrong_total": total,
    }


def _predictions(view: View) -> Iterator[Section]:
    groups = []
    for file, record in view.found.predictions:
        beside = (view.found.folder / file).parent
        labels = _labels_of(view, record["artifact"])
        pictures: list[dict[str, Any]] = []
        for row in record["predictions"]:
            found = picture(view.found.folder, beside, row["map"]) if row["map"] else None
            url = data_url(found, WIDE_PICTURE) if found and len(pictures) < MOST_PICTURES else None
            if url is None:
                continue
            path = as_path(row["image"])
            truth = next((name for name in (path.parent.name, path.stem) if name in labels), None)
            pictures.append({**row, "name": path.name, "truth": truth, "url": url})
        if pictures:
            groups.append(
                {
                    "artifact": PurePosixPath(record["artifact"]).name,
                    "file": file,
                    "pictures": pictures,
                    "images": len(record["predictions"]),
                    "unreadable": len(record["unreadable"] or ()),
                    "has_truth": any(row["truth"] is not None for row in pictures),
                }
            )
    if groups:
        yield Section("What it looked at", "predictions", {"groups": groups})


def _labels_of(view: View, artifact: str) -> frozenset[str]:
    """Class names of the artefact that made predictions; without it none, so that no file name is taken for a class."""
    name = PurePosixPath(artifact).name.partition("@")[0]
    return frozenset(
        label
        for known, entry in view.artifacts
        if known == name or entry.artifact.name == name
        for label in entry.artifact.manifest.labels
    )


def _quantization(view: View) -> Iterator[Section]:
    from gft_edge.report.quantization import quantization

    data = quantization(view)
    if data["models"] or data["calibrations"]:
        yield Section("Quantization", "quantization", data)


def _sensitivity(view: View) -> Iterator[Section]:
    shown = [{"file": file, **sensitivity_section(record)} for file, record in view.found.sensitivities]
    if shown:
        yield Section("Sensitivity: what INT8 does to each layer", "sensitivities", {"records": shown})


def _verification(view: View) -> Iterator[Section]:
    records = view.verifications
    if not records:
        return
    rows = []
    for name, record in records:
        verdict = verdict_of(record)
        text = VERDICTS[verdict]
        if record["images_needed"]:
            text += f", about {record['images_needed']} images would decide"
        for number, c in enumerate(record["comparisons"]):
            rows.append(
                (
                    name,
                    Cell(text, TONES[verdict]) if number == 0 else Cell(""),
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
        "against",
        "what",
        "logit SQNR#",
        "largest error#",
        "same class#",
        "kept patches in common, by stage",
    )
    places = [(name, place["text"]) for name, record in records for place in record["places"] or ()]
    failures = [(name, text) for name, record in records for text in record["failures"] or ()]
    data = {
        "table": table(heads, rows),
        "problems": list(dict.fromkeys([*places, *failures])),
        "undecided": [(name, text) for name, record in records for text in record["undecided"] or ()],
        "sources": list(dict.fromkeys(record["source"] for _, record in records)),
    }
    yield Section("Verification: do the graphs compute what PyTorch computes?", "verification", data)


def verdict_of(record: Mapping[str, Any]) -> str:
    """The verdict of a verification record; of one without, whether it passed."""
    return record["verdict"] or ("pass" if record["passed"] else "fail")


def _maps(view: View) -> Iterator[Section]:
    records = []
    for name, entry in view.artifacts:
        for record in entry.maps:
            gains = [
                (
                    side["name"],
                    *(_change(record["gain_over_random"][side["name"]][kind]) for kind in ("insertion", "deletion")),
                )
                for side in record["sides"]
            ]
            stages = [
                (
                    str(s["stage"] + 1),
                    f"{s['rank_correlation']:.4f}",
                    f"{percent(s['kept_overlap'])} of {s['kept']}",
                    f"{percent(s['top_overlap'])} of {s['top']}",
                )
                for s in record["stages"]
            ]
            heads = ("stage", "rank correlation#", "kept patches in common#", "most important tenth in common#")
            records.append(
                {
                    "name": name,
                    "source": record["source"],
                    "figure": plots.fidelity(record),
                    "gains": table(
                        ("maps of", "insertion area less random (95 %)#", "random less deletion area (95 %)#"), gains
                    ),
                    "stages": table(heads, stages) if stages else None,
                    "sides": [side["name"] for side in record["sides"]],
                    "pictures": list(_map_pictures(entry, record)),
                }
            )
    if records:
        title = "Importance maps: do they show what decides, and does compression change them?"
        yield Section(title, "maps", {"records": records})


def _change(change: Mapping[str, Any]) -> str:
    low, high = change["interval"]
    return f"{change['mean']:+.3f} ({low:+.3f} to {high:+.3f})"


def _map_pictures(entry: FoundArtifact, record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    from gft_edge.errors import GFTEdgeError

    for row in record["pictures"][:MOST_PICTURES]:
        try:
            url = data_url(entry.artifact.file(row["file"]), WIDE_PICTURE)
        except GFTEdgeError:
            url = None
        if url is not None:
            yield {**row, "url": url}


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
        "layers in",
        "the rest in",
        "patches kept",
        "maps",
        "graph#",
        "engine#",
        "compute capabilities",
    )
    shown: Table = table((*heads, "layers#", "compiler"), rows)
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


def name_of_folder(folder: Path) -> str:
    """The name of a run: of its folder."""
    return printable(folder.resolve().name) or "run"
