"""Checks whether selection survives compression: the margin at each stage's boundary against the noise of its scores.

A stage keeps the k patches of highest score (:mod:`gft_edge.model.scores`), whatever map it puts out. Quantization adds noise
to the scores, and patches near the boundary change sides. Their number is predicted by adding noise of the measured
distribution, independent from patch to patch, to the scores of the full-precision model, and reported next to the observed
number. An observed number far above the prediction means that the noise of an image's patches is correlated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gft_edge.errors import DataError
from gft_edge.model.named_outputs import named_outputs
from gft_edge.runtime.finite import require_finite
from gft_edge.stats.agreement import Arrays
from gft_edge.stats.grid import mask_of
from gft_edge.stats.metrics import sqnr_db

LOWEST_JACCARD = 0.90
"""Lowest Jaccard index of the kept sets of compressed and full model, as in verification."""
NEAR = 1.0
"""Noise is measured on patches this close to the boundary, in standard deviations of an image's scores."""
DRAWS = 20
Z95 = 1.96

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StageSafety:
    """One stage; scores have unit standard deviation per image.

    Attributes:
        stage, patches, kept: number of the stage, of the patches that enter it, and of those it keeps.
        margin_p50, margin_p05: median and 5th percentile over images of the k-th score minus the next.
        noise_std: standard deviation of the noise that quantization adds to the scores near the boundary.
        predicted_flips, observed_flips: share of the patches that enter on both sides and are kept on one only.
        predicted_changed, observed_changed: share of images whose kept set differs; the observed share includes changes by
            earlier stages, the predicted one does not.
        jaccard, jaccard_interval: |both| / |either| of the kept sets, mean and its 95 % interval over images.
        images_needed: images for which that interval would exclude the limit; None if it does already.
        verdict: ``"survived"``, ``"not survived"`` or ``"inconclusive"``.
    """

    stage: int
    patches: int
    kept: int
    margin_p50: float
    margin_p05: float
    noise_std: float
    predicted_flips: float
    observed_flips: float
    predicted_changed: float
    observed_changed: float
    jaccard: float
    jaccard_interval: tuple[float, float]
    images_needed: int | None
    verdict: str


@dataclass(frozen=True)
class SelectionSafety:
    """All stages that drop patches, and the logits (None when bit-identical), over the same images."""

    images: int
    limit: float
    stages: tuple[StageSafety, ...]
    logit_sqnr_db: float | None = None

    @property
    def verdict(self) -> str:
        """The worst of the stages' verdicts."""
        found = {stage.verdict for stage in self.stages}
        return next((word for word in ("not survived", "inconclusive") if word in found), "survived")

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        stages = [{**asdict(stage), "jaccard_interval": list(stage.jaccard_interval)} for stage in self.stages]
        return {
            "images": self.images,
            "limit": self.limit,
            "verdict": self.verdict,
            "stages": stages,
            "logit_sqnr_db": self.logit_sqnr_db,
        }

    def describe(self) -> str:
        """Returns a few lines for people."""
        logits = "bit-identical" if self.logit_sqnr_db is None else f"{self.logit_sqnr_db:.1f} dB SQNR"
        if not self.stages:
            return f"selection: this model drops no patches; logits {logits}"
        words = {"survived": "the kept patches survive", "not survived": "the kept patches do NOT survive"}
        lines = [
            f"selection on {self.images} images: {words.get(self.verdict, self.verdict)} (limit {self.limit:.2f} alike); "
            f"logits {logits}"
        ]
        for s in self.stages:
            low, high = s.jaccard_interval
            line = (
                f"  stage {s.stage + 1}: kept sets {s.jaccard:.3f} [{low:.3f}, {high:.3f}] alike; {s.observed_flips:.2%} of "
                f"patches changed sides, {s.predicted_flips:.2%} predicted (gap {s.margin_p50:.3f}, noise {s.noise_std:.3f})"
            )
            lines.append(line if s.images_needed is None else f"{line}; needs {s.images_needed} images")
        if any(s.noise_std > s.margin_p50 for s in self.stages):
            lines.append(
                "  gap: score of the last patch kept minus the next; noise above it swaps patches near that boundary only"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class StageOutput:
    """One stage of one model: scores (B, N) of unit deviation per image, positions that enter (B, N) and are kept (B, K)."""

    scores: Floats
    inputs: npt.NDArray[np.int64]
    kept: npt.NDArray[np.int64]


@torch.no_grad()
def paired_outputs(
    full: nn.Module, compressed: nn.Module, batches: Iterable[npt.NDArray[np.float32]]
) -> tuple[Arrays, Arrays]:
    """Returns ``logits``, and ``scores_i`` and ``kept_i`` of every stage, of two models at their default token budget.

    Args:
        full: the reference, in eval mode.
        compressed: the same model, compressed.
        batches: preprocessed images, (B, 3, H, W) each.

    Raises:
        DataError: no images.
        CheckFailed: logits of either model that are NaN or infinite.
    """
    sides: list[list[Arrays]] = [[], []]
    for images in batches:
        for side, model, where in zip(sides, (full, compressed), ("in full precision", "quantized")):
            side.append(_outputs(model, images, where))
    reference, found = (_joined(side) for side in sides)
    return reference, found


@torch.no_grad()
def model_outputs(model: nn.Module, batches: Iterable[npt.NDArray[np.float32]], where: str) -> Arrays:
    """Returns what :func:`paired_outputs` does for one model; ``where`` is part of the message about values that are not finite."""
    return _joined([_outputs(model, images, where) for images in batches])


def _outputs(model: nn.Module, images: npt.NDArray[np.float32], where: str) -> Arrays:
    outputs = named_outputs(model(torch.from_numpy(images), maps=True))
    require_finite(outputs["logits"], f"selection, {where}")
    return {name: value for name, value in outputs.items() if not name.startswith("importance_")}


def _joined(parts: Sequence[Arrays]) -> Arrays:
    if not parts:
        raise DataError("selection: no images")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def safety_of(reference: Arrays, found: Arrays, limit: float = LOWEST_JACCARD) -> SelectionSafety:
    """Compares the selection of two models by their outputs, as :func:`paired_outputs` returns them.

    Args:
        reference: of the full-precision model.
        found: of the compressed one, on the same images.
        limit: lowest Jaccard index that passes as survived.
    """
    stages = [
        stage_safety(number, *pair, limit)
        for number, pair in enumerate(zip(_stages(reference), _stages(found)))
        if pair[0].kept.shape[1] < pair[0].inputs.shape[1]
    ]
    sqnr = sqnr_db(reference["logits"], found["logits"])
    return SelectionSafety(len(reference["logits"]), limit, tuple(stages), sqnr if math.isfinite(sqnr) else None)


def _stages(outputs: Arrays) -> list[StageOutput]:
    sides, inputs = [], None
    for stage in range(sum(name.startswith("kept_") for name in outputs)):
        scores = _standardized(outputs[f"scores_{stage}"].astype(np.float64))
        if inputs is None:
            inputs = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
        kept = np.sort(outputs[f"kept_{stage}"], axis=1)
        sides.append(StageOutput(scores, inputs, kept))
        inputs = outputs[f"kept_{stage}"]
    return sides


def _standardized(scores: Floats) -> Floats:
    """Returns scores (B, N) of zero mean and unit standard deviation per image: their scale is arbitrary."""
    centered = scores - scores.mean(axis=1, keepdims=True)
    deviation = centered.std(axis=1, keepdims=True)
    return centered / np.where(deviation > 0, deviation, 1.0)


def stage_safety(number: int, full: StageOutput, compressed: StageOutput, limit: float) -> StageSafety:
    """Returns one stage's margins, noise and flips."""
    images, patches = full.scores.shape
    k = full.kept.shape[1]
    ordered = -np.sort(-full.scores, axis=1)
    margins = ordered[:, k - 1] - ordered[:, k]
    distances = np.abs(full.scores - (ordered[:, k - 1 : k] + ordered[:, k : k + 1]) / 2)
    noise = np.concatenate([_noise(full, compressed, row, distances[row]) for row in range(images)])
    predicted_flips, predicted_changed = _predict(full.scores, k, noise)
    common = np.array([len(np.intersect1d(a, b)) for a, b in zip(full.kept, compressed.kept)])
    jaccard = common / (2 * k - common)
    changed = common < k
    observed = np.concatenate([_flipped(full, compressed, row) for row in range(images)]).mean()
    mean, deviation = float(jaccard.mean()), float(jaccard.std(ddof=1)) if images > 1 else math.inf
    half = Z95 * deviation / math.sqrt(images)
    verdict = "survived" if mean - half >= limit else "not survived" if mean + half < limit else "inconclusive"
    needed = math.ceil((Z95 * deviation / max(abs(mean - limit), 1e-6)) ** 2) if math.isfinite(deviation) else 2
    return StageSafety(
        stage=number,
        patches=patches,
        kept=k,
        margin_p50=float(np.percentile(margins, 50)),
        margin_p05=float(np.percentile(margins, 5)),
        noise_std=float(noise.std()) if len(noise) else 0.0,
        predicted_flips=predicted_flips,
        observed_flips=float(observed),
        predicted_changed=predicted_changed,
        observed_changed=float(changed.mean()),
        jaccard=mean,
        jaccard_interval=(max(mean - half, 0.0), min(mean + half, 1.0)),
        images_needed=needed if verdict == "inconclusive" else None,
        verdict=verdict,
    )


def _predict(scores: Floats, k: int, noise: Floats) -> tuple[float, float]:
    """Returns the shares of patches that change sides and of images whose set changes, with noise drawn for every patch."""
    if len(noise) == 0:
        return 0.0, 0.0
    rng = np.random.default_rng(0)
    before = _highest(scores, k)
    after = (_highest(scores + rng.choice(noise, scores.shape), k) for _ in range(DRAWS))
    flips = [before != one for one in after]
    return float(np.mean(flips)), float(np.mean([one.any(axis=1) for one in flips]))


def _highest(scores: Floats, k: int) -> npt.NDArray[np.bool_]:
    """Returns a mask of the k highest of each row, the first of equal ones."""
    return mask_of(np.argsort(-scores, axis=1, kind="stable")[:, :k], scores.shape[1:])


def _noise(full: StageOutput, compressed: StageOutput, row: int, distance: Floats) -> Floats:
    """Returns the noise of one image's scores near the boundary, for the patches that enter the stage in both models."""
    _, ours, theirs = np.intersect1d(full.inputs[row], compressed.inputs[row], return_indices=True)
    difference = compressed.scores[row, theirs] - full.scores[row, ours]
    difference -= np.median(difference)  # one constant for all patches of an image changes no ranking
    return difference[distance[ours] < NEAR]


def _flipped(full: StageOutput, compressed: StageOutput, row: int) -> npt.NDArray[np.bool_]:
    """Returns, for each patch of one image that enters in both models, whether only one of them keeps it."""
    both = np.intersect1d(full.inputs[row], compressed.inputs[row])
    return np.isin(both, full.kept[row]) != np.isin(both, compressed.kept[row])
