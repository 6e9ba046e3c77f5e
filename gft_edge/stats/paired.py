"""Paired statistics of two accuracies on the same images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.stats.metrics import Z_INTERVAL, mcnemar

RESAMPLES = 10_000
SEED = 0
"""Of every bootstrap: the same answers give the same interval."""
Z_POWER = 0.841621
"""Standard normal quantile of 80 % power."""


@dataclass(frozen=True)
class WorstClass:
    """The class with the largest loss: its images, and the right answers of each side."""

    label: str
    images: int
    right_reference: int
    right_candidate: int


@dataclass(frozen=True)
class PairedTop1:
    """Accuracies of two sides on the same images.

    Attributes:
        difference: candidate less reference, as a share.
        interval: 95 % paired bootstrap interval of it.
        only_reference, only_candidate: images that only one side has right.
        mcnemar_p: exact p value of "both are right equally often".
        worst_class: None when no class loses accuracy.
    """

    images: int
    difference: float
    interval: tuple[float, float]
    only_reference: int
    only_candidate: int
    mcnemar_p: float
    worst_class: WorstClass | None


def paired_top1(
    reference: npt.NDArray[Any], candidate: npt.NDArray[Any], labels: npt.NDArray[Any], names: tuple[str, ...] = ()
) -> PairedTop1:
    """Returns paired statistics of two sides' classes (B,) with respect to the true ones (B,)."""
    a, b = reference == labels, candidate == labels
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return PairedTop1(
        images=len(labels),
        difference=(only_b - only_a) / len(labels),
        interval=difference_interval(only_a, only_b, len(labels)),
        only_reference=only_a,
        only_candidate=only_b,
        mcnemar_p=mcnemar(a, b),
        worst_class=_worst_class(a, b, labels, names),
    )


def _worst_class(
    a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_], labels: npt.NDArray[Any], names: tuple[str, ...]
) -> WorstClass | None:
    def change(label: int) -> tuple[float, int]:
        of_it = labels == label
        return float(b[of_it].mean() - a[of_it].mean()), -int(of_it.sum())

    worst = min(np.unique(labels).tolist(), key=change)
    if change(worst)[0] >= 0:
        return None
    of_it = labels == worst
    name = names[worst] if worst < len(names) else str(worst)
    return WorstClass(name, int(of_it.sum()), int(a[of_it].sum()), int(b[of_it].sum()))


def difference_interval(only_reference: int, only_candidate: int, images: int) -> tuple[float, float]:
    """Returns the 95 % interval of the difference of two accuracies by paired bootstrap (percentiles).

    Drawing images with replacement makes the three counts (only one side right, only the other, neither) multinomial, so
    they are drawn directly. Where the sides differ on no image the bootstrap interval is degenerate; the bound of the
    rule of three is returned instead.
    """
    if only_reference == only_candidate == 0:
        unseen = 1 - 0.05 ** (1 / images)
        return -unseen, unseen
    shares = np.array([only_reference, only_candidate, images - only_reference - only_candidate]) / images
    counts = np.random.default_rng(SEED).multinomial(images, shares, size=RESAMPLES)
    low, high = np.percentile((counts[:, 1] - counts[:, 0]) / images, (2.5, 97.5))
    return float(low), float(high)


def images_needed(only_reference: int, only_candidate: int, images: int, margin: float) -> int | None:
    """Returns the number of images that distinguishes a drop in accuracy from ``margin`` with 80 % power at 95 % confidence.

    The variance of a paired difference is (discordance - difference^2) / n (e.g. Liu et al., Statistics in Medicine 2002), so n =
    (z_975 + z_80)^2 (discordance - difference^2) / (difference + margin)^2 with the observed values; None when
    the observed drop equals the margin, which no number of images can decide.
    """
    difference = (only_candidate - only_reference) / images
    discordance = (only_candidate + only_reference) / images
    if discordance == 0:
        return math.ceil(math.log(0.05) / math.log1p(-margin))
    if math.isclose(difference, -margin):
        return None
    needed = (Z_INTERVAL + Z_POWER) ** 2 * (discordance - difference**2) / (difference + margin) ** 2
    return max(math.ceil(needed), images + 1)
