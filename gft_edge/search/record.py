"""The content of front.json: measured points, the recommended one, why, and its commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gft_edge.budget import TokenBudget
from gft_edge.data.splits import Split
from gft_edge.search import recommend
from gft_edge.search.candidates import free_counts
from gft_edge.search.options import UNITS, SearchOptions
from gft_edge.search.point import Cost, OperatingPoint
from gft_edge.search.points import AXES, Point, Subject, is_full, within
from gft_edge.search.pricing import Pricing
from gft_edge.stats.metrics import wilson_interval


def result(
    subjects: Sequence[Subject],
    points: list[Point],
    options: SearchOptions,
    cost: Pricing,
    where: tuple[str, Split],
    folder: Path,
) -> tuple[dict[str, Any], str | None]:
    """Returns the record and, where no point is recommended, why.

    Args:
        subjects: checkpoints of the search.
        points: measured; they are sorted by cost.
        options: what is asked for.
        cost: cost model.
        where: name and part of the data.
        folder: of the result, for the commands.
    """
    data, split = where
    name = options.axis
    axis = AXES[name]
    points.sort(key=lambda p: (p.costs[axis], -p.top1))
    full = max((p for p in points if is_full(p, subjects) and p.is_full_set), key=lambda p: (p.top1, -p.costs[axis]))
    recommended, unmet = _recommended(subjects, points, full, options, cost, data, folder)
    record = {
        "checkpoints": [
            {
                "name": s.name,
                "sha256": s.checkpoint.sha256,
                "image_size": s.checkpoint.info.model.image_size,
                "budget": s.checkpoint.info.model.budget.id,
            }
            for s in subjects
        ],
        "data": data,
        "split": split,
        "images": len(full.rights),
        "subset": min(options.subset, len(full.rights)),
        "cost": {"axis": name, "kind": cost.kind, "source": cost.source},
        "limits": dict(options.limits.items()),
        "min_accuracy": options.min_accuracy,
        "candidates": [
            {
                "checkpoint": n,
                "precision": precision,
                "budgets": len(found.chains),
                "within": int(within(found.costs, options).sum()),
                "is_complete": found.is_complete,
                "is_separable": found.is_separable,
            }
            for n, s in enumerate(subjects)
            for precision, found in s.candidates.items()
        ],
        "points": [_point(p, p is full) for p in points],
        "recommended": recommended,
    }
    return record, unmet


def _recommended(
    subjects: Sequence[Subject],
    points: Sequence[Point],
    full: Point,
    options: SearchOptions,
    cost: Pricing,
    data: str,
    folder: Path,
) -> tuple[dict[str, Any] | None, str | None]:
    """Returns the recommended point of the front as plain JSON values, or why there is none."""
    axis, unit = AXES[options.axis], UNITS[options.axis]
    front = [p for p in points if p.is_front]
    choice = recommend.recommend(
        np.array([p.costs[axis] for p in front]), [p.rights for p in front], full.rights, options.min_accuracy
    )
    if choice is None:
        best = max(front, key=lambda p: p.top1)
        place = f" within {options.limits.describe()}" if options.limits.items() else ""
        return None, (
            f"no point{place} reaches a top-1 of {options.min_accuracy:.2%}: the nearest is {_title(best, subjects)}, "
            f"{best.top1:.2%}, {best.costs[axis]:.4g} {unit}"
        )
    best = front[choice.point]
    price = f"{best.costs[axis]:.4g} {unit}"
    if not np.isnan(full.costs[axis]):
        price += f", {best.costs[axis] / full.costs[axis]:.0%} of that of every patch"
    policy = next((p for p in options.policies if f"int8:{p.stem}" == best.precision), None)
    subject = subjects[best.subject]
    return {
        "point": next(n for n, p in enumerate(points) if p is best),
        "basis": choice.basis,
        "shown": choice.shown,
        "difference": choice.difference.to_json(),
        "why": recommend.why(choice, _title(best, subjects), best.top1, price, options.min_accuracy, len(best.rights)),
        "free_tokens": _free_tokens(subject, best, cost),
        "commands": recommend.commands(
            subject.name, best.precision, best.budget.id, data, options.calibration_images, policy, folder
        ),
    }, None


def _free_tokens(subject: Subject, point: Point, cost: Pricing) -> str | None:
    """Returns which stages can keep more patches at no further latency, in words; None without any or without latencies."""
    config = subject.checkpoint.info.model
    if cost.kind == "macs":
        return None

    def price(budget: TokenBudget) -> Cost:
        return cost.model(OperatingPoint(subject.name, config, budget, point.precision))

    free = free_counts(config, point.budget, price)
    if not free:
        return None
    parts = [f"stage {stage + 1} up to {count} in place of {point.budget.keep[stage]}" for stage, count in free.items()]
    return f"Free tokens: patches that add no latency by these costs: {', '.join(parts)}."


def _title(point: Point, subjects: Sequence[Subject]) -> str:
    name = f"{subjects[point.subject].name} at " if len(subjects) > 1 else ""
    return f"{name}{point.budget.id} in {point.precision.upper() if ':' not in point.precision else point.precision}"


def _point(point: Point, is_reference: bool) -> dict[str, Any]:
    right, count = int(point.rights.sum()), len(point.rights)
    ms, gmac, mj = (None if np.isnan(value) else float(value) for value in point.costs)
    return {
        "checkpoint": point.subject,
        "precision": point.precision,
        "budget": point.budget.id,
        "ms": ms,
        "gmac": gmac,
        "mj": mj,
        "right": right,
        "images": count,
        "top1": point.top1,
        "interval": list(wilson_interval(right, count)),
        "is_within": point.within,
        "is_full_set": point.is_full_set,
        "is_front": point.is_front,
        "is_reference": is_reference,
    }
