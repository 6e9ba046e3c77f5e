"""How far two sides agree on the same images: logits, classes, kept patches, importance maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.export.verdict import PairedTop1, paired_top1
from gft_edge.model.gala import TEMPERATURE
from gft_edge.train.metrics import accuracy, sqnr_db

Arrays = dict[str, npt.NDArray[Any]]
TIE = 1e-4
"""Scores have unit standard deviation per image; closer than this at the boundary is float noise, not a preference."""
NAMED_TIES = 20
"""Ties that a report names one by one; the rest are counted."""


@dataclass(frozen=True)
class Tie:
    """An image on which two sides keep different patches of equal score."""

    image: int
    patches: tuple[int, ...]


@dataclass(frozen=True)
class StageAgreement:
    """Kept patches and importance of one stage on two sides.

    Attributes:
        jaccard: |both| / |either|, mean over images.
        identical: images with the same set.
        ties: images whose sets differ only in patches whose reference scores are equal up to float noise.
        images: compared.
        tied: the first of those ties, with the patches that differ (positions on the original grid).
        reordered: images with the same set in another order; the order is part of the contract.
        importance_sqnr_db: of the importance maps on the grid; None when bit-identical or not told by both sides.
        rank_correlation: Spearman's, over the patches that enter the stage on both sides, mean over images; None when
            not told by both sides.
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


@dataclass(frozen=True)
class Comparison:
    """Two sides on the same images.

    Attributes:
        reference, candidate: what was compared.
        logit_sqnr_db: signal to noise of the logits; None when bit-identical.
        max_relative_error: largest difference over the largest magnitude of the reference.
        top1_agreement: share of images with the same first class.
        top1_reference, top1_candidate: accuracy where labels are known.
        stages: selection, for the stages whose selection is in the graph.
        top1: paired statistics of the accuracies, where labels are known.
        not_finite: images for which the candidate's logits are not finite; they count as zeros above.
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


def compare(
    names: tuple[str, str],
    reference: Arrays,
    candidate: Arrays,
    labels: npt.NDArray[Any] | None,
    num_patches: int,
    label_names: tuple[str, ...] = (),
) -> Comparison:
    """Compares outputs of two sides on the same images.

    Args:
        names: of reference and candidate.
        reference: logits (B, classes) and any of ``importance_i`` (B, N_i), ``kept_i`` (B, k_i).
        candidate: likewise.
        labels: true classes (B,), or None.
        num_patches: of the whole grid.
        label_names: of the classes, for the worst one.
    """
    a, b = reference["logits"], candidate["logits"]
    broken: npt.NDArray[np.bool_] = np.asarray(~np.isfinite(b).all(axis=1))
    b = np.where(broken[:, None], 0, b)
    stages = []
    everything: npt.NDArray[Any] = np.broadcast_to(np.arange(num_patches), (len(a), num_patches))
    inputs = found_inputs = everything
    for stage in range(sum(name.startswith("kept_") for name in reference)):
        name = f"kept_{stage}"
        if name in candidate:
            stages.append(stage_agreement(reference, candidate, stage, inputs, found_inputs))
        inputs = reference[name]
        found_inputs = candidate.get(name, inputs)
    sqnr = sqnr_db(a, b)
    return Comparison(
        reference=names[0],
        candidate=names[1],
        images=len(a),
        logit_sqnr_db=None if np.isinf(sqnr) else sqnr,
        max_relative_error=float(np.abs(a - b).max() / max(float(np.abs(a).max()), 1e-12)),
        top1_agreement=float((a.argmax(1) == b.argmax(1)).mean()),
        top1_reference=None if labels is None else accuracy(a, labels),
        top1_candidate=None if labels is None else accuracy(b, labels),
        stages=tuple(stages),
        top1=None if labels is None else paired_top1(a.argmax(1), b.argmax(1), labels, label_names),
        not_finite=int(broken.sum()),
    )


def stage_agreement(
    reference: Arrays,
    candidate: Arrays,
    stage: int,
    inputs: npt.NDArray[Any],
    found_inputs: npt.NDArray[Any] | None = None,
) -> StageAgreement:
    """Compares the kept patches and the importance of one stage.

    Args:
        reference: with ``importance_i`` and ``kept_i``.
        candidate: with ``kept_i``, and ``importance_i`` where it has them.
        stage: which.
        inputs: positions on the grid of the patches entering the stage on the reference side, (B, N).
        found_inputs: the same of the candidate's side; ``inputs`` by default.
    """
    name = f"kept_{stage}"
    jaccard, identical, reordered, ties = [], 0, 0, []
    for row, (expected, found) in enumerate(zip(reference[name], candidate[name])):
        both, either = np.intersect1d(expected, found), np.union1d(expected, found)
        jaccard.append(len(both) / len(either))
        if len(both) == len(either) and len(expected) == len(found):
            identical += 1
            reordered += not np.array_equal(expected, found)
        elif _is_tie(reference[f"importance_{stage}"][row], inputs[row], expected, found):
            ties.append(Tie(row, tuple(np.setxor1d(expected, found).tolist())))
    sqnr, correlation = _importance_agreement(
        reference.get(f"importance_{stage}"),
        candidate.get(f"importance_{stage}"),
        inputs,
        inputs if found_inputs is None else found_inputs,
    )
    return StageAgreement(
        stage,
        float(np.mean(jaccard)),
        identical,
        len(ties),
        len(jaccard),
        tuple(ties[:NAMED_TIES]),
        reordered,
        sqnr,
        correlation,
    )


def _is_tie(
    importance: npt.NDArray[Any], inputs: npt.NDArray[Any], expected: npt.NDArray[Any], found: npt.NDArray[Any]
) -> bool:
    """Whether two sets of one image differ only in patches whose scores equal the boundary's up to float noise."""
    with np.errstate(divide="ignore"):
        scores = TEMPERATURE * np.log(importance.astype(np.float64))
    boundary = scores[np.isin(inputs, expected)].min()
    differing = np.setxor1d(expected, found)
    known = np.isin(differing, inputs).all() and len(set(found.tolist())) == len(found) == len(expected)
    return bool(known and (np.abs(scores[np.isin(inputs, differing)] - boundary) < TIE).all())


def _importance_agreement(
    expected: npt.NDArray[Any] | None,
    found: npt.NDArray[Any] | None,
    inputs: npt.NDArray[Any],
    found_inputs: npt.NDArray[Any],
) -> tuple[float | None, float | None]:
    """SQNR on the grid and mean rank correlation of two importances (B, N) at their positions (B, N)."""
    if expected is None or found is None or found.shape != found_inputs.shape or expected.shape != inputs.shape:
        return None, None
    size = int(max(inputs.max(), found_inputs.max())) + 1
    grids = []
    for values, positions in ((expected, inputs), (found, found_inputs)):
        grid = np.zeros((len(values), size))
        np.put_along_axis(grid, positions.astype(np.int64), np.nan_to_num(values.astype(np.float64)), axis=1)
        grids.append(grid)
    correlations = []
    for row in range(len(expected)):
        common = np.intersect1d(inputs[row], found_inputs[row])
        correlations.append(spearman(grids[0][row, common], grids[1][row, common]))
    sqnr = sqnr_db(*grids)
    return None if np.isinf(sqnr) else sqnr, float(np.mean(correlations))


def spearman(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Rank correlation of two vectors (C. Spearman, 1904), equal values sharing their mean rank; 0 if one is constant.

    Two constant vectors agree: 1.
    """
    x, y = (_ranks(v) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    if norm == 0:
        return float(not x.any() and not y.any())
    return float(x @ y / norm)


def _ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse.reshape(-1)]
