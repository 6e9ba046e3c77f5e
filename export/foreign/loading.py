"""Reads a foreign graph with its weights, in a form that takes Q/DQ pairs per channel."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from gft_edge.errors import ArtifactError
from gft_edge.export.foreign.model import ForeignModel
from gft_edge.export.graph import native
from gft_edge.export.graph.loading import MAX_PROTOBUF
from gft_edge.export.graph.structure import standard_opset
from gft_edge.export.graph.view import attribute, view
from gft_edge.storage.external_data import external_files

LEAST_OPSET = 13
"""The first whose DequantizeLinear has scales per channel."""


def load_whole(source: ForeignModel) -> onnx.ModelProto:
    """Reads a foreign graph with all its weights, without local functions, in opset 13 or later, its image size fixed.

    Raises:
        ArtifactError: over 2 GB, damaged, or not convertible.
    """
    where = f"graph {source.file}"
    files = [source.file, *(source.file.parent / name for name in external_files(source.file))]
    size = sum(file.stat().st_size for file in files)
    if size > MAX_PROTOBUF:
        raise ArtifactError(f"{where}: has {size / 1e9:.1f} GB with its weights, and this verb reads 2 GB at most")
    try:
        model = onnx.load(str(source.file))
        if model.functions:
            model = onnx.ModelProto.FromString(native.call("inline_functions", model.SerializeToString()))
        if (standard_opset(model) or 0) < LEAST_OPSET:
            model = onnx.ModelProto.FromString(native.call("upgrade_opset", model.SerializeToString()))
            _plain_softmax(model)
    except native.NativeError as error:
        raise ArtifactError(
            f"{where}: cannot be converted to opset {LEAST_OPSET} ({error}); export it in a newer one"
        ) from None
    except ArtifactError:
        raise
    except Exception as error:  # protobuf's own classes, which onnx does not export
        raise ArtifactError(f"{where}: cannot be read as ONNX ({' '.join(str(error).split())})") from None
    _fix_size(model, source.input_name, source.input_shape)
    return model


def _plain_softmax(model: onnx.ModelProto) -> None:
    """Removes Flatten and Reshape that the conversion writes around a softmax of the last axis: they hide an attention."""
    graph = view(model)
    for node in model.graph.node:
        if node.op_type != "Softmax":
            continue
        flatten, readers = graph.producers.get(node.input[0]), graph.consumers.get(node.output[0], ())
        if flatten is None or flatten.op_type != "Flatten" or len(readers) != 1 or readers[0].op_type != "Reshape":
            continue
        values, shape = flatten.input[0], graph.producers.get(readers[0].input[1])
        rank = len(graph.shape(values) or ())
        if rank and attribute(flatten, "axis", 1) == rank - 1 and shape is not None and shape.input[0] == values:
            reshape = next(other for other in model.graph.node if other.output[0] == readers[0].output[0])
            node.input[0] = values
            node.output[0], reshape.output[0] = reshape.output[0], node.output[0]
            reshape.input[0] = node.output[0]
    unread = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    kept = [n for n in model.graph.node if n.op_type not in ("Flatten", "Reshape") or unread & set(n.output)]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _fix_size(model: onnx.ModelProto, name: str, shape: Sequence[int | None]) -> None:
    """Writes the known sizes of an input into a model, in place."""
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name == name:
            for dim, size in zip(dims, shape):
                if size is not None and dim.dim_value != size:
                    dim.dim_value = size
                    del model.graph.value_info[:]
