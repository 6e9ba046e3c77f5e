"""Which point of the front to take, why in one sentence, and the commands that make it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from gft_edge.stats.gain import Estimate, mean_difference
from gft_edge.stats.metrics import wilson_interval
from gft_edge.stats.paired import difference_interval

MARGIN = 0.01
"""Top-1 that a recommended point may be below that of every patch, where nothing else is required."""
Basis = Literal["min-accuracy", "margin", "best"]


@dataclass(frozen=True)
class Choice:
    """A recommended point.

    Attributes:
        point: its number among those given.
        basis: the rule: the cheapest that reaches the required accuracy; the cheapest within a margin of every patch; or, where
            no point is within it, the most accurate.
        difference: top-1 less that of every patch, paired on the same images.
        shown: the interval, not the figure alone, meets the requirement.
    """

    point: int
    basis: Basis
    difference: Estimate
    shown: bool


def recommend(
    costs: npt.NDArray[np.float64],
    rights: Sequence[npt.NDArray[np.bool_]],
    full: npt.NDArray[np.bool_],
    min_accuracy: float | None,
) -> Choice | None:
    """Returns the cheapest point that is accurate enough; None when none reaches a required accuracy.

    With a required accuracy a point counts whose top-1 reaches it. Without one a point counts whose paired 95 % interval of the
    difference to every patch lies above the margin: it is shown not to lose more.

    Args:
        costs: (N,).
        rights: right answers of each point, (images,).
        full: right answers with every patch, (images,), on the same images.
        min_accuracy: as a share, or None.
    """
    differences = [mean_difference(right, full) for right in rights]
    means = np.array([right.mean() for right in rights])
    if min_accuracy is not None:
        fit = [n for n in range(len(costs)) if means[n] >= min_accuracy]
        if not fit:
            return None
        best = min(fit, key=lambda n: (costs[n], -means[n]))
        low, _ = wilson_interval(int(rights[best].sum()), len(rights[best]))
        return Choice(best, "min-accuracy", differences[best], low >= min_accuracy)
    # Where no image speaks against a point, resampling cannot show a loss; the rule of three says what these images exclude.
    enough = difference_interval(0, 0, len(full))[0] >= -MARGIN
    fit = [
        n
        for n, right in enumerate(rights)
        if differences[n].interval[0] >= -MARGIN and (enough or bool((full & ~right).any()))
    ]
    if fit:
        best = min(fit, key=lambda n: (costs[n], -means[n]))
        return Choice(best, "margin", differences[best], True)
    best = max(range(len(costs)), key=lambda n: (means[n], -costs[n]))
    return Choice(best, "best", differences[best], False)


def why(choice: Choice, point: str, top1: float, cost: str, min_accuracy: float | None, images: int) -> str:
    """Returns the reason in one sentence.

    Args:
        choice: of :func:`recommend`.
        point: name of the point.
        top1: its accuracy.
        cost: in words, with the share of that of every patch.
        min_accuracy: as a share, or None.
        images: that it was measured on.
    """
    low, high = (100 * value for value in choice.difference.interval)
    facts = (
        f"top-1 {top1:.2%}, {100 * choice.difference.value:+.2f} points (95 % interval {low:+.2f} to {high:+.2f}) against every "
        f"patch, on {images} images, at {cost}"
    )
    if choice.basis == "min-accuracy":
        assert min_accuracy is not None
        close = "" if choice.shown else "; the interval of its top-1 reaches below that"
        return f"{point} is the cheapest point of the front whose top-1 is {min_accuracy:.2%} or more: {facts}{close}"
    if choice.basis == "margin":
        return f"{point} is the cheapest point of the front that is shown to lose less than 1 point: {facts}"
    return f"{point} is the most accurate point of the front, which has none that is shown to lose less than 1 point: {facts}"


def commands(
    checkpoint: str,
    precision: str,
    budget: str,
    data: str,
    calibration_images: int,
    policy: Path | None,
    folder: Path,
) -> list[str]:
    """Returns the lines that make a point from its checkpoint, ready to be run.

    Args:
        checkpoint: as the user gave it.
        precision: of :class:`gft_edge.search.point.OperatingPoint`.
        budget: its id.
        data: of the calibration images.
        calibration_images: how many.
        policy: file of a mixed precision.
        folder: of the search's result; the artefact is made beside it.
    """
    lines = []
    source = checkpoint
    if precision.startswith("int8"):
        source = str(folder / "chosen-int8")
        measured = ["--method", "max", "--no-smoothquant", "--selection", "as-is"]  # as the search measured it
        chosen = measured if policy is None else ["--method", "max", "--policy", str(policy)]
        lines.append(
            ["quantize", checkpoint, "--data", data, "--images", str(calibration_images), *chosen, "--out", source]
        )
    half = ["--precision", "fp16"] if precision == "fp16" else []
    lines.append(["export", source, "--budget", budget, *half, "--out", str(folder / "chosen")])
    return [shlex.join(["gft-edge", *line]) for line in lines]
