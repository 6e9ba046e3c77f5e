"""Certificates of selection: images, and kept patches, that noise up to a bound cannot have moved over the boundary.

A stage keeps the k patches of highest score. Notation, for one image at one stage: s are the scores of the reference, t those of
the compressed model; K are the k patches that t keeps, D the others; u is the standard deviation of t over the patches.

    lead of a kept patch i     (t_i - max t over D) / u            of the image: the smallest, its margin
    noise of the image         max over K of  lead_i - (s_i - max s over D) / u
    reach of the image         max of lead_i over the patches of K that s does not keep; 0 if K is what s keeps

The noise is what a kept patch loses of its lead at most. It is one of differences: what adds to all patches alike cancels. If
noise <= bound and margin > bound, every patch of K beats every patch of D by s too, so K is what s keeps: the image is certified.
Most noise is of patches far from the boundary and moves none over it, so the reach is smaller. If reach <= its bound, s keeps every
patch of K whose lead is above that bound: the patch is certain. Where no flip was seen, the noise bounds the reach. Lead and margin
need t alone.

The bounds are the largest noise and the largest reach of n images. For images drawn like those, either is exceeded with a
probability of at most 1 - (1 - confidence)^(1 / n) with that confidence, whatever the distribution (S. S. Wilks, 1941: one-sided
tolerance limit by order statistics), and of 1 / (n + 1) on average over the n images (split conformal prediction). A later stage is
measured on images whose earlier stages keep the same patches, and its certificate presumes those; the probabilities of the stages
add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import DataError
from gft_edge.stats.agreement import Arrays
from gft_edge.stats.grid import mask_of

CONFIDENCE = 0.95
FLOAT_NOISE = 1e-5
"""Least bound, in standard deviations of an image's scores: runtimes and batch sizes round sums in float32 differently."""
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class StageBound:
    """Largest noise at one stage.

    Attributes:
        stage, patches, kept: number of the stage, of the patches that enter it, and of those it keeps.
        images: that the noise was measured on.
        noise, reach: bounds, in standard deviations of an image's scores.
    """

    stage: int
    patches: int
    kept: int
    images: int
    noise: float
    reach: float


@dataclass(frozen=True)
class NoiseBound:
    """Bound of the noise at each stage that drops patches.

    Attributes:
        stages: in order.
        confidence: that the coverage holds, at all stages together.
    """

    stages: tuple[StageBound, ...]
    confidence: float = CONFIDENCE

    @property
    def coverage(self) -> float:
        """Least share of images, drawn like those measured, whose noise is within the bound at every stage; of the reach too."""
        doubt = (1 - self.confidence) / max(len(self.stages), 1)
        return max(0.0, 1 - sum(1 - coverage_of_largest(stage.images, 1 - doubt) for stage in self.stages))

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "stages": [asdict(stage) for stage in self.stages],
            "confidence": self.confidence,
            "coverage": self.coverage,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NoiseBound:
        """Reads what :meth:`to_json` returns.

        Raises:
            KeyError, TypeError, ValueError: another form.
        """
        counts = ("stage", "patches", "kept", "images")
        stages = tuple(
            StageBound(
                **{key: int(stage[key]) for key in counts}, noise=float(stage["noise"]), reach=float(stage["reach"])
            )
            for stage in data["stages"]
        )
        bound = cls(stages, float(data["confidence"]))
        if not (0 < bound.confidence < 1 and all(0 <= s.reach <= s.noise and s.images > 0 for s in stages)):
            raise ValueError("noise, reach, images or confidence out of range")
        return bound


@dataclass(frozen=True)
class Certificates:
    """Certificates of images.

    Attributes:
        certified: whether no kept patch of any stage can be another, (B,).
        certain: per stage of the bound, whether that kept patch is among those of the reference if the earlier stages keep the
            same patches, (B, k) in the order of ``kept_i``.
    """

    certified: Mask
    certain: tuple[Mask, ...]


@dataclass(frozen=True)
class CertificateCheck:
    """Certificates against what happened, on images that the bound has not seen.

    Attributes:
        images, certified, flipped: number of all, of those certified, and of those whose kept patches differ at any stage.
        broken: images that are certified and flipped.
        certain: share of the kept patches that are certain, per stage of the bound.
        lost: certain patches that the reference does not keep, on images whose earlier stages keep the same patches.
    """

    images: int
    certified: int
    flipped: int
    broken: tuple[int, ...]
    certain: tuple[float, ...]
    lost: int

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {**asdict(self), "broken": list(self.broken), "certain": list(self.certain)}


def contradicts(found: CertificateCheck, bound: NoiseBound) -> bool:
    """Returns whether more certificates are broken than a bound of this coverage allows, with 95 % confidence.

    An image can break its certificate only if its noise is above the bound, as that of at most 1 - coverage of the images is: of n
    images at most Binomial(n, 1 - coverage) do.
    """
    return bool(found.broken) and at_least(len(found.broken), found.images, 1 - bound.coverage) < 1 - CONFIDENCE


def at_least(count: int, total: int, share: float) -> float:
    """Returns the probability of ``count`` or more of Binomial(total, share); in logarithms, since its terms leave the floats."""
    if share <= 0 or share >= 1:
        return float(count == 0 or share >= 1)
    fewer = (
        math.lgamma(total + 1)
        - math.lgamma(k + 1)
        - math.lgamma(total - k + 1)
        + k * math.log(share)
        + (total - k) * math.log1p(-share)
        for k in range(count)
    )
    return max(0.0, 1 - math.fsum(map(math.exp, fewer)))


def coverage_of_largest(images: int, confidence: float) -> float:
    """Returns the share of a distribution that lies below the largest of n draws, at least, with a confidence.

    P(share <= c) = c^n for every continuous distribution; of others the share is larger.
    """
    return float((1 - confidence) ** (1 / images))


def leads(scores: npt.NDArray[Any], k: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Returns the k highest patches in raster order and their leads, both (B, k), of scores (B, N) with k < N."""
    wide = np.asarray(scores, np.float64)
    kept = np.sort(np.argsort(-wide, axis=1, kind="stable")[:, :k], axis=1)
    return kept, _leads(wide, kept, _unit(wide))


def noise(reference: npt.NDArray[Any], found: npt.NDArray[Any], k: int) -> Floats:
    """Returns the noise of each image at a stage, (B,), from scores (B, N) of reference and compressed model; 0 or more."""
    s, t = np.asarray(reference, np.float64), np.asarray(found, np.float64)
    unit = _unit(t)
    kept, lead = leads(t, k)
    lost: Floats = (lead - _leads(s, kept, unit)).max(axis=1)
    return np.maximum(lost, 0.0)


def reach(reference: npt.NDArray[Any], found: npt.NDArray[Any], k: int) -> Floats:
    """Returns the reach of the flips of each image at a stage, (B,), from scores (B, N) of both; at most the noise."""
    kept, lead = leads(found, k)
    result: Floats = np.where(is_kept(reference, kept), 0.0, lead).max(axis=1)
    return result


def is_kept(reference: npt.NDArray[Any], kept: npt.NDArray[np.int64]) -> Mask:
    """Returns whether the reference with scores (B, N) keeps the patches at ``kept`` too, (B, k)."""
    expected = mask_of(leads(reference, kept.shape[1])[0], reference.shape[1:])
    return np.take_along_axis(expected, kept, axis=1)


def _leads(scores: Floats, kept: npt.NDArray[np.int64], unit: Floats) -> Floats:
    """Returns how far the patches at ``kept`` (B, k) lie above the best of the others, over ``unit`` (B, 1)."""
    others = np.where(mask_of(kept, scores.shape[1:]), -np.inf, scores).max(axis=1, keepdims=True)
    result: Floats = (np.take_along_axis(scores, kept, axis=1) - others) / unit
    return result


def _unit(scores: Floats) -> Floats:
    """Returns the standard deviation of each image's scores, (B, 1); 1 where all are equal."""
    deviation = scores.std(axis=1, keepdims=True)
    return np.where(deviation > 0, deviation, 1.0)


def selecting(outputs: Arrays) -> list[int]:
    """Returns the stages that drop patches, of outputs with ``scores_i`` (B, N_i) and ``kept_i`` (B, k_i)."""
    stages = sorted(int(name.removeprefix("scores_")) for name in outputs if name.startswith("scores_"))
    return [stage for stage in stages if outputs[f"kept_{stage}"].shape[1] < outputs[f"scores_{stage}"].shape[1]]


def flipped(reference: Arrays, found: Arrays, before: int | None = None) -> Mask:
    """Returns whether the kept patches of an image differ at any stage, or at any one ``before`` that stage, (B,)."""
    result: Mask = np.zeros(len(reference["logits"]), np.bool_)
    for name in (name for name in reference if name.startswith("kept_") and name in found):
        if before is None or int(name.rpartition("_")[2]) < before:
            result |= (np.sort(reference[name], axis=1) != np.sort(found[name], axis=1)).any(axis=1)
    return result


def measure_bound(reference: Arrays, found: Arrays, confidence: float = CONFIDENCE) -> NoiseBound:
    """Returns the bound from the outputs of reference and compressed model on the same images.

    Args:
        reference, found: ``logits``, and ``scores_i`` (B, N_i) and ``kept_i`` (B, k_i) of every stage.
        confidence: that its coverage holds.

    Raises:
        DataError: no image keeps the same patches up to some stage, so its noise cannot be measured.
    """
    stages = []
    for stage in selecting(found):
        same = ~flipped(reference, found, stage)
        if not same.any():
            raise DataError(
                f"certificates: no image keeps the same patches before stage {stage + 1}; nothing can be certified"
            )
        scores, k = found[f"scores_{stage}"], found[f"kept_{stage}"].shape[1]
        pair = reference[f"scores_{stage}"][same], scores[same], k
        largest, reached = float(noise(*pair).max()), float(reach(*pair).max())
        largest = max(largest, reached, FLOAT_NOISE)  # the reach may be an ulp above the noise, which is a difference
        stages.append(StageBound(stage, scores.shape[1], k, int(same.sum()), largest, reached or largest))
    return NoiseBound(tuple(stages), confidence)


def certify(outputs: Arrays, bound: NoiseBound) -> Certificates:
    """Certifies images from the compressed model's own scores; the full-precision model is not needed.

    Args:
        outputs: with ``scores_i`` (B, N_i) of every stage of the bound, for example those of
            :func:`gft_edge.model.named_outputs.named_outputs`.
        bound: measured at the same token budget.

    Raises:
        DataError: the scores are missing or of another token budget, or the bound has no stages.
    """
    if not bound.stages:
        raise DataError("certificates: the bound has no stages, the model drops no patches")
    certified, certain = [], []
    for stage in bound.stages:
        scores = outputs.get(f"scores_{stage.stage}")
        if scores is None or scores.shape[1] != stage.patches:
            found = "no scores" if scores is None else f"scores of {scores.shape[1]} patches"
            raise DataError(
                f"certificates: {found} at stage {stage.stage + 1}, the bound is of {stage.patches}; measure the bound at the same "
                "token budget"
            )
        finite = np.isfinite(scores).all(axis=1, keepdims=True)
        lead = np.where(finite, leads(np.where(finite, scores, 0), stage.kept)[1], -np.inf)
        certified.append(lead.min(axis=1) > stage.noise)
        certain.append(np.asarray(lead > stage.reach))
    return Certificates(np.logical_and.reduce(certified), tuple(certain))


def check(reference: Arrays, found: Arrays, bound: NoiseBound) -> CertificateCheck:
    """Compares certificates with what happened on images that the bound has not seen.

    Args:
        reference: as for :func:`measure_bound`.
        found: likewise, of the compressed model.
        bound: at the same token budget.

    Raises:
        DataError: as :func:`certify`.
    """
    given, moved = certify(found, bound), flipped(reference, found)
    lost = 0
    for stage, certain in zip(bound.stages, given.certain):
        same = ~flipped(reference, found, stage.stage)
        s, t = reference[f"scores_{stage.stage}"][same], found[f"scores_{stage.stage}"][same]
        lost += int((certain[same] & ~is_kept(s, leads(t, stage.kept)[0])).sum())
    broken = np.flatnonzero(given.certified & moved)
    return CertificateCheck(
        images=len(moved),
        certified=int(given.certified.sum()),
        flipped=int(moved.sum()),
        broken=tuple(broken.tolist()),
        certain=tuple(float(mask.mean()) for mask in given.certain),
        lost=lost,
    )
