"""Graph rewrites that need to know the model: fewer, cheaper operators of the same meaning."""

from __future__ import annotations

import onnx
from onnx import helper, numpy_helper


def rewrite(model: onnx.ModelProto) -> onnx.ModelProto:
    """Applies all rewrites in place and returns the model, its intermediate shapes inferred anew."""
    _gather_rows(model)
    _drop_unused(model.graph)
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def _gather_rows(model: onnx.ModelProto) -> None:
    """GatherElements over an index expanded to every channel becomes GatherND, which copies whole rows.

    GatherElements(x (B, N, C), Expand(Unsqueeze(i (B, K), -1))) equals GatherND(x, Unsqueeze(i, -1), batch_dims=1), without
    an index C times as large and without the shape arithmetic of the expansion.
    """
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type != "GatherElements" or not any(a.name == "axis" and a.i == 1 for a in node.attribute):
            continue
        expand = producers.get(node.input[1])
        unsqueeze = producers.get(expand.input[0]) if expand is not None and expand.op_type == "Expand" else None
        if unsqueeze is None or unsqueeze.op_type != "Unsqueeze":
            continue
        axes = constants.get(unsqueeze.input[1])
        source, result = shapes.get(node.input[0], []), shapes.get(node.output[0], [])
        whole_rows = len(source) == len(result) == 3 and source[2] == result[2] > 0
        if axes is None or axes.tolist() not in ([-1], [2]) or not whole_rows:
            continue
        gather = helper.make_node(
            "GatherND", [node.input[0], unsqueeze.output[0]], list(node.output), name=node.name, batch_dims=1
        )
        node.CopyFrom(gather)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Removes nodes and initialisers that no output depends on."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    kept.reverse()
    del graph.node[:]
    graph.node.extend(kept)
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
