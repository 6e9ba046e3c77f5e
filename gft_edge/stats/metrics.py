"""Figures of merit on numpy arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Z_INTERVAL = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""


def accuracy(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    """Returns the share of rows of (B, classes) whose largest value is at the label (B,)."""
    return float((logits.argmax(axis=1) == labels).mean())


def sqnr_db(reference: npt.NDArray[Any], value: npt.NDArray[Any]) -> float:
    """Returns signal to quantization noise, 10 log10(sum reference^2 / sum (reference - value)^2) in dB; inf when equal."""
    reference = np.asarray(reference, dtype=np.float64)
    noise = float(np.square(reference - np.asarray(value, dtype=np.float64)).sum())
    return float("inf") if noise == 0 else float(10 * np.log10(np.square(reference).sum() / noise))


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a share of right answers (E. B. Wilson, 1927)."""
    z = Z_INTERVAL
    share, scale = right / total, 1 + z * z / total
    center = (share + z * z / (2 * total)) / scale
    half = z * np.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / scale
    return float(max(center - half, 0.0)), float(min(center + half, 1.0))


def mcnemar(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """Returns the p value of the exact McNemar test of "both models are right equally often on the same images".

    Under that hypothesis an image that only one model gets right belongs to either with probability 1/2, so the smaller of
    the two counts is binomial; two-sided.

    Args:
        a, b: right answers of the two, (images,).
    """
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    total, fewer = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(total, k) for k in range(fewer + 1)) / 2**total)


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Returns probabilities (B, classes) of finite logits (B, classes), in float64, which holds all float32 differences."""
    wide = np.asarray(logits, np.float64)
    powers: npt.NDArray[np.float64] = np.exp(wide - wide.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def spearman(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Returns the rank correlation of two vectors (C. Spearman, 1904); equal values share their mean rank. 0 if one is constant.

    Two constant vectors agree: 1.
    """
    x, y = (_ranks(v) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    if norm == 0:
        return float(not x.any() and not y.any())
    return float(x @ y / norm)


def _ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse.reshape(-1)]
