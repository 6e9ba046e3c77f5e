"""Compares two graphs, whatever file they are from."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import numpy_helper


def graph_difference(fresh: onnx.ModelProto, found: onnx.ModelProto) -> str | None:
    """Describes the first difference of two graphs; None when they compute the same by the same nodes.

    Names of the producer, documentation, inferred shapes, the order of the weights and their files are no difference.

    Args:
        fresh: the graph as it should be, with its weights.
        found: the graph in question, with its weights.
    """
    for what, sides in (
        ("operator sets", [_opsets(m) for m in (fresh, found)]),
        ("local functions", [[f.SerializeToString(deterministic=True) for f in m.functions] for m in (fresh, found)]),
        ("inputs", [_values(m.graph.input) for m in (fresh, found)]),
        ("outputs", [_values(m.graph.output) for m in (fresh, found)]),
        ("sparse weights", [len(m.graph.sparse_initializer) for m in (fresh, found)]),
    ):
        if sides[0] != sides[1]:
            return f"its {what} differ"
    expected, there = fresh.graph.node, found.graph.node
    for node, other in zip(expected, there):
        if _node(node) != _node(other):
            return f"{other.op_type} {other.name} stands where {node.op_type} {node.name} should"
    if len(expected) != len(there):
        return f"it has {len(there)} nodes instead of {len(expected)}"
    weights = {tensor.name: tensor for tensor in fresh.graph.initializer}
    others = {tensor.name: tensor for tensor in found.graph.initializer}
    for name in sorted(weights.keys() ^ others.keys()):
        return f"weight {name} is {'missing' if name in weights else 'not of the checkpoint'}"
    for name, tensor in weights.items():
        if not _same_tensor(tensor, others[name]):
            return f"weight {name} differs"
    return None


def _opsets(model: onnx.ModelProto) -> list[tuple[str, int]]:
    return sorted((o.domain, o.version) for o in model.opset_import)


def _values(values: Iterable[onnx.ValueInfoProto]) -> list[tuple[str, bytes]]:
    return [(value.name, value.type.SerializeToString(deterministic=True)) for value in values]


def _node(node: onnx.NodeProto) -> bytes:
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    plain.doc_string = ""
    del plain.metadata_props[:]
    return plain.SerializeToString(deterministic=True)


def _same_tensor(a: onnx.TensorProto, b: onnx.TensorProto) -> bool:
    if a.data_type != b.data_type or a.dims != b.dims:
        return False
    if a.raw_data and b.raw_data:
        return a.raw_data == b.raw_data
    return numpy_helper.to_array(a).tobytes() == numpy_helper.to_array(b).tobytes()
