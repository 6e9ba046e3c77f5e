"""Paired bootstrap of means of several columns on the same images: differences, and the normalised gain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.stats.paired import RESAMPLES, SEED, difference_interval

PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    interval: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {"value": self.value, "interval": list(self.interval)}


def resampled_means(columns: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Returns means of columns (images, C) over images drawn with replacement, the same images for every column: (RESAMPLES, C).

    Images of equal rows are interchangeable, so the counts of the different rows are drawn, from a multinomial distribution.
    """
    rows, counts = np.unique(np.asarray(columns, np.float64), axis=0, return_counts=True)
    drawn = np.random.default_rng(SEED).multinomial(len(columns), counts / len(columns), size=RESAMPLES)
    means: npt.NDArray[np.float64] = drawn @ rows / len(columns)
    return means


def mean_estimate(values: npt.NDArray[Any]) -> Estimate:
    """Returns the mean of values (images,) with its bootstrap interval."""
    return Estimate(float(np.mean(values)), _percentiles(resampled_means(np.reshape(values, (-1, 1)))[:, 0]))


def mean_difference(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Estimate:
    """Returns the mean of a - b, both (images,), with its paired interval.

    Where no image differs the bootstrap interval is degenerate, and the bound of the rule of three takes its place.
    """
    difference = np.asarray(a, np.float64) - b
    if not difference.any():
        return Estimate(0.0, difference_interval(0, 0, len(difference)))
    return mean_estimate(difference)


def normalised_gain(own: npt.NDArray[Any], random: npt.NDArray[Any], oracle: npt.NDArray[Any]) -> Estimate | None:
    """Returns G = (own - random) / (oracle - random) of the means of right answers, with a paired bootstrap interval.

    0 is chance, 1 is as good as knowing the marks. Resamples whose denominator is not positive have no G and are left out, at most
    2.5 % of them.

    Args:
        own, random, oracle: right answers, (images,); of several random draws their mean.

    Returns:
        None where the interval of oracle - random reaches zero: there is then nothing to gain.
    """
    if mean_difference(oracle, random).interval[0] <= 0:
        return None
    columns = np.stack([own, random, oracle], axis=1).astype(np.float64)
    means = resampled_means(columns)
    possible = means[means[:, 2] > means[:, 1]]
    low, middle, high = columns.mean(axis=0)[[1, 0, 2]]
    gains = (possible[:, 0] - possible[:, 1]) / (possible[:, 2] - possible[:, 1])
    return Estimate(float((middle - low) / (high - low)), _percentiles(gains))


def _percentiles(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)
