"""Measured points of a search and the checkpoints that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import Checkpoint
from gft_edge.data.sets import ImageSet
from gft_edge.model.gft import FocalGFT
from gft_edge.search.accuracy import Rights
from gft_edge.search.candidates import GMAC, MJ, MS, Candidates
from gft_edge.search.options import SearchOptions

AXES = {"ms": MS, "gmac": GMAC, "mj": MJ}
"""Column of each cost."""


@dataclass
class Point:
    """A measured operating point.

    Attributes:
        subject: number of its checkpoint.
        precision, budget: of the point.
        costs: milliseconds, billions of MACs, millijoules; NaN where unknown.
        rights: right answers on the images it was measured on last.
        within: its cost is within the limits.
        is_full_set: measured on all images, not on the subset.
        is_front: no other point that was measured on all images and is within the limits dominates it.
    """

    subject: int
    precision: str
    budget: TokenBudget
    costs: npt.NDArray[np.float64]
    rights: Rights
    within: bool
    is_full_set: bool = False
    is_front: bool = False

    @property
    def top1(self) -> float:
        """Share of right answers."""
        return float(self.rights.mean())


@dataclass(frozen=True)
class Subject:
    """A checkpoint of the search.

    Attributes:
        name: as the user gave it.
        checkpoint: opened.
        images: all of them.
        models: by precision.
        candidates: by precision.
    """

    name: str
    checkpoint: Checkpoint
    images: ImageSet
    models: dict[str, FocalGFT]
    candidates: dict[str, Candidates]


@dataclass(frozen=True)
class Found:
    """Result of :func:`gft_edge.search.search.search`.

    Attributes:
        data: content of front.json.
        unreadable: one message for each image that was left out.
        unmet: why no point is recommended; None where one is.
    """

    data: dict[str, Any]
    unreadable: tuple[str, ...]
    unmet: str | None


def is_full(point: Point, subjects: Sequence[Subject]) -> bool:
    """Returns whether a point keeps every patch."""
    return point.budget == subjects[point.subject].checkpoint.info.model.full_budget


def within(costs: npt.NDArray[np.float64], options: SearchOptions) -> npt.NDArray[np.bool_]:
    """Returns which costs (M, 3) are known and within the limits, (M,)."""
    inside = ~np.isnan(costs[:, AXES[options.axis]])  # without a cost a point cannot be compared
    for name, value in options.limits.items():
        inside &= costs[:, AXES[name]] <= value
    return inside
