"""The rules of lint: what each is called, why it matters and what that rests on, how bad it is on which target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gft_edge.export.graph.view import GraphView
from gft_edge.export.lint import checks
from gft_edge.export.lint import operator_checks as operators
from gft_edge.hardware.tensorrt_versions import Platform

Severity = Literal["error", "warning"]


def _error(platform: Platform) -> Severity:
    return "error"


def _warning(platform: Platform) -> Severity:
    return "warning"


def _warning_when_weak(platform: Platform) -> Severity:
    return "warning" if platform.is_weak else "error"


def _error_when_old(platform: Platform) -> Severity:
    return "error" if platform.generation is not None and not platform.generation.int64 else "warning"


@dataclass(frozen=True)
class Rule:
    """A hazard.

    Args:
        id: stays the same for good.
        title: what is looked for.
        why: one sentence, with the public document or thread it rests on.
        check: yields where and what.
        severity: on a platform; an error fails lint.
    """

    id: str
    title: str
    why: str
    check: Callable[[GraphView, Platform], checks.Problems]
    severity: Callable[[Platform], Severity] = _error


RULES = (
    Rule(
        "GE001",
        "LayerNorm as separate operators in FP16",
        "Squares of outlier channels pass 65504, and accuracy falls from 85 to 19 % top-1 (onnxsim README); the operator "
        "LayerNormalization accumulates in FP32 (TensorRT developer guide, INormalizationLayer).",
        checks.decomposed_layer_norm,
        _warning_when_weak,
    ),
    Rule(
        "GE002",
        "Q/DQ on a residual sum",
        "ViTs collapse to a few percent top-1 when ModelOpt's default quantizes Add (onnxsim README); quantize the linears "
        "only.",
        checks.quantized_residual,
    ),
    Rule(
        "GE003",
        "Q/DQ on one of the two products of attention",
        "Fused attention wants Q/DQ on queries, keys, values and softmax together (NVIDIA/Model-Optimizer PR 1289); broken "
        "into kernels INT8 is slower than FP16 (NVIDIA/TensorRT issue 3714).",
        checks.half_quantized_attention,
    ),
    Rule(
        "GE004",
        "Q/DQ on the input of LayerNorm",
        "The residual stream has outlier channels that one scale per tensor cannot hold (FQ-ViT, arXiv 2111.13824); "
        "quantize what LayerNorm gives.",
        checks.quantized_layer_norm_input,
    ),
    Rule(
        "GE005",
        "Q/DQ on the importance path",
        "Importance is a small difference of means; quantized, its order changes and other patches are kept, which no "
        "tolerance on logits shows (GALA, arXiv 2504.09852).",
        checks.quantized_importance,
    ),
    Rule(
        "GE006",
        "Q/DQ on one operand of a product",
        "INT8 kernels need both operands quantized; with one the product runs in floating point behind a dequantization "
        "(TensorRT developer guide, explicit quantization; RTX takes it as weight-only).",
        checks.one_sided,
        _warning,
    ),
    Rule(
        "GE007",
        "Cast between DequantizeLinear and a product",
        "The Cast hides the pattern and the product runs in floating point (NVIDIA/Model-Optimizer PR 1289); give the scales "
        "the type of the rest.",
        checks.cast_between,
        _warning,
    ),
    Rule(
        "GE008",
        "scale not constant or not positive",
        "TensorRT takes build-time constants above zero only, a dead channel's scale of 0 fails the build (onnx-tensorrt, "
        "QuantizeLinear importer).",
        checks.bad_scale,
    ),
    Rule(
        "GE009",
        "zero point not zero, not INT8 or missing",
        "Quantization is symmetric: 'Non-zero zero point is not supported' (onnx-tensorrt); 8.6 wants the zeros spelled out.",
        checks.bad_zero_point,
    ),
    Rule(
        "GE010",
        "per-channel scales on the wrong axis",
        "Scales belong to output channels: axis 1 of a MatMul weight (K, N), axis 0 of a Gemm weight with transB and of a "
        "convolution (TensorRT developer guide); a missing axis is 1 in ONNX and 0 in onnx-tensorrt.",
        checks.wrong_axis,
    ),
    Rule(
        "GE011",
        "TopK with k not constant or above 3840, or of integers on 8.6",
        "TensorRT refuses k above 3840 (ITopKLayer), and a computed k makes every later shape dynamic, without CUDA graphs or "
        "fused attention; 8.x sorts FP32 and FP16 alone (onnx-tensorrt operator list).",
        checks.bad_topk,
    ),
    Rule(
        "GE012",
        "operators whose output size depends on the data",
        "They need an output allocator and a host synchronisation, and forbid CUDA graphs (TensorRT developer guide, "
        "data-dependent shapes); Compress and Unique are not in the operator list of onnx-tensorrt.",
        checks.data_dependent,
    ),
    Rule(
        "GE013",
        "attention matrix with a second reader",
        "The matrix must then be written out, and attention cannot fuse (TensorRT developer guide, multi-head attention "
        "fusion).",
        checks.shared_attention,
        _warning,
    ),
    Rule(
        "GE014",
        "INT64 graph inputs",
        "8.6 narrows INT64 to INT32 with clamping (onnx-tensorrt README, 8.6); INT32 means the same in every generation.",
        checks.int64_input,
        _error_when_old,
    ),
    Rule(
        "GE015",
        "opset outside the target's range",
        "Each parser reads a range: up to 17 in 8.6, 20 in 10.0, 22 in 10.9, 24 in 10.13 (onnx-tensorrt changelog).",
        checks.opset_range,
    ),
    Rule(
        "GE016",
        "INT8 attention above 512 tokens",
        "There is no fused INT8 attention for longer sequences, it runs unfused and slower than FP16 (NVIDIA/TensorRT issue "
        "3724); 448 pixels in patches of 16 are 785.",
        checks.long_quantized_attention,
    ),
    Rule(
        "GE017",
        "Attention operator in FP32",
        "TensorRT-RTX 1.7 parses it and refuses to build it in FP32 (measured), TensorRT documents it for FP16 and BF16 "
        "(IAttention, from 10.14).",
        checks.fp32_attention_op,
    ),
    Rule(
        "GE018",
        "scatter with a reduction",
        "ScatterND does not reduce, and ScatterElements with add gave silently wrong results on 8.6 (NVIDIA/TensorRT issues "
        "3650 and 3750).",
        checks.scatter_reduction,
    ),
    Rule(
        "GE019",
        "data type the target cannot compute",
        "Tensor cores bring types by compute capability: BF16 from 8.0, FP8 from 8.9 (TensorRT support matrix); a flag without "
        "hardware builds something else silently (NVIDIA/TensorRT issue 4590).",
        checks.unsupported_dtype,
    ),
    Rule(
        "GE020",
        "scale of another type than its tensor",
        "In a strongly typed network a scale has the type of the tensor it scales (onnx-tensorrt, QuantizeLinear importer).",
        checks.mixed_scale_type,
        _warning_when_weak,
    ),
    Rule(
        "GE021",
        "quantized bias",
        "TensorRT dequantizes INT8, FP8 and INT4 only (onnx-tensorrt, DequantizeLinear importer); the INT32 bias of ONNX "
        "Runtime's quantizer is refused (measured on TensorRT-RTX 1.7).",
        checks.quantized_bias,
    ),
    Rule(
        "GE022",
        "operator newer than the target's parser",
        "Importers grow with their version: Gelu came with TensorRT 10.0, Attention with 10.14, local functions with 9.0 "
        "(onnx-tensorrt changelog and operator list); the Erf form of opset 17 fuses in 8.6.",
        operators.new_operator,
    ),
    Rule(
        "GE023",
        "minus infinity as mask in FP16",
        "FP16 (IEEE 754 binary16) holds 65504 at most, and a row of infinities is NaN after softmax; -1e4 masks as well.",
        checks.infinite_mask,
        _warning,
    ),
    Rule(
        "GE024",
        "UINT8 input that is not cast first",
        "UINT8 is for inputs and outputs alone and must be cast before anything else (TensorRT developer guide, DataType); a "
        "Transpose or Gather before the Cast is an invalid node (measured on TensorRT-RTX 1.7).",
        checks.uint8_without_cast,
    ),
    Rule(
        "GE025",
        "operator or domain that the importer does not have",
        "What is in no importer needs a plugin of one's own, and parsing ends there (onnx-tensorrt operator list); importers go "
        "by the name without its domain and take another's operator for ONNX's (measured on TensorRT-RTX 1.7).",
        operators.unknown_operator,
    ),
    Rule(
        "GE026",
        "operator in a form that importers refuse",
        "Training mode, dilated pooling, second outputs, computed axes and antialiasing end the parsing (onnx-tensorrt operator "
        "list, restrictions; measured on TensorRT-RTX 1.7).",
        operators.restricted_operator,
    ),
    Rule(
        "GE027",
        "data type that importers do not read",
        "They read DOUBLE, FLOAT, FLOAT16, BFLOAT16, FP8, FP4, INT64, INT32, INT8, INT4, UINT8 and BOOL tensors "
        "(onnx-tensorrt operator list).",
        operators.unreadable_type,
    ),
    Rule(
        "GE028",
        "operator of a TensorRT plugin",
        "It is read where the plugin's library is loaded, at build time and wherever the engine runs (TensorRT developer guide, "
        "extending TensorRT with custom layers).",
        operators.plugin_operator,
        _warning,
    ),
    Rule(
        "GE029",
        "FP32 where the GPU has FP16",
        "FP16 has twice the rate of FP32 or more on every GPU here, and fused attention kernels exist for FP16 and BF16 "
        "(TensorRT developer guide, multi-head attention fusion).",
        checks.slow_types,
        _warning,
    ),
)
"""In the order of their ids."""

PARSER = Rule(
    "GE000",
    "refused by the parser that is installed here",
    "What TensorRT's own parser says of the file, asked with --parser.",
    lambda graph, platform: iter(()),
)
"""Not among :data:`RULES`: it asks about a file, in another process."""
