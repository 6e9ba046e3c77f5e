"""Pairs the matrix products and convolutions of two graphs of one model, whatever their nodes and tensors are called.

Optimizers rename, reorder and fuse nodes, but every product with weights stays. Two products are the same one if their weights
have the same sizes and values, up to rounding to 8 bits; where values are not in the file, the order of computation decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from gft_edge.export.graph.view import DEQUANTIZE, MOVES, QUANTIZE, GraphView, attribute

Floats = npt.NDArray[np.float64]

PASSED = (QUANTIZE, DEQUANTIZE, "Cast", *MOVES)
"""Operators between a tensor and its reader that leave its values as they are, up to rounding."""

ALIKE = 0.9
"""Least correlation of weights that count as the same; rounding to 8 bits leaves 0.999 and more, other layers have about 0."""

SAMPLES = 4096

QUANTIZED_OPERANDS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "QLinearMatMul": ((0, 1, 2), (3, 4, 5)),
    "QLinearConv": ((0, 1, 2), (3, 4, 5)),
    "QGemm": ((0, 1, 2), (3, 4, 5)),
    "MatMulIntegerToFloat": ((0, 2, 4), (1, 3, 5)),
    "QLinearAdd": ((0, 1, 2), (3, 4, 5)),
    "QLinearMul": ((0, 1, 2), (3, 4, 5)),
}
"""ONNX Runtime's fused operators: places of value, scale and zero point of each operand."""

PRODUCT_NAMES = {
    **dict.fromkeys(("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "QLinearMatMul", "QGemm"), "MatMul"),
    "MatMulIntegerToFloat": "MatMul",
    **dict.fromkeys(("Conv", "FusedConv", "QLinearConv"), "Conv"),
    "ConvTranspose": "ConvTranspose",
}
"""Products, fused ones too, and the plain operator they compute."""


@dataclass(frozen=True)
class Product:
    """A product with weights.

    Args:
        node: of the graph.
        weights: which of its two operands is constant.
        sizes: of the weights, sorted: a transposed copy has the same.
        sample: values at fixed places of the weights and of their transpose, each (S,); None where the file lacks them.
    """

    node: NodeProto
    weights: int
    sizes: tuple[int | str | None, ...]
    sample: tuple[Floats, Floats] | None


def operand_names(node: NodeProto) -> tuple[str, ...]:
    """Returns the tensors that a node computes with: its inputs, or the values among those of a fused quantized operator."""
    places = fused_places(node)
    return tuple(node.input) if places is None else tuple(node.input[place[0]] for place in places)


def fused_places(node: NodeProto) -> tuple[tuple[int, int, int], ...] | None:
    """Returns the places of value, scale and zero point of each operand of a fused quantized operator; None for other nodes."""
    places = QUANTIZED_OPERANDS.get(node.op_type)
    return None if places is None or len(node.input) <= max(max(place) for place in places) else places


def name_of(node: NodeProto) -> str:
    """Returns the first output of a node, which no other node has."""
    return next((name for name in node.output if name), "")


def output_axis(node: NodeProto, place: int, rank: int) -> int | None:
    """Returns the axis of an operand of a product that holds its output channels; None where it cannot be told."""
    plain = PRODUCT_NAMES.get(node.op_type)
    if plain is None or place > 1 or rank < 2:
        return None
    if plain == "MatMul":
        turned = attribute(node, "transB" if place else "transA", 0)
        return rank - 1 if bool(place) != bool(turned) else rank - 2
    return (0 if plain == "Conv" else 1) if place else None


def weighted_products(graph: GraphView, order: Sequence[NodeProto]) -> list[Product]:
    """Returns the products of a graph with one constant operand, in the order of the nodes given."""
    found = []
    for node in order:
        if node.op_type not in PRODUCT_NAMES:
            continue
        constant = [number for number, name in enumerate(operand_names(node)[:2]) if graph.is_constant(name)]
        if len(constant) == 1:
            found.append(_product(graph, node, constant[0]))
    return found


def _product(graph: GraphView, node: NodeProto, operand: int) -> Product:
    name = operand_names(node)[operand]
    scale = None
    if places := fused_places(node):
        rank = len(graph.shape(name) or ())
        scale = (node.input[places[operand][1]], node.input[places[operand][2]], output_axis(node, operand, rank) or 0)
    values = constant_values(graph, name) if scale is None else _scaled(graph, name, *scale)
    shape = graph.shape(name) or (() if values is None else values.shape)
    return Product(node, operand, tuple(sorted(shape, key=str)), None if values is None else _sampled(values))


def constant_values(graph: GraphView, tensor: str) -> Floats | None:
    """Returns the value of a constant behind Q/DQ, Cast, Transpose, Reshape and Slice; None where it cannot be told."""
    steps: list[NodeProto] = []
    found = graph.constant(tensor)
    while found is None:
        node = graph.producers.get(tensor)
        if node is None or node.op_type not in PASSED or not node.input:
            return None
        steps.append(node)
        tensor = node.input[0]
        found = graph.constant(tensor)
    values: Floats | None = np.asarray(found).astype(np.float64)
    try:
        for node in reversed(steps):
            values = None if values is None else _moved(graph, node, values)
    except (ValueError, TypeError):  # a permutation or a shape that does not fit the values
        return None
    return values


def _moved(graph: GraphView, node: NodeProto, values: Floats) -> Floats | None:
    if node.op_type == DEQUANTIZE:
        return _dequantized(graph, node, values)
    if node.op_type == "Transpose":
        return np.transpose(values, attribute(node, "perm"))
    if node.op_type in ("Cast", "Identity"):
        return values
    if node.op_type == QUANTIZE:
        scale = graph.constant(node.input[1])
        return None if scale is None else values / _along(scale, values, attribute(node, "axis", 1))
    shape = graph.shape(node.output[0])
    if (
        node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
        and shape
        and all(isinstance(s, int) for s in shape)
    ):
        return values.reshape([int(s) for s in shape if isinstance(s, int)])
    return None


def _dequantized(graph: GraphView, node: NodeProto, values: Floats) -> Floats | None:
    zero = node.input[2] if len(node.input) > 2 else ""
    return _shifted(graph, values, node.input[1], zero, attribute(node, "axis", 1))


def _scaled(graph: GraphView, name: str, scale: str, zero: str, axis: int) -> Floats | None:
    values = constant_values(graph, name)
    return None if values is None else _shifted(graph, values, scale, zero, axis)


def _shifted(graph: GraphView, values: Floats, scale: str, zero: str, axis: int) -> Floats | None:
    factor, offset = graph.constant(scale), graph.constant(zero) if zero else np.zeros(())
    if factor is None or offset is None:
        return None
    return (values - _along(offset, values, axis)) * _along(factor, values, axis)


def _along(scale: npt.NDArray[Any], values: Floats, axis: int) -> Floats:
    """Returns scales shaped to multiply values along an axis; as a scalar where they do not fit."""
    flat = np.asarray(scale).astype(np.float64).reshape(-1)
    if flat.size == 1 or not -values.ndim <= axis < values.ndim or values.shape[axis] != flat.size:
        return flat[:1].reshape(())
    return flat.reshape([flat.size if number == axis % values.ndim else 1 for number in range(values.ndim)])


def _sampled(values: Floats) -> tuple[Floats, Floats]:
    def sample(side: Floats) -> Floats:
        flat = side.reshape(-1)
        flat = flat[:: max(1, flat.size // SAMPLES)][:SAMPLES]
        flat = flat - flat.mean() if flat.size > 1 else flat
        return flat / max(float(np.linalg.norm(flat)), 1e-30)

    return sample(values), sample(values.T)


def paired_products(ours: Sequence[Product], theirs: Sequence[Product]) -> Iterator[tuple[Product, Product]]:
    """Yields the products that two graphs have in common."""
    sizes = dict.fromkeys(product.sizes for product in ours)
    for size in sizes:
        yield from _paired([p for p in ours if p.sizes == size], [p for p in theirs if p.sizes == size])


def _paired(ours: list[Product], theirs: list[Product]) -> Iterator[tuple[Product, Product]]:
    left = list(theirs)
    unknown = []
    for product in ours:
        alike = [_likeness(product, other) for other in left]
        best = int(np.argmax(alike)) if alike else -1
        if best >= 0 and alike[best] >= ALIKE:
            yield product, left.pop(best)
        else:
            unknown.append(product)
    if len(unknown) == len(left) and any(None in (a.sample, b.sample) for a, b in zip(unknown, left)):
        yield from zip(unknown, left)


def _likeness(ours: Product, theirs: Product) -> float:
    if ours.sample is None or theirs.sample is None:
        return 0.0
    return max(float(ours.sample[0] @ side) if side.size == ours.sample[0].size else 0.0 for side in theirs.sample)
