"""Reads ONNX files of any size: the graph and its small tensors, never large external weights."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from gft_edge.errors import ArtifactError
from gft_edge.export.graph.structure import tensor_bytes
from gft_edge.storage.filekinds import require_graph

MAX_PROTOBUF = (1 << 31) - 1
"""Largest size of a protobuf, bytes."""

SMALL_BYTES, SMALL_BYTES_TOGETHER = 1 << 18, 1 << 28
"""External tensors up to the first size are read (scales, zero points, shapes, k), up to the second together."""


@dataclass(frozen=True)
class LoadedGraph:
    """A graph from a file.

    Args:
        model: without large external tensors.
        notes: a sentence on each file of weights that cannot be read.
    """

    model: onnx.ModelProto
    notes: tuple[str, ...]


def load_graph(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file without its large external tensors.

    Raises:
        ArtifactError: missing, or no ONNX graph.
    """
    return read_graph(path).model


def read_graph(path: Path) -> LoadedGraph:
    """Reads an ONNX file without its large external tensors, with notes on missing files of weights.

    Raises:
        ArtifactError: missing, no file, larger than a protobuf can be, or no ONNX graph.
    """
    model = _parse(path)
    if not model.graph.node:
        raise ArtifactError(f"graph {path}: holds no nodes, is it an ONNX model?")
    problems: dict[str, None] = {}
    read = 0
    for tensor in tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        size, problem = _read_external(tensor, path, SMALL_BYTES_TOGETHER - read)
        read += size
        if problem:
            problems[problem] = None
    notes = [f"{problem}; judged without these weights" for problem in problems]
    return LoadedGraph(model, tuple(notes))


def _parse(path: Path) -> onnx.ModelProto:
    try:
        size = path.stat().st_size if path.exists() else 0
        if size > MAX_PROTOBUF:
            raise ArtifactError(
                f"graph {path}: has {size / 1e9:.1f} GB, and a protobuf holds 2 GB at most, so this is no ONNX graph or a "
                "damaged one; export it with external data"
            )
        require_graph(path)
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ArtifactError(f"graph {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        return onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError, RecursionError, MemoryError):
        raise ArtifactError(
            f"graph {path}: cannot be read as ONNX: it is damaged, cut off or no binary ONNX file"
        ) from None


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yields every tensor with values: initialisers and attributes, in the graph, its bodies and its functions."""
    pending: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while pending:
        graph = pending.pop()
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield sparse.values
                yield sparse.indices
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                pending += [attribute.g] if attribute.HasField("g") else []
                pending += attribute.graphs


def _read_external(tensor: onnx.TensorProto, path: Path, allowed: int) -> tuple[int, str | None]:
    """Reads a small tensor into the graph; returns the bytes read and the problem of its file."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, size = entries.get("location", ""), tensor_bytes(tensor)
    try:
        offset = int(entries.get("offset", 0) or 0)
        file = next((f for f in _places(path, location) if f.exists()), None)
        if file is None:
            return 0, f"{location or 'a file without a name'}, which holds weights, is missing"
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            return 0, f"{location}, which should hold weights, is no file"
        if size is None:
            return 0, None
        if offset < 0 or offset + size > status.st_size:
            return 0, f"{location} has {status.st_size} bytes, {tensor.name} ends at byte {offset + size}"
        if size > min(SMALL_BYTES, allowed):
            return 0, None
        with file.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
    except (OSError, ValueError) as error:
        return 0, f"{location!r} cannot be read ({getattr(error, 'strerror', None) or error})"
    tensor.raw_data = data
    tensor.ClearField("data_location")
    del tensor.external_data[:]
    return size, None


def _places(path: Path, location: str) -> Iterator[Path]:
    """Yields the places beside the graph, and beside the target of a link, as in the cache of a model hub."""
    if location:
        yield path.parent / location
        yield path.resolve().parent / location
