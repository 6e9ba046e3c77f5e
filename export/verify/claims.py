"""What a manifest claims of its graph, held against the graph. Needs onnx, and no PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx
from onnx import helper, numpy_helper

from gft_edge.budget import TokenBudget
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.graph.summary import summarize
from gft_edge.export.graph.view import DEQUANTIZE
from gft_edge.export.onnx.dialects import TRT8_OPSET
from gft_edge.export.onnx.interface import graph_input, graph_outputs
from gft_edge.export.verify.compared_model import selecting_stages
from gft_edge.export.verify.golden import load_golden
from gft_edge.export.verify.places import Place
from gft_edge.manifest import GOLDEN, MODEL, Artifact, DeploymentManifest, InputKind, MapsMode, TensorInfo


def read_graph(artifact: Artifact) -> onnx.ModelProto:
    """Parses the artefact's graph.

    Raises:
        ArtifactError: missing, changed, or no ONNX model.
    """
    path = artifact.file(MODEL)
    try:
        return onnx.load(str(path))
    except Exception as error:  # protobuf's own class, which onnx does not export
        raise ArtifactError(f"artefact {artifact.path}: {MODEL} is no ONNX model ({error}); export it again") from None


def claim_places(manifest: DeploymentManifest, graph: onnx.ModelProto) -> list[Place]:
    """Every claim of a manifest that its graph or its own options contradict: interface, maps, batch, opset, precision.

    Args:
        manifest: of the artefact, or of one member of a family.
        graph: the artefact's, with its weights.
    """
    places = []
    batch = manifest.static_batch or "batch"
    kind: InputKind = "uint8" if manifest.inputs and manifest.inputs[0].dtype == "uint8" else "float"
    needed = (
        ("input", manifest.inputs, (graph_input(manifest.model, kind, batch),), graph.graph.input),
        (
            "output",
            manifest.outputs,
            graph_outputs(manifest.budget, manifest.model, manifest.maps, batch),
            graph.graph.output,
        ),
    )
    for what, table, options, values in needed:
        claimed, implied, there = [_form(t) for t in table], [_form(t) for t in options], [_value(v) for v in values]
        if claimed != there:
            places.append(_place(f"{what}s", _words(claimed), _words(there)))
        elif implied != there:
            said = f"maps {manifest.maps}, batch {':'.join(map(str, manifest.batch))}, budget {manifest.budget.id}"
            text = f"manifest: {said} need {what}s {_words(implied)}; the graph has {_words(there)}"
            places.append(Place("manifest", f"{what}s", text))
    opset = graph_opset(graph)
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
    except ArtifactError:  # the graph is broken: running it says how
        return places
    if precision != manifest.precision:
        places.append(_place("precision", manifest.precision, precision))
    if rest != manifest.rest:
        places.append(_place("rest", manifest.rest, rest))
    return places


def corrected(artifact: Artifact, graph: onnx.ModelProto) -> DeploymentManifest:
    """The manifest with what the graph itself shows of its options: input, batch, maps, dialect, precision, budget.

    A graph is compared with the export that its own options give, so that a manifest at fault is not taken for a faulty
    graph. What the graph does not show clearly stays as the manifest says.
    """
    manifest = artifact.manifest
    changes: dict[str, Any] = {}
    claim = budget_claim(artifact, graph)
    if claim is not None:
        manifest = replace(manifest, budget=claim[1])
    names = {value.name for value in graph.graph.output}
    maps: MapsMode = "dense" if "gala_maps" in names else "compact" if "importance_0" in names else "none"
    if len(graph.graph.input) == 1 and names:
        _, dtype, shape = _value(graph.graph.input[0])
        kind: InputKind = "uint8" if dtype == "uint8" else "float"
        batch = shape[0] if shape and isinstance(shape[0], int) and shape[0] > 0 else "batch"
        inputs = (graph_input(manifest.model, kind, batch),)
        outputs = graph_outputs(manifest.budget, manifest.model, maps, batch)
        forms = [_value(v) for v in (*graph.graph.input, *graph.graph.output)]
        if [_form(t) for t in (*inputs, *outputs)] == forms:
            changes = {"inputs": inputs, "outputs": outputs, "maps": maps}
            if batch != (manifest.static_batch or "batch"):
                changes["batch"] = (batch,) * 3 if isinstance(batch, int) else DeploymentManifest.batch
    opset = graph_opset(graph)
    if opset == manifest.opset:  # else one of the two is wrong, and the dialect tells nothing of which
        changes["dialect"] = "trt8" if opset <= TRT8_OPSET else "trt10"
    try:
        changes["precision"], changes["rest"] = graph_precision(graph)
        return replace(manifest, **changes)
    except (ArtifactError, ConfigError):  # the graph is broken: running it says how
        return manifest


def budget_claim(artifact: Artifact, graph: onnx.ModelProto) -> tuple[Place, TokenBudget] | None:
    """A token budget of the manifest that graph and golden.npz contradict with one voice, and the one they have.

    Where golden.npz takes the manifest's side the graph is at fault, which is for the comparison with a fresh export to say.
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
    chosen = _chosen(graph)
    stages = selecting_stages(replace(manifest, budget=budget))
    if budget == manifest.budget or chosen not in ([keep[stage] for stage in stages], list(keep)):
        return None
    return _place("budget", manifest.budget.id, f"{budget.id}, as golden.npz has"), budget


def _chosen(graph: onnx.ModelProto) -> list[int]:
    """How many tokens each selection of a graph keeps."""
    values = {t.name: numpy_helper.to_array(t).reshape(-1) for t in graph.graph.initializer if t.dims in ([], [1])}
    choices = [
        node
        for node in graph.graph.node
        if node.op_type == "TopK" and not any(a.name == "largest" and a.i == 0 for a in node.attribute)
    ]
    return [int(values[node.input[1]][0]) for node in choices if len(node.input) > 1 and node.input[1] in values]


def graph_opset(graph: onnx.ModelProto) -> int:
    """Version of ONNX's own operators; 0 where the graph names none."""
    return max((o.version for o in graph.opset_import if o.domain in ("", "ai.onnx")), default=0)


def graph_precision(graph: onnx.ModelProto) -> tuple[str, str]:
    """Precision of the linear layers and of the rest, as a manifest names them."""
    summary = summarize(graph)
    weights_alone = summary.precision == summary.rest and DEQUANTIZE in summary.operators
    return "int8-weights" if weights_alone else summary.precision, summary.rest


def _place(name: str, claimed: str, found: str) -> Place:
    return Place("manifest", name, f"manifest: {name} {claimed}, the graph has {found}")


Form = tuple[str, str, tuple[Any, ...]]


def _form(tensor: TensorInfo) -> Form:
    return tensor.name, tensor.dtype, tensor.shape


def _value(value: onnx.ValueInfoProto) -> Form:
    tensor = value.type.tensor_type
    known = tensor.elem_type in onnx.TensorProto.DataType.values() and tensor.elem_type != onnx.TensorProto.UNDEFINED
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if known else "unknown"
    return value.name, dtype, tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)


def _words(forms: list[Form]) -> str:
    return "; ".join(f"{name} {dtype} [{', '.join(map(str, shape))}]" for name, dtype, shape in forms) or "none"
