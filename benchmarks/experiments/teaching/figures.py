"""Figures of a study: each arm over its seeds, against the arm without teaching, and chosen patches against the twin's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.benchmarks.experiments.teaching.measuring import from_texts, mean_right
from gft_edge.benchmarks.experiments.teaching.plan import ARMS, PLAIN, PRODUCT, TWIN
from gft_edge.control_results import ORACLE, OWN, RANDOM
from gft_edge.stats.gain import Estimate, mean_difference, normalised_gain
from gft_edge.stats.metrics import mcnemar

LEAD = 0.05
"""By which chosen patches are to lead the twin at some budget."""
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Two sides on the same images and seeds.

    Attributes:
        estimate: difference of the means over seeds, with a paired bootstrap interval over the images.
        by_seed: the difference of each seed.
        p: largest p value of the exact McNemar test over the seeds; of random patches over the draws too.
    """

    estimate: Estimate
    by_seed: tuple[float, ...]
    p: float

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {**self.estimate.to_json(), "by_seed": list(self.by_seed), "p": self.p}


@dataclass(frozen=True)
class ArmFigures:
    """One arm at one budget, means over its seeds.

    Attributes:
        seeds: number of them.
        own, random, oracle: accuracy with the patches of each rule.
        recall: share of the mark's patches among those that the arm's own score keeps to the end.
        gain: normalised gain G of the own patches; None where the oracle is not better than random patches.
        over_plain: own patches less those of the arm without teaching, on their common seeds; None for that arm itself.
    """

    seeds: int
    own: float
    random: float
    oracle: float
    recall: float
    gain: Estimate | None
    over_plain: Difference | None

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "seeds": self.seeds,
            "own": self.own,
            "random": self.random,
            "oracle": self.oracle,
            "recall": self.recall,
            "gain": None if self.gain is None else self.gain.to_json(),
            "over_plain": None if self.over_plain is None else self.over_plain.to_json(),
        }


def arm_figures(runs: Mapping[str, Mapping[str, Any]], arm: str, budget: str) -> ArmFigures:
    """Returns the figures of an arm at a budget.

    Args:
        runs: of a study, by arm and seed; see :func:`gft_edge.benchmarks.experiments.teaching.study.results`.
        arm: its name.
        budget: its id.
    """
    found = runs[arm].values()
    own, random, oracle = (_over_seeds(runs[arm], budget, rule) for rule in (OWN, RANDOM, ORACLE))
    compared = None if arm == PLAIN or PLAIN not in runs else difference(runs, (arm, OWN), (PLAIN, OWN), budget)
    return ArmFigures(
        len(runs[arm]),
        float(own.mean()),
        float(random.mean()),
        float(oracle.mean()),
        float(np.mean([one["budgets"][budget]["recall"][OWN] for one in found])),
        normalised_gain(own, random, oracle),
        compared,
    )


def difference(
    runs: Mapping[str, Mapping[str, Any]], a: tuple[str, str], b: tuple[str, str], budget: str
) -> Difference | None:
    """Returns the accuracy of one arm and rule less that of another, on their common seeds; None without common seeds."""
    seeds = [seed for seed in runs[a[0]] if seed in runs[b[0]]]
    if not seeds:
        return None
    left, right = ([runs[arm][seed]["budgets"] for seed in seeds] for arm, _ in (a, b))
    pairs = [(mean_right(x, budget, a[1]), mean_right(y, budget, b[1])) for x, y in zip(left, right)]
    p = max(
        mcnemar(one, other)
        for x, y in zip(left, right)
        for one in from_texts(x[budget]["right"][a[1]])
        for other in from_texts(y[budget]["right"][b[1]])
    )
    means = [np.mean(side, axis=0) for side in zip(*pairs)]
    return Difference(mean_difference(means[0], means[1]), tuple(float(np.mean(x - y)) for x, y in pairs), p)


def lead(runs: Mapping[str, Mapping[str, Any]], arm: str, budget: str) -> Difference | None:
    """Returns an arm with the patches that it chooses less the twin with the random patches it was trained on."""
    return difference(runs, (arm, OWN), (TWIN, RANDOM), budget)


def figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the figures of every arm at every budget, the leads over the twin, and the targets against the product's.

    All are plain JSON values.

    Args:
        found: of :func:`gft_edge.benchmarks.experiments.teaching.study.results`.
    """
    runs = found["runs"]
    budgets = found["budgets"]
    leads = {
        arm: {budget: one.to_json() for budget in budgets if (one := lead(runs, arm, budget)) is not None}
        for arm in runs
        if TWIN in runs and arm != TWIN
    }
    targets = {
        arm: {
            budget: one.to_json()
            for budget in budgets
            if (one := difference(runs, (arm, OWN), (PRODUCT, OWN), budget)) is not None
        }
        for arm in runs
        if PRODUCT in runs and arm != PRODUCT and ARMS[arm].target is not None
    }
    return {
        "targets": targets,
        "arms": {arm: {budget: arm_figures(runs, arm, budget).to_json() for budget in budgets} for arm in runs},
        "leads": leads,
        "target": LEAD,
        "met": any(one["value"] >= LEAD for of_arm in leads.values() for one in of_arm.values()),
    }


def _over_seeds(runs: Mapping[str, Any], budget: str, rule: str) -> Values:
    """Returns the mean over seeds and draws of right answers, (images,)."""
    means: Values = np.mean([mean_right(one["budgets"], budget, rule) for one in runs.values()], axis=0)
    return means
