"""What can be wrong with a graph: one function per hazard, each yields (node, what is wrong there)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto

from gft_edge.constants import MAX_FUSED_INT8_TOKENS, MAX_TOPK
from gft_edge.export.graph import summary as graph_summary
from gft_edge.export.graph.dtypes import FLOATS
from gft_edge.export.graph.view import (
    DEQUANTIZE,
    MOVES,
    PRODUCTS,
    QUANTIZE,
    GraphView,
    as_floats,
    attribute,
    label,
)
from gft_edge.hardware.tensorrt_versions import Platform, dtype_refusal, opsets

Problems = Iterator[tuple[str, str]]

DATA_DEPENDENT = ("NonZero", "Compress", "Unique", "NonMaxSuppression", "Loop", "If", "Scan", "SequenceAt")


def decomposed_layer_norm(graph: GraphView, platform: Platform) -> Problems:
    """Sqrt of a mean of squares in FP16; on weakly typed networks in FP32 too, as a flag may make it FP16."""
    half = ("fp16", "fp32") if platform.is_weak else ("fp16",)
    importance = {node.output[0] for node in graph.importance_path}
    for node in graph.of_type("Sqrt"):
        if graph.dtype(node.output[0]) not in half or (node.output[0] in importance and not _is_fp16(graph, node)):
            continue
        mean = graph.producer(node.input[0], ("Add", "Clip", "Max", "Cast", "Div"))
        if mean is None or mean.op_type not in ("ReduceMean", "ReduceSum"):
            continue
        square = graph.producers.get(mean.input[0])
        if square is not None and square.op_type in ("Pow", "Mul"):
            yield label(node), "mean, power and root of a normalisation as separate operators in FP16; squares overflow"


def _is_fp16(graph: GraphView, node: NodeProto) -> bool:
    return graph.dtype(node.output[0]) == "fp16"


def quantized_residual(graph: GraphView, platform: Platform) -> Problems:
    """Q/DQ on an input of a residual Add, or on the residual stream itself."""
    for node in graph.of_type("Add"):
        if any(graph.is_dequantized(name, ()) for name in node.input) and graph.is_residual_add(node):
            yield label(node), "a residual sum reads quantized values"


def half_quantized_attention(graph: GraphView, platform: Platform) -> Problems:
    """One of an attention's two products quantized, the other not."""
    for attention in graph.attentions:
        quantized = [r for r in graph.readers(attention.softmax.output[0], ("Cast",)) if r.op_type == QUANTIZE]
        scores = all(graph.is_dequantized(name) for name in attention.scores.input)
        if quantized and not scores:
            yield label(quantized[0]), f"{label(attention.softmax)} is quantized, its queries and keys are not"
        elif scores and not graph.is_dequantized(attention.product.input[0], (*MOVES, "Cast")):
            yield label(attention.softmax), "its queries and keys are quantized, its probabilities are not"


def quantized_layer_norm_input(graph: GraphView, platform: Platform) -> Problems:
    """LayerNormalization that reads a DequantizeLinear."""
    for node in graph.of_type("LayerNormalization"):
        if graph.is_dequantized(node.input[0]):
            yield label(node), "reads a quantized residual stream"


def quantized_importance(graph: GraphView, platform: Platform) -> Problems:
    """Quantizers between the tokens and TopK."""
    for node in graph.importance_path:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            yield label(node), "lies between the tokens and TopK: quantization decides which patches stay"


def one_sided(graph: GraphView, platform: Platform) -> Problems:
    """A product with one quantized and one float operand."""
    for node in graph.of_type(*PRODUCTS):
        quantized = [graph.is_dequantized(name) for name in node.input[:2]]
        if any(quantized) and not all(quantized):
            side = "first" if quantized[0] else "second"
            yield label(node), f"only its {side} operand is quantized, so it runs in floating point"


def cast_between(graph: GraphView, platform: Platform) -> Problems:
    """DequantizeLinear, Cast, product."""
    for node in graph.of_type(*PRODUCTS):
        for name in node.input[:2]:
            cast = graph.producer(name, MOVES)
            if cast is not None and cast.op_type == "Cast" and graph.is_dequantized(cast.input[0]):
                yield label(cast), f"stands between DequantizeLinear and {label(node)}"


def bad_scale(graph: GraphView, platform: Platform) -> Problems:
    """Scale computed at run time, zero, negative or not finite."""
    for node in graph.of_type(QUANTIZE, DEQUANTIZE):
        scale = graph.constant(node.input[1])
        if scale is None:
            if not graph.is_constant(node.input[1]):
                yield label(node), f"scale {node.input[1]} is not a constant"
            continue
        values = as_floats(scale)
        if not np.all(np.isfinite(values) & (values > 0)):
            count = int(np.sum(~(np.isfinite(values) & (values > 0))))
            yield label(node), f"{count} of {values.size} scales are zero, negative or not finite"


def bad_zero_point(graph: GraphView, platform: Platform) -> Problems:
    """Zero points other than 0, or missing where they are mandatory."""
    for node in graph.of_type(QUANTIZE, DEQUANTIZE):
        if len(node.input) < 3 or not node.input[2]:
            if platform.generation is not None and platform.generation.needs_zero_points:
                yield label(node), f"has no zero point, which {platform.title} requires (zeros, of the scale's shape)"
            continue
        zero = graph.constant(node.input[2])
        if zero is None:
            if not graph.is_constant(node.input[2]):
                yield label(node), f"zero point {node.input[2]} is not a constant"
        elif np.any(as_floats(zero) != 0):
            yield label(node), "zero point is not 0: quantization must be symmetric"
        elif graph.dtype(node.input[2]) == "uint8":
            yield label(node), "zero point is UINT8; use INT8"


def wrong_axis(graph: GraphView, platform: Platform) -> Problems:
    """Per-channel scales along another axis than the output channels, or on activations."""
    for node in graph.of_type(DEQUANTIZE):
        scale, shape = graph.shape(node.input[1]), graph.shape(node.input[0])
        if not scale or scale == (1,) or attribute(node, "block_size", 0):
            continue
        if not graph.is_constant(node.input[0]):
            yield label(node), "activations have one scale per channel; only weights may"
            continue
        axis = attribute(node, "axis")
        if axis is None:
            yield label(node), "per-channel scale without an axis: ONNX reads 1, TensorRT reads 0"
            continue
        if not shape:
            continue
        axis %= len(shape)
        if shape[axis] != scale[0]:
            yield label(node), f"{scale[0]} scales along axis {axis}, which has {shape[axis]} channels"
            continue
        for reader, expected in _weight_readers(graph, node, len(shape)):
            if axis != expected:
                yield (
                    label(node),
                    f"scales along axis {axis}; {label(reader)} has its output channels on axis {expected}",
                )


def _weight_readers(graph: GraphView, node: NodeProto, rank: int) -> Iterator[tuple[NodeProto, int]]:
    """Products that read a weight, and the axis of its output channels before any Transpose."""
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


def bad_topk(graph: GraphView, platform: Platform) -> Problems:
    """k computed at run time, or above TensorRT's limit."""
    for node in graph.of_type("TopK"):
        k = _topk_k(graph, node)
        if k is None:
            yield label(node), f"k ({node.input[1]}) is not a constant: shapes after it depend on the data"
        elif k > MAX_TOPK:
            yield label(node), f"k is {k}, the limit is {MAX_TOPK}"
        old = platform.generation is not None and not platform.generation.sorts_integers
        if old and graph.dtype(node.input[0]) in ("int32", "int64"):
            yield label(node), f"sorts integers, {platform.title} takes floats only; export with --dialect trt8"


def _topk_k(graph: GraphView, node: NodeProto) -> int | None:
    """How many a TopK keeps: an attribute up to opset 9, an input since; 0 where it is constant but not at hand."""
    if len(node.input) < 2:
        return int(attribute(node, "k", 0))
    value = graph.constant(node.input[1])
    if value is None:
        return 0 if graph.is_constant(node.input[1]) else None
    return int(value.reshape(-1)[0]) if value.size else 0


def data_dependent(graph: GraphView, platform: Platform) -> Problems:
    """Operators whose output shape or control flow depends on values that are known at run time only."""
    for node in graph.of_type(*DATA_DEPENDENT):
        if node.op_type == "If" and graph.constant(node.input[0]) is not None:
            continue  # the parser takes one branch
        if all(graph.is_constant(output) for output in node.output):
            continue
        yield label(node), "output size or control flow depends on the data"


def shared_attention(graph: GraphView, platform: Platform) -> Problems:
    """Scores or probabilities that somebody else reads too."""
    for attention in graph.attentions:
        skip = ("Cast", QUANTIZE, DEQUANTIZE)
        scores = attention.scores.output[0]
        readers = graph.readers(attention.softmax.output[0], skip)
        others = [r for r in readers if r is not attention.product] + list(graph.consumers.get(scores, ()))[1:]
        if others:
            yield label(attention.softmax), f"its attention matrix is also read by {label(others[0])}"
        elif {scores, attention.softmax.output[0]} & graph.outputs:
            yield label(attention.softmax), "its attention matrix is an output of the graph"


def int64_input(graph: GraphView, platform: Platform) -> Problems:
    """Graph inputs of type INT64."""
    for value in graph.inputs:
        if graph.dtype(value.name) == "int64":
            yield f"input {value.name}", "is INT64; use INT32"


def opset_range(graph: GraphView, platform: Platform) -> Problems:
    """Operator set that the target's parser does not read."""
    low, high = opsets(platform.version)
    if not graph.place and not low <= graph.opset <= high:
        yield "graph", f"opset {graph.opset}; {platform.title} reads {low} to {high}"


def long_quantized_attention(graph: GraphView, platform: Platform) -> Problems:
    """INT8 attention over more tokens than fused kernels take."""
    for attention in graph.attentions:
        quantized = all(graph.is_dequantized(name) for name in attention.scores.input)
        if quantized and attention.tokens is not None and attention.tokens > MAX_FUSED_INT8_TOKENS:
            yield (
                label(attention.softmax),
                f"INT8 attention over {attention.tokens} tokens; fused kernels end at {MAX_FUSED_INT8_TOKENS}",
            )


def fp32_attention_op(graph: GraphView, platform: Platform) -> Problems:
    """The Attention operator in FP32."""
    for node in graph.of_type("Attention"):
        if graph.dtype(node.input[0]) == "fp32":
            yield label(node), "Attention as one operator in FP32; export MatMul, Softmax, MatMul, or FP16"


def scatter_reduction(graph: GraphView, platform: Platform) -> Problems:
    """ScatterElements or ScatterND that sums, multiplies or compares."""
    for node in graph.of_type("ScatterElements", "ScatterND", "Scatter"):
        reduction = attribute(node, "reduction", b"none")
        reduction = reduction.decode(errors="replace") if isinstance(reduction, bytes) else "none"
        if reduction != "none":
            yield label(node), f"reduction {reduction!r}; write it as a product with a one-hot matrix"


def unsupported_dtype(graph: GraphView, platform: Platform) -> Problems:
    """Data types the target cannot compute."""
    found: dict[str, NodeProto] = {}
    for node in graph.of_type(*PRODUCTS):
        found.setdefault(graph.dtype(node.output[0]) or "", node)
    for node in graph.of_type(QUANTIZE):
        found.setdefault(graph.dtype(node.output[0]) or "", node)
    for dtype, node in found.items():
        reason = dtype_refusal(dtype, platform.version, platform.capability) if platform.version else None
        if reason:
            yield label(node), reason


def mixed_scale_type(graph: GraphView, platform: Platform) -> Problems:
    """Scales of another type than the tensor they belong to."""
    for node in graph.of_type(QUANTIZE):
        data, scale = graph.dtype(node.input[0]), graph.dtype(node.input[1])
        if data in FLOATS and scale in FLOATS and data != scale:
            yield label(node), f"scale is {scale}, the tensor is {data}"


def quantized_bias(graph: GraphView, platform: Platform) -> Problems:
    """INT32 bias with a DequantizeLinear of its own."""
    for node in graph.of_type(DEQUANTIZE):
        if graph.dtype(node.input[0]) == "int32":
            yield label(node), "dequantizes an INT32 bias; leave biases in floating point"


def infinite_mask(graph: GraphView, platform: Platform) -> Problems:
    """Minus infinity, or what FP16 cannot hold, added to or chosen for scores."""
    for node in graph.of_type("Where", "Add"):
        if graph.dtype(node.output[0]) not in (("fp16", "fp32") if platform.is_weak else ("fp16",)):
            continue
        if not any(reader.op_type == "Softmax" for reader in graph.readers(node.output[0], ("Cast",))):
            continue
        for name in node.input:
            mask = graph.constant(name)
            if mask is not None and mask.dtype.kind == "f" and mask.size and float(np.min(as_floats(mask))) < -65504:
                yield label(node), "masks with minus infinity in FP16, which gives NaN where a row is empty; use -1e4"


def uint8_without_cast(graph: GraphView, platform: Platform) -> Problems:
    """UINT8 inputs that something else than a Cast reads first."""
    for value in graph.inputs:
        if graph.dtype(value.name) != "uint8":
            continue
        for reader in graph.consumers.get(value.name, ()):
            if reader.op_type not in ("Cast", "Shape"):
                yield label(reader), f"reads the UINT8 input {value.name}; cast it to floating point first"


def slow_types(graph: GraphView, platform: Platform) -> Problems:
    """A graph in FP32, or a quantized one whose rest is, for a GPU."""
    known = platform.generation
    if graph.place or platform.target is None or known is None:
        return
    computed = graph_summary.arithmetic(graph)
    quantized = known.typing == "weak" and computed.precision == "int8"
    statement = graph_summary.slow_types(
        computed, half_allowed=platform.weak or quantized, has_flag=known.typing != "strong"
    )
    if statement is not None:
        yield "graph", statement
