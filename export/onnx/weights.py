"""Weights apart from the graph: while it is rewritten, and in a file that several graphs share."""

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
    """Takes the large matrices out of a graph that is to be rewritten: each pass copies it whole, several times.

    Their place is held by references to a file that there is none of. Lifted is only what every pass leaves as it
    stands: right factors of products over a dynamic axis. Those over static axes onnxslim turns into Gemm, whose
    weights it transposes.

    Args:
        model: changed in place.

    Returns:
        the matrices by the name in their place, for :func:`put_back`; they share memory with the traced module.
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
    """Fills the places of lifted matrices."""
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
        file: lies beside the graphs.
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
                tensor.raw_data = b""  # what external data takes the place of has to be raw
                set_external_data(tensor, file.name, *places[digest])
                for field in ("raw_data", *VALUES):
                    tensor.ClearField(field)
