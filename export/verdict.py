"""What passes: limits, paired statistics of two accuracies, and a verdict that knows when it has seen too few images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from gft_edge.train.metrics import mcnemar, wilson_interval

if TYPE_CHECKING:
    from gft_edge.export.agreement import Comparison

Verdict = Literal["pass", "fail", "inconclusive"]
RESAMPLES = 10_000
Z_INTERVAL, Z_POWER = 1.959964, 0.841621
"""Standard normal quantiles of a two-sided 95 % interval and of 80 % power."""


@dataclass(frozen=True)
class Limits:
    """What passes.

    Args:
        fp32_relative_error: largest logit difference over the largest logit, FP32 graph against FP32 PyTorch, and any
            graph against a fresh export of the same checkpoint by the same tools.
        fp32_importance_sqnr_db: importance maps, likewise.
        same_sqnr_db: INT8 graph against the same INT8 arithmetic in PyTorch; what remains are rounding ties.
        fp16_sqnr_db: FP16 graph against FP32 PyTorch.
        int8_sqnr_db, int8_top1_agreement, int8_jaccard, int8_rank_correlation: INT8 graph (or any other
            compressed one) against FP32 PyTorch.
        int8_importance_sqnr_db: importance maps likewise; their softmax is sharp, so little is asked of it.
        top1_drop: accuracy that compression may cost, as a share; decided with labels only.
    """

    fp32_relative_error: float = 1e-4
    fp32_importance_sqnr_db: float = 50.0
    same_sqnr_db: float = 25.0
    fp16_sqnr_db: float = 30.0
    int8_sqnr_db: float = 15.0
    int8_top1_agreement: float = 0.97
    int8_jaccard: float = 0.90
    int8_rank_correlation: float = 0.85
    int8_importance_sqnr_db: float = 6.0
    top1_drop: float = 0.01


@dataclass(frozen=True)
class WorstClass:
    """The class that lost most: images of it, and how many of them each side has right."""

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
        only_reference, only_candidate: images that one side alone has right.
        mcnemar_p: exact p value of "both are right equally often".
        worst_class: None when no class lost anything.
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
    """Paired statistics of two sides' classes (B,) against the true ones (B,)."""
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


def difference_interval(only_reference: int, only_candidate: int, images: int, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the difference of two accuracies by paired bootstrap (percentiles).

    Drawing images with replacement makes the three counts (only one side right, only the other, neither) multinomial, so
    they are drawn directly. Where the sides differ on no image the bootstrap knows no spread; then the interval is
    what no case in that many images allows (at 95 %: the "rule of three").
    """
    if only_reference == only_candidate == 0:
        unseen = 1 - 0.05 ** (1 / images)
        return -unseen, unseen
    shares = np.array([only_reference, only_candidate, images - only_reference - only_candidate]) / images
    counts = np.random.default_rng(seed).multinomial(images, shares, size=RESAMPLES)
    low, high = np.percentile((counts[:, 1] - counts[:, 0]) / images, (2.5, 97.5))
    return float(low), float(high)


def images_needed(only_reference: int, only_candidate: int, images: int, margin: float) -> int | None:
    """Images after which a drop in accuracy is told from ``margin`` with 80 % power at 95 % confidence.

    The variance of a paired difference is (discordance - difference^2) / n (e.g. Liu et al., Statistics in Medicine 2002), so n =
    (z_975 + z_80)^2 (discordance - difference^2) / (difference + margin)^2 with what was observed; None when the
    observed drop equals the margin, which no number of images can decide.
    """
    difference = (only_candidate - only_reference) / images
    discordance = (only_candidate + only_reference) / images
    if discordance == 0:
        return math.ceil(math.log(0.05) / math.log1p(-margin))
    if math.isclose(difference, -margin):
        return None
    needed = (Z_INTERVAL + Z_POWER) ** 2 * (discordance - difference**2) / (difference + margin) ** 2
    return max(math.ceil(needed), images + 1)


@dataclass(frozen=True)
class Judgement:
    """What is out of limits, what cannot be decided yet, and the images that would decide it."""

    failures: tuple[str, ...]
    undecided: tuple[str, ...]
    images_needed: int | None

    @property
    def verdict(self) -> Verdict:
        """``"fail"`` if something is out of limits, else ``"inconclusive"`` if something is undecided, else ``"pass"``."""
        return "fail" if self.failures else "inconclusive" if self.undecided else "pass"


def judge(comparisons: Sequence[Comparison], limits: Limits) -> Judgement:
    """Holds comparisons of one artefact against the limits of their kind."""
    failures: list[str] = []
    undecided: list[str] = []
    needed: list[int] = []
    for c in comparisons:
        where = f"{c.candidate} against {c.reference}"
        failures += _broken_values(c, where)
        failures += [
            f"{where}: stage {s.stage} keeps the right patches in another order on {s.reordered} images"
            for s in c.stages
            if s.reordered
        ]
        sqnr = math.inf if c.logit_sqnr_db is None else c.logit_sqnr_db
        if c.kind == "exact":
            failures += _exact_failures(c, where, limits)
        elif c.kind == "same_arithmetic":
            if sqnr < limits.same_sqnr_db:
                failures.append(f"{where}: logit SQNR {sqnr:.1f} dB, limit {limits.same_sqnr_db:.0f}")
        else:
            least = limits.fp16_sqnr_db if c.arithmetic == "fp16" else limits.int8_sqnr_db
            failures += _compression_failures(c, where, limits, least)
            _decide(c, where, limits, failures, undecided, needed)
    return Judgement(tuple(failures), tuple(undecided), max(needed, default=None))


def _broken_values(c: Comparison, where: str) -> list[str]:
    """Values that are no numbers, on either side."""
    counts = (
        (f"{where}: logits of", c.not_finite),
        (f"{where}: logits of {c.reference} for", c.reference_not_finite),
        *((f"{where}: importance of stage {s.stage} for", s.not_finite) for s in c.stages),
    )
    return [f"{what} {count} of {c.images} images are not finite" for what, count in counts if count]


def _exact_failures(c: Comparison, where: str, limits: Limits) -> list[str]:
    """What two computations of the same numbers may not differ in."""
    failures = []
    if c.max_relative_error > limits.fp32_relative_error:
        failures.append(f"{where}: logits differ by {c.max_relative_error:.1e}, limit {limits.fp32_relative_error:.0e}")
    for s in c.stages:
        if s.identical + s.ties < s.images:
            failures.append(f"{where}: stage {s.stage} keeps other patches on {s.images - s.identical - s.ties} images")
        # A tie earlier on changes what the next stages see.
        elif not any(earlier.ties for earlier in c.stages[: s.stage]):
            sqnr = math.inf if s.importance_sqnr_db is None else s.importance_sqnr_db
            if sqnr < limits.fp32_importance_sqnr_db:
                failures.append(
                    f"{where}: importance of stage {s.stage} has SQNR {sqnr:.1f} dB, "
                    f"limit {limits.fp32_importance_sqnr_db:.0f}"
                )
    return failures


def _compression_failures(c: Comparison, where: str, limits: Limits, least_sqnr_db: float) -> list[str]:
    """What compression may not cost."""
    failures = []
    sqnr = math.inf if c.logit_sqnr_db is None else c.logit_sqnr_db
    if sqnr < least_sqnr_db:
        failures.append(f"{where}: logit SQNR {sqnr:.1f} dB, limit {least_sqnr_db:.0f}")
    for s in c.stages:
        if s.jaccard < limits.int8_jaccard:
            failures.append(f"{where}: stage {s.stage} Jaccard {s.jaccard:.3f}, limit {limits.int8_jaccard}")
        if s.rank_correlation is not None and s.rank_correlation < limits.int8_rank_correlation:
            failures.append(
                f"{where}: importance of stage {s.stage} has rank correlation {s.rank_correlation:.3f}, "
                f"limit {limits.int8_rank_correlation}"
            )
        if s.importance_sqnr_db is not None and s.importance_sqnr_db < limits.int8_importance_sqnr_db:
            failures.append(
                f"{where}: importance of stage {s.stage} has SQNR {s.importance_sqnr_db:.1f} dB, "
                f"limit {limits.int8_importance_sqnr_db:.0f}"
            )
    return failures


def _decide(
    c: Comparison, where: str, limits: Limits, failures: list[str], undecided: list[str], needed: list[int]
) -> None:
    """Appends what the numbers of images say of agreement and accuracy: out of limits, or not decided yet."""
    same = round(c.top1_agreement * c.images)
    if c.top1_agreement < limits.int8_top1_agreement:
        text = f"{where}: same class on {c.top1_agreement:.1%}, limit {limits.int8_top1_agreement:.0%}"
        if wilson_interval(same, c.images)[1] < limits.int8_top1_agreement:
            failures.append(text)
        else:
            undecided.append(f"{text}, which {c.images} images do not settle")
    if c.top1 is None:
        return
    low, high = c.top1.interval
    text = f"{where}: top-1 changes by {c.top1.difference:+.2%} ({low:+.2%} to {high:+.2%}), allowed -{limits.top1_drop:.1%}"
    if high < -limits.top1_drop:
        failures.append(text)
    elif low < -limits.top1_drop:
        count = images_needed(c.top1.only_reference, c.top1.only_candidate, c.images, limits.top1_drop)
        undecided.append(f"{text}: " + (f"about {count} images would decide" if count else "on the limit exactly"))
        if count:
            needed.append(count)
