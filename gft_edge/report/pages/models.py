"""Models of a run: their names on a page, their accuracies, and their accuracy against latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gft_edge.config.model import GFTConfig
from gft_edge.errors import GFTEdgeError
from gft_edge.manifest import MODEL
from gft_edge.model.macs import count_macs
from gft_edge.report.figures.plots import Point
from gft_edge.report.figures.svg import COLORS, color_of
from gft_edge.report.results.records import is_unstable
from gft_edge.report.results.run_files import RunFiles

ORDER = ("fp32-full", "fp32-pruned", "int8-pruned", "int8-maps")
"""Names of the demo's artefacts in the order of the page; others follow by name."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Evaluated:
    """One accuracy: of a model at a budget, on some images, with a backend.

    Args:
        name: of the artefact or checkpoint.
        title: the name, and for a checkpoint its budget.
        backend: of the evaluation.
        on: data, split and number of images.
        macs: multiply-accumulates per image; None if the model is unknown or has no formula.
        unreadable: number of images that cannot be read.
        result: the figures of the file.
        labels: of the classes; empty if the file has none.
        file: relative to the run's folder.
    """

    name: str
    title: str
    backend: str
    on: tuple[str, str, int]
    macs: int | None
    unreadable: int
    result: Mapping[str, Any]
    labels: tuple[str, ...]
    file: str

    @property
    def where(self) -> str:
        """The images, as text."""
        data, split, images = self.on
        return f"{images} {split} image{'s' if images != 1 else ''} of {data}"


def place(name: str) -> tuple[int, str]:
    """Returns a sort key that puts the demo's artefacts first, in their order."""
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def display_names(found: RunFiles) -> dict[str, str]:
    """Returns the name of each artefact and checkpoint by its path: the folder's name, or the path if two share a name."""
    paths = [*found.artifacts, *found.checkpoints]
    names = {path: (found.folder / path).resolve().name if path == "." else Path(path).name for path in paths}
    for path in found.checkpoints:
        parent = Path(path).parent
        if path != "." and parent.as_posix() in found.checkpoints:
            names[path] = f"{names[parent.as_posix()]}/{names[path]}"  # the best one of a training
    count = Counter(names.values())
    return {path: path if count[name] > 1 else name for path, name in names.items()}


def colors_of(found: RunFiles, names: Mapping[str, str]) -> dict[str, str]:
    """Returns a colour for each artefact, and for every other model that a bench file or evaluation names."""
    artifacts = sorted((names[path] for path in found.artifacts), key=place)
    others = [row["name"] for _, bench in found.benches for row in bench["results"]]
    others += [Path(record["model"]).name for _, record in found.evaluations]
    return color_of(dict.fromkeys([*artifacts, *others]))


def graphs(found: RunFiles, names: Mapping[str, str]) -> dict[str, str]:
    """Returns the sha256 of the graph of each artefact and member of a family, by name."""
    known = {}
    for path, entry in found.artifacts.items():
        manifest = entry.artifact.manifest
        known[names[path]] = manifest.files[MODEL].sha256
        for budget, member in manifest.family.items():
            if member.model in manifest.files:
                known[f"{names[path]}@{budget}"] = manifest.files[member.model].sha256
    return known


def evaluated(found: RunFiles, names: Mapping[str, str]) -> list[Evaluated]:
    """Returns every accuracy of a run: checkpoints first, then artefacts."""
    configs: dict[str, GFTConfig] = {names[path]: entry.model for path, entry in found.checkpoints.items()}
    configs |= {names[path]: entry.artifact.manifest.model for path, entry in found.artifacts.items()}
    rows = []
    for file, record in found.evaluations:
        name = Path(record["model"]).name or record["model"]
        is_checkpoint = record["backend"] == "torch"
        for result in record["results"]:
            rows.append(
                Evaluated(
                    name=name,
                    title=f"{name}, {result['budget']}" if is_checkpoint else name,
                    backend=record["backend"],
                    on=(record["data"], record["split"], record["images"]),
                    macs=_macs(configs.get(name.partition("@")[0]), result["budget"]),
                    unreadable=record["unreadable_images"] or 0,
                    result=result,
                    labels=tuple(record["labels"] or ()),
                    file=file,
                )
            )
    return sorted(rows, key=lambda row: (row.on, row.backend != "torch", place(row.name)))


def _macs(config: GFTConfig | None, budget: str) -> int | None:
    """Returns multiply-accumulates; None if the model is unknown, is a baseline, or has no such budget."""
    if config is None or config.is_baseline:
        return None
    try:
        return count_macs(config, config.parse_budget(budget))
    except GFTEdgeError:
        return None


@dataclass(frozen=True)
class Tradeoff:
    """Models with an accuracy and a latency: their points, and the conditions of both measurements."""

    points: tuple[Point, ...]
    accuracy: str
    latency: str


def tradeoff(
    rows: Sequence[Evaluated], benches: Sequence[Mapping[str, Any]], known: Mapping[str, str], colors: Mapping[str, str]
) -> Tradeoff | None:
    """Returns the images and bench conditions for which most models have both figures; None for fewer than two models.

    Args:
        rows: accuracies.
        benches: groups of interleaved rows, as :func:`gft_edge.report.pages.bench.points` gives it.
        known: sha256 of the graph of each artefact of the run; a latency of another graph with that name is ignored.
        colors: by name.
    """
    best: Tradeoff | None = None
    for bench in benches:
        for on in dict.fromkeys((row.on, row.backend) for row in rows if row.backend != "torch"):
            by_name = {row.name: row for row in rows if (row.on, row.backend) == on}
            points = tuple(
                _point(by_name[result["name"]], result, colors)
                for result in bench["results"]
                if result["name"] in by_name and _is_same_graph(result, known)
            )
            if len({point.name for point in points}) >= 2 and (best is None or len(points) > len(best.points)):
                row = next(iter(by_name.values()))
                best = Tradeoff(points, f"{row.where}, backend {row.backend}", bench["title"])
    return best


def _is_same_graph(result: Mapping[str, Any], known: Mapping[str, str]) -> bool:
    """Returns whether a bench result belongs to the graph of this run; true if one of them is unknown."""
    here, measured = known.get(result["name"]), result.get("model_sha256")
    return here is None or measured is None or here == measured


def _point(row: Evaluated, result: Mapping[str, Any], colors: Mapping[str, str]) -> Point:
    low, high = row.result["interval"]
    return Point(
        row.name,
        result["p50_ms"],
        median_interval(result),
        row.result["top1"],
        (low, high),
        is_unstable(result),
        colors.get(row.name, COLORS[0]),
    )


def median_interval(result: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of the median over rounds; the median twice for fewer than two rounds."""
    medians = np.array([np.median(times) for times in result["rounds_ms"]])
    middle = float(result["p50_ms"])
    if len(medians) < 2:
        return middle, middle
    drawn = np.median(np.random.default_rng(0).choice(medians, (RESAMPLES, len(medians))), axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return min(float(low), middle), max(float(high), middle)
