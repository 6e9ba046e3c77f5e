"""Prepares a graph for lint and summaries: sets weights aside, inlines functions, infers shapes, folds constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from gft_edge.errors import ArtifactError
from gft_edge.export.graph import native
from gft_edge.export.graph.folding import MAX_ELEMENTS, as_tensor, fold
from gft_edge.export.graph.structure import (
    STANDARD,
    attribute_bodies,
    require_structure,
    require_text,
    sort_nodes,
    standard_opset,
    tensor_bytes,
    tensor_problem,
)

HELD_BYTES = 1 << 15
"""Tensors above this size are set aside: shape inference needs no weights."""

MAX_ROUNDS = 64
"""Limit of folding and inferring again; each stage that computes its k from the shape of the last one needs a round."""


@dataclass(frozen=True)
class PreparedGraph:
    """A prepared graph.

    Args:
        graph: without weights, shapes inferred, nodes of functions in place of their calls.
        nodes: of the graph, each after those it reads.
        tensors: initialisers, with those set aside, and Constant nodes, by name.
        folded: values of computed tensors that depend on nothing but constants and static sizes.
        opset: of ONNX's own operators, 0 where none is named.
        functions: domain and name of the model's local functions.
        sparse: names of sparse initialisers.
    """

    graph: onnx.GraphProto
    nodes: tuple[NodeProto, ...]
    tensors: dict[str, TensorProto]
    folded: dict[str, npt.NDArray[Any]]
    opset: int
    functions: tuple[tuple[str, str], ...]
    sparse: tuple[str, ...]


def prepare(model: onnx.ModelProto) -> PreparedGraph:
    """Prepares a model without changing it.

    Raises:
        ArtifactError: no valid graph, in one line.
    """
    require_text(model)
    tensors: dict[str, TensorProto] = {}
    light = _without_weights(model, tensors)
    if model.functions:
        light = _native("inline_functions", light, "local functions cannot be inlined")
    _name_domains(light)
    require_structure(light)
    opset = standard_opset(light) or 0
    folded: dict[str, npt.NDArray[Any]] = {}
    for _ in range(MAX_ROUNDS):
        inferred = _native(
            "infer_shapes", _with_constants(light, folded) if folded else light, "the graph is not valid ONNX"
        )
        nodes = sort_nodes(light.graph)
        small = {name: value for name, tensor in tensors.items() if (value := small_value(tensor)) is not None}
        small.update(_constants(nodes, light.graph, tensors))
        found = fold(nodes, {**small, **folded}, _shapes(inferred.graph, tensors), opset)
        folded.update(found)
        if not _matter(found, nodes, folded):
            break
    del light.graph.value_info[:]
    light.graph.value_info.extend(inferred.graph.value_info)
    _copy_body_types(inferred.graph, light.graph)
    return PreparedGraph(
        graph=light.graph,
        nodes=nodes,
        tensors=tensors,
        folded=folded,
        opset=opset,
        functions=tuple((function.domain, function.name) for function in model.functions),
        sparse=tuple(sparse.values.name for sparse in model.graph.sparse_initializer),
    )


def small_value(tensor: TensorProto) -> npt.NDArray[Any] | None:
    """Returns the values of a tensor in the graph that is small enough for folding."""
    size = tensor_bytes(tensor)
    if tensor.data_location == TensorProto.EXTERNAL or size is None or size > MAX_ELEMENTS * 8:
        return None
    value = numpy_helper.to_array(tensor)
    return value if value.dtype.kind in "biuf" else None


def _without_weights(model: onnx.ModelProto, tensors: dict[str, TensorProto]) -> onnx.ModelProto:
    """Returns a copy with large tensors as inputs of the same name; collects every tensor by its name.

    Raises:
        ArtifactError: a tensor whose values do not fit its shape.
    """
    graph = model.graph
    light = onnx.ModelProto(ir_version=max(4, model.ir_version))  # from 4 on initialisers need not be inputs
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = graph.name
    inputs = {value.name: value for value in graph.input}
    aside: dict[str, ValueInfoProto] = {}
    for tensor in graph.initializer:
        _file(tensor, tensors)
        if _is_large(tensor):
            aside[tensor.name] = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        else:
            light.graph.initializer.append(tensor)
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        aside[name] = helper.make_tensor_value_info(name, sparse.values.data_type, sparse.dims)
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value" and a.type == AttributeProto.TENSOR), None)
        if (
            node.op_type == "Constant"
            and node.domain in STANDARD
            and value is not None
            and node.output
            and _is_large(value)
        ):
            _file(value, tensors, node.output[0])
            aside[node.output[0]] = helper.make_tensor_value_info(node.output[0], value.data_type, value.dims)
        else:
            light.graph.node.append(node)
    for node in light.graph.node:
        _strip_bodies(node, aside, tensors)
    light.graph.input.extend(value for name, value in inputs.items() if name not in aside)
    light.graph.input.extend(aside.values())
    light.graph.output.extend(graph.output)
    light.graph.value_info.extend(value for value in graph.value_info if value.name not in aside)
    return light


def _name_domains(model: onnx.ModelProto) -> None:
    """Imports the domains of nodes that the model does not import: inference would fail there, and lint reports them."""
    named = {entry.domain for entry in model.opset_import}
    pending = [model.graph]
    while pending:
        for node in pending.pop().node:
            pending += [body for attribute in node.attribute for body in attribute_bodies(attribute)]
            if node.domain not in named and node.domain not in STANDARD:
                named.add(node.domain)
                model.opset_import.append(helper.make_opsetid(node.domain, 1))


def _is_large(tensor: TensorProto) -> bool:
    size = tensor_bytes(tensor)
    return tensor.data_location == TensorProto.EXTERNAL or size is None or size > HELD_BYTES


def _file(tensor: TensorProto, tensors: dict[str, TensorProto], name: str | None = None) -> None:
    problem = tensor_problem(tensor)
    if problem:
        raise ArtifactError(f"the graph is not valid ONNX: initialiser {name or tensor.name} {problem}")
    tensors[name or tensor.name] = tensor


def _strip_bodies(node: NodeProto, aside: dict[str, ValueInfoProto], tensors: dict[str, TensorProto]) -> None:
    """Sets large initialisers of bodies aside too, as inputs of the graph around them."""
    pending = [body for attribute in node.attribute for body in attribute_bodies(attribute)]
    while pending:
        body = pending.pop()
        pending += [b for inner in body.node for attribute in inner.attribute for b in attribute_bodies(attribute)]
        kept = []
        for tensor in body.initializer:
            if _is_large(tensor) and tensor.name not in aside:
                _file(_copy(tensor), tensors)
                aside[tensor.name] = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            else:
                kept.append(_copy(tensor))
        del body.initializer[:]
        body.initializer.extend(kept)


def _copy(tensor: TensorProto) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    return copy


def _native(function: str, model: onnx.ModelProto, problem: str) -> onnx.ModelProto:
    try:
        return onnx.ModelProto.FromString(native.call(function, model.SerializeToString()))
    except native.NativeError as error:
        library = "ONNX's shape inference " if function == "infer_shapes" else "ONNX's inliner "
        raise ArtifactError(f"{problem}: {library if error.crashed else ''}{error}") from None


def _constants(
    nodes: tuple[NodeProto, ...], graph: onnx.GraphProto, tensors: dict[str, TensorProto]
) -> dict[str, npt.NDArray[Any]]:
    """Returns the values of Constant nodes and of initialisers of inlined functions; collects them too."""
    for tensor in graph.initializer:
        tensors.setdefault(tensor.name, tensor)
    found = {}
    for node in nodes:
        if node.op_type != "Constant" or node.domain not in STANDARD or node.output[0] in tensors:
            continue
        tensor = constant_tensor(node)
        if tensor is not None:
            tensors[node.output[0]] = tensor
            value = small_value(tensor)
            if value is not None:
                found[node.output[0]] = value
    return found


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """Returns the value of a Constant node, from any of its attributes; None for text and sparse values."""
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.type == AttributeProto.TENSOR:
            return attribute.t
        if attribute.name in ("value_float", "value_floats"):
            values: Any = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            return numpy_helper.from_array(np.asarray(values, np.float32))
        if attribute.name in ("value_int", "value_ints"):
            values = attribute.i if attribute.name == "value_int" else list(attribute.ints)
            return numpy_helper.from_array(np.asarray(values, np.int64))
    return None


def _with_constants(model: onnx.ModelProto, folded: Mapping[str, npt.NDArray[Any]]) -> onnx.ModelProto:
    """Returns a copy with folded tensors as initialisers, for shape inference."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = [node for node in model.graph.node if not all(name in folded or not name for name in node.output)]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    made = {name for node in nodes for name in node.output}
    copy.graph.initializer.extend(as_tensor(name, value) for name, value in folded.items() if name not in made)
    return copy


def _shapes(graph: onnx.GraphProto, tensors: Mapping[str, TensorProto]) -> Any:
    types = {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}

    def shape(name: str) -> tuple[int | str | None, ...] | None:
        if name in tensors:
            return tuple(tensors[name].dims)
        return type_shape(types[name].tensor_type) if name in types else None

    return shape


def type_shape(tensor: onnx.TypeProto.Tensor) -> tuple[int | str | None, ...] | None:
    """Returns the sizes of a tensor type: text for named dynamic axes, None for unknown ones; None without a rank."""
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim)


def _matter(found: Mapping[str, Any], nodes: tuple[NodeProto, ...], folded: Mapping[str, Any]) -> bool:
    """Returns True if shape inference would find more with these values: integers that an unfolded node reads."""
    integers = {name for name, value in found.items() if value.dtype.kind == "i"}
    return any(
        name in integers
        for node in nodes
        if not all(o in folded or not o for o in node.output)
        for name in node.input[1:]
    )


def _copy_body_types(source: onnx.GraphProto, target: onnx.GraphProto) -> None:
    """Copies the types that inference found inside of bodies."""
    by_output = {tuple(node.output): node for node in source.node}
    for node in target.node:
        twin = by_output.get(tuple(node.output))
        if twin is None:
            continue
        for mine, theirs in zip(node.attribute, twin.attribute, strict=False):
            for body, other in zip(attribute_bodies(mine), attribute_bodies(theirs), strict=False):
                del body.value_info[:]
                body.value_info.extend(other.value_info)
                _copy_body_types(other, body)
