"""Graph rewrites that use knowledge of the model: fewer, cheaper operators with the same results."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def rewrite(model: onnx.ModelProto) -> onnx.ModelProto:
    """Applies all rewrites in place and returns the model with its intermediate shapes inferred again."""
    _gather_rows(model)
    _sort_top_k(model)
    _fold_norms(model.graph)
    drop_unused(model.graph)
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def _gather_rows(model: onnx.ModelProto) -> None:
    """Replaces GatherElements over an index expanded to every channel by GatherND, which copies whole rows.

    GatherElements(x (B, N, C), Expand(Unsqueeze(i (B, K), -1))) equals GatherND(x, Unsqueeze(i, -1), batch_dims=1), without
    an index C times as large and without the shape arithmetic of the expansion.
    """
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
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
        if axes is None or numpy_helper.to_array(axes).tolist() not in ([-1], [2]) or not whole_rows:
            continue
        gather = helper.make_node(
            "GatherND", [node.input[0], unsqueeze.output[0]], list(node.output), name=node.name, batch_dims=1
        )
        node.CopyFrom(gather)


def _sort_top_k(model: onnx.ModelProto) -> None:
    """Sets TopK to sorted, the only form that TensorRT's parser takes, and its input to a type that TopK has in every opset.

    The order of the kept patches changes no result; bfloat16 is a type of TopK from opset 24 on, and float32 holds its values.
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    for number, node in reversed(list(enumerate(model.graph.node))):
        if node.op_type != "TopK":
            continue
        for attribute in node.attribute:
            if attribute.name == "sorted":
                attribute.i = 1
        if types.get(node.input[0]) == onnx.TensorProto.BFLOAT16:
            name = f"{node.name}_scores"
            cast = helper.make_node(
                "Cast", [node.input[0]], [name], name=f"{node.name}_cast", to=onnx.TensorProto.FLOAT
            )
            node.input[0] = name
            model.graph.node.insert(number, cast)


def _fold_norms(graph: onnx.GraphProto) -> None:
    """Folds a batch norm after a convolution with INT8 weights into their scales: exact, and one operator less.

    norm(conv(x, s w) + c) = conv(x, |g| s sign(g) w) + b + (c - mean) g, with g = gamma / sqrt(variance + epsilon) per
    output channel.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = producers.get(norm.input[0])
        weight = producers.get(conv.input[1]) if conv is not None and conv.op_type == "Conv" else None
        if conv is None or weight is None or weight.op_type != "DequantizeLinear":
            continue
        names = [*weight.input[:2], *norm.input[1:], *conv.input[2:]]
        if any(name not in constants for name in names) or _readers(graph, conv.output[0]) != 1:
            continue
        stored, scale, gamma, beta, mean, variance, *bias = (numpy_helper.to_array(constants[name]) for name in names)
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        g = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        shift = beta + ((bias[0] if bias else 0.0) - mean) * g
        sign = np.where(g < 0, -1, 1).astype(np.int8).reshape(-1, *[1] * (stored.ndim - 1))
        zero = (g == 0).reshape(
            sign.shape
        )  # a dead channel keeps its scale, which must not be 0, and loses its weights
        folded = {
            names[0]: np.where(zero, 0, stored * sign).astype(np.int8),
            names[1]: np.where(g == 0, scale, np.abs(g) * scale).astype(scale.dtype),
            f"{norm.name}_shift": shift.astype(scale.dtype),
        }
        for name, value in folded.items():
            tensor = numpy_helper.from_array(value, name)
            constants[name].CopyFrom(tensor) if name in constants else graph.initializer.append(tensor)
        del conv.input[2:]
        conv.input.append(f"{norm.name}_shift")
        conv.output[0] = norm.output[0]
        graph.node.remove(norm)


def _readers(graph: onnx.GraphProto, name: str) -> int:
    return sum(name in node.input for node in graph.node) + sum(output.name == name for output in graph.output)


def drop_unused(graph: onnx.GraphProto) -> None:
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
