"""Where choosing pays: the gain over random patches by depth of the first selection, share kept and size of the mark."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from gft_edge.benchmarks.experiments.scores.candidates import Candidate, of_product, ranked_by
from gft_edge.benchmarks.experiments.scores.measuring import Cache, Compared, measure
from gft_edge.benchmarks.experiments.scores.passes import Setting
from gft_edge.benchmarks.experiments.scores.results import Columns, columns
from gft_edge.benchmarks.experiments.scores.trained import classified, open_focal, setting_at
from gft_edge.config.model import GFTConfig
from gft_edge.control_results import ORACLE, OWN, RANDOM
from gft_edge.control_rules import SEEDS
from gft_edge.data.for_model import Request, labelled_images
from gft_edge.data.splits import Split
from gft_edge.errors import ConfigError
from gft_edge.evaluation import torch_threads
from gft_edge.model.choices import ranked
from gft_edge.model.places import marked_first, random_places
from gft_edge.progress import Track, silent
from gft_edge.report.figures.svg import COLORS, INK, svg
from gft_edge.stats.gain import mean_difference, mean_estimate

SPLIT: Split = "test"


@dataclass(frozen=True)
class PayoffOptions:
    """The axes of :func:`payoff` and its sizes.

    Attributes:
        first: blocks of the first selection, from 1.
        shares: of the patches, kept to the end.
        mark_shares: largest share of the image that a mark covers.
        images: for each size of mark.
        threads: of PyTorch; 0 leaves them alone.

    Raises:
        ConfigError: a number is out of range, or an axis is empty.
    """

    first: tuple[int, ...] = (1, 2, 3)
    shares: tuple[float, ...] = (0.5, 0.25, 0.125, 0.0625, 0.035, 0.02)
    mark_shares: tuple[float, ...] = (0.0075, 0.015, 0.03)
    images: int = 320
    threads: int = 0

    def __post_init__(self) -> None:
        if not (self.first and self.shares and self.mark_shares):
            raise ConfigError("map: needs at least one first block, share kept and share of the mark")
        if self.images < 1 or self.threads < 0:
            raise ConfigError(
                f"map: needs 1 image or more and 0 threads (those of PyTorch) or more, found {self.images} and {self.threads}"
            )
        if min(self.first) < 1 or not all(0 < share < 1 for share in self.shares):
            raise ConfigError(
                f"map: first blocks count from 1 and shares kept lie between 0 and 1, found {list(self.first)} and "
                f"{list(self.shares)}"
            )


def payoff(name: str, out: Path, options: PayoffOptions | None = None, track: Track = silent) -> dict[str, Any]:
    """Measures the checkpoint's own score, random patches and the oracle on scenes; returns plain JSON values.

    Args:
        name: of a checkpoint that was trained on scenes.
        out: folder for what the classifier reads, so that an interrupted run goes on.
        options: defaults where None.
        track: shows progress.

    Raises:
        ArtifactError: the checkpoint is missing or damaged.
        ConfigError: it is not focal, its sizes do not allow the budgets, or a mark does not fit the image.
        DataError: the checkpoint does not know the classes of scenes.
        OutputError: the folder cannot be written to.
    """
    options = options or PayoffOptions()
    checkpoint, model = open_focal(name)
    info, config = checkpoint.info, model.config
    settings = [setting_at(config, first, share) for first in options.first for share in options.shares]
    cells: list[dict[str, Any]] = []
    full: dict[str, float] = {}
    with torch_threads(options.threads):
        for mark_share in options.mark_shares:
            data = f"scenes,share={mark_share:g}"
            images = labelled_images(Request(data, SPLIT, options.images), config.image_size, info.labels)
            identity = {"checkpoint": checkpoint.sha256, "data": data, "preprocess": info.preprocess.id}
            cache = Cache(out / f"map-{mark_share:g}", identity)
            features = measure(model, settings, _compared(config), images, info.preprocess, cache, track)
            reading = classified(model, features, settings)
            full[f"{mark_share:g}"] = float((reading.full == features.labels).mean())
            for setting, (first, share) in zip(settings, itertools.product(options.first, options.shares)):
                found = columns(features, reading, [setting])
                cells.append({"mark_share": mark_share, "first": first, "share": share, **_cell(setting, found)})
    return {
        "checkpoint": checkpoint.path.name,
        "sha256": checkpoint.sha256,
        "score": config.score,
        "split": SPLIT,
        "images": options.images,
        "patches": config.num_patches,
        "full": full,
        "cells": cells,
    }


def _compared(config: GFTConfig) -> Compared:
    def compared(indices: Sequence[int], marked: Tensor | None) -> list[Candidate]:
        assert marked is not None
        orders = [ranked(0, random_places(indices, config.num_patches, seed)[:, None]) for seed in SEEDS]
        return [
            Candidate(OWN, of_product(config.score), "product"),
            *(Candidate(RANDOM, ranked_by(order), "control") for order in orders),
            Candidate(ORACLE, ranked_by(ranked(1, marked_first(marked.numpy())[:, None])), "control"),
        ]

    return compared


def _cell(setting: Setting, found: Columns) -> dict[str, Any]:
    own, random, oracle = (found.right[name] for name in (OWN, RANDOM, ORACLE))
    return {
        "stages": list(setting.stages),
        "budget": setting.budget.id,
        "top1": mean_estimate(own).to_json(),
        "random": mean_estimate(random).to_json(),
        "oracle": mean_estimate(oracle).to_json(),
        "gain": mean_difference(own, random).to_json(),
        "headroom": mean_difference(oracle, random).to_json(),
        "recall": float(np.nanmean(found.recalls[OWN])),
    }


def picture(data: Mapping[str, Any]) -> str:
    """Draws the map as an SVG file: one panel per size of mark, one line per first block, what the oracle gains dotted."""
    marks = list(dict.fromkeys(cell["mark_share"] for cell in data["cells"]))
    firsts = list(dict.fromkeys(cell["first"] for cell in data["cells"]))

    def draw(figure: Figure, axes: Axes) -> None:
        axes.remove()
        panels = figure.subplots(1, len(marks), sharey=True, squeeze=False)[0]
        for panel, mark in zip(panels, marks):
            for first, color in zip(firsts, itertools.cycle(COLORS[1:])):
                cells = [cell for cell in data["cells"] if (cell["mark_share"], cell["first"]) == (mark, first)]
                cells.sort(key=lambda cell: cell["share"])
                kept = [100 * cell["share"] for cell in cells]
                gains = [100 * cell["gain"]["value"] for cell in cells]
                low, high = zip(*([100 * bound for bound in cell["gain"]["interval"]] for cell in cells))
                room = [100 * cell["headroom"]["value"] for cell in cells]
                panel.plot(kept, room, ":", color=color, lw=1)
                panel.fill_between(kept, low, high, color=color, alpha=0.15, lw=0)
                panel.plot(kept, gains, "o-", color=color, ms=4, label=f"block {first}")
            panel.axhline(0, color=INK, lw=0.8)
            panel.set_xscale("log")
            ticks = sorted({100 * cell["share"] for cell in data["cells"]})
            panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
            panel.set_xticks([], minor=True)
            panel.set_title(f"mark of at most {100 * mark:g} %", fontsize=10)
            panel.set_xlabel("patches kept, per cent")
        panels[0].set_ylabel("points over random patches")
        panels[0].legend(frameon=False, fontsize=8, title="first selection in", title_fontsize=8)

    return svg(draw, 9.6, 3.6, "gain of the selection over random patches")
