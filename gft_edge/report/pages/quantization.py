"""Data about quantization: the layers, the rules that apply to layers of the model, and the calibration."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from gft_edge.config.model import GFTConfig
from gft_edge.files import canonical_json
from gft_edge.report.pages.tables import Cell, number, percent, table

if TYPE_CHECKING:
    from gft_edge.report.pages.view import View


def quantization(view: View) -> dict[str, Any]:
    """Returns each distinct quantization with its models, and each calibration folder."""
    entries: list[tuple[str, Mapping[str, Any] | None, GFTConfig, str | None]] = [
        (name, entry.quantization, entry.artifact.manifest.model, entry.artifact.manifest.rest)
        for name, entry in view.artifacts
    ]
    entries += [(view.names[path], e.quantization, e.model, None) for path, e in view.found.checkpoints.items()]
    models: dict[str, dict[str, Any]] = {}
    for name, summary, config, rest in entries:
        if summary is None:
            continue
        shown = models.setdefault(canonical_json(summary), {**_shown(summary, config), "names": [], "rests": []})
        shown["names"].append(name)
        if rest is not None and rest.upper() not in shown["rests"]:
            shown["rests"].append(rest.upper())
    return {"models": list(models.values()), "calibrations": _calibrations(view)}


def _shown(summary: Mapping[str, Any], config: GFTConfig) -> dict[str, Any]:
    precisions = summary["precisions"] or dict.fromkeys(summary["ranges"], summary["precision"])
    counts = Counter(precision for precision in precisions.values() if precision != "high")
    rules = [
        (Cell(rule["pattern"], is_code=True), rule["precision"], rule["reason"])
        for rule in rules_of_model(summary["policy"], precisions, config)
    ]
    return {
        "counts": [(count, precision.upper()) for precision, count in counts.items()],
        "method": None if summary["method"] == "none" else summary["method"],
        "images": summary["calibration_images"],
        "split": summary["split"] or "",
        "has_stages": not config.is_baseline,
        "rules": table(("layers", "precision", "reason"), rules) if rules else None,
    }


def rules_of_model(
    rules: list[Mapping[str, Any]], precisions: Mapping[str, str], config: GFTConfig
) -> list[Mapping[str, Any]]:
    """Returns the rules that apply to a layer of this model, in order.

    Args:
        rules: of the policy.
        precisions: of the quantized layers, by name.
        config: of the model; determines its layers in high precision.
    """
    names = [*precisions, *_unquantized_names(precisions, config)]
    deciding = []
    for name in names:
        is_attend = name.endswith("attend")
        fitting = (r for r in rules if r["pattern"].endswith("attend") == is_attend or not is_attend)
        deciding.append(next((r["pattern"] for r in fitting if fnmatch.fnmatchcase(name, r["pattern"])), None))
    return [rule for rule in rules if rule["pattern"] in deciding]


def _unquantized_names(precisions: Mapping[str, str], config: GFTConfig) -> list[str]:
    """Returns the layers of this model that rules commonly leave in high precision."""
    if not config.is_baseline:
        return ["head", *(f"blocks.{block}.attn.attend" for block in range(config.depth))]
    found = ["head"] if any(".mlp." in name for name in precisions) else []
    if any(".attn." in name for name in precisions):
        found += ["network.blocks.0.attn.attend"]
    if any(name.startswith("network.layer") for name in precisions):
        found += ["network.conv1"]
    elif any("conv" in name for name in precisions):
        found += ["network.conv_stem"]
    return found


def _calibrations(view: View) -> list[dict[str, Any]]:
    """Returns card, ranges and selection of each folder that has one of them."""
    found: dict[str, dict[str, Any]] = {}
    parts = (("card", view.found.cards), ("ranges", view.found.ranges), ("selection", view.found.selections))
    for kind, files in parts:
        for file, record in files:
            folder = str(PurePosixPath(file).parent)
            found.setdefault(folder, {"folder": folder, "card": None, "ranges": None, "selection": None})[kind] = record
    for entry in found.values():
        entry["stages"] = _stages(entry["selection"]) if entry["selection"] else None
    return list(found.values())


def _stages(selection: Mapping[str, Any]) -> Any:
    heads = (
        "stage",
        "verdict",
        number("patches kept"),
        number("margin"),
        number("noise"),
        number("flips predicted"),
        number("flips observed"),
        number("Jaccard index of kept sets"),
    )
    rows = [
        (
            str(s["stage"] + 1),
            s["verdict"],
            str(s["kept"]),
            f"{s['margin_p50']:.3f}",
            f"{s['noise_std']:.3f}",
            percent(s["predicted_flips"], 2),
            percent(s["observed_flips"], 2),
            f"{s['jaccard']:.3f} [{s['jaccard_interval'][0]:.3f}, {s['jaccard_interval'][1]:.3f}]",
        )
        for s in selection["stages"]
    ]
    return table(heads, rows) if rows else None
