"""What streaming calibration remembers of a tensor: a histogram of magnitudes whose bins are fixed before the first image.

A bin is 1/2048 of an octave: the top bits of the float32 itself. Fixed bins need no range to begin with and no rebinning,
so the result does not depend on the order or batching of the images, histograms of two runs add up, and one outlier
does not cost the rest its resolution (bins of equal width would leave it a handful).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gft_edge.errors import DataError

MANTISSA_BITS = 11
OCTAVES = (-16, 16)
"""Magnitudes below 2**-16 share the first bin, those above 2**16 the last."""
BINS = (OCTAVES[1] - OCTAVES[0]) << MANTISSA_BITS

Counts = npt.NDArray[np.int64]

_SHIFT = 23 - MANTISSA_BITS
_FIRST = (127 + OCTAVES[0]) << MANTISSA_BITS
_CHUNK = 1 << 17  # values binned at a time, so that the temporaries stay in the cache


def bin_edges() -> npt.NDArray[np.float64]:
    """Lower edges of the bins and the upper edge of the last, (BINS + 1,); the first bin begins at 0."""
    bits = (np.arange(BINS + 1, dtype=np.int64) + _FIRST) << _SHIFT
    edges = bits.astype(np.int32).view(np.float32).astype(np.float64)
    edges[0] = 0.0
    return edges


def count_magnitudes(x: Tensor) -> Tensor:
    """How many values of a contiguous float32 tensor fall into each bin, (BINS,) int64."""
    total = torch.zeros(BINS, dtype=torch.int64)
    for bits in x.detach().reshape(-1).view(torch.int32).split(_CHUNK):
        place = bits.bitwise_and(0x7FFFFFFF).bitwise_right_shift_(_SHIFT).sub_(_FIRST).clamp_(0, BINS - 1)
        total += torch.bincount(place, minlength=BINS)
    return total


class TensorStats:
    """Smallest and largest value and the histogram of everything a tensor was; a fixed size, whatever it has seen.

    Attributes:
        counts: values per bin of :func:`bin_edges`, (BINS,) int64.
        low, high: extremes, exact; infinities before the first value.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.low, self.high = float("inf"), float("-inf")

    @property
    def largest(self) -> float:
        """Largest magnitude, exact."""
        return max(abs(self.low), abs(self.high))

    @property
    def magnitudes(self) -> Counts:
        """The histogram as a numpy array."""
        return self.counts.numpy()

    def add(self, counts: Tensor | None, low: float, high: float) -> None:
        """Takes in values summarised by :func:`summarize`."""
        if counts is not None:
            self.counts += counts
        self.low, self.high = min(self.low, low), max(self.high, high)

    def to_json(self) -> dict[str, Any]:
        """Figures for people: extremes, number of values, share of zeros (below 2**-16) and upper percentiles."""
        from gft_edge.calibration.thresholds import percentile

        total = int(self.counts.sum())
        data: dict[str, Any] = {"min": self.low, "max": self.high, "values": total}
        if total:
            data["near_zero"] = float(self.counts[0]) / total
            for share in (99.0, 99.9, 99.99):
                data[f"p{share:g}"] = percentile(self.magnitudes, self.largest, share)
        return data


def summarize(x: Tensor, name: str, histogram: bool) -> tuple[Tensor | None, float, float]:
    """Histogram (None without ``histogram``), smallest and largest value of an activation.

    Raises:
        DataError: a value is NaN or infinite.
    """
    x = x.detach().float().contiguous()
    low, high = (float(value) for value in torch.aminmax(x))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"calibration: input of {name} is not finite; the checkpoint or an image is damaged")
    return count_magnitudes(x) if histogram else None, low, high
