"""Proof that an artefact computes what PyTorch computes, how much quantization changed, and where it went wrong."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from gft_edge.calibration.modules import without_quantizers
from gft_edge.checkpoint import Checkpoint
from gft_edge.errors import ArtifactError
from gft_edge.export.agreement import Arrays, Comparison, compare
from gft_edge.export.onnx import reference_outputs, tool_versions
from gft_edge.export.places import Place
from gft_edge.export.side import ONNXRUNTIME, Side, graph_input
from gft_edge.export.trace import IMAGES, plain_error, silent_difference, trace
from gft_edge.export.verdict import FRESH, Judgement, Limits, judge
from gft_edge.manifest import GOLDEN, MODEL, Artifact, DeploymentManifest
from gft_edge.runtime.sessions import onnxruntime_session

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


def read_golden(artifact: Artifact) -> Arrays:
    """The arrays of golden.npz.

    Raises:
        ArtifactError: missing or damaged.
    """
    try:
        with np.load(artifact.file(GOLDEN), allow_pickle=False) as file:
            golden: Arrays = dict(file)
        stages = range(len(artifact.manifest.budget.keep))
        for name in ("images", "logits", *(f"{kind}_{stage}" for stage in stages for kind in ("importance", "kept"))):
            golden[name]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"artefact {artifact.path}: {GOLDEN} is damaged ({error})") from None
    return golden


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
        places=() if not judgement.failures else (_stage_place(comparisons),),
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
    found_bytes = artifact.file(MODEL).read_bytes()
    fresh_bytes = None if fresh is None else fresh.SerializeToString(deterministic=True)
    models = {"torch fp32": without_quantizers(checkpoint.model)}
    if checkpoint.info.quantization is not None:
        models["torch int8"] = checkpoint.model
    refused: tuple[str, ...] = ()
    sides: list[Side] = []
    try:
        sides = [Side(artifact, backend) for backend in backends]
    except ArtifactError as error:
        if fresh is None:
            raise
        refused = (str(error),)
    anew = None
    if fresh_bytes not in (None, found_bytes):
        anew = onnxruntime_session(fresh_bytes or b"", manifest.precision == "int8")
    parts: dict[str, list[Arrays]] = {}
    labels: list[npt.NDArray[np.int64]] = []
    examples: list[npt.NDArray[np.float32]] = []
    for images, classes in batches:
        labels.append(classes)
        if sum(map(len, examples)) < IMAGES:
            examples.append(images[:IMAGES])
        for name, model in models.items():
            parts.setdefault(name, []).append(reference_outputs(model, images, manifest.budget))
        if anew is not None:
            parts.setdefault(FRESH, []).append(anew(graph_input(images, manifest)))
        for side in [] if refused else sides:
            try:
                outputs = side(images)
            except ArtifactError as error:
                if fresh is None:
                    raise
                refused = (str(error),)
            else:
                parts.setdefault(side.backend, []).append(outputs)
    joined = {name: _concatenate(arrays) for name, arrays in parts.items()}
    found = {} if refused else {side.backend: joined[side.backend] for side in sides}
    references = {name: joined[name] for name in (*models, FRESH) if name in joined}
    comparisons = _compare_all(manifest, references, found, np.concatenate(labels))
    graph = _parse(artifact, found_bytes)
    example = np.concatenate(examples)[:IMAGES]
    feed = graph_input(example, manifest)
    if fresh is not None and anew is not None:
        refused += _plain_failures(fresh, graph, feed, limits)
    wrong_graph = bool(_judge(artifact, comparisons, sides, limits, refused).failures)
    node: Place | None = None
    notes: tuple[str, ...] = ()
    if fresh is not None and wrong_graph:
        node = trace(checkpoint, manifest.budget, fresh, graph, example, feed)
    if fresh is not None and anew is not None and node is None:
        node = silent_difference(fresh, graph)
        if node is not None and not wrong_graph:
            notes = (f"a fresh export differs without effect above the limits: {node.text}",)
    golden = _golden_places(artifact, models, limits)
    beside = (*_manifest_places(manifest, checkpoint), *golden)
    places = (*_manifest_places(manifest, checkpoint), *([node] if node and wrong_graph else []), *golden)
    judgement = _judge(artifact, comparisons, sides, limits, (*refused, *(place.text for place in beside)))
    if anew is not None and manifest.tools != tool_versions():
        notes += ("the artefact was made by other versions of the tools than the fresh export",)
    return VerifyReport(
        **_identity(artifact, source, limits),
        comparisons=comparisons,
        judgement=judgement,
        places=places,
        fresh_export=None if fresh is None else "identical" if anew is None else "different",
        notes=notes,
        backends=_options(sides),
    )


def _parse(artifact: Artifact, data: bytes) -> onnx.ModelProto:
    try:
        return onnx.load_from_string(data)
    except Exception as error:  # protobuf's own class, which onnx does not export
        raise ArtifactError(f"artefact {artifact.path}: {MODEL} is no ONNX model ({error}); export it again") from None


def _plain_failures(
    fresh: onnx.ModelProto, graph: onnx.ModelProto, feed: npt.NDArray[Any], limits: Limits
) -> tuple[str, ...]:
    error = plain_error(fresh, graph, feed)
    if error is None or error <= limits.fp32_relative_error:
        return ()
    return (f"run without optimisation, logits differ from a fresh export's by {error:.1e}",)


def _concatenate(parts: list[Arrays]) -> Arrays:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


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


def _stage_place(comparisons: Sequence[Comparison]) -> Place:
    """As near as golden outputs get to the place of a fault."""
    hint = "give --checkpoint to have the node named"
    limits = Limits()
    for s in comparisons[0].stages if comparisons else ():
        sqnr = s.importance_sqnr_db
        if s.identical + s.ties < s.images or (sqnr is not None and sqnr < limits.fp32_importance_sqnr_db):
            text = f"stage {s.stage} is the first whose patches or importance differ: the fault lies in it or before it; {hint}"
            return Place("stage", f"stages.{s.stage}", text, module=f"stages.{s.stage}", sqnr_db=sqnr)
    told = bool(comparisons and comparisons[0].stages)
    where = (
        "all stages agree: the fault lies behind what decides the patches" if told else "only the logits are compared"
    )
    return Place("stage", "logits", f"{where}; {hint}", tensor="logits")


def _manifest_places(manifest: DeploymentManifest, checkpoint: Checkpoint) -> list[Place]:
    """What the manifest says otherwise than the checkpoint it was made from."""
    info = checkpoint.info
    places = []
    for kind, ours, theirs in (
        ("preprocess", manifest.preprocess, info.preprocess),
        ("model", manifest.model, info.model),
    ):
        for field in fields(theirs):
            have, want = getattr(ours, field.name), getattr(theirs, field.name)
            if have != want:
                text = f"{kind}: {field.name} is {have} in the manifest, {want} in the checkpoint"
                places.append(Place(kind, field.name, text))
    if manifest.labels != info.labels:
        wrong = [i for i, (a, b) in enumerate(zip(manifest.labels, info.labels)) if a != b]
        order = " in another order" if sorted(manifest.labels) == sorted(info.labels) else ""
        text = (
            f"labels: {len(wrong)} of {len(info.labels)} stand otherwise in the manifest than in the checkpoint{order}"
        )
        if wrong:
            text += f", first number {wrong[0]}: {manifest.labels[wrong[0]]!r} for {info.labels[wrong[0]]!r}"
        places.append(Place("labels", "labels", text))
    return places


def _golden_places(artifact: Artifact, models: Mapping[str, Any], limits: Limits) -> list[Place]:
    """Whether golden.npz holds what PyTorch computes today from its images."""
    if GOLDEN not in artifact.manifest.files:
        return []
    golden = read_golden(artifact)
    images = golden.pop("images")
    if images.dtype == np.uint8:
        images = artifact.manifest.preprocess.normalize(images)
    patches = artifact.manifest.model.num_patches
    names = {"torch fp32": "logits", "torch int8": "logits_quantized"}
    for name, model in models.items():
        if names[name] not in golden:
            continue
        today = reference_outputs(model, images, artifact.manifest.budget)
        stored = {**golden, "logits": golden[names[name]]} if name == "torch fp32" else {"logits": golden[names[name]]}
        if any(stored[key].shape != today[key].shape for key in stored.keys() & today.keys()):
            return [Place("golden", GOLDEN, f"{GOLDEN} is stale: its arrays have other shapes than {name} gives")]
        found = compare((name, GOLDEN), today, stored, None, patches)
        wrong = judge([found], "fp32" if name == "torch fp32" else "int8", limits).failures
        if wrong:
            text = f"{GOLDEN} is stale: its images give other outputs in PyTorch today ({wrong[0]})"
            return [Place("golden", GOLDEN, text, tensor=names[name], sqnr_db=found.logit_sqnr_db)]
    return []
