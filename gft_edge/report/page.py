"""The report page of a run: one offline HTML file, every number of it read from the run's own JSON files."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gft_edge import __version__
from gft_edge.benchmarks.merge import read_bench
from gft_edge.config import GFTConfig
from gft_edge.errors import ArtifactError
from gft_edge.files import read_json, replacing
from gft_edge.manifest import Artifact, load_artifact
from gft_edge.model.macs import count_macs
from gft_edge.report.bench import MERGED, environment, points

PAGE = "report.html"
ORDER = ("fp32-full", "fp32-pruned", "int8-pruned", "int8-maps")


def write_page(run: Path) -> Path:
    """Writes ``report.html`` into a run's folder and returns its path.

    Reads what is there: artefacts (sub-folders with a manifest) with their engines and ``reports/verify.json``,
    ``evaluate-*.json``, ``bench*.json``, ``predictions.json``, ``*/sensitivity.json``, ``checkpoint/log.jsonl`` and ``run.json``.

    Raises:
        ArtifactError: no such folder, no artefact in it, or a damaged file.
    """
    if not run.is_dir():
        raise ArtifactError(f"run {run}: no such folder; make one with gft-edge demo")
    html = environment().get_template("page.html.j2").render(**collect(run))
    with replacing(run / PAGE) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return run / PAGE


def collect(run: Path) -> dict[str, Any]:
    """Everything the template shows, from the files of a run."""
    from gft_edge.report import plots
    from gft_edge.report.sensitivity import section

    artifacts = _artifacts(run)
    colors = plots.color_of(artifacts)
    first = next(iter(artifacts.values())).manifest
    gft = next((a.manifest for a in artifacts.values() if not a.manifest.model.is_baseline), first)
    accuracy = _accuracy(run, {name: a.manifest.model for name, a in artifacts.items()}, gft.model)
    files = [file for file in sorted(run.glob("bench*.json"), key=lambda f: f.stem) if file.name != MERGED]
    benches = [point for file in files for point in points(read_bench(file), colors)]
    engines = {name: _engines(artifact) for name, artifact in artifacts.items()}
    budgets = {a.manifest.budget.id: a.manifest.budget.keep for a in artifacts.values() if a.manifest.budget.keep}
    log = _log(run)
    record = read_json(run / "run.json", "run") if (run / "run.json").is_file() else None
    return {
        "version": __version__,
        "run": record,
        "config": gft.model,
        "labels": gft.labels,
        "artifacts": artifacts,
        "colors": colors,
        "engines": engines,
        "accuracy": accuracy,
        "by_name": {row["name"]: row for row in accuracy},
        "benches": benches,
        "latency": {row["name"]: row for row in benches[0]["results"]} if benches else {},
        "verified": {name: _optional_json(artifact, "reports/verify.json") for name, artifact in artifacts.items()},
        "fidelity": [
            {**record, "artifact": name, "figure": plots.fidelity(record), "urls": _map_pictures(artifact, record)}
            for name, artifact in artifacts.items()
            if (record := _optional_json(artifact, "reports/maps.json"))
        ],
        "quantization": next((a.manifest.quantization for a in artifacts.values() if a.manifest.quantization), None),
        "calibration": {
            name: read_json(file, "calibration")
            for name in ("card", "ranges", "selection")
            for file in sorted(run.glob(f"*/calibration/{name}.json"))[:1]
        },
        "sensitivity": next(
            (section(read_json(file, "sensitivity")) for file in sorted(run.glob("*/sensitivity.json"))), None
        ),
        "pictures": _pictures(run),
        "log": log,
        "figures": {
            "training": plots.training(log) if log else None,
            "accuracy": plots.accuracy(accuracy, colors) if accuracy else None,
            "staircase": plots.staircase(gft.model.depth, gft.model.stages, budgets, gft.model.num_patches)
            if budgets
            else None,
            "sizes": plots.sizes(
                [
                    (
                        name,
                        artifact.manifest.files["model.onnx"].size / 1e6,
                        max((e["engine_bytes"] for e in engines[name]), default=0) / 1e6,
                    )
                    for name, artifact in artifacts.items()
                ],
                colors,
            ),
        },
    }


def _artifacts(run: Path) -> dict[str, Artifact]:
    """Artefacts of a run by name, the demo's in the order of the story."""
    found = {file.parent.name: load_artifact(file.parent) for file in sorted(run.glob("*/manifest.json"))}
    if not found:
        raise ArtifactError(f"run {run}: holds no artefact; make one with gft-edge export --out {run}/NAME")
    names = [name for name in ORDER if name in found] + [name for name in found if name not in ORDER]
    return {name: found[name] for name in names}


def _accuracy(run: Path, configs: Mapping[str, GFTConfig], default: GFTConfig) -> list[dict[str, Any]]:
    """One row per evaluated model: artefacts by name, checkpoints by budget.

    Args:
        run: folder.
        configs: of the artefacts, by name.
        default: of everything else.
    """
    rows = []
    for file in sorted(run.glob("evaluate-*.json")):
        data = read_json(file, "evaluation")
        for result in data["results"]:
            name = Path(data["model"]).name
            if data["backend"] == "torch":
                name = f"torch {result['precision']} {result['budget']}"
            config = configs.get(name, default)
            macs = None if config.is_baseline else count_macs(config, config.parse_budget(result["budget"]))
            rows.append(
                {
                    **result,
                    "macs": macs,
                    "name": name,
                    "backend": data["backend"],
                    "images": data["images"],
                    "split": data["split"],
                }
            )
    place = {name: number for number, name in enumerate(ORDER)}
    return sorted(rows, key=lambda row: (row["backend"] != "torch", place.get(row["name"], len(ORDER)), row["name"]))


def _engines(artifact: Artifact) -> list[dict[str, Any]]:
    files = [n for n in artifact.manifest.files if n.startswith("engines/") and n.endswith(".json")]
    return [read_json(artifact.file(name), "engine") for name in sorted(files)]


def _optional_json(artifact: Artifact, name: str) -> dict[str, Any] | None:
    return read_json(artifact.file(name), "report") if name in artifact.manifest.files else None


def _map_pictures(artifact: Artifact, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Pictures of importance maps as data URLs, with what each side says."""
    return [{**row, "url": _png_url(artifact.file(row["file"]))} for row in record["pictures"]]


def _png_url(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _log(run: Path) -> list[dict[str, float]]:
    file = run / "checkpoint/log.jsonl"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ArtifactError(f"training log {file}: line is no JSON ({error})") from None


def _pictures(run: Path) -> list[Mapping[str, Any]]:
    """Predictions with their overlays as data URLs, so that the page needs no other file."""
    file = run / "predictions.json"
    if not file.is_file():
        return []
    pictures: list[Mapping[str, Any]] = []
    for row in read_json(file, "predictions")["predictions"]:
        overlay = run / "maps" / Path(row["map"]).name
        if row["map"] and overlay.is_file():
            pictures.append({**row, "truth": Path(row["image"]).stem, "url": _png_url(overlay)})
    return pictures
