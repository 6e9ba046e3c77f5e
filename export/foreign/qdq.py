"""Writes Q/DQ pairs into a foreign graph, in the form of our own export: see :mod:`gft_edge.export.onnx.quantized`.

Symmetric with explicit zero zero-points, activations per tensor, weights per output channel as INT8 initialisers of (in, out), the
bias in float. A Gemm becomes MatMul and Add: ONNX Runtime runs a Gemm in INT8 only with a quantized bias, which TensorRT refuses.
Everything else of the graph stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from gft_edge.errors import ArtifactError
from gft_edge.export.foreign.pattern import weight_values
from gft_edge.export.foreign.vit_parts import Linear
from gft_edge.export.graph.structure import node_label
from gft_edge.export.graph.view import GraphView, attribute
from gft_edge.quant.levels import QMAX, QMIN, SMALLEST_RANGE


@dataclass(frozen=True)
class QuantizedLinear:
    """A linear layer to quantize.

    Attributes:
        name: of the new tensors.
        linear: the layer.
        range: largest magnitude of its input; None leaves the input in float.
    """

    name: str
    linear: Linear
    range: float | None


def insert_qdq(model: onnx.ModelProto, graph: GraphView, layers: Sequence[QuantizedLinear]) -> None:
    """Quantizes linear layers of a model in place and drops the weights that nothing reads any more.

    Args:
        model: with all weights, at least opset 13, without local functions.
        graph: the view of it that the layers were found in.
        layers: which, each once.

    Raises:
        ArtifactError: weights that are no float32 matrix, or not finite.
    """
    writer = _Writer(model, graph)
    wanted = {layer.linear.output: layer for layer in layers}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        layer = wanted.get(node.output[0]) if node.output else None
        nodes += [node] if layer is None else writer.quantized(node, layer)
    nodes = _without_dead(nodes, model.graph)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


class _Writer:
    """New nodes and initialisers of one model."""

    def __init__(self, model: onnx.ModelProto, graph: GraphView) -> None:
        self.model, self.graph = model, graph
        self.used = {name for node in model.graph.node for name in (*node.input, *node.output)}
        self.used |= {tensor.name for tensor in model.graph.initializer}
        self.quantizers: dict[str, tuple[str, str, str]] = {}

    def quantized(self, node: NodeProto, layer: QuantizedLinear) -> list[NodeProto]:
        """Returns the nodes in place of a linear layer."""
        linear = layer.linear
        before, x = ([], linear.input) if layer.range is None else self._activation(layer, layer.range)
        weight, w = self._weight(node, layer)
        nodes = [*before, weight]
        bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
        if not bias:
            return [*nodes, helper.make_node("MatMul", [x, w], [linear.output], node.name or layer.name)]
        beta = float(attribute(node, "beta", 1.0))
        if beta != 1.0:
            scaled = self._fresh(f"{layer.name}.bias_scaled")
            factor = self._initializer(f"{layer.name}.beta", np.float32(beta))
            nodes.append(helper.make_node("Mul", [bias, factor], [scaled], f"{layer.name}.bias_scaled"))
            bias = scaled
        product = self._fresh(f"{layer.name}.product")
        nodes.append(helper.make_node("MatMul", [x, w], [product], node.name or layer.name))
        return [*nodes, helper.make_node("Add", [product, bias], [linear.output], f"{layer.name}.bias")]

    def _activation(self, layer: QuantizedLinear, largest: float) -> tuple[list[NodeProto], str]:
        """Returns nodes and the rounded input; layers that read one tensor share its QuantizeLinear."""
        nodes, x = [], layer.linear.input
        if x not in self.quantizers:
            scale = self._initializer(f"{layer.name}.input_scale", np.float32(max(largest, SMALLEST_RANGE) / QMAX))
            zero = self._initializer(f"{layer.name}.input_zero", np.int8(0))
            levels = self._fresh(f"{layer.name}.input_int8")
            nodes.append(helper.make_node("QuantizeLinear", [x, scale, zero], [levels], f"{layer.name}.input_q"))
            self.quantizers[x] = (levels, scale, zero)
        rounded = self._fresh(f"{layer.name}.input_rounded")
        nodes.append(helper.make_node("DequantizeLinear", self.quantizers[x], [rounded], f"{layer.name}.input_dq"))
        return nodes, rounded

    def _weight(self, node: NodeProto, layer: QuantizedLinear) -> tuple[NodeProto, str]:
        values = weight_values(self.graph, layer.linear.weight)
        if values is None:
            raise ArtifactError(
                f"{node_label(node)}: its weights {layer.linear.weight} are no float32 matrix in the file"
            )
        values = values.T if layer.linear.transposed else values
        if node.op_type == "Gemm":
            values = values * np.float32(attribute(node, "alpha", 1.0))
        if not np.isfinite(values).all():
            raise ArtifactError(f"{node_label(node)}: its weights {layer.linear.weight} hold NaN or infinity")
        scale = (np.maximum(np.abs(values).max(axis=0), np.float32(SMALLEST_RANGE)) / np.float32(QMAX)).astype(
            np.float32
        )
        levels = np.clip(np.rint(values / scale), QMIN, QMAX).astype(np.int8)
        names = [
            self._initializer(f"{layer.name}.{part}", array)
            for part, array in (
                ("weight_int8", levels),
                ("weight_scale", scale),
                ("weight_zero", np.zeros_like(scale, np.int8)),
            )
        ]
        rounded = self._fresh(f"{layer.name}.weight_rounded")
        return helper.make_node("DequantizeLinear", names, [rounded], f"{layer.name}.weight_dq", axis=1), rounded

    def _initializer(self, name: str, values: object) -> str:
        name = self._fresh(name)
        array = np.asarray(values)
        tensor = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        self.model.graph.initializer.append(tensor)
        return name

    def _fresh(self, name: str) -> str:
        while name in self.used:
            name += "_"
        self.used.add(name)
        return name


def _without_dead(nodes: list[NodeProto], graph: onnx.GraphProto) -> list[NodeProto]:
    """Removes what only held replaced weights: their initialisers, and constants and moves of them."""
    outputs = {value.name for value in graph.output}
    while True:
        read = {name for node in nodes for name in node.input} | outputs
        kept = [
            node
            for node in nodes
            if node.op_type not in ("Constant", "Identity", "Transpose") or read & set(node.output)
        ]
        if len(kept) == len(nodes):
            break
        nodes = kept
    dead = {tensor.name for tensor in graph.initializer} - read
    for field in (graph.initializer, graph.input, graph.value_info):
        alive = [entry for entry in field if entry.name not in dead]
        if len(alive) < len(field):
            del field[:]
            field.extend(alive)
    return nodes
