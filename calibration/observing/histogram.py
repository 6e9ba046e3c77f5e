"""Statistics of a tensor for streaming calibration: a histogram of magnitudes with bins that are fixed in advance.

There is one bin for each magnitude a float16 can have: 1024 to an octave from 2**-14 to 65504, equal ones below. Fixed bins
need no initial range and no rebinning, so the result does not depend on the order or batching of the images, histograms of
two runs add up, and an outlier does not cost the other values their resolution (bins of equal width leave them a handful).
Rounding to float16 and using its bits as the bin number is also fast.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gft_edge.errors import ConfigError, DataError

BINS = 0x7C00 + 1
"""Finite float16 magnitudes, and a last bin for everything larger."""

Counts = npt.NDArray[np.int64]

_CHUNK = 1 << 19  # values of a part: temporaries fit a cache, and adding up the bins is seldom


@functools.cache
def bin_edges() -> npt.NDArray[np.float64]:
    """Returns the edges of the bins, (BINS + 1,): halfway between float16 values, the last one infinity."""
    values = np.arange(BINS, dtype=np.uint16).view(np.float16).astype(np.float64)
    values[-1] = 65536  # a float32 from here on rounds to an infinite float16
    edges = np.concatenate(([0.0], (values[:-1] + values[1:]) / 2, [math.inf]))
    edges.flags.writeable = False
    return edges


def bin_of(magnitudes: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Returns the bin of each magnitude, of the same shape."""
    with np.errstate(over="ignore"):  # rounds to infinity, the last bin
        return magnitudes.astype(np.float16).view(np.uint16).astype(np.int64)


def magnitude_bins(x: Tensor) -> tuple[Tensor, ...]:
    """Returns the bin of each value of a tensor, in parts of (N,) int16; that of NaN is BINS or a later one."""
    return tuple(
        part.to(torch.float16, copy=True).abs_().view(torch.int16) for part in x.detach().reshape(-1).split(_CHUNK)
    )


class Activation:
    """An activation and the bins of its values.

    Args:
        x: the activation.
        name: whose input it is, for messages.
        histogram: whether magnitudes are counted.

    Attributes:
        bins: of the values, in parts of (N,) int16; none where magnitudes are not counted.
        last: the last bin that has a value; BINS - 1 where bins are not known.

    Raises:
        DataError: a value is NaN or infinite.
    """

    def __init__(self, x: Tensor, name: str, histogram: bool) -> None:
        self.x, self.name = x, name
        self.bins = magnitude_bins(x) if histogram else ()
        self.last = max((int(part.max()) for part in self.bins), default=BINS - 1)
        if self.last >= BINS - 1:
            self.last = BINS - 1
            self.largest()

    def largest(self) -> float:
        """Largest magnitude, exact."""
        low, high = (float(value) for value in torch.aminmax(self.x.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DataError(f"calibration: input of {self.name} is not finite; the checkpoint or an image is damaged")
        return max(-low, high)


class TensorStats:
    """Largest magnitude and histogram of all values of a tensor; its size is fixed.

    Attributes:
        counts: values per bin of :func:`bin_edges`, (BINS,) int64; all zero where none are counted.
        largest: largest magnitude, exact; -1 before the first value.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.largest = -1.0
        self.last = -1

    @property
    def magnitudes(self) -> Counts:
        """The histogram as a numpy array."""
        return self.counts.numpy()

    def see(self, activation: Activation) -> None:
        """Updates the largest magnitude by an activation."""
        if activation.last >= self.last:  # else it cannot hold the largest
            self.largest, self.last = max(self.largest, activation.largest()), activation.last

    def count(self, counts: Tensor) -> None:
        """Adds the numbers of values in the first bins, (N,) int64."""
        self.counts[: len(counts)] += counts

    def restore(self, counts: Tensor, largest: float) -> None:
        """Replaces the statistics by saved ones."""
        filled = torch.nonzero(counts)
        self.counts, self.largest = counts, largest
        self.last = int(filled[-1]) if len(filled) else -1

    def to_json(self) -> dict[str, Any]:
        """Returns figures for people: largest magnitude and, where counted, number of values, share of zeros and percentiles."""
        total = int(self.counts.sum())
        data: dict[str, Any] = {"largest": self.largest}
        if total:
            data |= {"values": total, "zeros": float(self.counts[0]) / total}
            data |= {f"p{share:g}": percentile(self.magnitudes, self.largest, share) for share in (50.0, 99.0, 99.9)}
            data["constant"] = int((self.counts > 0).sum()) == 1
        return data


def percentile(counts: Counts, largest: float, share: float) -> float:
    """Returns the magnitude that ``share`` per cent of the values do not exceed, to the width of a bin (1/1024).

    Raises:
        ConfigError: the share is not above 0 and at most 100.
    """
    if not 0 < share <= 100:
        raise ConfigError(f"calibration: percentile must be above 0 and at most 100, found {share}")
    total = np.cumsum(counts)
    if share == 100 or total[-1] == 0:
        return largest
    place = int(np.searchsorted(total, share / 100 * total[-1]))
    return min(float(bin_edges()[place + 1]), largest)
