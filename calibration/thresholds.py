"""Computes the clipping range from a histogram of magnitudes: by maximum, percentile, entropy or mean squared error."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from gft_edge.calibration.histogram import BINS, Counts, bin_edges, percentile
from gft_edge.calibration.options import DEFAULT_PERCENTILE, METHODS, Method
from gft_edge.errors import ConfigError

LEVELS = 128
"""Number of magnitudes of INT8, with zero."""
LINEAR_BINS = 2048
SPAN = 4
MSE_CANDIDATES = 120
MSE_LOWEST_SHARE = 0.9

Floats = npt.NDArray[np.float64]


def threshold(counts: Counts, largest: float, method: Method, share: float = DEFAULT_PERCENTILE) -> float:
    """Returns the range by a method; never above the largest magnitude, and 0 only for a tensor that was always 0.

    Args:
        counts: of :class:`~gft_edge.calibration.histogram.TensorStats`.
        largest: largest magnitude, exact.
        method: of finding the range.
        share: of the values, in per cent, for ``"percentile"``.

    Raises:
        ConfigError: unknown method or a share out of range.
    """
    if method not in METHODS:
        raise ConfigError(f"calibration: method must be one of {', '.join(METHODS)}, found {method!r}")
    if method == "percentile":
        return percentile(counts, largest, share)
    if method == "max" or largest == 0:
        return largest
    found = entropy(counts, largest) if method == "entropy" else mse(counts, largest)
    return min(found, largest)


def linear_histogram(counts: Counts, largest: float, span: float) -> Floats:
    """Returns the histogram over 2048 equal parts of 0 to ``span``, and one more bin for larger values.

    A fine bin that reaches into two is split by length.
    """
    edges = bin_edges()[: int(np.flatnonzero(counts)[-1]) + 2].copy()
    edges[-1] = max(largest, edges[-2])
    total = np.concatenate(([0.0], np.cumsum(counts[: len(edges) - 1])))
    below = np.interp(np.linspace(0, span, LINEAR_BINS + 1), edges, total)
    return np.append(np.diff(below), total[-1] - below[-1])


def entropy(counts: Counts, largest: float) -> float:
    """Returns the range that loses least information: smallest Kullback-Leibler divergence of the histogram at 128 levels.

    The algorithm of TensorRT's entropy calibrators (Migacz, "8-bit inference with TensorRT", GTC 2017) as written down
    in NVIDIA's pytorch-quantization: every range from 128 of 2048 equal bins upwards, what lies above counted in the last
    bin, the bin of the zeros taken as full as its neighbour, and of equal divergences the widest range. Sums over
    groups of bins come from running totals, so that all ranges are tried at once. Only with as many bins as levels (the
    defaults of some tools) does the answer always equal the maximum. The bins end at four times the 99.99th percentile:
    a single outlier would otherwise push everything else below the 128th, where no range is tried.
    """
    span = min(largest, SPAN * percentile(counts, largest, 99.99))
    hist = linear_histogram(counts, largest, span)
    beyond, hist = float(hist[-1]), hist[:-1]
    hist[0] = hist[1]
    if hist.sum() == 0:
        return largest
    stop, bounds = _groups()

    def upto(values: Floats) -> Floats:
        return np.concatenate(([0.0], np.cumsum(values)))

    mass, filled, own = upto(hist), upto((hist > 0).astype(float)), upto(_xlogx(hist))
    group = np.diff(mass[bounds], axis=1)
    members = np.maximum(np.diff(filled[bounds], axis=1), 1)
    level = np.log(np.maximum(group, np.finfo(np.float64).tiny) / members)  # an empty group weighs nothing below
    total = mass[-1] + beyond
    inside, last = mass[stop], hist[stop - 1]
    above = total - inside
    with np.errstate(divide="ignore", invalid="ignore"):
        cross = np.einsum("sg,sg->s", group, level) + above * level[:, -1]
        kept = own[stop] - _xlogx(last) + _xlogx(last + above)
        divergence = (kept - cross) / total - np.log(total) + np.log(inside)
    # Values above the range that would be counted in an empty bin cannot be expressed at all.
    divergence[((last == 0) & (above > 0)) | (inside == 0)] = np.inf
    if not np.isfinite(divergence).any():
        return largest
    best = np.flatnonzero(divergence <= divergence.min() + 1e-12)[-1]
    return float(stop[best]) / LINEAR_BINS * span


@functools.cache
def _groups() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns candidate ranges in bins, and the first bin of each of their groups: g = floor(bin LEVELS / stop)."""
    stop = np.arange(LEVELS, LINEAR_BINS + 1)
    return stop, -(-np.arange(LEVELS + 1) * stop[:, None] // LEVELS)


def _xlogx(x: Floats) -> Floats:
    return x * np.log(np.where(x > 0, x, 1))


def mse(counts: Counts, largest: float) -> float:
    """Returns the range with the smallest mean squared error of symmetric INT8 (127 steps), over 120 ranges up to the maximum.

    The ranges grow by equal ratios from the 90th percentile of the magnitudes; the error is that of the bins' centres.
    """
    places = np.flatnonzero(counts)
    edges, weights = bin_edges(), counts[places].astype(np.float64)
    centers = (edges[places] + np.clip(edges[places + 1], edges[places], max(largest, edges[places[-1]]))) / 2
    lowest = max(percentile(counts, largest, 100 * MSE_LOWEST_SHARE), largest / BINS)
    counted = centers > lowest / (2 * LEVELS)  # smaller ones round to zero whatever the range
    centers, weights = centers[counted].astype(np.float32), weights[counted].astype(np.float32)
    candidates = np.geomspace(lowest, largest, MSE_CANDIDATES)
    errors = np.empty(MSE_CANDIDATES)
    for number, step in enumerate((candidates / (LEVELS - 1)).astype(np.float32)):
        codes = np.minimum(np.rint(centers / step), np.float32(LEVELS - 1))
        errors[number] = np.dot(weights, np.square(centers - codes * step))
    return float(candidates[errors.argmin()])
