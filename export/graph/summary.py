"""Summarises a graph for a build, in a few figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx

from gft_edge.errors import ArtifactError
from gft_edge.export.graph.view import PRODUCTS, QUANTIZE, GraphView, view


@dataclass(frozen=True)
class GraphInput:
    """An input; None in the shape is the batch."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Arithmetic:
    """The types a graph computes in.

    Args:
        precision: of the quantized products (``"int8"``, ``"fp8"``), else of all (``"fp32"``, ``"fp16"``, ``"bf16"``).
        rest: type of everything that is not quantized.
        products: output types of matrix products and convolutions, sorted.
        tokens: longest sequence of any attention, None without attention.
        quantized_attention: queries and keys are quantized, in any attention.
        quantized_tokens: longest sequence of quantized attention.
    """

    precision: str
    rest: str
    products: tuple[str, ...]
    tokens: int | None
    quantized_attention: bool
    quantized_tokens: int | None


@dataclass(frozen=True)
class GraphSummary:
    """The figures of a graph that a build depends on.

    Args:
        opset: ONNX operator set.
        precision: of the quantized products (``"int8"``, ``"fp8"``), else of all (``"fp32"``, ``"fp16"``, ``"bf16"``).
        rest: type of everything that is not quantized.
        products: output types of matrix products and convolutions, sorted.
        inputs: name, type and shape of each.
        operators: count of each operator; products of two computed tensors count as ``MatMul(computed)``.
        tokens: longest sequence of any attention, None without attention.
        quantized_attention: queries and keys are quantized, in any attention.
        quantized_tokens: longest sequence of quantized attention.
    """

    opset: int
    precision: str
    rest: str
    products: tuple[str, ...]
    inputs: tuple[GraphInput, ...]
    operators: dict[str, int]
    tokens: int | None
    quantized_attention: bool
    quantized_tokens: int | None = None


def summarize(model: onnx.ModelProto) -> GraphSummary:
    """Summarises a graph.

    Raises:
        ArtifactError: not a graph, or an input with a dynamic axis other than the first.
    """
    return summary_of(view(model))


def summary_of(graph: GraphView) -> GraphSummary:
    """Summarises a graph that is viewed already; raises as :func:`summarize`."""
    computed = arithmetic(graph)
    return GraphSummary(
        opset=graph.opset,
        precision=computed.precision,
        rest=computed.rest,
        products=computed.products,
        inputs=tuple(_input(graph, value.name) for value in graph.inputs),
        operators=dict(sorted(_operators(graph).items())),
        tokens=computed.tokens,
        quantized_attention=computed.quantized_attention,
        quantized_tokens=computed.quantized_tokens,
    )


def arithmetic(graph: GraphView) -> Arithmetic:
    """Returns the types that a graph computes in."""
    types = Counter(graph.dtype(node.output[0]) or "unknown" for node in graph.of_type(*PRODUCTS))
    quantized = {graph.dtype(node.output[0]) for node in graph.of_type(QUANTIZE)}
    floats = [name for name in ("fp16", "bf16", "fp32") if name in types]
    rest = max(floats, key=lambda name: types[name], default="fp32")
    attentions = graph.attentions
    quantized_attentions = [a for a in attentions if all(graph.is_dequantized(name) for name in a.scores.input)]
    return Arithmetic(
        precision=next((name for name in ("fp8", "int8") if name in quantized), rest),
        rest=rest,
        products=tuple(sorted(types)),
        tokens=max((a.tokens for a in attentions if a.tokens is not None), default=None),
        quantized_attention=bool(quantized_attentions),
        quantized_tokens=max((a.tokens for a in quantized_attentions if a.tokens is not None), default=None),
    )


def slow_types(computed: Arithmetic | GraphSummary, *, half_allowed: bool, has_flag: bool) -> str | None:
    """Returns a sentence on the cost of an FP32 graph, or of the FP32 rest of a quantized one; None without either.

    Args:
        computed: the types of the graph.
        half_allowed: a builder flag lets TensorRT compute FP32 layers in FP16.
        has_flag: such a flag exists there.
    """
    if half_allowed or computed.rest != "fp32" or "fp32" not in computed.products:
        return None
    flag = ", or build with --weak" if has_flag else ""
    if computed.precision in ("int8", "fp8"):
        unquantized = "" if computed.quantized_attention else "attention, "
        return (
            f"the rest of this graph is FP32: {unquantized}softmax and LayerNorm run at half the rate of FP16 or less and "
            f"do not use FP16 attention kernels; export it in FP16 (a checkpoint: --precision fp16){flag}"
        )
    return (
        "this graph is FP32: its products run at half the rate of FP16 or less and do not use FP16 attention kernels; export "
        f"it in FP16 (a checkpoint: --precision fp16){flag}"
    )


def _operators(graph: GraphView) -> Counter[str]:
    def name(node: onnx.NodeProto) -> str:
        computed = node.op_type in ("MatMul", "Gemm") and not any(graph.is_constant(i) for i in node.input[:2])
        return f"{node.op_type}(computed)" if computed else node.op_type

    return Counter(name(node) for node in graph.nodes)


def _input(graph: GraphView, name: str) -> GraphInput:
    shape = graph.shape(name) or ()
    sizes = tuple(size if isinstance(size, int) else None for size in shape)
    if None in sizes[1:]:
        raise ArtifactError(f"input {name} {shape}: only the first axis may be dynamic; export with static shapes")
    return GraphInput(name, graph.dtype(name) or "unknown", sizes)
