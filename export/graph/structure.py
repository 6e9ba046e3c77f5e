"""Checks that a protobuf is a valid graph; every later step relies on it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import onnx
from onnx import AttributeProto, NodeProto, TensorProto

from gft_edge.errors import ArtifactError

STANDARD = ("", "ai.onnx")
"""Names of ONNX's own domain."""

MAX_OPSET = 1000
"""Above every real one; ONNX's functions take 32 bits."""

_PACKED_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
_FIELDS = {
    "FLOAT": "float_data",
    "COMPLEX64": "float_data",
    "DOUBLE": "double_data",
    "COMPLEX128": "double_data",
    "INT64": "int64_data",
    "UINT32": "uint64_data",
    "UINT64": "uint64_data",
    "STRING": "string_data",
}
"""Field of a type's values outside of ``raw_data``; all other types use ``int32_data``."""


def tensor_bytes(tensor: TensorProto) -> int | None:
    """Returns the size of a tensor's raw data; None where the type has no fixed size or is unknown."""
    count = math.prod(tensor.dims)
    try:
        name = TensorProto.DataType.Name(tensor.data_type)
    except ValueError:
        return None
    if name in _PACKED_BITS:
        return -(-count * _PACKED_BITS[name] // 8)
    try:
        return (
            count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize) if name != "STRING" else None
        )
    except KeyError:
        return None


def tensor_problem(tensor: TensorProto) -> str | None:
    """Returns the reason why a tensor's values cannot be read, or None."""
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        return f"has the unknown data type {tensor.data_type}"
    if any(size < 0 for size in tensor.dims):
        return f"has the shape {list(tensor.dims)}"
    if tensor.data_location == TensorProto.EXTERNAL:
        return None
    expected = tensor_bytes(tensor)
    if tensor.HasField("raw_data"):
        if expected is not None and len(tensor.raw_data) != expected:
            return f"holds {len(tensor.raw_data)} bytes, its shape {list(tensor.dims)} needs {expected}"
        return None
    count = math.prod(tensor.dims)
    name = TensorProto.DataType.Name(tensor.data_type)
    found = len(getattr(tensor, _FIELDS.get(name, "int32_data")))
    needed = -(-count * _PACKED_BITS[name] // 8) if name in _PACKED_BITS else count * (2 if "COMPLEX" in name else 1)
    if found != needed and not (name in _PACKED_BITS and found == count):
        return f"holds {found} values, its shape {list(tensor.dims)} needs {needed}"
    return None


def require_text(model: onnx.ModelProto) -> None:
    """Refuses names that are no text: protobuf returns them as bytes, and later steps would fail.

    Raises:
        ArtifactError: with the first of them.
    """
    graphs: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    names: list[object] = [entry.domain for entry in model.opset_import]
    while graphs:
        graph = graphs.pop()
        names.append(graph.name)
        if isinstance(graph, onnx.GraphProto):
            values = (*graph.input, *graph.output, *graph.value_info)
            names += [value.name for value in values]
            names += [dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim]
            names += [tensor.name for tensor in graph.initializer]
            names += [sparse.values.name for sparse in graph.sparse_initializer]
        else:
            names += [graph.domain, *graph.input, *graph.output, *graph.attribute]
        for node in graph.node:
            names += [node.op_type, node.domain, node.name, *node.input, *node.output]
            for attribute in node.attribute:
                names += [attribute.name, attribute.ref_attr_name]
                graphs += attribute_bodies(attribute)
    odd = next((name for name in names if not isinstance(name, str)), None)
    if odd is not None:
        raise ArtifactError(f"the graph is not valid ONNX: the name {odd!r} is not UTF-8 text; is the file damaged?")


def require_structure(model: onnx.ModelProto) -> None:
    """Refuses invalid graphs: no operator set, nodes without outputs or inputs, damaged tensors, tensors without a maker, cycles.

    Raises:
        ArtifactError: with the first problem and the node or tensor.
    """
    opset = standard_opset(model)
    if not model.opset_import:
        raise ArtifactError("the graph names no operator set (opset_import), so its operators have no meaning")
    if opset is not None and not 1 <= opset <= MAX_OPSET:
        raise ArtifactError(f"the graph names operator set {opset}, which does not exist")
    pending: list[tuple[onnx.GraphProto, frozenset[str]]] = [(model.graph, frozenset([""]))]
    while pending:
        graph, around = pending.pop()
        known = around | _given(graph)
        for tensor in graph.initializer:
            _require_tensor(tensor, f"initialiser {tensor.name}")
        for sparse in graph.sparse_initializer:
            _require_tensor(sparse.values, f"sparse initialiser {sparse.values.name}")
        for node in graph.node:
            lost = next((name for name in node.input if name not in known), None)
            problem = node_problem(node, opset) or (lost is not None and f"reads {lost}, which no node makes")
            if problem:
                raise ArtifactError(f"the graph is not valid ONNX: {node_label(node)} {problem}")
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    _require_tensor(attribute.t, f"{node_label(node)}, attribute {attribute.name}")
                pending += [(body, known) for body in attribute_bodies(attribute)]
        for value in graph.output:
            if value.name not in known:
                raise ArtifactError(f"the graph is not valid ONNX: no node makes output {value.name}")
        sort_nodes(graph)


def _given(graph: onnx.GraphProto) -> frozenset[str]:
    """Returns the names of the tensors in a graph, without those of graphs around it."""
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    names |= {sparse.values.name for sparse in graph.sparse_initializer}
    return frozenset(names.union(*(node.output for node in graph.node)))


def standard_opset(model: onnx.ModelProto) -> int | None:
    """Returns the version of ONNX's own operators; None where only other domains are named."""
    return next((entry.version for entry in model.opset_import if entry.domain in STANDARD), None)


def node_label(node: NodeProto) -> str:
    """Returns the label of a node in messages: its operator, and its name or else its first output."""
    name = node.name or next((output for output in node.output if output), "")
    return f"{node.op_type} {name}".strip()


def _require_tensor(tensor: TensorProto, what: str) -> None:
    problem = tensor_problem(tensor)
    if problem:
        raise ArtifactError(f"the graph is not valid ONNX: {what} {problem}")


def node_problem(node: NodeProto, opset: int | None) -> str | None:
    """Returns the reason why a node is invalid, or None; operators unknown to ONNX get fewer checks."""
    if not node.op_type:
        return "has no operator"
    if not any(node.output):
        return "has no output"
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            return f"takes its attribute {attribute.name} from a function outside of it"
        if attribute.type == AttributeProto.UNDEFINED:
            return f"has the attribute {attribute.name} without a type"
    if node.domain not in STANDARD or opset is None:
        return None
    schema = _schema(node.op_type, opset)
    if schema is None:
        return None
    counts = (
        (len(node.input), schema.min_input, schema.max_input, "inputs"),
        (len(node.output), schema.min_output, schema.max_output, "outputs"),
    )
    for count, low, high, what in counts:
        if not low <= count <= high:
            needed = str(low) if low == high else f"{low} or more" if high > 1000 else f"{low} to {high}"
            return f"has {count} {what}; {node.op_type} of opset {opset} has {needed}"
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    for name, parameter in zip(node.input, schema.inputs, strict=False):
        if not name and parameter.option == single:
            return f"has no input {parameter.name}"
    for attribute in node.attribute:
        known = schema.attributes.get(attribute.name)
        if known is not None and int(known.type.value) != attribute.type:
            kind = AttributeProto.AttributeType.Name(attribute.type)
            return f"has an attribute {attribute.name} of type {kind} instead of {known.type.name}"
    missing = [name for name, known in schema.attributes.items() if known.required and not _has(node, name)]
    if missing:
        return f"has no attribute {missing[0]}"
    if node.op_type == "Split":
        parts = next((a.i for a in node.attribute if a.name == "num_outputs"), len(node.output))
        if parts != len(node.output):
            return f"has {len(node.output)} outputs and num_outputs {parts}"
    return None


@functools.cache
def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    """Returns the operator of an opset; its newest form where it is younger, since importers read the name alone."""
    for known in ((op_type, opset, ""), (op_type, "")):
        try:
            return onnx.defs.get_schema(*known)
        except onnx.defs.SchemaError:
            continue
    return None


def _has(node: NodeProto, name: str) -> bool:
    return any(attribute.name == name for attribute in node.attribute)


def attribute_bodies(attribute: AttributeProto) -> Iterator[onnx.GraphProto]:
    """Yields the graphs in an attribute: branches of If, bodies of Loop and Scan."""
    if attribute.type == AttributeProto.GRAPH:
        yield attribute.g
    elif attribute.type == AttributeProto.GRAPHS:
        yield from attribute.graphs


def captured(node: NodeProto) -> frozenset[str]:
    """Returns the names that the bodies of a node read from the graph around it."""
    found: set[str] = set()
    pending = [body for attribute in node.attribute for body in attribute_bodies(attribute)]
    while pending:
        body = pending.pop()
        own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        own |= {output for inner in body.node for output in inner.output}
        used = {name for inner in body.node for name in inner.input} | {value.name for value in body.output}
        found |= used - own - {""}
        pending += [b for inner in body.node for attribute in inner.attribute for b in attribute_bodies(attribute)]
    return frozenset(found)


def sort_nodes(graph: onnx.GraphProto) -> tuple[NodeProto, ...]:
    """Sorts the nodes: each after those it reads, in the file's order where that is sorted.

    Raises:
        ArtifactError: a tensor made twice, or nodes that read in a circle.
    """
    nodes: Sequence[NodeProto] = graph.node
    made: dict[str, int] = {}
    given = {tensor.name for tensor in graph.initializer}
    for number, node in enumerate(nodes):
        for output in node.output:
            if output and (output in made or output in given):
                raise ArtifactError(
                    f"the graph is not valid ONNX: {node_label(node)} makes {output}, which exists already"
                )
            made[output] = number
    made.pop("", None)
    before = [{made[name] for name in (*node.input, *captured(node)) if name in made} for node in nodes]
    if all(all(other < number for other in others) for number, others in enumerate(before)):
        return tuple(nodes)
    after: dict[int, list[int]] = {}
    for number, others in enumerate(before):
        for other in others:
            after.setdefault(other, []).append(number)
    open_ones = [len(others) for others in before]
    ready = [number for number in range(len(nodes) - 1, -1, -1) if not open_ones[number]]
    ordered: list[int] = []
    while ready:
        ordered.append(number := ready.pop())
        for reader in after.get(number, ()):
            open_ones[reader] -= 1
            if not open_ones[reader]:
                ready.append(reader)
    if len(ordered) < len(nodes):
        raise ArtifactError(f"the graph is not valid ONNX: {_circle(nodes, before, set(ordered))}")
    return tuple(nodes[number] for number in ordered)


def _circle(nodes: Sequence[NodeProto], before: Sequence[set[int]], done: set[int]) -> str:
    number = next(n for n in range(len(nodes)) if n not in done)
    seen: list[int] = []
    while number not in seen:
        seen.append(number)
        number = next(other for other in before[number] if other not in done)
    circle = [node_label(nodes[n]) for n in seen[seen.index(number) :]]
    if len(circle) == 1:
        return f"{circle[0]} reads its own output"
    return f"{circle[0]} reads its own output through {', '.join(circle[1:3])}"


def execution_order(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Returns the nodes of a graph; nodes that read only weights stand right before the first node that reads them."""
    computed = {value.name for value in graph.input}
    waiting: dict[str, onnx.NodeProto] = {}
    order: list[onnx.NodeProto] = []

    def emit(name: str) -> None:
        node = waiting.get(name)
        if node is None:
            return
        for output in node.output:
            waiting.pop(output, None)
        for read in node.input:
            emit(read)
        order.append(node)

    for node in graph.node:
        if computed.isdisjoint(node.input):
            waiting.update(dict.fromkeys(node.output, node))
            continue
        for name in node.input:
            emit(name)
        order.append(node)
        computed.update(filter(None, node.output))
    for name in list(waiting):
        emit(name)
    return order
