"""Keeps weights outside a graph: while it is rewritten, and in a file that several graphs share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnx.external_data_helper import set_external_data

from gft_edge.files import replacing

LIFTED_BYTES = 1 << 16
SHARED_BYTES, ALIGNMENT = 1024, 64
VALUES = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
"""Fields of a tensor besides ``raw_data``."""

Weights = Mapping[str, ir.TensorProtocol]


def lift_weights(model: ir.Model) -> Weights:
    """Removes the large matrices from a graph before it is rewritten, because each pass copies the whole graph several times.

    They are replaced by external-data references to a file that does not exist. Only weights that no pass modifies are lifted
    out: right factors of products over a dynamic axis. Products over static axes become Gemm in onnxslim, which transposes
    their weights.

    Args:
        model: changed in place.

    Returns:
        The matrices by the name of their reference, for :func:`put_back`; they share memory with the traced module.
    """
    lifted = {}
    for name, value in model.graph.initializers.items():
        tensor, uses = value.const_value, value.uses()
        if tensor is None or tensor.nbytes < LIFTED_BYTES or len(tensor.shape) != 2:
            continue
        if uses and all(
            use.node.op_type == "MatMul" and use.idx == 1 and _is_dynamic(use.node.inputs[0]) for use in uses
        ):
            lifted[name] = tensor
            value.const_value = ir.ExternalTensor(
                name, None, None, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or name
            )
    return lifted


def _is_dynamic(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and not value.shape.is_static()


def put_back(graph: onnx.GraphProto, weights: Weights) -> None:
    """Puts lifted matrices back in place of their references."""
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = next(entry.value for entry in tensor.external_data if entry.key == "location")
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = weights[place].tobytes()


def share_weights(graphs: Mapping[str, onnx.ModelProto], file: Path) -> None:
    """Moves the weights of several graphs into one file of external data, equal ones once.

    Args:
        graphs: changed in place; tensors below a kilobyte stay inside.
        file: in the folder of the graphs.
    """
    places: dict[bytes, tuple[int, int]] = {}
    with replacing(file) as temporary, temporary.open("wb") as stream:
        for graph in graphs.values():
            for tensor in graph.graph.initializer:
                data = numpy_helper.to_array(tensor).tobytes()
                if len(data) < SHARED_BYTES:
                    continue
                digest = hashlib.sha256(data).digest()
                if digest not in places:
                    stream.write(bytes(-stream.tell() % ALIGNMENT))
                    places[digest] = (stream.tell(), len(data))
                    stream.write(data)
                tensor.raw_data = b""  # external data can only replace raw data
                set_external_data(tensor, file.name, *places[digest])
                for field in ("raw_data", *VALUES):
                    tensor.ClearField(field)
