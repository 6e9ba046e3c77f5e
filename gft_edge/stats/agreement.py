"""Agreement of two models on the same images: logits, classes, kept patches, importance maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gft_edge.stats.grid import scatter
from gft_edge.stats.metrics import accuracy, spearman, sqnr_db
from gft_edge.stats.paired import PairedTop1, paired_top1

Arrays = dict[str, npt.NDArray[Any]]
Kind = Literal["exact", "same_arithmetic", "compression"]
"""The difference that is allowed: float rounding; rounding ties of the same quantized arithmetic; the cost of compression."""
LEAST_DB = -300.0
"""Reported for a signal of zero, whose ratio JSON cannot express."""
TIE = 1e-4
"""In standard deviations of an image's scores: closer than this at the boundary is float noise, not a preference."""
NAMED_TIES = 20
"""Ties that a report names one by one; the rest are counted."""


@dataclass(frozen=True)
class Computation:
    """The computation of one side of a comparison.

    Attributes:
        backend: ``"torch"``, or one of :data:`gft_edge.runtime.backends.table.NAMES`, with the engine's key where one is named.
        arithmetic: of the linear layers, ``"fp32"`` or another precision of a manifest.
        name: for tables.
    """

    backend: str
    arithmetic: str
    name: str

    @classmethod
    def of(cls, backend: str, arithmetic: str) -> Computation:
        """Returns a computation that is named by backend and arithmetic."""
        return cls(backend, arithmetic, f"{backend} {arithmetic}")


@dataclass(frozen=True)
class Tie:
    """An image on which two sides keep different patches of equal score."""

    image: int
    patches: tuple[int, ...]


@dataclass(frozen=True)
class StageAgreement:
    """Kept patches, scores that rank them, and importance of one stage on two sides.

    Attributes:
        jaccard: |both| / |either|, mean over images.
        identical: images with the same set.
        ties: images whose sets differ only in patches whose reference scores are equal up to float noise.
        images: compared.
        tied: the first of those ties, with the patches that differ (positions on the original grid).
        reordered: images with the same set in another order; the order is part of the contract.
        importance_sqnr_db: of the importance maps on the grid; None when bit-identical or missing on one side.
        rank_correlation: Spearman's, of the scores or, where the candidate has none, of the importance, over the patches that
            enter the stage on both sides, mean over images; None when missing on one side.
        not_finite: images whose scores or importance are not finite on the candidate's side; such values count as zeros above.
        score_sqnr_db: of the scores less their mean over the patches, which ranks nothing; None when bit-identical or missing
            on one side.
    """

    stage: int
    jaccard: float
    identical: int
    ties: int
    images: int
    tied: tuple[Tie, ...] = ()
    reordered: int = 0
    importance_sqnr_db: float | None = None
    rank_correlation: float | None = None
    not_finite: int = 0
    score_sqnr_db: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Two sides on the same images.

    Attributes:
        reference, candidate: names of what was compared.
        logit_sqnr_db: signal to noise of the logits; None when bit-identical.
        settled: images with the same kept patches in every stage; all of them where no stage is compared.
        settled_sqnr_db: signal to noise of their logits; None when bit-identical.
        max_relative_error: largest difference over the largest magnitude of the reference, both over the logits of images without
            a tie (of the first ``NAMED_TIES`` of a stage): where a tie falls the other way, another patch is kept.
        top1_agreement: share of images with the same first class.
        top1_reference, top1_candidate: accuracy where labels are known.
        stages: selection, for the stages whose selection is in the graph.
        top1: paired statistics of the accuracies, where labels are known.
        not_finite: images for which the candidate's logits are not finite; they count as zeros above.
        reference_not_finite: likewise of the reference.
        kind: what the two sides may differ in.
        backend, arithmetic: what computed the candidate.
        reference_backend, reference_arithmetic: what computed the reference.
        rest: precision of what is not quantized, on the candidate's side.
    """

    reference: str
    candidate: str
    images: int
    logit_sqnr_db: float | None
    max_relative_error: float
    top1_agreement: float
    top1_reference: float | None
    top1_candidate: float | None
    stages: tuple[StageAgreement, ...]
    top1: PairedTop1 | None = None
    not_finite: int = 0
    reference_not_finite: int = 0
    kind: Kind = "compression"
    backend: str = ""
    arithmetic: str = ""
    reference_backend: str = ""
    reference_arithmetic: str = ""
    settled: int = 0
    settled_sqnr_db: float | None = None
    rest: str = "fp32"


def compare(
    sides: tuple[Computation, Computation],
    reference: Arrays,
    candidate: Arrays,
    labels: npt.NDArray[Any] | None,
    num_patches: int,
    label_names: tuple[str, ...] = (),
    kind: Kind = "compression",
    rest: str = "fp32",
) -> Comparison:
    """Compares outputs of two sides on the same images.

    Args:
        sides: what computed reference and candidate.
        reference: logits (B, classes) and any of ``importance_i`` and ``scores_i`` (B, N_i), ``kept_i`` (B, k_i).
        candidate: likewise.
        labels: true classes (B,), or None.
        num_patches: of the whole grid.
        label_names: of the classes, for the worst one.
        kind: what the two sides may differ in.
        rest: precision of what is not quantized, on the candidate's side.
    """
    (a, broken_a), (b, broken_b) = (_without_broken_rows(side["logits"]) for side in (reference, candidate))
    stages = []
    settled = np.ones(len(a), np.bool_)
    everything: npt.NDArray[Any] = np.broadcast_to(np.arange(num_patches), (len(a), num_patches))
    inputs = found_inputs = everything
    for stage in range(sum(name.startswith("kept_") for name in reference)):
        name = f"kept_{stage}"
        if name in candidate:
            stages.append(stage_agreement(reference, candidate, stage, inputs, found_inputs))
            settled &= [set(e) == set(f) for e, f in zip(reference[name].tolist(), candidate[name].tolist())]
        inputs = reference[name]
        found_inputs = candidate.get(name, inputs)
    untied = np.setdiff1d(np.arange(len(a)), [tie.image for stage in stages for tie in stage.tied])
    return Comparison(
        reference=sides[0].name,
        candidate=sides[1].name,
        images=len(a),
        logit_sqnr_db=_decibels(a, b),
        max_relative_error=_relative_error(a[untied], b[untied]),
        top1_agreement=float((a.argmax(1) == b.argmax(1)).mean()),
        top1_reference=None if labels is None else accuracy(a, labels),
        top1_candidate=None if labels is None else accuracy(b, labels),
        stages=tuple(stages),
        top1=None if labels is None else paired_top1(a.argmax(1), b.argmax(1), labels, label_names),
        not_finite=broken_b,
        reference_not_finite=broken_a,
        kind=kind,
        backend=sides[1].backend,
        arithmetic=sides[1].arithmetic,
        reference_backend=sides[0].backend,
        reference_arithmetic=sides[0].arithmetic,
        settled=int(settled.sum()),
        settled_sqnr_db=_decibels(a[settled], b[settled]),
        rest=rest,
    )


def _relative_error(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Returns the largest difference over the largest magnitude of ``a``; 0 of no values."""
    return float(np.abs(a - b).max(initial=0) / max(float(np.abs(a).max(initial=0)), 1e-12))


def _without_broken_rows(logits: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], int]:
    """Returns logits (B, classes) with zeros in rows that hold a non-finite value, and the number of those rows."""
    broken: npt.NDArray[np.bool_] = np.asarray(~np.isfinite(logits).all(axis=1))
    return np.where(broken[:, None], 0, logits), int(broken.sum())


def _decibels(reference: npt.NDArray[Any], value: npt.NDArray[Any]) -> float | None:
    """Returns the SQNR in dB; None when the two are equal."""
    with np.errstate(divide="ignore"):
        sqnr = sqnr_db(reference, value)
    return None if np.isposinf(sqnr) else max(sqnr, LEAST_DB)


def stage_agreement(
    reference: Arrays,
    candidate: Arrays,
    stage: int,
    inputs: npt.NDArray[Any],
    found_inputs: npt.NDArray[Any] | None = None,
) -> StageAgreement:
    """Compares the kept patches, the scores and the importance of one stage.

    Args:
        reference: with ``kept_i``, and ``scores_i`` and ``importance_i`` where it has them; without scores no difference is a tie.
        candidate: likewise.
        stage: its number.
        inputs: positions on the grid of the patches entering the stage on the reference side, (B, N).
        found_inputs: the same of the candidate's side; ``inputs`` by default.
    """
    kept = (reference[f"kept_{stage}"], candidate[f"kept_{stage}"])
    scores, importance = (
        (reference.get(f"{name}_{stage}"), candidate.get(f"{name}_{stage}")) for name in ("scores", "importance")
    )
    jaccard, identical, reordered, ties = [], 0, 0, []
    for row, (expected, found) in enumerate(zip(*kept)):
        both, either = np.intersect1d(expected, found), np.union1d(expected, found)
        jaccard.append(len(both) / len(either))
        if len(both) == len(either) and len(expected) == len(found):
            identical += 1
            reordered += not np.array_equal(expected, found)
        elif scores[0] is not None and _is_tie(scores[0][row], inputs[row], expected, found):
            ties.append(Tie(row, tuple(np.setxor1d(expected, found).tolist())))
    places = (inputs, inputs if found_inputs is None else found_inputs)
    importance_sqnr, importance_correlation = _value_agreement(importance, places)
    score_sqnr, score_correlation = _value_agreement((_centred(scores[0]), _centred(scores[1])), places)
    broken = np.zeros(len(jaccard), np.bool_)
    for _, values in (scores, importance):
        if values is not None:
            broken |= ~np.isfinite(values).all(axis=1)
    return StageAgreement(
        stage,
        float(np.mean(jaccard)),
        identical,
        len(ties),
        len(jaccard),
        tuple(ties[:NAMED_TIES]),
        reordered,
        importance_sqnr,
        importance_correlation if score_correlation is None else score_correlation,
        int(broken.sum()),
        score_sqnr,
    )


def _is_tie(
    scores: npt.NDArray[Any], inputs: npt.NDArray[Any], expected: npt.NDArray[Any], found: npt.NDArray[Any]
) -> bool:
    """Returns whether two sets of one image differ only in patches whose scores equal the boundary's up to float noise."""
    scores = scores.astype(np.float64)
    kept = np.isin(inputs, expected)
    if not kept.any():  # a damaged record: no position is among the stage's inputs
        return False
    boundary = scores[kept].min()
    differing = np.setxor1d(expected, found)
    known = np.isin(differing, inputs).all() and len(set(found.tolist())) == len(found) == len(expected)
    distance = np.abs(scores[np.isin(inputs, differing)] - boundary)
    return bool(known and (distance <= TIE * scores.std()).all())


def _centred(values: npt.NDArray[Any] | None) -> npt.NDArray[np.float64] | None:
    """Returns scores (B, N) less their mean over the patches of each image."""
    if values is None:
        return None
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    return values - values.mean(axis=1, keepdims=True)


def _value_agreement(
    sides: tuple[npt.NDArray[Any] | None, npt.NDArray[Any] | None], places: tuple[npt.NDArray[Any], npt.NDArray[Any]]
) -> tuple[float | None, float | None]:
    """Returns SQNR on the grid and mean rank correlation of two sides' values (B, N) at their positions (B, N)."""
    (expected, found), (inputs, found_inputs) = sides, places
    if expected is None or found is None or found.shape != found_inputs.shape or expected.shape != inputs.shape:
        return None, None
    if inputs.min() < 0 or found_inputs.min() < 0:  # no positions on a grid
        return None, None
    size = int(max(inputs.max(), found_inputs.max())) + 1
    grids = [
        scatter(np.nan_to_num(values.astype(np.float64)), positions, (size,))
        for values, positions in ((expected, inputs), (found, found_inputs))
    ]
    correlations = []
    for row in range(len(expected)):
        common = np.intersect1d(inputs[row], found_inputs[row])
        correlations.append(spearman(grids[0][row, common], grids[1][row, common]))
    return _decibels(grids[0], grids[1]), float(np.mean(correlations))
