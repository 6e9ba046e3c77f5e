"""Rewrites an INT8 graph, when it is loaded, into operators that only ONNX Runtime has; the stored graph stays that of TensorRT.

ONNX Runtime itself turns a quantized product into its MatMulIntegerToFloat, but leaves the bias as an Add, and fuses that Add
with a following Gelu into a BiasGelu that is slower than both. MatMulIntegerToFloat adds a bias at no cost.
"""

from __future__ import annotations

import importlib
import platform
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DOMAIN = "com.microsoft"
X86 = ("x86_64", "AMD64", "x86", "i386", "i686")
ZERO, ZERO_POINT = "integer_products_zero", 128


@dataclass(frozen=True)
class Product:
    """A product of a quantized activation with quantized weights.

    Attributes:
        multiply: the MatMul.
        activation, weight: its DequantizeLinear nodes.
        add: of the bias, None without.
        bias: name of the vector that is added, empty without.
    """

    multiply: Any
    activation: Any
    weight: Any
    add: Any
    bias: str


def rewritten(model: Path | bytes) -> bytes | None:
    """Returns a graph of the same arithmetic whose quantized products add their own bias.

    Activations become UINT8 with zero point 128, as ONNX Runtime makes them on this processor in any case.

    Args:
        model: file, or the serialized model.

    Returns:
        The serialized graph; None where nothing is to be gained: no x86 processor, no package onnx, no model, no product
        with a bias, weights in a file of their own, or graphs inside nodes, which may read any value.
    """
    if platform.machine() not in X86:
        return None
    try:
        onnx = importlib.import_module("onnx")
        data = model.read_bytes() if isinstance(model, Path) else model
        loaded = onnx.ModelProto.FromString(data)
    except (ImportError, OSError, ValueError, RuntimeError):
        return None  # ONNX Runtime opens the file itself and says what is wrong
    except Exception as error:
        if type(error).__name__ == "DecodeError":  # of protobuf, whose module differs between its versions
            return None
        raise
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in loaded.graph.initializer):
        return None
    if any(a.HasField("g") or a.graphs for node in loaded.graph.node for a in node.attribute):
        return None
    graph = _Graph(onnx, loaded.graph)
    found = [pair for node in graph.nodes for pair in graph.products_of(node)]
    if not any(product.bias for _, product in found):
        return None
    graph.replace(found)
    if DOMAIN not in {opset.domain for opset in loaded.opset_import}:
        loaded.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return bytes(loaded.SerializeToString())


class _Graph:
    """A graph with its constants, and the readers and producers of its values."""

    def __init__(self, onnx: Any, graph: Any) -> None:
        self.onnx, self.graph = onnx, graph
        self.nodes = list(graph.node)  # keeps each node one object, so that its id names it
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)

    def products_of(self, quantize: Any) -> Iterator[tuple[Any, Product]]:
        """Yields a QuantizeLinear with each product that reads it, if nothing but products reads it."""
        if quantize.op_type != "QuantizeLinear" or not self._per_tensor(quantize) or self._leaves(quantize):
            return
        found = []
        for dequantize in self.readers[quantize.output[0]]:
            if not self._per_tensor(dequantize) or dequantize.input[0] != quantize.output[0]:
                return
            if dequantize.op_type != "DequantizeLinear" or self._leaves(dequantize):
                return
            for reader in self.readers[dequantize.output[0]]:
                product = self._product(reader, dequantize)
                if product is None:
                    return
                found.append((quantize, product))
        yield from found

    def _product(self, multiply: Any, activation: Any) -> Product | None:
        if multiply.op_type != "MatMul" or multiply.input[0] != activation.output[0]:
            return None
        weight = self.producers.get(multiply.input[1])
        if weight is None or weight.op_type != "DequantizeLinear" or not self._per_column(weight):
            return None
        readers = self.readers[multiply.output[0]]
        add = readers[0] if len(readers) == 1 and readers[0].op_type == "Add" and not self._leaves(multiply) else None
        width = self.constants[weight.input[0]].dims[1]
        bias = "" if add is None else next((name for name in add.input if self._is_vector(name, width)), "")
        return Product(multiply, activation, weight, add if bias else None, bias)

    def _leaves(self, node: Any) -> bool:
        return not self.outputs.isdisjoint(node.output)

    def _is_vector(self, name: str, width: int) -> bool:
        tensor = self.constants.get(name)
        return tensor is not None and tensor.data_type == self.onnx.TensorProto.FLOAT and list(tensor.dims) == [width]

    def _has_no_zero_point(self, node: Any) -> bool:
        """Returns whether a node's zero point is an INT8 zero, or zeros."""
        tensor = self.constants.get(node.input[2]) if len(node.input) == 3 else None
        if tensor is None or tensor.data_type != self.onnx.TensorProto.INT8:
            return False
        return not self.onnx.numpy_helper.to_array(tensor).any()

    def _per_tensor(self, node: Any) -> bool:
        scale = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        if scale is None or scale.data_type != self.onnx.TensorProto.FLOAT or scale.dims:
            return False
        return self._has_no_zero_point(node)

    def _per_column(self, node: Any) -> bool:
        """Returns whether a DequantizeLinear gives a matrix (K, N) of INT8 constants with one scale per column."""
        weight, scale = (self.constants.get(name) for name in node.input[:2])
        if weight is None or scale is None or len(weight.dims) != 2 or self._leaves(node):
            return False
        types = (weight.data_type, scale.data_type)
        if types != (self.onnx.TensorProto.INT8, self.onnx.TensorProto.FLOAT):
            return False
        others = {a.name: a.i for a in node.attribute}
        axis = others.pop("axis", 1)
        if axis not in (1, -1) or others.pop("block_size", 0) or others:
            return False
        if len(node.input) > 2 and node.input[2] and not self._has_no_zero_point(node):
            return False
        return list(scale.dims) == [weight.dims[1]]

    def replace(self, found: list[tuple[Any, Product]]) -> None:
        """Replaces products and their biases; ONNX Runtime would run nodes that nothing reads any more."""
        self.graph.initializer.append(self.onnx.numpy_helper.from_array(np.array(ZERO_POINT, np.uint8), ZERO))
        replaced = {id(product.multiply) for _, product in found}
        gone, retyped = set(), set()
        for quantize, product in found:
            multiply, weight = product.multiply, product.weight
            quantize.input[2] = ZERO
            retyped.add(quantize.output[0])
            operands = [quantize.output[0], weight.input[0], product.activation.input[1], weight.input[1], ZERO]
            gone.add(id(product.activation))
            if all(id(reader) in replaced for reader in self.readers[weight.output[0]]):
                gone.add(id(weight))
            if product.bias:
                operands += ["", product.bias]
                multiply.output[0] = product.add.output[0]
                gone.add(id(product.add))
            multiply.op_type, multiply.domain = "MatMulIntegerToFloat", DOMAIN
            multiply.input[:] = operands
        for number, node in reversed(list(enumerate(self.nodes))):
            if id(node) in gone:
                del self.graph.node[number]
        left = {name for node in self.graph.node for name in node.output} - retyped
        for number in reversed(range(len(self.graph.value_info))):
            if self.graph.value_info[number].name not in left:
                del self.graph.value_info[number]
