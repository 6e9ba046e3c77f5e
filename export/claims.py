"""What a manifest claims of its graph, held against the graph. Needs onnx, and no PyTorch."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper

from gft_edge.errors import ArtifactError
from gft_edge.export.dialects import TRT8_OPSET
from gft_edge.export.graph_summary import summarize
from gft_edge.export.graph_view import DEQUANTIZE
from gft_edge.export.interface import graph_input, graph_outputs
from gft_edge.export.places import Place
from gft_edge.manifest import MODEL, Artifact, DeploymentManifest, InputKind, TensorInfo


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
    opset = max((o.version for o in graph.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset != manifest.opset:
        places.append(_place("opset", str(manifest.opset), str(opset)))
    if (manifest.dialect == "trt8") != (opset <= TRT8_OPSET):
        found = f"opset {opset}, which is {'trt8' if opset <= TRT8_OPSET else 'trt10'}"
        places.append(_place("dialect", manifest.dialect, found))
    try:
        precision, rest = graph_precision(graph)
    except ArtifactError:  # the graph is broken: running it says how
        return places
    if precision != manifest.precision:
        places.append(_place("precision", manifest.precision, precision))
    if rest != manifest.rest:
        places.append(_place("rest", manifest.rest, rest))
    return places


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
