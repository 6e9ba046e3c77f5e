"""Limits, and the verdict on comparisons by them: pass, fail, or inconclusive when there are too few images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gft_edge.stats.agreement import Comparison, StageAgreement
from gft_edge.stats.metrics import wilson_interval
from gft_edge.stats.paired import images_needed

Verdict = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Limits:
    """Limits that an artefact has to keep to pass.

    Args:
        fp32_relative_error: largest logit difference over the largest logit, FP32 graph against FP32 PyTorch, and any
            graph against a fresh export of the same checkpoint by the same tools.
        fp32_importance_sqnr_db: importance maps and the scores that rank patches, likewise.
        same_sqnr_db: INT8 graph against the same INT8 arithmetic in PyTorch, on the images of which both keep the same
            patches; what remains are rounding ties. Where the rest is FP16, the noise that ``fp16_sqnr_db`` allows is added.
        fp16_sqnr_db: FP16 graph against FP32 PyTorch.
        int8_sqnr_db, int8_top1_agreement, int8_jaccard, int8_rank_correlation: INT8 graph (or any other
            compressed one) against FP32 PyTorch; the kept sets (``int8_jaccard``) against the same arithmetic too.
        int8_importance_sqnr_db: importance maps likewise; the limit is low because their softmax is sharp.
        top1_drop: accuracy that compression may cost, as a share; needs labels.
    """

    fp32_relative_error: float = 1e-4
    fp32_importance_sqnr_db: float = 50.0
    same_sqnr_db: float = 25.0
    fp16_sqnr_db: float = 30.0
    int8_sqnr_db: float = 15.0
    int8_top1_agreement: float = 0.97
    int8_jaccard: float = 0.90
    int8_rank_correlation: float = 0.85
    int8_importance_sqnr_db: float = 4.0
    top1_drop: float = 0.01


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Assessment:
    """Failures, questions that the images do not decide, and the number of images that would decide them."""

    failures: tuple[str, ...]
    undecided: tuple[str, ...]
    images_needed: int | None

    @property
    def verdict(self) -> Verdict:
        """``"fail"`` if something is out of limits, else ``"inconclusive"`` if something is undecided, else ``"pass"``."""
        return "fail" if self.failures else "inconclusive" if self.undecided else "pass"


def assess(comparisons: Sequence[Comparison], limits: Limits) -> Assessment:
    """Compares the figures of one artefact with the limits of their kind."""
    failures: list[str] = []
    undecided: list[str] = []
    needed: list[int] = []
    for c in comparisons:
        where = f"{c.candidate} against {c.reference}"
        failures += _broken_values(c, where)
        failures += [
            f"{where}: stage {s.stage + 1} keeps the right patches in another order on {s.reordered} images"
            for s in c.stages
            if s.reordered
        ]
        if c.kind == "exact":
            failures += _exact_failures(c, where, limits)
        elif c.kind == "same_arithmetic":
            failures += _same_failures(c, where, limits)
        else:
            least = limits.fp16_sqnr_db if c.arithmetic == "fp16" else limits.int8_sqnr_db
            failures += _compression_failures(c, where, limits, least)
            _decide(c, where, limits, failures, undecided, needed)
    return Assessment(tuple(failures), tuple(undecided), max(needed, default=None))


def _broken_values(c: Comparison, where: str) -> list[str]:
    """Returns failures for values that are NaN or infinite, on either side."""
    counts = (
        (f"{where}: logits of", c.not_finite),
        (f"{where}: logits of {c.reference} for", c.reference_not_finite),
        *((f"{where}: scores or importance of stage {s.stage + 1} for", s.not_finite) for s in c.stages),
    )
    return [f"{what} {count} of {c.images} images are not finite" for what, count in counts if count]


def _exact_failures(c: Comparison, where: str, limits: Limits) -> list[str]:
    """Returns differences that two computations of the same numbers may not have."""
    failures = []
    if c.max_relative_error > limits.fp32_relative_error:
        failures.append(f"{where}: logits differ by {c.max_relative_error:.1e}, limit {limits.fp32_relative_error:.0e}")
    for s in c.stages:
        if s.identical + s.ties < s.images:
            failures.append(
                f"{where}: stage {s.stage + 1} keeps other patches on {s.images - s.identical - s.ties} images"
            )
        # A tie in an earlier stage changes the inputs of the later ones.
        elif not any(earlier.ties for earlier in c.stages if earlier.stage < s.stage):
            failures += [
                f"{where}: {what} of stage {s.stage + 1} has SQNR {sqnr:.1f} dB, limit {limits.fp32_importance_sqnr_db:.0f}"
                for what, sqnr in (("importance", s.importance_sqnr_db), ("ranking", s.score_sqnr_db))
                if sqnr is not None and sqnr < limits.fp32_importance_sqnr_db
            ]
    return failures


def _same_failures(c: Comparison, where: str, limits: Limits) -> list[str]:
    """Returns differences that two computations of the same quantized arithmetic may not have.

    A rounding tie can exchange a patch at the boundary, and all later values of that image with it: such an image says nothing
    about the arithmetic, and is held to the limit of the kept sets.
    """
    failures = [failure for s in c.stages for failure in _kept_failures(s, where, limits)]
    found, which = c.settled_sqnr_db if c.settled else c.logit_sqnr_db, ""
    if 0 < c.settled < c.images:
        which = f" on {c.settled} images that keep the same patches"
    least = limits.same_sqnr_db
    if c.rest == "fp16":
        least = -10 * math.log10(10 ** (-least / 10) + 10 ** (-limits.fp16_sqnr_db / 10))
    if found is not None and found < least:
        failures.append(f"{where}: logit SQNR {found:.1f} dB{which}, limit {least:.0f}")
    return failures


def _kept_failures(s: StageAgreement, where: str, limits: Limits) -> list[str]:
    """Returns a failure where a stage keeps too many other patches."""
    if s.jaccard >= limits.int8_jaccard:
        return []
    return [f"{where}: stage {s.stage + 1} Jaccard {s.jaccard:.3f}, limit {limits.int8_jaccard}"]


def _compression_failures(c: Comparison, where: str, limits: Limits, least_sqnr_db: float) -> list[str]:
    """Returns what compression costs beyond the limits."""
    failures = []
    sqnr = math.inf if c.logit_sqnr_db is None else c.logit_sqnr_db
    if sqnr < least_sqnr_db:
        failures.append(f"{where}: logit SQNR {sqnr:.1f} dB, limit {least_sqnr_db:.0f}")
    for s in c.stages:
        failures += _kept_failures(s, where, limits)
        if s.rank_correlation is not None and s.rank_correlation < limits.int8_rank_correlation:
            failures.append(
                f"{where}: ranking of stage {s.stage + 1} has rank correlation {s.rank_correlation:.3f}, "
                f"limit {limits.int8_rank_correlation}"
            )
        if s.importance_sqnr_db is not None and s.importance_sqnr_db < limits.int8_importance_sqnr_db:
            failures.append(
                f"{where}: importance of stage {s.stage + 1} has SQNR {s.importance_sqnr_db:.1f} dB, "
                f"limit {limits.int8_importance_sqnr_db:.0f}"
            )
    return failures


def _decide(
    c: Comparison, where: str, limits: Limits, failures: list[str], undecided: list[str], needed: list[int]
) -> None:
    """Appends failures and undecided questions of agreement and accuracy, by the number of images."""
    same = round(c.top1_agreement * c.images)
    if c.top1_agreement < limits.int8_top1_agreement:
        text = f"{where}: same class on {c.top1_agreement:.1%}, limit {limits.int8_top1_agreement:.0%}"
        if wilson_interval(same, c.images)[1] < limits.int8_top1_agreement:
            failures.append(text)
        else:
            undecided.append(f"{text}, which {c.images} images do not decide")
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
