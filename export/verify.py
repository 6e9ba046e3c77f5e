"""Proof that an artefact computes what PyTorch computes, and how much quantization changed."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from gft_edge.calibration.modules import without_quantizers
from gft_edge.checkpoint import Checkpoint
from gft_edge.errors import ArtifactError
from gft_edge.export.onnx import reference_outputs
from gft_edge.manifest import GOLDEN, MODEL, Artifact, DeploymentManifest
from gft_edge.model.gala import TEMPERATURE
from gft_edge.runtime.sessions import Session, fitted, onnxruntime_session, open_session
from gft_edge.train.metrics import accuracy, sqnr_db

Arrays = dict[str, npt.NDArray[Any]]
TIE = 1e-4
"""Scores have unit standard deviation per image; closer than this at the boundary is float noise, not a preference."""


@dataclass(frozen=True)
class Limits:
    """What passes.

    Args:
        fp32_relative_error: largest logit difference over the largest logit, FP32 graph against FP32 PyTorch.
        same_sqnr_db: INT8 graph against the same INT8 arithmetic in PyTorch; what remains are rounding ties.
        int8_sqnr_db, int8_top1_agreement, int8_jaccard: INT8 graph against FP32 PyTorch.
    """

    fp32_relative_error: float = 1e-4
    same_sqnr_db: float = 25.0
    int8_sqnr_db: float = 15.0
    int8_top1_agreement: float = 0.97
    int8_jaccard: float = 0.90


@dataclass(frozen=True)
class StageAgreement:
    """Kept patches of one stage on two sides.

    Attributes:
        jaccard: |both| / |either|, mean over images.
        identical: images with the same set.
        ties: images whose sets differ only in patches whose reference scores are equal up to float noise.
        images: compared.
    """

    stage: int
    jaccard: float
    identical: int
    ties: int
    images: int


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


@dataclass(frozen=True)
class VerifyReport:
    """Comparisons, and what of them is out of limits (nothing: passed)."""

    artifact: str
    precision: str
    model_sha256: str
    source: str
    comparisons: tuple[Comparison, ...]
    limits: Limits
    failures: tuple[str, ...]
    backend: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """True when nothing is out of limits."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        data = asdict(self)
        return {**data, "backend": dict(self.backend), "passed": self.passed}


def kept_session(artifact: Artifact) -> Session | None:
    """A session whose outputs are the kept patches, for a graph without map outputs; None when it selects nothing."""
    model = onnx.load(str(artifact.file(MODEL)))
    # select_patches sorts the indices it keeps by a second TopK, smallest first.
    names = [
        node.output[0]
        for node in model.graph.node
        if node.op_type == "TopK" and any(a.name == "largest" and a.i == 0 for a in node.attribute)
    ]
    manifest = artifact.manifest
    expected = len(selecting_stages(manifest))
    if len(names) != expected:
        raise ArtifactError(f"artefact {artifact.path}: graph has {len(names)} selections, its budget needs {expected}")
    if not names:
        return None
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.INT64, None) for n in names)
    return fitted(onnxruntime_session(model.SerializeToString(), manifest.is_quantized), manifest)


def selecting_stages(manifest: DeploymentManifest) -> list[int]:
    """Stages whose selection is in a graph without maps: those that drop patches something still reads."""
    budget, config = manifest.budget, manifest.model
    if config.variant == "published":
        return []  # its logits read no patch after the stages
    return [
        stage
        for stage, (n, k) in enumerate(zip(budget.stage_inputs, budget.keep))
        if k < n and config.stages[stage] < config.depth
    ]


def candidate_outputs(
    artifact: Artifact, session: Session, kept: Session | None, images: npt.NDArray[np.float32]
) -> Arrays:
    """The artefact's logits and kept patches on the original grid, whatever map outputs it has."""
    outputs = session(images)
    if kept is None:
        return outputs
    positions: npt.NDArray[Any] | None = None
    for stage, local in zip(selecting_stages(artifact.manifest), kept(images).values()):
        positions = local if positions is None else np.take_along_axis(positions, local, axis=1)
        outputs[f"kept_{stage}"] = positions
    return outputs


def stage_agreement(reference: Arrays, candidate: Arrays, stage: int, inputs: npt.NDArray[Any]) -> StageAgreement:
    """Compares the kept patches of one stage.

    Args:
        reference: with ``importance_i`` and ``kept_i``.
        candidate: with ``kept_i``.
        stage: which.
        inputs: positions on the grid of the patches entering the stage on the reference side, (B, N).
    """
    name = f"kept_{stage}"
    jaccard, identical, ties = [], 0, 0
    for row, (expected, found) in enumerate(zip(reference[name], candidate[name])):
        both, either = np.intersect1d(expected, found), np.union1d(expected, found)
        jaccard.append(len(both) / len(either))
        if len(both) == len(either):
            identical += 1
            continue
        with np.errstate(divide="ignore"):
            scores = TEMPERATURE * np.log(reference[f"importance_{stage}"][row].astype(np.float64))
        boundary = scores[np.isin(inputs[row], expected)].min()
        differing = np.setxor1d(expected, found)
        known = np.isin(differing, inputs[row]).all() and len(set(found.tolist())) == len(found) == len(expected)
        if known and (np.abs(scores[np.isin(inputs[row], differing)] - boundary) < TIE).all():
            ties += 1
    return StageAgreement(stage, float(np.mean(jaccard)), identical, ties, len(jaccard))


def compare(
    names: tuple[str, str], reference: Arrays, candidate: Arrays, labels: npt.NDArray[Any] | None, num_patches: int
) -> Comparison:
    """Compares outputs of two sides on the same images."""
    a, b = reference["logits"], candidate["logits"]
    if not np.isfinite(b).all():
        raise ArtifactError(f"verify: {names[1]} gives logits that are not finite")
    stages = []
    inputs: npt.NDArray[Any] = np.broadcast_to(np.arange(num_patches), (len(a), num_patches))
    for stage in range(sum(name.startswith("kept_") for name in reference)):
        if f"kept_{stage}" in candidate:
            stages.append(stage_agreement(reference, candidate, stage, inputs))
        inputs = reference[f"kept_{stage}"]
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
    )


def verify_golden(artifact: Artifact, backend: str = "onnxruntime", limits: Limits | None = None) -> VerifyReport:
    """Compares the artefact with the PyTorch outputs stored beside it; needs no checkpoint.

    Raises:
        ArtifactError: golden.npz is missing or damaged.
    """
    try:
        with np.load(artifact.file(GOLDEN), allow_pickle=False) as file:
            golden: Arrays = dict(file)
        images = golden.pop("images")
        stages = range(len(artifact.manifest.budget.keep))
        for name in ("logits", *(f"{kind}_{stage}" for stage in stages for kind in ("importance", "kept"))):
            golden[name]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"artefact {artifact.path}: {GOLDEN} is damaged ({error})") from None
    quantized_logits = golden.pop("logits_quantized", None)
    session, kept = _sessions(artifact, backend)
    found = candidate_outputs(artifact, session, kept, images)
    patches = artifact.manifest.model.num_patches
    candidate = f"{backend} {artifact.manifest.precision}"
    comparisons = [compare(("torch fp32", candidate), golden, found, None, patches)]
    if quantized_logits is not None:
        same = {"logits": quantized_logits}
        comparisons.append(compare(("torch int8", candidate), same, found, None, patches))
    return _report(artifact, session, f"{len(images)} golden images", comparisons, limits or Limits())


def verify_checkpoint(
    artifact: Artifact,
    checkpoint: Checkpoint,
    batches: Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]],
    source: str,
    backend: str = "onnxruntime",
    limits: Limits | None = None,
) -> VerifyReport:
    """Compares the artefact with PyTorch on any images.

    Args:
        artifact: made from ``checkpoint``.
        checkpoint: quantized or not; its full-precision form is the reference, its quantized form a second one.
        batches: preprocessed images and labels.
        source: what the images are, for the record.
        backend: that runs the artefact.
        limits: what passes.

    Raises:
        ArtifactError: the artefact was made from another checkpoint.
    """
    manifest = artifact.manifest
    if checkpoint.sha256 != manifest.checkpoint_sha256:
        raise ArtifactError(
            f"artefact {artifact.path} was made from weights {manifest.checkpoint_sha256[:12]}, "
            f"checkpoint {checkpoint.path} has {checkpoint.sha256[:12]}"
        )
    session, kept = _sessions(artifact, backend)
    models = {"torch fp32": without_quantizers(checkpoint.model)}
    if checkpoint.info.quantization is not None:
        models["torch int8"] = checkpoint.model
    sides: dict[str, list[Arrays]] = {name: [] for name in (*models, "found")}
    labels = []
    for images, classes in batches:
        labels.append(classes)
        for name, model in models.items():
            sides[name].append(reference_outputs(model, images, manifest.budget))
        sides["found"].append(candidate_outputs(artifact, session, kept, images))
    joined = {name: {k: np.concatenate([part[k] for part in parts]) for k in parts[0]} for name, parts in sides.items()}
    found = joined.pop("found")
    candidate = f"{backend} {manifest.precision}"
    truth = np.concatenate(labels)
    comparisons = [
        compare((name, candidate), side, found, truth, manifest.model.num_patches) for name, side in joined.items()
    ]
    return _report(artifact, session, source, comparisons, limits or Limits())


def _sessions(artifact: Artifact, backend: str) -> tuple[Session, Session | None]:
    session = open_session(artifact, backend)
    return session, kept_session(artifact) if artifact.manifest.maps == "none" else None


def _report(
    artifact: Artifact, session: Session, source: str, comparisons: list[Comparison], limits: Limits
) -> VerifyReport:
    failures = [failure for c in comparisons for failure in _failures(c, artifact.manifest.precision, limits)]
    return VerifyReport(
        artifact=artifact.name,
        precision=artifact.manifest.precision,
        model_sha256=artifact.manifest.files[MODEL].sha256,
        source=source,
        comparisons=tuple(comparisons),
        limits=limits,
        failures=tuple(failures),
        backend={"backend": session.backend, **session.options},
    )


def _failures(c: Comparison, precision: str, limits: Limits) -> list[str]:
    """What of a comparison is out of limits, in words."""
    where = f"{c.candidate} against {c.reference}"
    failures = []
    sqnr = float("inf") if c.logit_sqnr_db is None else c.logit_sqnr_db
    if precision == "fp32":
        if c.max_relative_error > limits.fp32_relative_error:
            failures.append(
                f"{where}: logits differ by {c.max_relative_error:.1e}, limit {limits.fp32_relative_error:.0e}"
            )
        for s in c.stages:
            if s.identical + s.ties < s.images:
                failures.append(
                    f"{where}: stage {s.stage} keeps other patches on {s.images - s.identical - s.ties} images"
                )
    elif c.reference.endswith(precision):
        if sqnr < limits.same_sqnr_db:
            failures.append(f"{where}: logit SQNR {sqnr:.1f} dB, limit {limits.same_sqnr_db:.0f}")
    else:
        if sqnr < limits.int8_sqnr_db:
            failures.append(f"{where}: logit SQNR {sqnr:.1f} dB, limit {limits.int8_sqnr_db:.0f}")
        if c.top1_agreement < limits.int8_top1_agreement:
            failures.append(f"{where}: same class on {c.top1_agreement:.1%}, limit {limits.int8_top1_agreement:.0%}")
        for s in c.stages:
            if s.jaccard < limits.int8_jaccard:
                failures.append(f"{where}: stage {s.stage} Jaccard {s.jaccard:.3f}, limit {limits.int8_jaccard}")
    return failures
