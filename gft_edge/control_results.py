"""Results of :mod:`gft_edge.controls`: right answers under each rule, paired tests, the normalised gain, and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.data.splits import Split
from gft_edge.stats.gain import Estimate, mean_difference, mean_estimate, normalised_gain
from gft_edge.stats.metrics import mcnemar, wilson_interval

OWN, RANDOM, LEAST, STATIC, CENTRE = "most important", "random", "least important", "static", "centre first"
ORACLE, LOWER = "oracle", "lower resolution"
TESTED = (RANDOM, STATIC, LEAST, CENTRE, LOWER)
"""Rules that the model's own is tested against, where they were run."""
SIGNIFICANT = 0.05
Rights = npt.NDArray[np.bool_]
"""Right answers, (draws, images)."""


@dataclass(frozen=True)
class RuleAccuracy:
    """Accuracy with the patches of one rule.

    Attributes:
        rule: its name.
        right: images that are right, for each draw of a random rule.
        top1: share of right answers, mean over the draws.
        interval: 95 % interval of it.
        recall: share of the mark's patches that are kept to the end, mean over images; None without marks.
    """

    rule: str
    right: tuple[int, ...]
    top1: float
    interval: tuple[float, float]
    recall: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "rule": self.rule,
            "right": list(self.right),
            "top1": self.top1,
            "interval": list(self.interval),
            "recall": self.recall,
        }


@dataclass(frozen=True)
class PairedTest:
    """The most important patches against those of another rule, on the same images.

    Attributes:
        against: name of the other rule.
        difference: accuracy of the most important less that of the other, mean over its draws, with a bootstrap interval.
        p: of the exact McNemar test against each draw. Draws on the same images are not independent, so they are not pooled.
    """

    against: str
    difference: Estimate
    p: tuple[float, ...]

    @property
    def largest_p(self) -> float:
        """The p value that holds against every draw."""
        return max(self.p)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        interval = list(self.difference.interval)
        return {"against": self.against, "difference": self.difference.value, "interval": interval, "p": list(self.p)}


@dataclass(frozen=True)
class SmallerImages:
    """The same weights on smaller images with all patches, at about the cost of the budget: pixels of a side, and cost."""

    image_size: int
    macs: int


@dataclass(frozen=True)
class BudgetControls:
    """Results at one token budget.

    Attributes:
        budget: its id.
        macs: multiply-accumulates of an image.
        rules: accuracies, the model's own rule first.
        tests: of the model's own rule against others.
        gain: normalised gain G; None without marks, or where the oracle is not better than random patches.
        smaller: of the rule ``lower resolution``; None where it does not apply.
        verdict: one sentence.
    """

    budget: str
    macs: int
    rules: tuple[RuleAccuracy, ...]
    tests: tuple[PairedTest, ...]
    gain: Estimate | None
    smaller: SmallerImages | None
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        smaller = None if self.smaller is None else {"image_size": self.smaller.image_size, "macs": self.smaller.macs}
        return {
            "budget": self.budget,
            "macs": self.macs,
            "rules": [rule.to_json() for rule in self.rules],
            "tests": [test.to_json() for test in self.tests],
            "gain": None if self.gain is None else self.gain.to_json(),
            "lower_resolution": smaller,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Learned:
    """Where the static rule comes from.

    Attributes:
        data: name of the data set.
        split: its part.
        images: how many.
    """

    data: str
    split: Split
    images: int


@dataclass(frozen=True)
class Controls:
    """Result of :func:`gft_edge.controls.controls`.

    Attributes:
        backend: ``"torch"`` for a checkpoint, ``"onnxruntime"`` for an artefact.
        precision: of the linear layers.
        data, split: of the images.
        images: number of images that were read.
        unreadable: one message for each image that was left out.
        seeds: of the random draws.
        static: where the static rule comes from.
        has_marks: whether the data knows its marks.
        full: accuracy with every patch; its id and its multiply-accumulates. None for an artefact without such a graph.
        budgets: results, on the same images.
    """

    backend: str
    precision: str
    data: str
    split: Split
    images: int
    unreadable: tuple[str, ...]
    seeds: tuple[int, ...]
    static: Learned
    has_marks: bool
    full: tuple[str, int, RuleAccuracy] | None
    budgets: tuple[BudgetControls, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "backend": self.backend,
            "precision": self.precision,
            "data": self.data,
            "split": self.split,
            "images": self.images,
            "unreadable_images": len(self.unreadable),
            "seeds": list(self.seeds),
            "static": {"data": self.static.data, "split": self.static.split, "images": self.static.images},
            "has_marks": self.has_marks,
            "full": None if self.full is None else _full_json(*self.full),
            "budgets": [budget.to_json() for budget in self.budgets],
        }


def _full_json(budget: str, macs: int, accuracy: RuleAccuracy) -> dict[str, Any]:
    return {
        "budget": budget,
        "macs": macs,
        "right": accuracy.right[0],
        "top1": accuracy.top1,
        "interval": list(accuracy.interval),
    }


def rule_accuracy(rule: str, rights: Rights, recall: float | None = None) -> RuleAccuracy:
    """Returns the accuracy of a rule; of several draws with a bootstrap interval over images, of one with Wilson's."""
    right = tuple(int(count) for count in rights.sum(axis=1))
    if len(right) == 1:
        return RuleAccuracy(rule, right, right[0] / rights.shape[1], wilson_interval(right[0], rights.shape[1]), recall)
    mean = mean_estimate(rights.mean(axis=0))
    return RuleAccuracy(rule, right, mean.value, mean.interval, recall)


def budget_controls(
    budget: str,
    macs: int,
    rights: Mapping[str, Rights],
    recalls: Mapping[str, float],
    smaller: SmallerImages | None,
) -> BudgetControls:
    """Returns the figures of one budget.

    Args:
        budget: its id.
        macs: multiply-accumulates of an image.
        rights: of each rule, the model's own first.
        recalls: of each rule, empty without marks.
        smaller: of the rule ``lower resolution``.
    """
    own = rights[OWN][0]
    tests = tuple(
        PairedTest(
            name, mean_difference(own, rights[name].mean(axis=0)), tuple(mcnemar(own, draw) for draw in rights[name])
        )
        for name in TESTED
        if name in rights
    )
    gain = None
    if ORACLE in rights:
        gain = normalised_gain(own, rights[RANDOM].mean(axis=0), rights[ORACLE][0])
    rules = tuple(rule_accuracy(name, found, recalls.get(name)) for name, found in rights.items())
    sentence = verdict(budget, own, rights[RANDOM], tests[0])
    return BudgetControls(budget, macs, rules, tests, gain, smaller, sentence)


def verdict(budget: str, own: npt.NDArray[np.bool_], random: Rights, test: PairedTest) -> str:
    """Returns whether the selection matters at a budget, as one sentence.

    Args:
        budget: its id.
        own: right answers with the most important patches, (images,).
        random: with random patches.
        test: of one against the other.
    """
    counts = f"{int(own.sum())} of {len(own)} right against {random.sum() / len(random):.0f} with random patches"
    low, high = (100 * bound for bound in test.difference.interval)
    points = 100 * test.difference.value
    start = f"On these {len(own)} images the selection at {budget}"
    if test.largest_p >= SIGNIFICANT:
        return (
            f"{start} makes no measurable difference: {counts} ({points:+.1f} points, {low:+.1f} to {high:+.1f}, "
            f"{p_text(test.largest_p)})."
        )
    found = f"{counts} ({p_text(test.largest_p)})."
    if points > 0:
        return f"{start} is worth {points:.1f} points ({low:.1f} to {high:.1f}) over random patches: {found}"
    return f"{start} costs {-points:.1f} points ({-high:.1f} to {-low:.1f}) against random patches: {found}"


def full_text(data: Mapping[str, Any]) -> str:
    """Returns the accuracy with every patch, from what :meth:`Controls.to_json` returns."""
    full = data["full"]
    if full is None:
        return "every patch: not measured, the artefact has no graph of the full budget"
    return f"every patch: {full['right']} right, {full['top1']:.2%}, {full['macs'] / 1e6:.0f} million MACs"


def static_text(data: Mapping[str, Any]) -> str:
    """Returns where the static places come from, from what :meth:`Controls.to_json` returns."""
    static = data["static"]
    text = f"the places of the highest mean score on {static['images']} {static['split']} images"
    if static["split"] == data["split"]:
        text += ", the evaluated ones"
    if data["backend"] == "onnxruntime":
        text += ", scored by the graph itself: after a selection only the patches it kept"
    return text


def p_text(p: float) -> str:
    """Returns a p value as text, ``"p = 0.6"``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def rule_table(at: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns titles and rows of the table of one budget, from what :meth:`BudgetControls.to_json` returns."""
    tests = {test["against"]: test for test in at["tests"]}
    has_recall = any(row["recall"] is not None for row in at["rules"])
    titles = ["patches", "right", "top-1", "95 % interval", "own is better by, points", "p"]
    if has_recall:
        titles.insert(4, "of the mark kept")
    rows = []
    for row in at["rules"]:
        smaller = at["lower_resolution"]
        name = row["rule"]
        if name == LOWER and smaller is not None:
            name = f"all, {smaller['image_size']} pixels, {smaller['macs'] / at['macs']:.2f} of the cost"
        low, high = row["interval"]
        cells = [name, ", ".join(map(str, row["right"])), f"{row['top1']:.2%}", f"{low:.2%} to {high:.2%}"]
        if has_recall:
            cells.append("" if row["recall"] is None else f"{row['recall']:.0%}")
        test = tests.get(row["rule"])
        if test is None:
            cells += ["", ""]
        else:
            low, high = (100 * bound for bound in test["interval"])
            cells.append(f"{100 * test['difference']:+.1f} ({low:+.1f} to {high:+.1f})")
            cells.append(p_text(max(test["p"])).removeprefix("p = ").removeprefix("p "))
        rows.append(cells)
    return titles, rows


def gain_text(at: Mapping[str, Any], has_marks: bool) -> str:
    """Returns the normalised gain of one budget as text, or why there is none."""
    if at["gain"] is not None:
        low, high = at["gain"]["interval"]
        return f"normalised gain G = {at['gain']['value']:.2f} ({low:.2f} to {high:.2f})"
    if has_marks:
        return "no normalised gain G: the oracle is not better than random patches"
    return "no oracle and no normalised gain G: the data does not know where its marks are"
