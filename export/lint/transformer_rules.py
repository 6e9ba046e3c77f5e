"""Rules on normalisation, attention and the selection of patches."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from gft_edge.constants import MAX_FUSED_INT8_TOKENS, MAX_TOPK
from gft_edge.export.graph.structure import node_label
from gft_edge.export.graph.view import DEQUANTIZE, MOVES, QUANTIZE, GraphView, as_floats, attribute
from gft_edge.export.lint.rule import Problems, rule, warning, warning_when_weak
from gft_edge.hardware.tensorrt_versions import Platform
from gft_edge.manifest import LOGITS, PROBABILITIES


@rule(
    "GE001",
    "LayerNorm as separate operators in FP16",
    "Squares of outlier channels pass 65504, and accuracy falls from 85 to 19 % top-1 (onnxsim README); the operator "
    "LayerNormalization accumulates in FP32 (TensorRT developer guide, INormalizationLayer).",
    warning_when_weak,
)
def decomposed_layer_norm(graph: GraphView, platform: Platform) -> Problems:
    """Finds a root of a mean of squares in FP16; on weakly typed networks in FP32 too, which a flag may make FP16."""
    half = ("fp16", "fp32") if platform.is_weak else ("fp16",)
    importance = {node.output[0] for node in graph.importance_path}
    for node in graph.of_type("Sqrt"):
        if graph.dtype(node.output[0]) not in half:
            continue
        if not _is_fp16(graph, node) and (node.output[0] in importance or _is_of_maps(graph, node)):
            continue
        mean = graph.producer(node.input[0], ("Add", "Clip", "Max", "Cast", "Div"))
        if mean is None or mean.op_type not in ("ReduceMean", "ReduceSum"):
            continue
        square = graph.producers.get(mean.input[0])
        if square is not None and square.op_type in ("Pow", "Mul"):
            yield (
                node_label(node),
                "mean, power and root of a normalisation as separate operators in FP16; squares overflow",
            )


def _is_of_maps(graph: GraphView, node: NodeProto) -> bool:
    """Returns whether a node of an artefact computes maps alone: the logits do not depend on it."""
    answers = [name for name in (LOGITS, PROBABILITIES) if name in graph.outputs]
    return bool(answers) and not graph.depends_on(answers[0], node.output[0])


def _is_fp16(graph: GraphView, node: NodeProto) -> bool:
    return graph.dtype(node.output[0]) == "fp16"


@rule(
    "GE003",
    "Q/DQ on one of the two products of attention",
    "Fused attention needs Q/DQ on queries, keys, values and softmax together (NVIDIA/Model-Optimizer PR 1289); broken "
    "into kernels INT8 is slower than FP16 (NVIDIA/TensorRT issue 3714).",
)
def half_quantized_attention(graph: GraphView, platform: Platform) -> Problems:
    """Finds attentions with one quantized and one unquantized product."""
    for attention in graph.attentions:
        quantized = [r for r in graph.readers(attention.softmax.output[0], ("Cast",)) if r.op_type == QUANTIZE]
        scores = all(graph.is_dequantized(name) for name in attention.scores.input)
        if quantized and not scores:
            yield (
                node_label(quantized[0]),
                f"{node_label(attention.softmax)} is quantized, its queries and keys are not",
            )
        elif scores and not graph.is_dequantized(attention.product.input[0], (*MOVES, "Cast")):
            yield node_label(attention.softmax), "its queries and keys are quantized, its probabilities are not"


@rule(
    "GE005",
    "Q/DQ on the importance path",
    "Patches are ranked by small differences of scores; quantized, their order changes and other patches are kept, which "
    "no tolerance on logits shows (GALA, arXiv 2504.09852).",
)
def quantized_importance(graph: GraphView, platform: Platform) -> Problems:
    """Finds quantizers between the tokens and TopK."""
    for node in graph.importance_path:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            yield node_label(node), "lies between the tokens and TopK: quantization decides which patches stay"


@rule(
    "GE011",
    "TopK with k not constant or above 3840, or of integers on 8.6",
    "TensorRT refuses k above 3840 (ITopKLayer), and a computed k makes every later shape dynamic, without CUDA graphs "
    "or fused attention; 8.x sorts FP32 and FP16 alone (onnx-tensorrt operator list).",
)
def bad_topk(graph: GraphView, platform: Platform) -> Problems:
    """Finds TopK whose k is computed at run time or above TensorRT's limit, and TopK of integers where floats are needed."""
    for node in graph.of_type("TopK"):
        k = _topk_k(graph, node)
        if k is None:
            yield node_label(node), f"k ({node.input[1]}) is not a constant: shapes after it depend on the data"
        elif k > MAX_TOPK:
            yield node_label(node), f"k is {k}, the limit is {MAX_TOPK}"
        old = platform.generation is not None and not platform.generation.sorts_integers
        if old and graph.dtype(node.input[0]) in ("int32", "int64"):
            yield node_label(node), f"sorts integers, {platform.title} takes floats only; export with --dialect trt8"


def _topk_k(graph: GraphView, node: NodeProto) -> int | None:
    """Returns k of a TopK: an attribute up to opset 9, an input since; 0 for a constant whose value is not in the file."""
    if len(node.input) < 2:
        return int(attribute(node, "k", 0))
    value = graph.constant(node.input[1])
    if value is None:
        return 0 if graph.is_constant(node.input[1]) else None
    return int(value.reshape(-1)[0]) if value.size else 0


@rule(
    "GE013",
    "attention matrix with a second reader",
    "The matrix must then be written out, and attention cannot fuse (TensorRT developer guide, multi-head attention "
    "fusion).",
    warning,
)
def shared_attention(graph: GraphView, platform: Platform) -> Problems:
    """Finds scores or probabilities with a second reader."""
    for attention in graph.attentions:
        skip = ("Cast", QUANTIZE, DEQUANTIZE)
        scores = attention.scores.output[0]
        readers = graph.readers(attention.softmax.output[0], skip)
        others = [r for r in readers if r is not attention.product] + list(graph.consumers.get(scores, ()))[1:]
        if others:
            yield node_label(attention.softmax), f"its attention matrix is also read by {node_label(others[0])}"
        elif {scores, attention.softmax.output[0]} & graph.outputs:
            yield node_label(attention.softmax), "its attention matrix is an output of the graph"


@rule(
    "GE016",
    "INT8 attention above 512 tokens",
    "There is no fused INT8 attention for longer sequences, it runs unfused and slower than FP16 (NVIDIA/TensorRT issue "
    "3724); 448 pixels in patches of 16 are 785.",
)
def long_quantized_attention(graph: GraphView, platform: Platform) -> Problems:
    """Finds INT8 attention over more tokens than fused kernels take."""
    for attention in graph.attentions:
        quantized = all(graph.is_dequantized(name) for name in attention.scores.input)
        if quantized and attention.tokens is not None and attention.tokens > MAX_FUSED_INT8_TOKENS:
            yield (
                node_label(attention.softmax),
                f"INT8 attention over {attention.tokens} tokens; fused kernels end at {MAX_FUSED_INT8_TOKENS}",
            )


@rule(
    "GE017",
    "Attention operator in FP32",
    "TensorRT-RTX 1.7 parses it and refuses to build it in FP32 (measured), TensorRT documents it for FP16 and BF16 "
    "(IAttention, from 10.14).",
)
def fp32_attention_op(graph: GraphView, platform: Platform) -> Problems:
    """Finds the Attention operator in FP32."""
    for node in graph.of_type("Attention"):
        if graph.dtype(node.input[0]) == "fp32":
            yield node_label(node), "Attention as one operator in FP32; export MatMul, Softmax, MatMul, or FP16"


@rule(
    "GE023",
    "minus infinity as mask in FP16",
    "FP16 (IEEE 754 binary16) holds 65504 at most, and a row of infinities is NaN after softmax; -1e4 masks as well.",
    warning,
)
def infinite_mask(graph: GraphView, platform: Platform) -> Problems:
    """Finds scores masked with minus infinity or another value below the range of FP16."""
    for node in graph.of_type("Where", "Add"):
        if graph.dtype(node.output[0]) not in (("fp16", "fp32") if platform.is_weak else ("fp16",)):
            continue
        if not any(reader.op_type == "Softmax" for reader in graph.readers(node.output[0], ("Cast",))):
            continue
        for name in node.input:
            mask = graph.constant(name)
            if mask is not None and mask.dtype.kind == "f" and mask.size and float(np.min(as_floats(mask))) < -65504:
                yield (
                    node_label(node),
                    "masks with minus infinity in FP16, which gives NaN where a row is empty; use -1e4",
                )
