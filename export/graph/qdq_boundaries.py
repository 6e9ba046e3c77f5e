"""The quantization boundaries of a graph: which operand of which node is quantized, and how; compares those of two graphs.

A builder measures one file and delivers another, and an optimizer rewrites it in between: whether both compute with the same
quantized values is decided by their boundaries. Names of nodes and tensors play no part. A reader is identified by the products
with weights before it (:mod:`gft_edge.export.graph.products`), its operator and which of its operands is quantized.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from gft_edge.errors import ArtifactError
from gft_edge.export.graph.loading import read_graph
from gft_edge.export.graph.products import (
    PASSED,
    PRODUCT_NAMES,
    Product,
    fused_places,
    name_of,
    operand_names,
    output_axis,
    paired_products,
    weighted_products,
)
from gft_edge.export.graph.structure import node_label
from gft_edge.export.graph.view import DEQUANTIZE, QUANTIZE, GraphView, as_floats, attribute, view

TOLERANCE = 1e-3
"""Relative difference of scales that is no change: twice the rounding of a scale to FP16."""

PER_OUTPUT = "per output channel"

_IGNORED = (*PASSED, "Shape", "Size", "Constant")
_MOVED = tuple(name for name in PASSED if name not in (QUANTIZE, DEQUANTIZE))
_PLAIN = {**PRODUCT_NAMES, "QLinearAdd": "Add", "QLinearMul": "Mul"}

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Boundary:
    """How an operand is quantized.

    Args:
        dtype: of the stored values, ``"int8"`` also for UINT8 around 128, which is the same values shifted.
        scales: one, or one per channel; None where they are computed or not in the file.
        zeros: zero points, less 128 for UINT8; likewise.
        channels: ``"per tensor"``, :data:`PER_OUTPUT`, or ``"per channel of axis N"``.
    """

    dtype: str
    scales: tuple[float, ...] | None
    zeros: tuple[float, ...] | None
    channels: str

    def differences(self, other: Boundary) -> list[str]:
        """Describes how another boundary differs from this one."""
        found = []
        if self.dtype != other.dtype:
            found.append(f"{other.dtype} instead of {self.dtype}")
        if self.channels != other.channels:
            found.append(f"{other.channels} instead of {self.channels}")
        elif (text := _change("scale", self.scales, other.scales)) is not None:
            found.append(text)
        if self.channels == other.channels and (text := _change("zero point", self.zeros, other.zeros)) is not None:
            found.append(text)
        return found

    def describe(self) -> str:
        """Returns it in a few words."""
        scale = "" if self.scales is None or len(self.scales) > 1 else f", scale {self.scales[0]:.6g}"
        return f"{self.dtype} {self.channels}{scale}"


def _change(what: str, ours: Sequence[float] | None, theirs: Sequence[float] | None) -> str | None:
    if ours is None or theirs is None:
        return None if ours is theirs else f"{what} not constant in one of the two"
    if len(ours) != len(theirs):
        return f"{len(theirs)} values of {what} instead of {len(ours)}"
    a, b = np.asarray(ours), np.asarray(theirs)
    apart = np.abs(a - b) > TOLERANCE * np.abs(a)
    if not apart.any():
        return None
    first = int(np.argmax(apart))
    many = f" in {int(apart.sum())} of {len(a)} channels, first" if len(a) > 1 else ""
    return f"{what}{many} {b[first]:.6g} instead of {a[first]:.6g}"


@dataclass(frozen=True)
class Operand:
    """What a node reads at one place.

    Args:
        node: the reader; None for an output of the graph.
        place: number of the operand.
        tensor: its name.
        constant: whether it is a weight.
        boundary: None where it is not quantized.
        weights: name of the reader's weights, ``""`` where it has none.
    """

    node: NodeProto | None
    place: int
    tensor: str
    constant: bool
    boundary: Boundary | None
    weights: str = ""

    @property
    def label(self) -> str:
        """Returns what to call it in messages."""
        if self.node is None:
            return f"output {self.tensor}"
        part = "weights" if self.constant else "input"
        if not self.constant and not self.weights and self.node.op_type in PRODUCT_NAMES:
            part = ("first", "second")[self.place] + " input" if self.place < 2 else "bias"
        return f"{part} of {node_label(self.node)}" + (f" ({self.weights})" if self.weights else "")


@dataclass(frozen=True)
class BoundaryComparison:
    """The boundaries of two graphs.

    Args:
        same: number of those in both, quantized alike.
        lost: those of the first graph alone, in words.
        added: those of the second alone.
        changed: those in both with another type, scale, zero point or axis.
    """

    same: int
    lost: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if both graphs have the same boundaries."""
        return not (self.lost or self.added or self.changed)

    def lines(self) -> list[str]:
        """Returns a line for each difference, and the sum."""
        kinds = (("lost", self.lost), ("added", self.added), ("changed", self.changed))
        found = [f"{kind}: {text}" for kind, texts in kinds for text in texts]
        counts = ", ".join(f"{len(texts)} {kind}" for kind, texts in kinds)
        return [*found, f"quantization boundaries: {self.same} the same, {counts}"]

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {**{name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}, "ok": self.ok}


@dataclass(frozen=True)
class _Side:
    """A graph in one order that does not depend on that of its file: operands before the nodes that read them.

    Args:
        outputs: of the graph, in order.
        order: of its nodes.
        products: those with weights.
        ids: numbers of the products that the other graph has too, by first output.
    """

    graph: GraphView
    outputs: tuple[str, ...]
    order: tuple[NodeProto, ...]
    products: tuple[Product, ...]
    ids: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: onnx.ModelProto) -> _Side:
        graph = view(model)
        outputs = tuple(value.name for value in model.graph.output)
        order = tuple(_ordered(graph, outputs))
        return cls(graph, outputs, order, tuple(weighted_products(graph, order)))

    def operands(self) -> dict[Key, list[Operand]]:
        """Returns everything that is read, by a key that the same operand has in the other graph too."""
        sources = self._sources()
        found: dict[Key, list[Operand]] = {}
        for node in self.order:
            if node.op_type in _IGNORED:
                continue
            names = operand_names(node)
            everything = frozenset().union(*(sources.get(name, frozenset()) for name in names))
            number = self.ids.get(name_of(node))
            weights = self._weights(node)
            for place, name in enumerate(names):
                if not name:
                    continue
                constant = self.graph.is_constant(name)
                key: Key = (
                    _PLAIN.get(node.op_type, node.op_type),
                    sources.get(name, frozenset()),
                    everything,
                    constant,
                )
                if number is not None:
                    key = ("product", number, place)
                elif node.op_type in PRODUCT_NAMES:
                    key = (*key, place)
                boundary = self._boundary(node, place, name)
                found.setdefault(key, []).append(Operand(node, place, name, constant, boundary, weights))
        for number, name in enumerate(self.outputs):
            found["output", number] = [Operand(None, 0, name, False, self._boundary(None, 0, name))]
        return found

    def _weights(self, node: NodeProto) -> str:
        """Returns the name under which the weights of a product are stored."""
        for name in operand_names(node)[:2] if node.op_type in PRODUCT_NAMES else ():
            while name not in self.graph.initializers and (maker := self.graph.producers.get(name)) is not None:
                if maker.op_type not in PASSED or not maker.input:
                    break
                name = maker.input[0]
            if name in self.graph.initializers:
                return name
        return ""

    def _sources(self) -> dict[str, frozenset[Any]]:
        """Returns the common products that each tensor depends on directly, and ``"Softmax"`` where one lies between."""
        found: dict[str, frozenset[Any]] = {}
        for node in self.order:
            number = self.ids.get(name_of(node))
            if number is not None:
                known: frozenset[Any] = frozenset((number,))
            else:
                known = frozenset().union(*(found.get(name, frozenset()) for name in operand_names(node)))
                known |= {"Softmax"} if node.op_type == "Softmax" else set()
            found.update((name, known) for name in node.output)
        return found

    def _boundary(self, node: NodeProto | None, place: int, name: str) -> Boundary | None:
        fused = None if node is None else fused_places(node)
        if node is not None and fused is not None:
            axis = output_axis(node, place, self._rank(name))
            return self._described(name, node.input[fused[place][1]], node.input[fused[place][2]], axis, axis)
        moves: list[NodeProto] = []
        maker = self.graph.producers.get(name)
        while maker is not None and maker.op_type in _MOVED and maker.input:
            moves.append(maker)
            maker = self.graph.producers.get(maker.input[0])
        if maker is None or maker.op_type != DEQUANTIZE:
            return None
        rank = self._rank(maker.input[0])
        axis = attribute(maker, "axis", 1)
        axis = axis % rank if rank else axis
        for move in reversed(moves):
            order = list(attribute(move, "perm", range(rank)[::-1])) if move.op_type == "Transpose" else []
            axis = order.index(axis) if axis in order else axis
        outputs = None if node is None else output_axis(node, place, rank)
        zero = maker.input[2] if len(maker.input) > 2 else ""
        return self._described(maker.input[0], maker.input[1], zero, axis, outputs)

    def _rank(self, tensor: str) -> int:
        return len(self.graph.shape(tensor) or ())

    def _described(self, stored: str, scale: str, zero: str, axis: int | None, outputs: int | None) -> Boundary:
        scales, zeros = self.graph.constant(scale), self.graph.constant(zero) if zero else np.zeros(1)
        dtype = self.graph.dtype(zero) if zero else self.graph.dtype(stored)
        shift = 128 if dtype == "uint8" else 0
        size = 1 if scales is None else int(scales.size)
        if zeros is not None and zeros.size == 1:
            zeros = np.repeat(zeros.reshape(-1), size)
        channels = PER_OUTPUT if axis is not None and axis == outputs else f"per channel of axis {axis}"
        return Boundary(
            "int8" if dtype in ("uint8", None) else dtype,
            None if scales is None else tuple(as_floats(scales).tolist()),
            None if zeros is None else tuple((as_floats(zeros) - shift).tolist()),
            "per tensor" if size == 1 else channels,
        )


def _ordered(graph: GraphView, outputs: Sequence[str]) -> Iterator[NodeProto]:
    """Yields the nodes that outputs depend on, those of each node's first operand first."""
    done: set[str] = set()
    for output in outputs:
        pending = [(output, False)]
        while pending:
            name, ready = pending.pop()
            node = graph.producers.get(name)
            if node is None or name_of(node) in done:
                continue
            if ready:
                done.add(name_of(node))
                yield node
                continue
            pending.append((name, True))
            pending += [(read, False) for read in reversed(node.input) if read]


def matched_operands(ours: onnx.ModelProto, theirs: onnx.ModelProto) -> Iterator[tuple[Operand | None, Operand | None]]:
    """Yields what is read in two graphs of one model, paired; None where one of them has no such reader.

    Raises:
        ArtifactError: one of them is no valid graph, they are of different models, or neither is quantized.
    """
    sides = (_Side.of(ours), _Side.of(theirs))
    pairs = list(paired_products(sides[0].products, sides[1].products))
    if not pairs and any(side.products for side in sides):
        raise ArtifactError("quantization boundaries: the two graphs have no weights in common; are they of one model?")
    for number, pair in enumerate(pairs):
        for side, product in zip(sides, pair):
            side.ids[name_of(product.node)] = number
    found = [side.operands() for side in sides]
    for key in dict.fromkeys((*found[0], *found[1])):
        yield from _paired(found[0].get(key, []), found[1].get(key, []))


def _paired(ours: list[Operand], theirs: list[Operand]) -> Iterator[tuple[Operand | None, Operand | None]]:
    """Pairs operands of one key: those that are quantized alike first, then in order."""
    left: list[Operand] = list(theirs)
    rest = []
    for operand in ours:
        alike = next((other for other in left if _same(operand.boundary, other.boundary)), None)
        if alike is None:
            rest.append(operand)
        else:
            left.remove(alike)
            yield operand, alike
    rest.sort(key=lambda operand: operand.boundary is None)
    left.sort(key=lambda operand: operand.boundary is None)
    for number in range(max(len(rest), len(left))):
        yield rest[number] if number < len(rest) else None, left[number] if number < len(left) else None


def _same(ours: Boundary | None, theirs: Boundary | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return not ours.differences(theirs)


def compare_boundaries(ours: onnx.ModelProto, theirs: onnx.ModelProto) -> BoundaryComparison:
    """Compares the quantization boundaries of two graphs of one model; each is named as in the graph that has it.

    Raises:
        ArtifactError: one of them is no valid graph, or they are of different models.
    """
    same = 0
    found: Mapping[str, list[str]] = {"lost": [], "added": [], "changed": []}
    for one, other in matched_operands(ours, theirs):
        a, b = (None if side is None else side.boundary for side in (one, other))
        if a is not None and b is not None:
            differences = a.differences(b)
            same += not differences
            if differences and one is not None:
                found["changed"].append(f"{one.label}: {', '.join(differences)}")
        elif a is not None and one is not None:
            found["lost"].append(f"{one.label}: {a.describe()}")
        elif b is not None and other is not None:
            found["added"].append(f"{other.label}: {b.describe()}")
    if not (same or any(found.values())):
        raise ArtifactError("neither graph is quantized: there are no boundaries to compare")
    return BoundaryComparison(same, *(tuple(found[kind]) for kind in ("lost", "added", "changed")))


def compare_boundary_files(ours: Path, theirs: Path) -> BoundaryComparison:
    """As :func:`compare_boundaries`, for two files; large weights in other files are not read."""
    return compare_boundaries(read_graph(ours).model, read_graph(theirs).model)
