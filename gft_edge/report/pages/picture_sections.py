"""Sections of a run's page that show pictures: errors by class, overlays, importance maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from gft_edge.config.model import GALA_SCORE
from gft_edge.errors import GFTEdgeError
from gft_edge.manifest import DeploymentManifest
from gft_edge.report.figures import class_plots, plots
from gft_edge.report.figures.pictures import data_url, panel_urls
from gft_edge.report.pages.models import Evaluated
from gft_edge.report.pages.tables import number, percent, table
from gft_edge.report.pages.view import Section, View
from gft_edge.report.results.run_files import FoundArtifact, as_path, picture

MOST_PICTURES = 24
WIDE_PICTURE, SMALL_PICTURE = 1400, 192
"""Pixels of overlays with several panels, and of single images."""


def classes(view: View) -> Iterator[Section]:
    """Yields confusion, classes and wrong predictions of the most compressed model; the other models are folded."""
    rows = [row for row in view.rows if row.result["per_class"] or row.result["confusion"] or row.result["wrong"]]
    if not rows:
        return
    rows.sort(key=lambda row: row.backend == "torch")  # artefacts before checkpoints
    artifacts = [row for row in rows if row.backend != "torch"]
    main = artifacts[-1] if artifacts else rows[0]  # the most compressed one, by the order of accuracies
    shown = [_class_figures(view, main, with_pictures=True)]
    shown += [_class_figures(view, row, with_pictures=False) for row in rows if row is not main]
    yield Section("Errors by class", "classes", {"models": shown})


def _class_figures(view: View, row: Evaluated, with_pictures: bool) -> dict[str, Any]:
    result = row.result
    per_class, matrix = result["per_class"] or [], result["confusion"]
    labels = row.labels or tuple(entry["label"] for entry in per_class)
    if matrix is not None and len(labels) != len(matrix):
        labels = tuple(f"class {count}" for count in range(len(matrix)))
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
            ("true class", "predicted", number("images")),
            [(p["truth"], p["predicted"], f"{p['count']} of {p['of']}") for p in pairs],
        )
        if pairs
        else None,
        "wrong": pictures,
        "wrong_total": total,
    }


def predictions(view: View) -> Iterator[Section]:
    """Yields overlays of single images."""
    groups = []
    for file, record in view.found.predictions:
        pictures = shown_predictions(view, file, record)
        if pictures:
            groups.append(
                {
                    "artifact": PurePosixPath(record["artifact"]).name,
                    "file": file,
                    "pictures": pictures,
                    "images": len(record["predictions"]),
                    "unreadable": len(record["unreadable"] or ()),
                    "has_truth": any(row["truth"] is not None for row in pictures),
                    "score": _other_score(view, record["artifact"]),
                }
            )
    if groups:
        yield Section("Importance and kept patches", "predictions", {"groups": groups})


def shown_predictions(view: View, file: str, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the predictions of a file that have a picture, at most :data:`MOST_PICTURES`.

    Each has the entries of the file, ``name`` of its image, ``truth`` (a class or None), and its picture: ``panels`` with a
    URL, a title and a text each, or None and the ``url`` of the whole picture.
    """
    beside = (view.found.folder / file).parent
    labels = _labels_of(view, record["artifact"])
    sizes = _sizes(view, record["artifact"])
    shown: list[dict[str, Any]] = []
    for row in record["predictions"]:
        found = picture(view.found.folder, beside, row["map"]) if row["map"] else None
        if found is None or len(shown) == MOST_PICTURES:
            continue
        path = as_path(row["image"])
        urls = panel_urls(found)
        panels = None if urls is None else _panels(urls, path.name, sizes)
        url = None if panels else data_url(found, WIDE_PICTURE)
        if panels or url:
            truth = next((name for name in (path.parent.name, path.stem) if name in labels), None)
            shown.append({**row, "name": path.name, "truth": truth, "panels": panels, "url": url})
    return shown


def _panels(urls: Sequence[str], name: str, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Returns the panels of an overlay with their titles.

    Args:
        urls: of the image, its map, and one per stage; an artefact that names kept patches has maps too.
        name: of the image.
        sizes: patches of the image and those that each stage keeps; empty if the artefact is unknown.
    """
    shown = [{"url": urls[0], "title": "image", "alt": f"{name}: the image", "is_map": False}]
    if len(urls) > 1:
        title = "importance (GALA map)"
        shown.append({"url": urls[1], "title": title, "alt": f"{name}: importance of its patches", "is_map": True})
    for stage, url in enumerate(urls[2:], start=1):
        known = len(sizes) == len(urls) - 1
        title = f"stage {stage}: {sizes[stage]} of {sizes[0]}" if known else f"stage {stage}"
        alt = f"{name}: the patches kept by {title}"
        shown.append({"url": url, "title": title, "alt": alt, "is_map": False})
    return shown


def _sizes(view: View, artifact: str) -> tuple[int, ...]:
    """Returns the patches of an image and those that each stage keeps, of the artefact that made predictions."""
    member = PurePosixPath(artifact).name.partition("@")[2]
    for manifest in _manifests(view, artifact):
        if not member:
            return (manifest.model.num_patches, *manifest.budget.keep)
        if member in (manifest.budget.id, *manifest.family):
            return (manifest.model.num_patches, *map(int, member.split("-")))
    return ()


def _manifests(view: View, artifact: str) -> list[DeploymentManifest]:
    """Returns the manifests of the artefact that made predictions; none if it is unknown."""
    name = PurePosixPath(artifact).name.partition("@")[0]
    return [entry.artifact.manifest for known, entry in view.artifacts if known == name or entry.artifact.name == name]


def _labels_of(view: View, artifact: str) -> frozenset[str]:
    """Returns the class names of the artefact that made predictions; empty if it is unknown, so no file name passes for a class."""
    return frozenset(label for manifest in _manifests(view, artifact) for label in manifest.labels)


def _other_score(view: View, artifact: str) -> str | None:
    """Returns the score that ranks the patches of an artefact where it is not what a GALA map shows; else None."""
    models = [manifest.model for manifest in _manifests(view, artifact)]
    return next((model.score for model in models if model.variant == "focal" and model.score != GALA_SCORE), None)


def maps(view: View) -> Iterator[Section]:
    """Yields insertion and deletion curves, and the maps of both models side by side."""
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
            heads = (
                "stage",
                number("rank correlation"),
                number("kept patches in common"),
                number("most important tenth in common"),
            )
            records.append(
                {
                    "name": name,
                    "source": record["source"],
                    "figure": plots.fidelity(record),
                    "gains": table(
                        (
                            "maps of",
                            number("insertion area minus random (95 %)"),
                            number("random minus deletion area (95 %)"),
                        ),
                        gains,
                    ),
                    "stages": table(heads, stages) if stages else None,
                    "sides": [side["name"] for side in record["sides"]],
                    "pictures": list(_map_pictures(entry, record)),
                }
            )
    if records:
        title = "Importance maps: fidelity and effect of compression"
        yield Section(title, "maps", {"records": records})


def _change(change: Mapping[str, Any]) -> str:
    low, high = change["interval"]
    return f"{change['mean']:+.3f} ({low:+.3f} to {high:+.3f})"


def _map_pictures(entry: FoundArtifact, record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for row in record["pictures"][:MOST_PICTURES]:
        try:
            url = data_url(entry.artifact.file(row["file"]), WIDE_PICTURE)
        except GFTEdgeError:
            url = None
        if url is not None:
            yield {**row, "url": url}
