"""The products of a graph alone: what its latency could not go below, measured in the same way."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

PRODUCTS = ("MatMul", "Gemm", "Conv")
ZERO_POINT = 128  # ONNX Runtime on x86 turns INT8 activations into UINT8 of this zero point


def products_alone(model: onnx.ModelProto, seed: int = 0) -> tuple[bytes, dict[str, npt.NDArray[np.generic]]]:
    """A graph of every MatMul, Gemm and Conv of a model with its shapes at batch 1 and its weights.

    Quantized products take integer activations and keep their bias, so that they run as the one integer operator they are
    in the model. Inputs of the same shape are shared; of every product one element is an output.

    Args:
        model: exported, the batch its only symbolic size.
        seed: of the inputs.

    Returns:
        the serialized graph, and its inputs.
    """
    model = _of_batch_one(model)
    graph = model.graph
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    weights = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes: list[onnx.NodeProto] = []
    used: dict[str, onnx.TensorProto] = {}
    inputs: dict[str, tuple[int, list[int]]] = {}
    outputs: list[onnx.ValueInfoProto] = []

    def activation(name: str) -> str:
        source = producers.get(name)
        if source is None or source.op_type != "DequantizeLinear":
            label = "float_" + "x".join(map(str, shapes[name]))
            inputs[label] = (TensorProto.FLOAT, shapes[name])
            return label
        label = "uint8_" + "x".join(map(str, shapes[name]))
        inputs[label] = (TensorProto.UINT8, shapes[name])
        used["zero_point"] = numpy_helper.from_array(np.array(ZERO_POINT, np.uint8), "zero_point")
        used[source.input[1]] = weights[source.input[1]]
        nodes.append(helper.make_node("DequantizeLinear", [label, source.input[1], "zero_point"], [f"{name}_alone"]))
        return f"{name}_alone"

    def operand(name: str) -> str:
        source = producers.get(name)
        if name in weights:
            used[name] = weights[name]
        elif source is not None and source.op_type == "DequantizeLinear" and source.input[0] in weights:
            used.update({n: weights[n] for n in source.input})
            if source not in nodes:
                nodes.append(source)
        else:
            return activation(name)
        return name

    for node in [n for n in graph.node if n.op_type in PRODUCTS]:
        product = onnx.NodeProto()
        product.CopyFrom(node)
        product.input[:] = [operand(name) for name in node.input]
        nodes.append(product)
        result = node.output[0]
        bias = [r for r in readers.get(result, []) if r.op_type == "Add" and any(i in weights for i in r.input)]
        if len(bias) == 1 and node.op_type == "MatMul":
            nodes.append(bias[0])
            used.update({n: weights[n] for n in bias[0].input if n in weights})
            result = bias[0].output[0]
        rank = len(shapes[result])
        every, zeros, ones = (f"{name}_{rank}" for name in ("axes", "zeros", "ones"))
        used[every] = numpy_helper.from_array(np.arange(rank), every)
        used[zeros] = numpy_helper.from_array(np.zeros(rank, np.int64), zeros)
        used[ones] = numpy_helper.from_array(np.ones(rank, np.int64), ones)
        element = f"{result}_element"
        nodes.append(helper.make_node("Slice", [result, zeros, ones, every], [element]))
        outputs.append(helper.make_tensor_value_info(element, TensorProto.FLOAT, [1] * rank))
    alone = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        outputs,
        list(used.values()),
    )
    made = helper.make_model(alone, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    rng = np.random.default_rng(seed)
    feeds: dict[str, npt.NDArray[np.generic]] = {}
    for name, (kind, shape) in inputs.items():
        floats = rng.standard_normal(shape, dtype=np.float32)
        feeds[name] = floats if kind == TensorProto.FLOAT else rng.integers(0, 256, shape, dtype=np.uint8)
    return made.SerializeToString(), feeds


def _of_batch_one(model: onnx.ModelProto) -> onnx.ModelProto:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return onnx.shape_inference.infer_shapes(fixed, data_prop=True)
