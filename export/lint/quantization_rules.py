"""Rules on Q/DQ: their places, scales, zero points and types."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto

from gft_edge.export.graph.dtypes import FLOATS
from gft_edge.export.graph.structure import node_label
from gft_edge.export.graph.view import (
    CHOICES,
    DEQUANTIZE,
    MOVES,
    PRODUCTS,
    QUANTIZE,
    GraphView,
    as_floats,
    attribute,
)
from gft_edge.export.lint.rule import Problems, rule, warning, warning_when_weak
from gft_edge.hardware.tensorrt_versions import Platform

_STREAM = (*MOVES, *CHOICES, "Cast")
"""What may stand between the residual stream and a sum with it: patches are chosen, windows are cut."""

_SUMS = {"Add": (0, 1), "Sum": (0, 1), "QLinearAdd": (0, 3), "SkipLayerNormalization": (0, 1)}
"""Operators that add two tensors, ONNX Runtime's fused ones too, and the places of the two."""

_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization")


@rule(
    "GE002",
    "Q/DQ on a residual sum",
    "ViTs collapse to a few percent top-1 when ModelOpt's default quantizes Add (onnxsim README); quantize the linears "
    "only.",
)
def quantized_residual(graph: GraphView, platform: Platform) -> Problems:
    """Finds Q/DQ on an input of a residual Add, or on the residual stream itself; also sums that ONNX Runtime fused."""
    for node in graph.nodes:
        places = _SUMS.get(node.op_type)
        if places is None or len(node.input) <= places[1]:
            continue
        one, other = (node.input[place] for place in places)
        if graph.is_constant(one) or graph.is_constant(other):
            continue
        fused = node.op_type == "QLinearAdd"
        if (fused or any(graph.is_dequantized(name, ()) for name in (one, other))) and graph.is_residual(
            one, other, _STREAM
        ):
            yield node_label(node), "a residual sum reads quantized values"


@rule(
    "GE004",
    "Q/DQ on the input of LayerNorm",
    "The residual stream has outlier channels that one scale per tensor cannot hold (FQ-ViT, arXiv 2111.13824); quantize "
    "the output of LayerNorm.",
)
def quantized_layer_norm_input(graph: GraphView, platform: Platform) -> Problems:
    """Finds a LayerNormalization that reads a DequantizeLinear, also one of separate operators or fused by ONNX Runtime."""
    for node in graph.nodes:
        if node.op_type in _NORMS and node.input and graph.is_dequantized(node.input[0]):
            yield node_label(node), "reads a quantized residual stream"
        elif node.op_type == "Sub" and _subtracts_mean(graph, node) and graph.is_dequantized(node.input[0]):
            yield node_label(node), "begins a normalisation, and reads a quantized residual stream"


def _subtracts_mean(graph: GraphView, node: NodeProto) -> bool:
    """Returns whether a node subtracts from a tensor its own mean and the squares of the result are averaged."""
    mean = graph.producer(node.input[1], (QUANTIZE, DEQUANTIZE, "Cast"))
    if mean is None or mean.op_type != "ReduceMean" or not graph.same_values(mean.input[0], node.input[0]):
        return False
    squares = [r for r in graph.readers(node.output[0], (QUANTIZE, DEQUANTIZE, "Cast")) if r.op_type in ("Pow", "Mul")]
    return any(r.op_type == "ReduceMean" for square in squares for r in graph.readers(square.output[0], ("Cast",)))


@rule(
    "GE006",
    "Q/DQ on one operand of a product",
    "INT8 kernels need both operands quantized; with one the product runs in floating point behind a dequantization "
    "(TensorRT developer guide, explicit quantization; RTX takes it as weight-only).",
    warning,
)
def one_sided(graph: GraphView, platform: Platform) -> Problems:
    """Finds a product with one quantized and one float operand."""
    for node in graph.of_type(*PRODUCTS):
        quantized = [graph.is_dequantized(name) for name in node.input[:2]]
        if any(quantized) and not all(quantized):
            side = "first" if quantized[0] else "second"
            yield node_label(node), f"only its {side} operand is quantized, so it runs in floating point"


@rule(
    "GE007",
    "Cast between DequantizeLinear and a product",
    "The Cast hides the pattern and the product runs in floating point (NVIDIA/Model-Optimizer PR 1289); give the scales "
    "the type of the rest.",
    warning,
)
def cast_between(graph: GraphView, platform: Platform) -> Problems:
    """Finds a Cast between DequantizeLinear and a product."""
    for node in graph.of_type(*PRODUCTS):
        for name in node.input[:2]:
            cast = graph.producer(name, MOVES)
            if cast is not None and cast.op_type == "Cast" and graph.is_dequantized(cast.input[0]):
                yield node_label(cast), f"stands between DequantizeLinear and {node_label(node)}"


@rule(
    "GE008",
    "scale not constant or not positive",
    "TensorRT takes build-time constants above zero only, a dead channel's scale of 0 fails the build (onnx-tensorrt, "
    "QuantizeLinear importer).",
)
def bad_scale(graph: GraphView, platform: Platform) -> Problems:
    """Finds scales that are computed at run time, zero, negative or non-finite."""
    for node in graph.of_type(QUANTIZE, DEQUANTIZE):
        scale = graph.constant(node.input[1])
        if scale is None:
            if not graph.is_constant(node.input[1]):
                yield node_label(node), f"scale {node.input[1]} is not a constant"
            continue
        values = as_floats(scale)
        if not np.all(np.isfinite(values) & (values > 0)):
            count = int(np.sum(~(np.isfinite(values) & (values > 0))))
            yield node_label(node), f"{count} of {values.size} scales are zero, negative or not finite"


@rule(
    "GE009",
    "zero point not zero, not INT8 or missing",
    "Quantization is symmetric: 'Non-zero zero point is not supported' (onnx-tensorrt); 8.6 requires explicit zeros.",
)
def bad_zero_point(graph: GraphView, platform: Platform) -> Problems:
    """Finds zero points other than 0, or missing where they are mandatory."""
    for node in graph.of_type(QUANTIZE, DEQUANTIZE):
        if len(node.input) < 3 or not node.input[2]:
            if platform.generation is not None and platform.generation.needs_zero_points:
                yield (
                    node_label(node),
                    f"has no zero point, which {platform.title} requires (zeros, of the scale's shape)",
                )
            continue
        zero = graph.constant(node.input[2])
        if zero is None:
            if not graph.is_constant(node.input[2]):
                yield node_label(node), f"zero point {node.input[2]} is not a constant"
        elif np.any(as_floats(zero) != 0):
            yield node_label(node), "zero point is not 0: quantization must be symmetric"
        elif graph.dtype(node.input[2]) == "uint8":
            yield node_label(node), "zero point is UINT8; use INT8"


@rule(
    "GE010",
    "per-channel scales on the wrong axis",
    "Scales belong to output channels: axis 1 of a MatMul weight (K, N), axis 0 of a Gemm weight with transB and of a "
    "convolution (TensorRT developer guide); a missing axis is 1 in ONNX and 0 in onnx-tensorrt.",
)
def wrong_axis(graph: GraphView, platform: Platform) -> Problems:
    """Finds per-channel scales along another axis than the output channels, or on activations."""
    for node in graph.of_type(DEQUANTIZE):
        scale, shape = graph.shape(node.input[1]), graph.shape(node.input[0])
        if not scale or scale == (1,) or attribute(node, "block_size", 0):
            continue
        if not graph.is_constant(node.input[0]):
            yield node_label(node), "activations have one scale per channel; only weights may"
            continue
        axis = attribute(node, "axis")
        if axis is None:
            yield node_label(node), "per-channel scale without an axis: ONNX reads 1, TensorRT reads 0"
            continue
        if not shape:
            continue
        axis %= len(shape)
        if shape[axis] != scale[0]:
            yield node_label(node), f"{scale[0]} scales along axis {axis}, which has {shape[axis]} channels"
            continue
        for reader, expected in _weight_readers(graph, node, len(shape)):
            if axis != expected:
                yield (
                    node_label(node),
                    f"scales along axis {axis}; {node_label(reader)} has its output channels on axis {expected}",
                )


def _weight_readers(graph: GraphView, node: NodeProto, rank: int) -> Iterator[tuple[NodeProto, int]]:
    """Yields the products that read a weight, each with the axis of its output channels before any Transpose."""
    for reader in graph.consumers.get(node.output[0], ()):
        order = list(range(rank))
        source = node.output[0]
        if reader.op_type == "Transpose":
            order = list(attribute(reader, "perm", order[::-1]))
            source = reader.output[0]
            if sorted(order) != list(range(rank)):  # no permutation of these axes
                continue
        for product in graph.consumers.get(source, ()) if reader.op_type == "Transpose" else (reader,):
            if product.op_type not in PRODUCTS or source not in product.input[1:2]:
                continue
            if product.op_type == "MatMul":
                axis = rank - 1
            elif product.op_type == "Gemm":
                axis = 0 if attribute(product, "transB", 0) else 1
            else:
                axis = 0 if product.op_type == "Conv" else 1
            if axis < rank:
                yield product, order[axis]


@rule(
    "GE020",
    "scale of another type than its tensor",
    "In a strongly typed network a scale has the type of the tensor it scales (onnx-tensorrt, QuantizeLinear importer).",
    warning_when_weak,
)
def mixed_scale_type(graph: GraphView, platform: Platform) -> Problems:
    """Finds scales of another type than the tensor they belong to."""
    for node in graph.of_type(QUANTIZE):
        data, scale = graph.dtype(node.input[0]), graph.dtype(node.input[1])
        if data in FLOATS and scale in FLOATS and data != scale:
            yield node_label(node), f"scale is {scale}, the tensor is {data}"


@rule(
    "GE021",
    "quantized bias",
    "TensorRT dequantizes INT8, FP8 and INT4 only (onnx-tensorrt, DequantizeLinear importer); the INT32 bias of ONNX "
    "Runtime's quantizer is refused (measured on TensorRT-RTX 1.7).",
)
def quantized_bias(graph: GraphView, platform: Platform) -> Problems:
    """Finds INT32 biases with their own DequantizeLinear."""
    for node in graph.of_type(DEQUANTIZE):
        if graph.dtype(node.input[0]) == "int32":
            yield node_label(node), "dequantizes an INT32 bias; leave biases in floating point"
