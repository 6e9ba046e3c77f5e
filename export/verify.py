"""Proof that an artefact computes what PyTorch computes, how much quantization changed, and where it went wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from torch import nn

from gft_edge.calibration.modules import without_quantizers
from gft_edge.checkpoint import Checkpoint
from gft_edge.errors import ArtifactError
from gft_edge.export.agreement import Arrays, Comparison, compare
from gft_edge.export.causes import golden_places, manifest_places, read_golden, stage_place
from gft_edge.export.onnx import reference_outputs, tool_versions
from gft_edge.export.places import Place
from gft_edge.export.side import ONNXRUNTIME, Side, graph_input
from gft_edge.export.trace import IMAGES, plain_error, silent_difference, trace
from gft_edge.export.verdict import FRESH, Judgement, Limits, judge
from gft_edge.manifest import MODEL, Artifact, DeploymentManifest
from gft_edge.runtime.sessions import onnxruntime_session

Runner = Callable[[npt.NDArray[np.float32]], Arrays]
"""Preprocessed images (B, 3, H, W) to outputs by name."""
Batches = Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]


@dataclass(frozen=True)
class VerifyReport:
    """Comparisons, what they amount to, and where something is wrong.

    Attributes:
        artifact, precision, model_sha256: what was verified.
        source: what the images are.
        comparisons: every backend against every reference.
        limits: what passes.
        judgement: what is out of limits, what is undecided.
        places: where something is wrong, the first cause first.
        fresh_export: ``"identical"`` (byte for byte), ``"different"``, or None when the checkpoint was not exported again.
        notes: what is worth knowing and no failure.
        backends: each with its options.
    """

    artifact: str
    precision: str
    model_sha256: str
    source: str
    comparisons: tuple[Comparison, ...]
    limits: Limits
    judgement: Judgement
    places: tuple[Place, ...] = ()
    fresh_export: str | None = None
    notes: tuple[str, ...] = ()
    backends: tuple[Mapping[str, Any], ...] = ()

    @property
    def failures(self) -> tuple[str, ...]:
        """What is out of limits, in words."""
        return self.judgement.failures

    @property
    def verdict(self) -> str:
        """``"pass"``, ``"fail"`` or ``"inconclusive"``."""
        return self.judgement.verdict

    @property
    def passed(self) -> bool:
        """True when nothing is out of limits; that may still be inconclusive."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        data = asdict(self)
        judgement = data.pop("judgement")
        return {
            **data,
            **judgement,
            "verdict": self.verdict,
            "passed": self.passed,
            "backend": dict(self.backends[0]) if self.backends else {},
        }


def verify_golden(
    artifact: Artifact, backends: Sequence[str] = (ONNXRUNTIME,), limits: Limits | None = None
) -> VerifyReport:
    """Compares the artefact with the PyTorch outputs stored beside it; needs no checkpoint.

    It proves the arithmetic on a few images and knows no labels: nothing is said of accuracy, and the place of a fault is
    told by stage only.

    Raises:
        ArtifactError: golden.npz is missing or damaged.
    """
    golden = read_golden(artifact)
    images = golden.pop("images")
    references = {"torch fp32": golden}
    if "logits_quantized" in golden:
        references["torch int8"] = {"logits": golden.pop("logits_quantized")}
    sides = [Side(artifact, backend) for backend in backends]
    comparisons = _compare_all(artifact.manifest, references, {side.backend: side(images) for side in sides}, None)
    judgement = _judge(artifact, comparisons, sides, limits or Limits(), ())
    return VerifyReport(
        **_identity(artifact, f"{len(images)} golden images", limits),
        comparisons=comparisons,
        judgement=judgement,
        places=() if not judgement.failures else (stage_place(comparisons),),
        backends=_options(sides),
    )


def require_parent(artifact: Artifact, checkpoint: Checkpoint) -> None:
    """Raises ArtifactError when an artefact was made from another checkpoint."""
    made_from = artifact.manifest.checkpoint_sha256
    if checkpoint.sha256 != made_from:
        raise ArtifactError(
            f"artefact {artifact.path} was made from weights {made_from[:12]}, "
            f"checkpoint {checkpoint.path} has {checkpoint.sha256[:12]}"
        )


def verify_checkpoint(
    artifact: Artifact,
    checkpoint: Checkpoint,
    batches: Batches,
    source: str,
    backends: Sequence[str] = (ONNXRUNTIME,),
    limits: Limits | None = None,
    fresh: onnx.ModelProto | None = None,
) -> VerifyReport:
    """Compares the artefact with PyTorch on any images.

    Args:
        artifact: made from ``checkpoint``.
        checkpoint: quantized or not; its full-precision form is the reference, its quantized form a second one.
        batches: preprocessed images and labels.
        source: what the images are, for the record.
        backends: that run the artefact.
        limits: what passes.
        fresh: the checkpoint exported anew with the artefact's flags (:func:`gft_edge.export.trace.fresh_graph`). With it
            the graph is held against it too, a graph that cannot be run is a finding and no error, and the first bad
            node is named.

    Raises:
        ArtifactError: the artefact was made from another checkpoint, or (without ``fresh``) cannot be run.
    """
    require_parent(artifact, checkpoint)
    manifest = artifact.manifest
    limits = limits or Limits()
    models = {"torch fp32": without_quantizers(checkpoint.model)}
    if checkpoint.info.quantization is not None:
        models["torch int8"] = checkpoint.model
    model_file = artifact.file(MODEL)
    fresh_bytes = b"" if fresh is None else fresh.SerializeToString(deterministic=True)
    differs = fresh is not None and fresh_bytes != model_file.read_bytes()
    references: dict[str, Runner] = {name: _torch_runner(model, manifest) for name, model in models.items()}
    if differs:
        anew = onnxruntime_session(fresh_bytes, manifest.precision == "int8")
        references[FRESH] = lambda images: anew(graph_input(images, manifest))
    refused: tuple[str, ...] = ()
    sides: list[Side] = []
    for backend in backends:
        try:
            sides.append(Side(artifact, backend))
        except ArtifactError as error:
            if fresh is None or backend != ONNXRUNTIME:  # an engine that is not there is no finding about the graph
                raise
            refused += (str(error),)
    runs = _run_all(references, sides, batches, tolerant=fresh is not None)
    refused += runs.refused
    found = {side.backend: runs.outputs[side.backend] for side in sides if side.backend in runs.outputs}
    comparisons = _compare_all(manifest, {name: runs.outputs[name] for name in references}, found, runs.labels)
    node: Place | None = None
    notes: tuple[str, ...] = ()
    if fresh is not None:
        wrong = bool(_judge(artifact, comparisons, sides, limits, refused).failures)
        few = runs.examples
        if manifest.static_batch:
            few = np.resize(few, (manifest.static_batch, *few.shape[1:]))  # repeats them
        examples = (few, graph_input(few, manifest))
        hidden, node, notes = _locate(checkpoint, artifact, fresh, wrong, differs, examples, limits)
        refused += hidden
    golden = golden_places(artifact, models, limits)
    beside = manifest_places(manifest, checkpoint)
    more = (*refused, *(place.text for place in (*beside, *golden)))
    return VerifyReport(
        **_identity(artifact, source, limits),
        comparisons=comparisons,
        judgement=_judge(artifact, comparisons, sides, limits, more),
        places=(*beside, *([] if node is None else [node]), *golden),
        fresh_export=None if fresh is None else "different" if differs else "identical",
        notes=notes,
        backends=_options(sides),
    )


@dataclass(frozen=True)
class _Runs:
    """Outputs of every side on all images, the true classes, the first few images, and why a side stopped."""

    outputs: dict[str, Arrays]
    labels: npt.NDArray[np.int64]
    examples: npt.NDArray[np.float32]
    refused: tuple[str, ...]


def _torch_runner(model: nn.Module, manifest: DeploymentManifest) -> Runner:
    return lambda images: reference_outputs(model, images, manifest.budget)


def _run_all(references: Mapping[str, Runner], sides: Sequence[Side], batches: Batches, tolerant: bool) -> _Runs:
    """Runs every side on every batch; an artefact that cannot be run is left out, or an error unless ``tolerant``."""
    runners: dict[str, Runner] = {**references, **{side.backend: side for side in sides}}
    parts: dict[str, list[Arrays]] = {name: [] for name in runners}
    refused: dict[str, str] = {}
    labels: list[npt.NDArray[np.int64]] = []
    examples: list[npt.NDArray[np.float32]] = []
    for images, classes in batches:
        labels.append(classes)
        if sum(map(len, examples)) < IMAGES:
            examples.append(images[:IMAGES])
        for name, runner in runners.items():
            if name in refused:
                continue
            try:
                parts[name].append(runner(images))
            except ArtifactError as error:
                if not tolerant or name in references:
                    raise
                refused[name] = str(error)
    joined = {
        name: {key: np.concatenate([part[key] for part in found]) for key in found[0]}
        for name, found in parts.items()
        if name not in refused
    }
    return _Runs(joined, np.concatenate(labels), np.concatenate(examples)[:IMAGES], tuple(refused.values()))


def _locate(
    checkpoint: Checkpoint,
    artifact: Artifact,
    fresh: onnx.ModelProto,
    wrong: bool,
    differs: bool,
    examples: tuple[npt.NDArray[np.float32], npt.NDArray[Any]],
    limits: Limits,
) -> tuple[tuple[str, ...], Place | None, tuple[str, ...]]:
    """What an optimiser hides, the first bad place of the graph, and notes.

    Args:
        checkpoint, artifact, fresh: what is compared.
        wrong: something is out of limits already.
        differs: the graph is not the fresh export, byte for byte.
        examples: a few images, and the same as the graph takes them.
        limits: what passes.
    """
    if not (wrong or differs):
        return (), None, ()
    manifest = artifact.manifest
    graph = _parse(artifact)
    notes: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    if differs and manifest.tools != tool_versions():
        notes = ("the artefact was made by other versions of the tools than the fresh export",)
    if not wrong:
        error = plain_error(fresh, graph, examples[1])
        if error is not None and error > limits.fp32_relative_error:
            hidden = (f"run without optimisation, logits differ from a fresh export's by {error:.1e}",)
    if wrong or hidden:
        place = trace(checkpoint, manifest.budget, fresh, graph, *examples)
        return hidden, place or silent_difference(fresh, graph), notes
    unseen = silent_difference(fresh, graph)
    if unseen is not None:
        notes += (f"a fresh export differs without effect above the limits: {unseen.text}",)
    return (), None, notes


def _parse(artifact: Artifact) -> onnx.ModelProto:
    try:
        return onnx.load(str(artifact.file(MODEL)))
    except Exception as error:  # protobuf's own class, which onnx does not export
        raise ArtifactError(f"artefact {artifact.path}: {MODEL} is no ONNX model ({error}); export it again") from None


def _compare_all(
    manifest: DeploymentManifest,
    references: Mapping[str, Arrays],
    found: Mapping[str, Arrays],
    labels: npt.NDArray[Any] | None,
) -> tuple[Comparison, ...]:
    return tuple(
        compare(
            (name, f"{backend} {manifest.precision}"),
            side,
            outputs,
            labels,
            manifest.model.num_patches,
            manifest.labels,
        )
        for backend, outputs in found.items()
        for name, side in references.items()
    )


def _judge(
    artifact: Artifact,
    comparisons: Sequence[Comparison],
    sides: Sequence[Side],
    limits: Limits,
    more: Sequence[str],
) -> Judgement:
    same_tools = artifact.manifest.tools == tool_versions()
    found = judge(comparisons, artifact.manifest.precision, limits, same_tools)
    problems = [f"{side.backend} {artifact.manifest.precision}: {side.problem}" for side in sides if side.problem]
    return Judgement((*more, *problems, *found.failures), found.undecided, found.images_needed)


def _identity(artifact: Artifact, source: str, limits: Limits | None) -> dict[str, Any]:
    return {
        "artifact": artifact.name,
        "precision": artifact.manifest.precision,
        "model_sha256": artifact.manifest.files[MODEL].sha256,
        "source": source,
        "limits": limits or Limits(),
    }


def _options(sides: Sequence[Side]) -> tuple[Mapping[str, Any], ...]:
    return tuple({"backend": side.backend, **side.session.options} for side in sides)
