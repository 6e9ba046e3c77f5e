"""Rules on operators: importers of the target, forms they refuse, sizes that depend on the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from onnx import NodeProto

from gft_edge.export.graph.structure import STANDARD, node_label
from gft_edge.export.graph.view import GraphView, attribute
from gft_edge.export.lint.operators import (
    FORM_SINCE,
    PLUGIN_DOMAINS,
    first_version,
    reads,
    reads_foreign,
    reads_form,
)
from gft_edge.export.lint.rule import Problems, rule, warning
from gft_edge.hardware.tensorrt_versions import Platform

DATA_DEPENDENT = ("NonZero", "Compress", "Unique", "NonMaxSuppression", "Loop", "If", "Scan", "SequenceAt")
COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")


@rule(
    "GE012",
    "operators whose output size depends on the data",
    "They need an output allocator and a host synchronisation, and forbid CUDA graphs (TensorRT developer guide, "
    "data-dependent shapes); Compress and Unique are not in the operator list of onnx-tensorrt.",
)
def data_dependent(graph: GraphView, platform: Platform) -> Problems:
    """Finds operators whose output shape or control flow depends on run-time values."""
    for node in graph.of_type(*DATA_DEPENDENT):
        if node.op_type == "If" and graph.constant(node.input[0]) is not None:
            continue  # the parser takes one branch
        if all(graph.is_constant(output) for output in node.output):
            continue
        yield node_label(node), "output size or control flow depends on the data"


@rule(
    "GE018",
    "scatter with a reduction",
    "ScatterND does not reduce, and ScatterElements with add gave silently wrong results on 8.6 (NVIDIA/TensorRT issues "
    "3650 and 3750).",
)
def scatter_reduction(graph: GraphView, platform: Platform) -> Problems:
    """Finds scatter operators that sum, multiply or compare."""
    for node in graph.of_type("ScatterElements", "ScatterND", "Scatter"):
        reduction = attribute(node, "reduction", b"none")
        reduction = reduction.decode(errors="replace") if isinstance(reduction, bytes) else "none"
        if reduction != "none":
            yield node_label(node), f"reduction {reduction!r}; write it as a product with a one-hot matrix"


@rule(
    "GE025",
    "operator or domain that the importer does not have",
    "An operator without an importer needs a plugin, and parsing ends there (onnx-tensorrt operator list); importers "
    "read the name without its domain and take another domain's operator for ONNX's (measured on TensorRT-RTX 1.7).",
)
def unknown_operator(graph: GraphView, platform: Platform) -> Problems:
    """Finds operators without an importer in the target's family, and foreign domains."""
    for node in graph.nodes:
        if node.domain in STANDARD:
            later = first_version(node.op_type) is not None and not platform.is_rtx  # GE022 names the version
            if not later and not reads(node.op_type, platform.version):
                yield node_label(node), f"{platform.title} has no importer for {node.op_type} of ONNX's own domain"
        elif node.domain not in PLUGIN_DOMAINS and not reads_foreign(node.domain, node.op_type, platform.version):
            named_alike = f", it would compute ONNX's {node.op_type}" if reads(node.op_type, platform.version) else ""
            yield (
                node_label(node),
                f"{platform.title} has no importer for {node.op_type} of domain {node.domain}{named_alike}",
            )


@rule(
    "GE028",
    "operator of a TensorRT plugin",
    "The plugin's library must be loaded at build time and wherever the engine runs (TensorRT developer guide, extending "
    "TensorRT with custom layers).",
    warning,
)
def plugin_operator(graph: GraphView, platform: Platform) -> Problems:
    """Finds operators of TensorRT's plugin domains."""
    for node in graph.nodes:
        if node.domain in PLUGIN_DOMAINS and not reads_foreign(node.domain, node.op_type, platform.version):
            yield (
                node_label(node),
                f"{node.op_type} of domain {node.domain} needs its plugin's library at build and at run time",
            )


@rule(
    "GE022",
    "operator newer than the target's parser",
    "Importers grow with their version: Gelu came with TensorRT 10.0, Attention with 10.14, local functions with 9.0 "
    "(onnx-tensorrt changelog and operator list); the Erf form of opset 17 fuses in 8.6.",
)
def new_operator(graph: GraphView, platform: Platform) -> Problems:
    """Finds operators, outputs and functions that need a newer parser than the target has."""
    version, known = platform.version, platform.generation
    if version is None or known is None or platform.is_rtx:
        return
    hint = "; export with --dialect trt8" if known.dialect == "trt8" else ""
    for node in graph.nodes:
        if node.domain not in STANDARD:
            continue
        since = first_version(node.op_type)
        if since is not None and not reads(node.op_type, version):
            yield node_label(node), f"{platform.title} has no {node.op_type}, which came with TensorRT {since}{hint}"
    if not known.reads_functions and graph.functions:
        domain, name = graph.functions[0]
        yield f"function {domain}.{name}", f"{platform.title} reads no local functions; inline them, or use 10.x"


@rule(
    "GE026",
    "operator in a form that importers refuse",
    "Training mode, dilated pooling, second outputs, computed axes and antialiasing end the parsing (onnx-tensorrt "
    "operator list, restrictions; measured on TensorRT-RTX 1.7).",
)
def restricted_operator(graph: GraphView, platform: Platform) -> Problems:
    """Finds operators in a form that the importers refuse."""
    for node in graph.of_type(*_RESTRICTIONS):
        for problem in _RESTRICTIONS[node.op_type](graph, node, platform):
            yield node_label(node), problem
    if not graph.place:
        for name in graph.sparse:
            yield f"initialiser {name}", "is sparse, which no importer reads; store it dense"


def _dropout(graph: GraphView, node: NodeProto, platform: Platform) -> Iterator[str]:
    if len(node.input) > 2 and node.input[2]:
        mode = graph.constant(node.input[2])
        if mode is None or (mode.size and bool(mode.reshape(-1)[0])):
            yield "is in training mode; export the model after eval()"
    elif attribute(node, "is_test", 1) == 0 and graph.opset < 7:
        yield "is in training mode; export the model after eval()"


def _batch_normalization(graph: GraphView, node: NodeProto, platform: Platform) -> Iterator[str]:
    if attribute(node, "training_mode", 0):
        yield "is in training mode; export the model after eval()"


def _first_output_alone(graph: GraphView, node: NodeProto, platform: Platform) -> Iterator[str]:
    used = [name for name in node.output[1:] if name and (graph.consumers.get(name) or name in graph.outputs)]
    if used:
        yield f"{platform.title} has only its first output, but {used[0]} is used too"


def _max_pool(graph: GraphView, node: NodeProto, platform: Platform) -> Iterator[str]:
    yield from _first_output_alone(graph, node, platform)
    yield from _pool(graph, node, platform)


def _pool(graph: GraphView, node: NodeProto, platform: Platform) -> Iterator[str]:
    dilations = attribute(node, "dilations", ())
    if any(size != 1 for size in dilations):
        yield f"pools with dilations {list(dilations)}, importers accept 1 only"


def _resize(graph: GraphView, node: NodeProto, platform: Platform) -> Iterator[str]:
    mode = _text(node, "coordinate_transformation_mode", "half_pixel")
    if mode not in COORDINATES:
        yield f"has the coordinate transformation {mode}, importers have {', '.join(COORDINATES)}"
    if attribute(node, "antialias", 0):
        yield "resizes with antialias, which importers do not support"
    policy = _text(node, "keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        yield f"has the aspect ratio policy {policy}, importers have stretch"


def _reduction(graph: GraphView, node: NodeProto, platform: Platform) -> Iterator[str]:
    yield from _constant_input(graph, node, 1, "axes")


def _cum_sum(graph: GraphView, node: NodeProto, platform: Platform) -> Iterator[str]:
    if platform.version is not None and not reads_form("CumSum", platform.version):
        yield from _constant_input(graph, node, 1, "axis")


def _constant_input(graph: GraphView, node: NodeProto, number: int, what: str) -> Iterator[str]:
    if len(node.input) > number and not graph.is_constant(node.input[number]):
        yield f"its {what} ({node.input[number]}) are computed, importers need constants"


def _constant(graph: GraphView, node: NodeProto, platform: Platform) -> Iterator[str]:
    odd = [entry.name for entry in node.attribute if entry.name in ("sparse_value", "value_string", "value_strings")]
    if odd:
        yield f"holds a {odd[0]}, which importers do not read"


def _einsum(graph: GraphView, node: NodeProto, platform: Platform) -> Iterator[str]:
    if platform.version is None or reads_form("Einsum", platform.version):
        return
    equation = _text(node, "equation", "").replace(" ", "")
    if "..." in equation or any(len(set(term)) < len(term) for term in equation.partition("->")[0].split(",")):
        yield f"equation {equation} has an ellipsis or a diagonal, which TensorRT reads from {FORM_SINCE['Einsum']} on"


def _recurrent(graph: GraphView, node: NodeProto, platform: Platform) -> Iterator[str]:
    if attribute(node, "input_forget", 0):
        yield "has input_forget, which importers do not read"


def _text(node: NodeProto, name: str, default: str) -> str:
    value = attribute(node, name, default)
    return value.decode(errors="replace") if isinstance(value, bytes) else default


_RESTRICTIONS: dict[str, Callable[[GraphView, NodeProto, Platform], Iterator[str]]] = {
    "AveragePool": _pool,
    "BatchNormalization": _batch_normalization,
    "Constant": _constant,
    "CumSum": _cum_sum,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "LSTM": _recurrent,
    "LayerNormalization": _first_output_alone,
    "LpPool": _pool,
    "MaxPool": _max_pool,
    "Resize": _resize,
    **dict.fromkeys(
        (
            *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
            *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
        ),
        _reduction,
    ),
}
"""From the column of restrictions of operators.md (10.15) and, where it can be asked, the parser of TensorRT-RTX 1.7.1."""
