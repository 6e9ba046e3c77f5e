"""Computes the clipping range from a histogram of magnitudes: by maximum, percentile, entropy or mean squared error."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.calibration.observing.histogram import BINS, Counts, bin_edges, bin_of, percentile
from gft_edge.calibration.options import DEFAULT_PERCENTILE, METHODS, Method
from gft_edge.errors import ConfigError

LEVELS = 128
"""Number of magnitudes of INT8, with zero."""
LINEAR_BINS = 2048
SPAN = 4
MSE_CANDIDATES = 120
MSE_LOWEST_SHARE = 0.9

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

_WIDEST = LINEAR_BINS // LEVELS
_NOTHING = 1e-300  # stands for zero below a logarithm; the smallest normal number would make it slow


def threshold(counts: Counts, largest: float, method: Method, share: float = DEFAULT_PERCENTILE) -> float:
    """Returns the range by a method; never above the largest magnitude, and 0 only for a tensor that was always 0.

    Args:
        counts: of :class:`~gft_edge.calibration.observing.histogram.TensorStats`.
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
    edges = bin_edges()[: _last(counts) + 2].copy()
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
    stop, groups = _groups()
    mass, filled, own = _upto(hist), _upto((hist > 0).astype(float)), _upto(_xlogx(hist))
    total = mass[-1] + beyond
    inside, last = mass[stop], hist[stop - 1]
    above = total - inside
    group = _windows(mass)
    level = np.log(np.maximum(group, _NOTHING) / np.maximum(_windows(filled), 1))  # an empty group weighs nothing below
    cross = np.einsum("sg->s", (group * level).take(groups)) + above * level.take(groups[:, -1])
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = own[stop] - _xlogx(last) + _xlogx(last + above)
        divergence = (kept - cross) / total - np.log(total) + np.log(inside)
    # Values above the range that would be counted in an empty bin cannot be expressed at all.
    divergence[((last == 0) & (above > 0)) | (inside == 0)] = np.inf
    if not np.isfinite(divergence).any():
        return largest
    best = np.flatnonzero(divergence <= divergence.min() + 1e-12)[-1]
    return float(stop[best]) / LINEAR_BINS * span


@functools.cache
def _groups() -> tuple[Places, Places]:
    """Returns candidate ranges in bins, (S,), and the places of their groups in the flattened :func:`_windows`, (S, LEVELS).

    Group g of a range of S bins holds those with floor(bin LEVELS / S) = g.
    """
    stop = np.arange(LEVELS, LINEAR_BINS + 1)
    bounds = -(-np.arange(LEVELS + 1) * stop[:, None] // LEVELS)
    return stop, (np.diff(bounds, axis=1) - 1) * LINEAR_BINS + bounds[:, :-1]


def _windows(upto: Floats) -> Floats:
    """Returns the sums of 1 to 16 successive bins from each bin on, (16, LINEAR_BINS), from running totals.

    Groups of all ranges are among them: 32 thousand sums instead of 246 thousand.
    """
    padded = np.append(upto, np.full(_WIDEST - 1, upto[-1]))
    return np.stack([padded[width : width + LINEAR_BINS] - upto[:-1] for width in range(1, _WIDEST + 1)])


def _last(counts: Counts) -> int:
    """Returns the last bin that is not empty."""
    return len(counts) - 1 - int((counts[::-1] > 0).argmax())


def _upto(values: npt.NDArray[Any]) -> Floats:
    """Returns the running totals of values, from 0 to that of all, (N + 1,)."""
    return np.concatenate(([0.0], np.cumsum(values)))


def _xlogx(x: Floats) -> Floats:
    return x * np.log(np.where(x > 0, x, 1))


def mse(counts: Counts, largest: float) -> float:
    """Returns the range with the smallest mean squared error of symmetric INT8 (127 steps), over 120 ranges up to the maximum.

    The ranges grow by equal ratios from the 90th percentile of the magnitudes; the error is that of the bins' centres. The
    values c that round to code k of step s add sum(c**2) - 2 k s sum(c) + (k s)**2 n to it. These sums are differences of
    running totals, so a range costs one look-up for each code and none for the values.
    """
    end = _last(counts)
    counts, edges, centers = counts[: end + 1], bin_edges(), _centers()[: end + 1].copy()
    centers[end] = (edges[end] + min(max(largest, edges[end]), edges[end + 1])) / 2
    weighted = counts * centers
    number, linear, square = _upto(counts), _upto(weighted), (weighted * centers).sum()
    lowest = max(percentile(counts, largest, 100 * MSE_LOWEST_SHARE), largest / BINS)
    ranges = np.geomspace(lowest, largest, MSE_CANDIDATES)
    step, codes = ranges / (LEVELS - 1), np.arange(1.0, LEVELS)
    start = step[:, None] * (codes - 0.5)  # smallest magnitude of each code
    place = np.minimum(bin_of(start), end)
    place += centers[place] < start  # first bin of each code
    # Sum of k n and of k**2 n over the codes k: a value of code k is among those from start[1], start[2], ... start[k] on.
    linear, number = linear[-1] - linear[place], number[-1] - number[place]
    # Not by a matrix product, which would wake the threads of BLAS for little work.
    errors = square - 2 * step * linear.sum(axis=1) + np.square(step) * (number * (2 * codes - 1)).sum(axis=1)
    return float(ranges[errors.argmin()])


@functools.cache
def _centers() -> Floats:
    """Returns the centres of the bins, (BINS,); that of the last bin, which has no end, is infinite."""
    edges = bin_edges()
    return (edges[:-1] + edges[1:]) / 2
