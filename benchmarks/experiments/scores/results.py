"""The rows of the tables: accuracy, paired differences, agreement, recall of the mark and normalised gain of each candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.benchmarks.experiments.scores.candidates import COLUMN
from gft_edge.benchmarks.experiments.scores.measuring import Features
from gft_edge.benchmarks.experiments.scores.passes import Setting
from gft_edge.config.model import GFTConfig
from gft_edge.control_results import ORACLE, RANDOM
from gft_edge.model.macs import count_macs
from gft_edge.stats.gain import Estimate, mean_difference, mean_estimate, normalised_gain

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """What one classifier says of the images.

    Attributes:
        name: of the classifier.
        full: class numbers with every patch, (N,).
        pruned: by setting and candidate, class numbers of each draw, (draws, N).
    """

    name: str
    full: npt.NDArray[np.int64]
    pruned: Mapping[Setting, Mapping[str, npt.NDArray[np.int64]]]


@dataclass(frozen=True)
class Columns:
    """Figures of the images by candidate, (N,) each: mean over draws, and over settings where there are several.

    Attributes:
        right: right answers.
        agreeing: answers that are those of the full model.
        recalls: share of the mark that is kept, NaN for an image without marks; empty where no marks are known.
    """

    right: Mapping[str, Values]
    agreeing: Mapping[str, Values]
    recalls: Mapping[str, Values]

    def of(self, images: npt.NDArray[np.bool_]) -> Columns:
        """Returns the figures of some images, (N,)."""
        return Columns(*({name: values[images] for name, values in found.items()} for found in vars(self).values()))


def columns(features: Features, reading: Reading, settings: Sequence[Setting]) -> Columns:
    """Returns the figures of the images, mean over some settings."""

    def mean(values: Mapping[Setting, Mapping[str, npt.NDArray[Any]]], name: str, like: Any = None) -> Values:
        found = [values[setting][name] for setting in settings]
        return np.mean([(one if like is None else one == like).mean(axis=0) for one in found], axis=0)

    has_marks = bool(features.recalls)
    return Columns(
        {name: mean(reading.pruned, name, features.labels) for name in features.kinds},
        {name: mean(reading.pruned, name, reading.full) for name in features.kinds},
        {name: mean(features.recalls, name) for name in features.kinds} if has_marks else {},
    )


def rows(found: Columns, kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """Returns one row per candidate, plain JSON values.

    Args:
        found: figures of the images.
        kinds: of the candidates, by name, in the order of the rows.
    """
    random, column, oracle = (found.right.get(name) for name in (RANDOM, COLUMN, ORACLE))
    assert random is not None
    assert column is not None
    result = []
    for name, kind in kinds.items():
        own = found.right[name]
        gain = normalised_gain(own, random, oracle) if oracle is not None and name != ORACLE else None
        top1 = mean_estimate(own)
        result.append(
            {
                "name": name,
                "kind": kind,
                "top1": top1.value,
                "interval": list(top1.interval),
                "over_random": _json(None if name == RANDOM else mean_difference(own, random)),
                "over_column": _json(None if name == COLUMN else mean_difference(own, column)),
                "agreement": float(found.agreeing[name].mean()),
                "recall": _mean_known(found.recalls[name]) if found.recalls else None,
                "gain": _json(gain),
            }
        )
    return result


def section(
    features: Features, readings: Sequence[Reading], settings: Sequence[Setting], config: GFTConfig
) -> dict[str, Any]:
    """Returns the figures of one study, plain JSON values: with every patch, over all settings, and for each setting.

    Args:
        features: what was measured.
        readings: classifiers on it.
        settings: in the order of the tables.
        config: of the model.
    """
    return {
        "images": len(features.labels),
        "has_marks": bool(features.recalls),
        "patches": config.num_patches,
        "full": {reading.name: _full(features, reading) for reading in readings},
        "overall": {r.name: rows(columns(features, r, settings), features.kinds) for r in readings},
        "settings": [
            {
                "stages": list(setting.stages),
                "budget": setting.budget.id,
                "share": setting.budget.keep[-1] / config.num_patches,
                "macs": count_macs(setting.of(config)),
                "rows": {r.name: rows(columns(features, r, [setting]), features.kinds) for r in readings},
            }
            for setting in settings
        ],
    }


def _full(features: Features, reading: Reading) -> dict[str, Any]:
    estimate = mean_estimate((reading.full == features.labels).astype(np.float64))
    return {"top1": estimate.value, "interval": list(estimate.interval)}


def _json(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_json()


def _mean_known(values: Values) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
