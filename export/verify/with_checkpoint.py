"""Compares an artefact with its checkpoint on images: what quantization changed, and where a wrong graph goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
from torch import nn

from gft_edge.calibration.calibrate import FOLDER
from gft_edge.calibration.certificates import CERTIFICATES, in_words, read_bound
from gft_edge.checkpoint import Checkpoint, require_parent
from gft_edge.errors import ArtifactError, DataError
from gft_edge.export.graph.same_graph import graph_difference
from gft_edge.export.onnx.artifact import tool_versions
from gft_edge.export.onnx.reference import reference_outputs
from gft_edge.export.verify.artifact_alone import (
    VerifyReport,
    assess_all,
    backend_options,
    identity,
    side_notes,
)
from gft_edge.export.verify.causes import golden_places, manifest_places
from gft_edge.export.verify.claims import corrected, wrong_claims
from gft_edge.export.verify.options import DEFAULT_OPTIONS, VerifyOptions
from gft_edge.export.verify.places import Place
from gft_edge.export.verify.tensors import plain_error
from gft_edge.export.verify.trace import IMAGES, trace
from gft_edge.manifest import MODEL, Artifact, DeploymentManifest
from gft_edge.quant.modules import without_quantizers
from gft_edge.runtime.artifact_graph import load_artifact_graph
from gft_edge.runtime.backends.graph_io import to_graph_input
from gft_edge.runtime.backends.sessions import ONNXRUNTIME, onnxruntime_session
from gft_edge.runtime.compared_model import ComparedModel, KindOf, compare_all, comparison_kind
from gft_edge.runtime.golden import TORCH, torch_computation
from gft_edge.stats.agreement import Arrays, Comparison, Computation, Kind
from gft_edge.stats.certificates import check, contradicts
from gft_edge.stats.verdict import Limits

Runner = Callable[[npt.NDArray[np.float32]], Arrays]
"""Preprocessed images (B, 3, H, W) to outputs by name."""
NAMED = 5
"""Images that a failure names."""
Batches = Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]


def verify_checkpoint(
    artifact: Artifact,
    checkpoint: Checkpoint,
    batches: Batches,
    source: str,
    options: VerifyOptions = DEFAULT_OPTIONS,
    fresh: onnx.ModelProto | None = None,
) -> VerifyReport:
    """Compares the artefact with PyTorch on any images.

    Args:
        artifact: made from ``checkpoint``.
        checkpoint: quantized or not; its full-precision form is the reference, its quantized form a second one.
        batches: preprocessed images and labels.
        source: of the images, for the record.
        options: backends and limits.
        fresh: the checkpoint exported again (:func:`gft_edge.export.verify.trace.fresh_graph`) with the options that the
            artefact's graph shows (:func:`gft_edge.export.verify.claims.corrected`). With it the two graphs are compared too, a
            graph that cannot be run is a failure instead of an error, and the first bad node is named. If the tool versions
            are those of the manifest, any difference of the graphs is a failure, whatever the outputs.

    Raises:
        ArtifactError: the artefact was made from another checkpoint, or (without ``fresh``) cannot be run.
    """
    require_parent(artifact, checkpoint)
    graph = load_artifact_graph(artifact)
    beside = (*manifest_places(artifact.manifest, checkpoint), *wrong_claims(artifact, graph))
    # Wrong claims are reported; the graph is then run and compared as it is.
    manifest = artifact.manifest if fresh is None else corrected(artifact, graph)
    artifact = replace(artifact, manifest=manifest)
    models = [(torch_computation("fp32"), without_quantizers(checkpoint.model))]
    if checkpoint.info.quantization is not None:
        models.append((torch_computation(checkpoint.info.quantization["precision"]), checkpoint.model))
    difference = None if fresh is None else _difference(fresh, graph, artifact)
    references = {computation: _torch_runner(model, manifest) for computation, model in models}
    again = Computation(ONNXRUNTIME, manifest.precision, "fresh export")
    if fresh is not None and difference is not None:
        references[again] = _graph_runner(fresh, manifest)
    sides, refused = _open_all(artifact, options.backends, tolerant=fresh is not None)
    candidates = {side.computation: side for side in sides}
    runs = _run_all(references, candidates, batches, tolerant=fresh is not None)
    refused += runs.refused
    comparisons = compare_all(
        manifest,
        [(computation, runs.outputs[computation]) for computation in references],
        [(computation, runs.outputs[computation]) for computation in candidates if computation in runs.outputs],
        runs.labels,
        _kinds(manifest, again),
    )
    located = _Located()
    if fresh is not None:
        pair = _Graphs(fresh, graph, difference, wrong=not _passes(comparisons, sides, options.limits, refused))
        located = _locate(checkpoint, manifest, pair, runs.examples, options.limits)
    golden = golden_places(artifact, models, options.limits)
    broken, certified = _certificates(checkpoint, manifest, runs)
    more = (*refused, *broken, *located.failures, *(place.text for place in (*beside, *golden)))
    assessment = assess_all(comparisons, sides, options.limits, more)
    return VerifyReport(
        **identity(artifact, source, options.limits),
        comparisons=comparisons,
        assessment=replace(assessment, undecided=(*assessment.undecided, *located.undecided)),
        places=(*beside, *([] if located.place is None else [located.place]), *golden),
        fresh_export=None if fresh is None else "identical" if difference is None else "different",
        notes=(*located.notes, *side_notes(sides), *certified),
        backends=backend_options(sides),
    )


def _certificates(
    checkpoint: Checkpoint, manifest: DeploymentManifest, runs: _Runs
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns failures and notes of the certificates that ``quantize`` left a bound for, on each side that tells its patches.

    A side without scores among its outputs is certified by those of the quantized model in PyTorch.
    """
    quantization = checkpoint.info.quantization
    bound = None if quantization is None else read_bound(checkpoint.path / FOLDER / CERTIFICATES, manifest.budget)
    if quantization is None or bound is None:
        return (), ()
    reference = runs.outputs[torch_computation("fp32")]
    quantized = runs.outputs[torch_computation(quantization["precision"])]
    failures, notes = [], []
    for side, outputs in runs.outputs.items():
        if side.backend != TORCH and manifest.rest != "fp32":
            notes.append(
                f"{side.name}: certificates are of scores from float32 values, here they come from {manifest.rest} ones; "
                "export with --precision fp32 to keep them"
            )
        elif side.arithmetic == manifest.precision and all(f"kept_{stage.stage}" in outputs for stage in bound.stages):
            found = check(reference, {**quantized, **outputs}, bound)
            notes.append(f"{side.name}: {in_words(found)}")
            if contradicts(found, bound):
                numbers = ", ".join(map(str, found.broken[:NAMED]))
                failures.append(
                    f"{side.name}: {len(found.broken)} images certified to keep the patches of full precision keep others, image "
                    f"{numbers}; the images are unlike those of the bound, or the graph is not that checkpoint's"
                )
    return tuple(failures), tuple(notes)


def _difference(fresh: onnx.ModelProto, graph: onnx.ModelProto, artifact: Artifact) -> str | None:
    """Describes how the artefact's graph differs from the fresh export; None when they are the same."""
    if fresh.SerializeToString(deterministic=True) == artifact.file(MODEL).read_bytes():
        return None
    return graph_difference(fresh, graph)


def _kinds(manifest: DeploymentManifest, again: Computation) -> KindOf:
    """Returns the allowed differences: none from the fresh export on the same runtime, made by the same tools."""
    exact = manifest.tools == tool_versions()

    def kind(candidate: Computation, reference: Computation) -> Kind:
        if reference == again:
            if exact and candidate.backend == again.backend:
                return "exact"
            reference = torch_computation(manifest.precision)
        return comparison_kind(candidate, reference)

    return kind


def _passes(
    comparisons: Sequence[Comparison], sides: Sequence[ComparedModel], limits: Limits, refused: Sequence[str]
) -> bool:
    return not assess_all(comparisons, sides, limits, refused).failures


@dataclass(frozen=True)
class _Runs:
    """Outputs of every computation on all images, the true classes, the first few images, and why a side stopped."""

    outputs: dict[Computation, Arrays]
    labels: npt.NDArray[np.int64]
    examples: npt.NDArray[np.float32]
    refused: tuple[str, ...]


def _torch_runner(model: nn.Module, manifest: DeploymentManifest) -> Runner:
    return lambda images: reference_outputs(model, images, manifest.budget)


def _graph_runner(graph: onnx.ModelProto, manifest: DeploymentManifest) -> Runner:
    """Runs a graph with the same session options as the artefact's own, so that only the graphs can differ."""
    session = onnxruntime_session(graph.SerializeToString(deterministic=True), manifest.is_quantized)
    return lambda images: session.compute(to_graph_input(images, manifest))


def _open_all(
    artifact: Artifact, backends: Sequence[str], tolerant: bool
) -> tuple[list[ComparedModel], tuple[str, ...]]:
    """Opens the artefact on every backend; also returns why ONNX Runtime refuses it, which raises unless ``tolerant``."""
    sides: list[ComparedModel] = []
    refused: tuple[str, ...] = ()
    for backend in backends:
        try:
            sides.append(ComparedModel(artifact, backend))
        except ArtifactError as error:
            if not tolerant or backend != ONNXRUNTIME:  # a missing engine says nothing about the graph
                raise
            refused += (str(error),)
    return sides, refused


def _run_all(
    references: Mapping[Computation, Runner],
    candidates: Mapping[Computation, Runner],
    batches: Batches,
    tolerant: bool,
) -> _Runs:
    """Runs every side on every batch; a candidate that cannot be run is left out, or raises unless ``tolerant``."""
    runners = {**references, **candidates}
    parts: dict[Computation, list[Arrays]] = {computation: [] for computation in runners}
    refused: dict[Computation, str] = {}
    labels: list[npt.NDArray[np.int64]] = []
    examples: list[npt.NDArray[np.float32]] = []
    for images, classes in batches:
        labels.append(classes)
        if sum(map(len, examples)) < IMAGES:
            examples.append(images[:IMAGES])
        for computation, runner in runners.items():
            if computation in refused:
                continue
            try:
                parts[computation].append(runner(images))
            except (ArtifactError, DataError) as error:  # the second: the graph takes other shapes
                if not tolerant or computation in references:
                    raise
                refused[computation] = str(error)
    joined = {
        computation: {key: np.concatenate([part[key] for part in found]) for key in found[0]}
        for computation, found in parts.items()
        if computation not in refused
    }
    return _Runs(joined, np.concatenate(labels), np.concatenate(examples)[:IMAGES], tuple(refused.values()))


@dataclass(frozen=True)
class _Graphs:
    """The fresh export and the artefact's graph.

    Attributes:
        fresh, found: the two.
        difference: of the artefact's graph from the fresh export; None when they are the same.
        wrong: a comparison of outputs is out of limits already.
    """

    fresh: onnx.ModelProto
    found: onnx.ModelProto
    difference: str | None
    wrong: bool


@dataclass(frozen=True)
class _Located:
    """Failures and doubts that the outputs do not show, the first bad place of the graph, and notes."""

    failures: tuple[str, ...] = ()
    place: Place | None = None
    undecided: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _locate(
    checkpoint: Checkpoint,
    manifest: DeploymentManifest,
    graphs: _Graphs,
    examples: npt.NDArray[np.float32],
    limits: Limits,
) -> _Located:
    """Finds the first bad place of the graph, and failures that the outputs do not show.

    Args:
        checkpoint, manifest: of the artefact.
        graphs: that are compared.
        examples: a few preprocessed images.
        limits: that pass.
    """
    if manifest.static_batch:
        examples = np.resize(examples, (manifest.static_batch, *examples.shape[1:]))  # repeats them
    feed = to_graph_input(examples, manifest)
    fresh, found, difference, wrong = graphs.fresh, graphs.found, graphs.difference, graphs.wrong
    exact = manifest.tools == tool_versions()
    notes = () if exact else (f"the artefact was made by other tools than the fresh export: {_other_tools(manifest)}",)
    if not wrong and difference is None:
        return _Located(notes=notes)
    failures: tuple[str, ...] = ()
    if difference is not None and not wrong:
        error = plain_error(fresh, found, feed)
        if error is not None and error > limits.fp32_relative_error:
            failures += (f"run without optimisation, logits differ from a fresh export's by {error:.1e}",)
    bad = wrong or bool(failures)
    every_difference = difference is not None and (exact or not bad)
    place = trace(checkpoint, manifest.budget, (fresh, found), examples, feed, exact=every_difference)
    if difference is None:
        return _Located(failures, place, notes=notes)
    if place is None or place.kind == "module":  # both graphs compute the same, by nodes that are the same
        place = Place("graph", MODEL, f"{MODEL}: {difference}")
    if exact:
        return _Located((*failures, f"the graph is not the export of its checkpoint: {place.text}"), place)
    if bad:
        return _Located(failures, place, notes=notes)
    text = f"the graph differs from a fresh export without effect on these images: {place.text}"
    doubt = f"{text}; other tools may explain the difference, and so may tampering"
    return _Located(undecided=(doubt,), notes=notes)


def _other_tools(manifest: DeploymentManifest) -> str:
    """Lists the tools whose versions differ."""
    here = tool_versions()
    names = sorted(name for name in here.keys() | manifest.tools.keys() if here.get(name) != manifest.tools.get(name))
    return ", ".join(f"{name} {manifest.tools.get(name, 'unknown')} (here {here.get(name, 'none')})" for name in names)
