"""Dialects of the graph: TensorRT 10, 11, RTX and ONNX Runtime read ``trt10``; the parser of TensorRT 8.6 reads ``trt8``.

Differences of ``trt8`` (onnx-tensorrt's operator list of 8.x): opset 17, hence Gelu as Erf, axes of reductions and sizes of
splits as attributes or left out; FP32 types everywhere except in Q/DQ, whose zero points are explicit in both dialects; TopK
of floats only. Not verified on TensorRT 8.6: tests show that ONNX accepts the graph, that ONNX Runtime gives the same results
with it, and that TensorRT-RTX compiles it.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gft_edge.errors import ConfigError
from gft_edge.export.onnx.options import TRT8_OPSET
from gft_edge.export.onnx.rewrite import drop_unused
from gft_edge.manifest import Artifact, Dialect

TRACED_OPSET = 18
"""The oldest opset that PyTorch's exporter writes; onnx's own version converter fails between it and 17."""
TRT8_IR_VERSION = 8
"""ONNX IR version of opset 17."""


def to_trt8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Converts a graph of opset 18 to opset 17, as TensorRT 8.6 reads it; the results are the same bit for bit.

    Args:
        model: with inferred shapes; changed in place.

    Raises:
        ConfigError: an operator without a known form of opset 17.
    """
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    types = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input, *graph.output)}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        changed = onnx.defs.get_schema(node.op_type, TRACED_OPSET).since_version == TRACED_OPSET
        if node.op_type == "TopK" and types[node.input[0]].elem_type in (TensorProto.INT64, TensorProto.INT32):
            nodes += _float_topk(node, types[node.input[0]].elem_type)
            continue
        if node.op_type == "Split":
            _split_by_outputs(node, graph, types)
        elif changed and node.op_type.startswith("Reduce"):
            _axes_as_attribute(node, constants)
        elif changed and not (node.op_type == "Pad" and len(node.input) <= 3):  # without axes it is the same
            raise ConfigError(
                f"--dialect trt8: {node.op_type} {node.name} is of opset {TRACED_OPSET}, and its form of opset "
                f"{TRT8_OPSET} is not known; export the default dialect"
            )
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(graph)
    model.ir_version = TRT8_IR_VERSION
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", TRT8_OPSET))
    del graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def _float_topk(node: onnx.NodeProto, dtype: int) -> list[onnx.NodeProto]:
    """Returns TopK of integers computed in FP32, which holds positions of patches exactly (below 2^24)."""
    values, chosen = f"{node.output[0]}_float", f"{node.input[0]}_float_of_{node.name}"
    topk = onnx.NodeProto()
    topk.CopyFrom(node)
    topk.input[0], topk.output[0] = chosen, values
    return [
        helper.make_node("Cast", [node.input[0]], [chosen], name=f"{node.name}_to_float", to=TensorProto.FLOAT),
        topk,
        helper.make_node("Cast", [values], [node.output[0]], name=f"{node.name}_to_integer", to=dtype),
    ]


def _split_by_outputs(node: onnx.NodeProto, graph: onnx.GraphProto, types: dict[str, onnx.TypeProto.Tensor]) -> None:
    """Removes the number of outputs: opset 17 splits into equal parts without sizes; other sizes become a constant."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if "num_outputs" not in attributes:
        return
    axis = attributes.get("axis", 0)
    sizes = [types[output].shape.dim[axis].dim_value for output in node.output]
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("axis", axis))
    if len(set(sizes)) > 1:
        name = f"{node.name}_sizes"
        graph.initializer.append(numpy_helper.from_array(np.asarray(sizes, np.int64), name))
        node.input.append(name)


def _axes_as_attribute(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> None:
    keepdims = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
    axes = constants[node.input[1]].tolist() if len(node.input) > 1 and node.input[1] else []
    del node.input[1:]
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("keepdims", keepdims))
    if axes:
        node.attribute.append(helper.make_attribute("axes", axes))


def export_command(artifact: Artifact, dialect: Dialect) -> str:
    """Returns the command that exports an artefact's checkpoint with the same flags in another dialect."""
    manifest = artifact.manifest
    words = ["gft-edge", "export", "CKPT", "--dialect", dialect]
    budgets = () if manifest.model.is_baseline else dict.fromkeys((manifest.budget.id, *manifest.family))
    words += [word for budget in budgets for word in ("--budget", budget)]
    words += ["--maps", manifest.maps] if manifest.maps != "none" else []
    words += ["--input", manifest.input_kind] if manifest.input_kind != "float" else []
    words += ["--probabilities"] if manifest.gives_probabilities else []
    words += ["--batch", str(manifest.static_batch or ":".join(map(str, manifest.batch)))]
    return " ".join([*words, "--out", f"{artifact.path}-{dialect}"])
