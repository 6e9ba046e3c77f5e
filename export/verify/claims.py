"""Compares the claims of a manifest with its graph. Needs onnx, but no PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx
from onnx import helper, numpy_helper

from gft_edge.budget import TokenBudget
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.graph.structure import standard_opset
from gft_edge.export.graph.summary import summarize
from gft_edge.export.graph.view import DEQUANTIZE
from gft_edge.export.onnx.interface import graph_input, graph_outputs
from gft_edge.export.onnx.options import TRT8_OPSET
from gft_edge.export.verify.places import Place
from gft_edge.manifest import GOLDEN, PROBABILITIES, Artifact, DeploymentManifest, MapsMode, TensorInfo, input_kind
from gft_edge.runtime.golden import load_golden


def wrong_claims(artifact: Artifact, graph: onnx.ModelProto) -> tuple[Place, ...]:
    """Returns every claim of an artefact's manifest that graph or golden outputs contradict."""
    budget = budget_claim(artifact, graph)
    return (*([] if budget is None else [budget[0]]), *claim_places(artifact.manifest, graph))


def claim_places(manifest: DeploymentManifest, graph: onnx.ModelProto) -> list[Place]:
    """Returns every claim of a manifest that its graph or its own options contradict: interface, batch, opset, precision.

    Args:
        manifest: of the artefact, or of one member of a family.
        graph: the artefact's, with its weights.
    """
    places = []
    batch = manifest.static_batch or "batch"
    needed = (
        ("input", manifest.inputs, (graph_input(manifest.model, manifest.input_kind, batch),), graph.graph.input),
        (
            "output",
            manifest.outputs,
            graph_outputs(manifest.budget, manifest.model, manifest.maps, batch, manifest.gives_probabilities),
            graph.graph.output,
        ),
    )
    for what, table, options, values in needed:
        claimed, implied = [_claimed(t) for t in table], [_claimed(t) for t in options]
        there = [_actual(v) for v in values]
        if claimed != there:
            places.append(_place(f"{what}s", _describe(claimed), _describe(there)))
        elif implied != there:
            chosen = f"maps {manifest.maps}, batch {':'.join(map(str, manifest.batch))}, budget {manifest.budget.id}"
            text = f"manifest: {chosen} need {what}s {_describe(implied)}; the graph has {_describe(there)}"
            places.append(Place("manifest", f"{what}s", text))
    opset = standard_opset(graph) or 0
    if opset != manifest.opset:
        places.append(_place("opset", str(manifest.opset), str(opset)))
    if (manifest.dialect == "trt8") != (opset <= TRT8_OPSET):
        found = f"opset {opset}, which is {'trt8' if opset <= TRT8_OPSET else 'trt10'}"
        places.append(_place("dialect", manifest.dialect, found))
    written = manifest.tools.get("gft_edge")
    if graph.producer_name == "gft_edge" and written != graph.producer_version:
        places.append(_place("tools", f"gft_edge {written}", f"gft_edge {graph.producer_version}"))
    try:
        precision, rest = graph_precision(graph)
    except ArtifactError:  # the graph is broken: running it reports the error
        return places
    if precision != manifest.precision:
        places.append(_place("precision", manifest.precision, precision))
    if rest != manifest.rest:
        places.append(_place("rest", manifest.rest, rest))
    return places


def corrected(artifact: Artifact, graph: onnx.ModelProto) -> DeploymentManifest:
    """Returns the manifest with the options that the graph shows: input, batch, maps, dialect, precision, budget.

    The graph is then compared with an export by its own options, so that a wrong manifest is not reported as a wrong
    graph. Options that the graph does not show clearly stay.
    """
    manifest = artifact.manifest
    changes: dict[str, Any] = {}
    claim = budget_claim(artifact, graph)
    if claim is not None:
        manifest = replace(manifest, budget=claim[1])
    names = {value.name for value in graph.graph.output}
    maps: MapsMode = "dense" if "gala_maps" in names else "compact" if "importance_0" in names else "none"
    if len(graph.graph.input) == 1 and names:
        name, dtype, shape = _actual(graph.graph.input[0])
        batch = shape[0] if shape and isinstance(shape[0], int) and shape[0] > 0 else "batch"
        inputs = (graph_input(manifest.model, input_kind(name, dtype), batch),)
        outputs = graph_outputs(manifest.budget, manifest.model, maps, batch, PROBABILITIES in names)
        actual = [_actual(v) for v in (*graph.graph.input, *graph.graph.output)]
        if [_claimed(t) for t in (*inputs, *outputs)] == actual:
            changes = {"inputs": inputs, "outputs": outputs, "maps": maps}
            if batch != (manifest.static_batch or "batch"):
                changes["batch"] = (batch,) * 3 if isinstance(batch, int) else DeploymentManifest.batch
    opset = standard_opset(graph) or 0
    if opset == manifest.opset:  # else one of the two is wrong, and the dialect does not show which
        changes["dialect"] = "trt8" if opset <= TRT8_OPSET else "trt10"
    try:
        changes["precision"], changes["rest"] = graph_precision(graph)
        return replace(manifest, **changes)
    except (ArtifactError, ConfigError):  # the graph is broken: running it reports the error
        return manifest


def budget_claim(artifact: Artifact, graph: onnx.ModelProto) -> tuple[Place, TokenBudget] | None:
    """Returns the claim of the budget if graph and golden.npz agree on another one, and that budget.

    If golden.npz agrees with the manifest, the graph is wrong; the comparison with a fresh export reports that.
    """
    manifest = artifact.manifest
    if GOLDEN not in manifest.files:
        return None
    arrays = load_golden(artifact)
    kept = [arrays.get(f"kept_{stage}") for stage in range(len(manifest.budget.keep))]
    if not kept or any(array is None or array.ndim != 2 for array in kept):
        return None
    keep = tuple(array.shape[1] for array in kept if array is not None)
    try:
        budget = TokenBudget(keep, manifest.budget.num_patches)
    except ConfigError:
        return None
    counts = _selection_counts(graph)
    stages = manifest.model.selecting_stages(budget)
    if budget == manifest.budget or counts not in ([keep[stage] for stage in stages], list(keep)):
        return None
    return _place("budget", manifest.budget.id, f"{budget.id}, as golden.npz has"), budget


def _selection_counts(graph: onnx.ModelProto) -> list[int]:
    """Returns how many tokens each selection of a graph keeps."""
    values = {t.name: numpy_helper.to_array(t).reshape(-1) for t in graph.graph.initializer if t.dims in ([], [1])}
    choices = [
        node
        for node in graph.graph.node
        if node.op_type == "TopK" and not any(a.name == "largest" and a.i == 0 for a in node.attribute)
    ]
    return [int(values[node.input[1]][0]) for node in choices if len(node.input) > 1 and node.input[1] in values]


def graph_precision(graph: onnx.ModelProto) -> tuple[str, str]:
    """Returns the precision of the linear layers and of the rest, as a manifest names them."""
    summary = summarize(graph)
    weights_alone = summary.precision == summary.rest and DEQUANTIZE in summary.operators
    return "int8-weights" if weights_alone else summary.precision, summary.rest


def _place(name: str, claimed: str, found: str) -> Place:
    return Place("manifest", name, f"manifest: {name} {claimed}, the graph has {found}")


Interface = tuple[str, str, tuple[Any, ...]]
"""Name, type and shape of an input or output."""


def _claimed(tensor: TensorInfo) -> Interface:
    return tensor.name, tensor.dtype, tensor.shape


def _actual(value: onnx.ValueInfoProto) -> Interface:
    tensor = value.type.tensor_type
    known = tensor.elem_type in onnx.TensorProto.DataType.values() and tensor.elem_type != onnx.TensorProto.UNDEFINED
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if known else "unknown"
    return value.name, dtype, tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)


def _describe(tensors: list[Interface]) -> str:
    return "; ".join(f"{name} {dtype} [{', '.join(map(str, shape))}]" for name, dtype, shape in tensors) or "none"
