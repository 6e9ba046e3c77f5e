"""Finds the files with external tensors of an ONNX file, without the onnx package.

A session that opens a graph reads those files too, so their hashes must be checked before. A board has no onnx package, so this
module reads the protobuf encoding (https://protobuf.dev/programming-guides/encoding) and follows the few fields that lead to
tensors; field numbers are those of onnx.proto3.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gft_edge.errors import ArtifactError

_PATHS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""For each kind of message: fields that lead to tensors, and the kind of message in each."""


@dataclass(frozen=True)
class _Span:
    kind: str
    start: int
    end: int


def external_files(path: Path) -> frozenset[str]:
    """Returns the locations, as written in the graph, of all files that hold tensors of an ONNX file.

    Runs in time linear in the number of messages: the bytes of tensors are skipped, and the file is mapped, not read.

    Raises:
        ArtifactError: the file is no ONNX model.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return frozenset(_locations(data, len(data)))
    except (OSError, ValueError, IndexError) as error:
        raise ArtifactError(f"{path} is no ONNX model ({error})") from None


def _locations(data: mmap.mmap, size: int) -> Iterator[str]:
    waiting = [_Span("model", 0, size)]
    while waiting:
        span = waiting.pop()
        inner = _PATHS[span.kind]
        for field, start, end in _fields(data, span.start, span.end):
            kind = inner.get(field)
            if kind == "entry":
                pair = {key: data[begin:stop] for key, begin, stop in _fields(data, start, end)}
                if pair.get(1) == b"location":
                    yield pair.get(2, b"").decode()
            elif kind is not None:
                waiting.append(_Span(kind, start, end))


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields number, start and end of each length-delimited field of a message; others are skipped."""
    while position < end:
        key, position = _varint(data, position)
        wire = key & 7
        if wire == 0:
            _, position = _varint(data, position)
        elif wire == 1:
            position += 8
        elif wire == 5:
            position += 4
        elif wire == 2:
            length, position = _varint(data, position)
            if position + length > end:
                raise ValueError("a field is longer than its message")
            yield key >> 3, position, position + length
            position += length
        else:
            raise ValueError(f"unknown wire type {wire}")
    if position != end:
        raise ValueError("a message is cut off")


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
