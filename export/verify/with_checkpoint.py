"""Proof that an artefact computes what its checkpoint computes, how much quantization changed, and where it went wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from torch import nn

from gft_edge.checkpoint import Checkpoint
from gft_edge.errors import ArtifactError, DataError
from gft_edge.export.graph.same_graph import graph_difference
from gft_edge.export.onnx.artifact import reference_outputs, tool_versions
from gft_edge.export.verify.artifact_alone import (
    VerifyReport,
    backend_options,
    compare_all,
    comparison_kind,
    identity,
    judge_all,
    side_notes,
    torch_computation,
)
from gft_edge.export.verify.causes import golden_places, manifest_places
from gft_edge.export.verify.claims import budget_claim, claim_places, corrected, read_graph
from gft_edge.export.verify.compared_model import Side, graph_input
from gft_edge.export.verify.places import Place
from gft_edge.export.verify.trace import IMAGES, plain_error, trace
from gft_edge.export.verify.verdict import Limits
from gft_edge.manifest import MODEL, Artifact, DeploymentManifest
from gft_edge.quant.modules import without_quantizers
from gft_edge.runtime.sessions import ONNXRUNTIME, onnxruntime_session
from gft_edge.stats.agreement import Arrays, Computation, Kind

Runner = Callable[[npt.NDArray[np.float32]], Arrays]
"""Preprocessed images (B, 3, H, W) to outputs by name."""
Batches = Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]
FRESH = "fresh export"
"""Name of the reference that is the checkpoint exported again."""


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
        fresh: the checkpoint exported anew (:func:`gft_edge.export.verify.trace.fresh_graph`) with the flags that the
            artefact's graph shows (:func:`gft_edge.export.verify.claims.corrected`), which are the manifest's unless it
            is at fault. With it the graph is held against it too, a graph that cannot be run is a finding and no error,
            and the first bad node is named. Made by the tool versions that the manifest records, any difference of the
            two is a failure, whatever the images show.

    Raises:
        ArtifactError: the artefact was made from another checkpoint, or (without ``fresh``) cannot be run.
    """
    require_parent(artifact, checkpoint)
    graph = read_graph(artifact)
    budget = budget_claim(artifact, graph)
    claims = [*([] if budget is None else [budget[0]]), *claim_places(artifact.manifest, graph)]
    beside = [*manifest_places(artifact.manifest, checkpoint), *claims]
    # What the manifest says wrongly is told; the graph is then run and compared as what it is.
    manifest = artifact.manifest if fresh is None else corrected(artifact, graph)
    artifact = replace(artifact, manifest=manifest)
    limits = limits or Limits()
    models = [(torch_computation("fp32"), without_quantizers(checkpoint.model))]
    if checkpoint.info.quantization is not None:
        models.append((torch_computation(checkpoint.info.quantization["precision"]), checkpoint.model))
    difference = None if fresh is None else _difference(fresh, graph, artifact)
    references = [(computation, _torch_runner(model, manifest)) for computation, model in models]
    if fresh is not None and difference is not None:
        references.append((Computation(ONNXRUNTIME, manifest.precision, FRESH), _graph_runner(fresh, manifest)))
    refused: tuple[str, ...] = ()
    sides: list[Side] = []
    for backend in backends:
        try:
            sides.append(Side(artifact, backend))
        except ArtifactError as error:
            if fresh is None or backend != ONNXRUNTIME:  # an engine that is not there is no finding about the graph
                raise
            refused += (str(error),)
    candidates = [(side.computation, side) for side in sides]
    runs = _run_all(references, candidates, batches, tolerant=fresh is not None)
    refused += runs.refused
    comparisons = compare_all(
        manifest,
        [(computation, runs.outputs[computation.name]) for computation, _ in references],
        [
            (computation, runs.outputs[computation.name])
            for computation, _ in candidates
            if computation.name in runs.outputs
        ],
        runs.labels,
        _kinds_against_fresh(sides, manifest),
    )
    located = _Found()
    if fresh is not None:
        wrong = bool(judge_all(comparisons, sides, limits, refused).failures)
        few = runs.examples
        if manifest.static_batch:
            few = np.resize(few, (manifest.static_batch, *few.shape[1:]))  # repeats them
        examples = (few, graph_input(few, manifest))
        located = _locate(checkpoint, manifest, (fresh, graph), wrong, difference, examples, limits)
    golden = golden_places(artifact, models, limits)
    more = (*refused, *located.failures, *(place.text for place in (*beside, *golden)))
    judgement = judge_all(comparisons, sides, limits, more)
    judgement = replace(judgement, undecided=(*judgement.undecided, *located.undecided))
    return VerifyReport(
        **identity(artifact, source, limits),
        comparisons=comparisons,
        judgement=judgement,
        places=(*beside, *([] if located.place is None else [located.place]), *golden),
        fresh_export=None if fresh is None else "identical" if difference is None else "different",
        notes=(*located.notes, *side_notes(sides)),
        backends=backend_options(sides),
    )


def _difference(fresh: onnx.ModelProto, graph: onnx.ModelProto, artifact: Artifact) -> str | None:
    """What the artefact's graph has otherwise than the fresh export, in words; None when they are the same."""
    if fresh.SerializeToString(deterministic=True) == artifact.file(MODEL).read_bytes():
        return None
    return graph_difference(fresh, graph)


def _kinds_against_fresh(sides: Sequence[Side], manifest: DeploymentManifest) -> dict[tuple[str, str], Kind]:
    """What each side may differ in from the fresh export: nothing, on the same runtime by the same tools."""
    exact = manifest.tools == tool_versions()
    kinds: dict[tuple[str, str], Kind] = {}
    for side in sides:
        usual = comparison_kind(side.computation, torch_computation(manifest.precision))
        kinds[side.computation.name, FRESH] = "exact" if exact and side.backend == ONNXRUNTIME else usual
    return kinds


@dataclass(frozen=True)
class _Runs:
    """Outputs of every side on all images by name, the true classes, the first few images, and why a side stopped."""

    outputs: dict[str, Arrays]
    labels: npt.NDArray[np.int64]
    examples: npt.NDArray[np.float32]
    refused: tuple[str, ...]


def _torch_runner(model: nn.Module, manifest: DeploymentManifest) -> Runner:
    return lambda images: reference_outputs(model, images, manifest.budget)


def _graph_runner(graph: onnx.ModelProto, manifest: DeploymentManifest) -> Runner:
    """Runs a graph with the same session options as the artefact's own, so that only the graphs can differ."""
    session = onnxruntime_session(graph.SerializeToString(deterministic=True), manifest.is_quantized)
    return lambda images: session(graph_input(images, manifest))


def _run_all(
    references: Sequence[tuple[Computation, Runner]],
    candidates: Sequence[tuple[Computation, Runner]],
    batches: Batches,
    tolerant: bool,
) -> _Runs:
    """Runs every side on every batch; an artefact that cannot be run is left out, or an error unless ``tolerant``."""
    needed = {computation.name for computation, _ in references}
    runners = {computation.name: runner for computation, runner in (*references, *candidates)}
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
            except (ArtifactError, DataError) as error:  # the second: the graph takes other shapes
                if not tolerant or name in needed:
                    raise
                refused[name] = str(error)
    joined = {
        name: {key: np.concatenate([part[key] for part in found]) for key in found[0]}
        for name, found in parts.items()
        if name not in refused
    }
    return _Runs(joined, np.concatenate(labels), np.concatenate(examples)[:IMAGES], tuple(refused.values()))


@dataclass(frozen=True)
class _Found:
    """Failures and doubts that the images do not show, the first bad place of the graph, and notes."""

    failures: tuple[str, ...] = ()
    place: Place | None = None
    undecided: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _locate(
    checkpoint: Checkpoint,
    manifest: DeploymentManifest,
    graphs: tuple[onnx.ModelProto, onnx.ModelProto],
    wrong: bool,
    difference: str | None,
    examples: tuple[npt.NDArray[np.float32], npt.NDArray[Any]],
    limits: Limits,
) -> _Found:
    """What the images do not show, and the first bad place of the graph.

    Args:
        checkpoint, manifest: what the artefact is of.
        graphs: the checkpoint exported again, and the artefact's.
        wrong: something is out of limits already.
        difference: what the graph has otherwise than the fresh export.
        examples: a few images, and the same as the graph takes them.
        limits: what passes.
    """
    fresh, graph = graphs
    exact = manifest.tools == tool_versions()
    others = () if exact else (f"the artefact was made by other tools than the fresh export: {_other_tools(manifest)}",)
    if not wrong and difference is None:
        return _Found(notes=others)
    failures: tuple[str, ...] = ()
    if difference is not None and not wrong:
        error = plain_error(fresh, graph, examples[1])
        if error is not None and error > limits.fp32_relative_error:
            failures += (f"run without optimisation, logits differ from a fresh export's by {error:.1e}",)
    bad = wrong or bool(failures)
    place = trace(
        checkpoint, manifest.budget, fresh, graph, *examples, exact=difference is not None and (exact or not bad)
    )
    if difference is None:
        return _Found(failures, place, notes=others)
    if place is None or place.kind == "module":  # both graphs compute the same, by nodes that are the same
        place = Place("graph", MODEL, f"{MODEL}: {difference}")
    if exact:
        return _Found((*failures, f"the graph is not the export of its checkpoint: {place.text}"), place)
    if bad:
        return _Found(failures, place, notes=others)
    text = f"the graph is not a fresh export's, without effect on these images: {place.text}"
    return _Found(
        undecided=(f"{text}; other tools may explain it, and so may a graph that was tampered with",), notes=others
    )


def _other_tools(manifest: DeploymentManifest) -> str:
    """Tools whose versions differ, in words."""
    here = tool_versions()
    names = sorted(name for name in here.keys() | manifest.tools.keys() if here.get(name) != manifest.tools.get(name))
    return ", ".join(f"{name} {manifest.tools.get(name, 'unknown')} (here {here.get(name, 'none')})" for name in names)
