"""Rules on operator sets, data types and their speed."""

from __future__ import annotations

from onnx import NodeProto, TensorProto, ValueInfoProto

from gft_edge.export.graph import summary
from gft_edge.export.graph.structure import node_label
from gft_edge.export.graph.view import PRODUCTS, QUANTIZE, GraphView, attribute
from gft_edge.export.lint.operators import names
from gft_edge.export.lint.rule import Problems, error_without_int64, rule, warning
from gft_edge.hardware.tensorrt_versions import Platform, dtype_refusal, opsets

TYPES = names("BFLOAT16 BOOL DOUBLE FLOAT FLOAT16 FLOAT4E2M1 FLOAT8E4M3FN FLOAT8E8M0 INT32 INT4 INT64 INT8 UINT8")
"""Types in operators.md of onnx-tensorrt 10.15, and the scales of MXFP8."""


@rule(
    "GE014",
    "INT64 graph inputs",
    "8.6 narrows INT64 to INT32 with clamping (onnx-tensorrt README, 8.6); INT32 means the same in every generation.",
    error_without_int64,
)
def int64_input(graph: GraphView, platform: Platform) -> Problems:
    """Finds graph inputs of type INT64."""
    for value in graph.inputs:
        if graph.dtype(value.name) == "int64":
            yield f"input {value.name}", "is INT64; use INT32"


@rule(
    "GE015",
    "opset outside the target's range",
    "Each parser reads a range: up to 17 in 8.6, 20 in 10.0, 22 in 10.9, 24 in 10.13 (onnx-tensorrt changelog).",
)
def opset_range(graph: GraphView, platform: Platform) -> Problems:
    """Finds an operator set that the target's parser does not read."""
    low, high = opsets(platform.version)
    if not graph.place and not low <= graph.opset <= high:
        yield "graph", f"opset {graph.opset}; {platform.title} reads {low} to {high}"


@rule(
    "GE019",
    "data type the target cannot compute",
    "The types of tensor cores depend on the compute capability: BF16 from 8.0, FP8 from 8.9 (TensorRT support matrix); "
    "a flag without hardware builds something else silently (NVIDIA/TensorRT issue 4590).",
)
def unsupported_dtype(graph: GraphView, platform: Platform) -> Problems:
    """Finds data types the target cannot compute."""
    found: dict[str, NodeProto] = {}
    for node in graph.of_type(*PRODUCTS):
        found.setdefault(graph.dtype(node.output[0]) or "", node)
    for node in graph.of_type(QUANTIZE):
        found.setdefault(graph.dtype(node.output[0]) or "", node)
    for dtype, node in found.items():
        reason = dtype_refusal(dtype, platform.version, platform.capability) if platform.version else None
        if reason:
            yield node_label(node), reason


@rule(
    "GE024",
    "UINT8 input that is not cast first",
    "UINT8 is for inputs and outputs alone and must be cast before anything else (TensorRT developer guide, DataType); a "
    "Transpose or Gather before the Cast is an invalid node (measured on TensorRT-RTX 1.7).",
)
def uint8_without_cast(graph: GraphView, platform: Platform) -> Problems:
    """Finds UINT8 inputs that are read before a Cast."""
    for value in graph.inputs:
        if graph.dtype(value.name) != "uint8":
            continue
        for reader in graph.consumers.get(value.name, ()):
            if reader.op_type not in ("Cast", "Shape"):
                yield node_label(reader), f"reads the UINT8 input {value.name}; cast it to floating point first"


@rule(
    "GE027",
    "data type that importers do not read",
    "They read DOUBLE, FLOAT, FLOAT16, BFLOAT16, FP8, FP4, INT64, INT32, INT8, INT4, UINT8 and BOOL tensors "
    "(onnx-tensorrt operator list).",
)
def unreadable_type(graph: GraphView, platform: Platform) -> Problems:
    """Finds data types that no importer reads."""
    for value in graph.inputs:
        problem = _value_problem(value)
        if problem:
            yield f"input {value.name}", problem
    found: set[int] = set()
    for node in graph.of_type("Cast", "CastLike"):
        dtype = attribute(node, "to")
        if isinstance(dtype, int) and _type_name(dtype) not in TYPES and dtype not in found:
            found.add(dtype)
            yield node_label(node), f"casts to {_type_name(dtype)}, which no importer reads"
    if graph.place:
        return
    for name, tensor in graph.initializers.items():
        dtype = tensor.data_type
        if name in graph.consumers and _type_name(dtype) not in TYPES and dtype not in found:
            found.add(dtype)
            yield f"initialiser {name}", f"is {_type_name(dtype)}, which no importer reads"


def _value_problem(value: ValueInfoProto) -> str | None:
    kind = value.type.WhichOneof("value")
    if kind not in (None, "tensor_type"):
        return f"is a {str(kind).removesuffix('_type')}, importers read tensors alone"
    dtype = value.type.tensor_type.elem_type
    if kind is None or dtype == TensorProto.UNDEFINED:
        return None
    return None if _type_name(dtype) in TYPES else f"is {_type_name(dtype)}, which no importer reads"


def _type_name(dtype: int) -> str:
    try:
        return str(TensorProto.DataType.Name(dtype))
    except ValueError:
        return f"data type {dtype}"


@rule(
    "GE029",
    "FP32 where the GPU has FP16",
    "FP16 has twice the rate of FP32 or more on every GPU here, and fused attention kernels exist for FP16 and BF16 "
    "(TensorRT developer guide, multi-head attention fusion).",
    warning,
)
def slow_types(graph: GraphView, platform: Platform) -> Problems:
    """Finds, for a GPU, FP32 graphs and quantized graphs with an FP32 rest."""
    known = platform.generation
    if graph.place or platform.target is None or known is None:
        return
    computed = summary.arithmetic(graph)
    quantized = known.typing == "weak" and computed.precision == "int8"
    statement = summary.slow_types(computed, half_allowed=platform.weak or quantized, has_flag=known.typing != "strong")
    if statement is not None:
        yield "graph", statement
