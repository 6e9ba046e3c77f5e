"""The products of a graph alone: a lower bound of its latency, measured in the same way."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

PRODUCTS = ("MatMul", "Gemm", "Conv")
ZERO_POINT = 128  # ONNX Runtime on x86 converts INT8 activations to UINT8 with this zero point


Feeds = dict[str, npt.NDArray[np.generic]]


def products_alone(model: onnx.ModelProto, seed: int = 0) -> tuple[bytes, Feeds]:
    """Returns a graph of every MatMul, Gemm and Conv of a model with its shapes at batch 1 and its weights.

    Quantized products take integer activations and keep their bias, so that they run as the one integer operator that
    they are in the model. Inputs of the same shape are shared; of every product one element is an output.

    Args:
        model: exported, the batch its only symbolic size.
        seed: of the inputs.

    Returns:
        the serialized graph, and its inputs.
    """
    products = _Products(_of_batch_one(model))
    for node in products.source.graph.node:
        if node.op_type in PRODUCTS:
            products.add(node)
    return products.model().SerializeToString(), products.feeds(seed)


class _Products:
    """Collects products of a graph of batch 1."""

    def __init__(self, source: onnx.ModelProto) -> None:
        graph = source.graph
        self.source = source
        self.shapes = {
            value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in (*graph.value_info, *graph.input, *graph.output)
        }
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {output: node for node in graph.node for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.nodes: list[onnx.NodeProto] = []
        self.used: dict[str, onnx.TensorProto] = {}
        self.inputs: dict[str, tuple[int, list[int]]] = {}
        self.outputs: list[onnx.ValueInfoProto] = []

    def add(self, node: onnx.NodeProto) -> None:
        """Adds a product, with its bias if it is a MatMul, and one element of its result as an output."""
        product = onnx.NodeProto()
        product.CopyFrom(node)
        product.input[:] = [self._operand(name) for name in node.input]
        self.nodes.append(product)
        result = node.output[0]
        bias = [
            r for r in self.readers.get(result, []) if r.op_type == "Add" and any(i in self.weights for i in r.input)
        ]
        if len(bias) == 1 and node.op_type == "MatMul":
            self.nodes.append(bias[0])
            self.used.update({n: self.weights[n] for n in bias[0].input if n in self.weights})
            result = bias[0].output[0]
        self._output_element(result)

    def _operand(self, name: str) -> str:
        source = self.producers.get(name)
        if name in self.weights:
            self.used[name] = self.weights[name]
        elif source is not None and source.op_type == "DequantizeLinear" and source.input[0] in self.weights:
            self.used.update({n: self.weights[n] for n in source.input})
            if source not in self.nodes:
                self.nodes.append(source)
        else:
            return self._activation(name)
        return name

    def _activation(self, name: str) -> str:
        source, shape = self.producers.get(name), self.shapes[name]
        quantized = source is not None and source.op_type == "DequantizeLinear"
        label = ("uint8_" if quantized else "float_") + "x".join(map(str, shape))
        self.inputs[label] = (TensorProto.UINT8 if quantized else TensorProto.FLOAT, shape)
        if source is None or not quantized:
            return label
        scale = source.input[1]
        self.used["zero_point"] = numpy_helper.from_array(np.array(ZERO_POINT, np.uint8), "zero_point")
        self.used[scale] = self.weights[scale]
        self.nodes.append(helper.make_node("DequantizeLinear", [label, scale, "zero_point"], [f"{name}_alone"]))
        return f"{name}_alone"

    def _output_element(self, name: str) -> None:
        rank = len(self.shapes[name])
        constants = {"axes": np.arange(rank), "zeros": np.zeros(rank, np.int64), "ones": np.ones(rank, np.int64)}
        for kind, value in constants.items():
            self.used[f"{kind}_{rank}"] = numpy_helper.from_array(value, f"{kind}_{rank}")
        slices = [f"{kind}_{rank}" for kind in ("zeros", "ones", "axes")]
        self.nodes.append(helper.make_node("Slice", [name, *slices], [f"{name}_element"]))
        self.outputs.append(helper.make_tensor_value_info(f"{name}_element", TensorProto.FLOAT, [1] * rank))

    def model(self) -> onnx.ModelProto:
        """Returns the graph of the products added so far."""
        inputs = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in self.inputs.items()]
        graph = helper.make_graph(self.nodes, "products", inputs, self.outputs, list(self.used.values()))
        opsets = list(self.source.opset_import)
        return helper.make_model(graph, opset_imports=opsets, ir_version=self.source.ir_version)

    def feeds(self, seed: int) -> Feeds:
        """Returns random inputs."""
        rng = np.random.default_rng(seed)
        found: Feeds = {}
        for name, (kind, shape) in self.inputs.items():
            floats = rng.standard_normal(shape, dtype=np.float32)
            found[name] = floats if kind == TensorProto.FLOAT else rng.integers(0, 256, shape, dtype=np.uint8)
        return found


def _of_batch_one(model: onnx.ModelProto) -> onnx.ModelProto:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return onnx.shape_inference.infer_shapes(fixed, data_prop=True)
