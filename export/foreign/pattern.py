"""Recognises the blocks of a plain ViT in a graph of any exporter, by data flow; names and the operators of norms do not matter.

A block is two residual sums: ``x + proj(attention(q, k, v))``, then ``x + fc2(activation(fc1))``. The search behind a tensor ends
at the nearest linear layers, so LayerNorm, GELU, LayerScale, rotary embeddings, splits and transpositions may be written in
any way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, numpy_helper

from gft_edge.errors import ArtifactError
from gft_edge.export.foreign.vit_parts import Block, Core, Linear, Other, Pattern
from gft_edge.export.graph.structure import STANDARD, node_label
from gft_edge.export.graph.view import MOVES, PRODUCTS, GraphView, attribute

_FLOATS = ("fp32", "fp16", "bf16", "fp64", None)
_SOFT = ("Mul", "Div", "Add", "Sub", "Cast", "Where", "Identity", "Reshape", "Flatten", "Clip", "Max", "Min")
"""Operators between the scores and their softmax, and behind it: scale, mask, bias."""
_BEHIND_SOFTMAX = ("Cast", "Where", "Identity", "Dropout", "Mul", "Reshape")
_QUANTIZED = (
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "QLinearConv", "MatMulInteger"),
    "ConvInteger",
)
_NOT_IN_A_VIT = ("Relu", "MaxPool", "AveragePool", "BatchNormalization", "LSTM", "GRU", "Resize", "ConvTranspose")


@dataclass(frozen=True)
class _Behind:
    """What computes a tensor, back to the nearest linear layers."""

    linears: tuple[Linear, ...]
    nodes: frozenset[int]
    tensors: frozenset[str]


@dataclass(frozen=True)
class _Residual:
    """A sum of a tensor and a branch that ends in a linear layer."""

    add: NodeProto
    stream: str
    linear: Linear
    inner: _Behind
    cores: tuple[Core, ...]


class _Misfit(Exception):
    """A node that does not fit, and why."""

    def __init__(self, node: NodeProto, why: str) -> None:
        super().__init__(f"{node_label(node)}: {why}")


def recognise(graph: GraphView, where: str) -> Pattern:
    """Finds the blocks of a plain ViT.

    Raises:
        ArtifactError: quantized or half-precision already, operators of one runtime, or no plain ViT; names the first node that
            does not fit.
    """
    _require_plain_float(graph, where)
    try:
        return _Finder(graph).pattern()
    except _Misfit as misfit:
        raise ArtifactError(f"{where}: is no plain ViT that this version recognises; {misfit}") from None


def weight_values(graph: GraphView, name: str) -> npt.NDArray[np.float32] | None:
    """Returns a constant matrix behind Identity and Transpose; None where it is computed in another way, or in a missing file."""
    turned = False
    while name not in graph.initializers and name not in graph.folded:
        node = graph.producers.get(name)
        if node is None or node.op_type not in ("Identity", "Transpose"):
            return None
        turned ^= node.op_type == "Transpose"
        name = node.input[0]
    if name in graph.initializers:
        if graph.initializers[name].data_location == TensorProto.EXTERNAL:
            return None
        values = numpy_helper.to_array(graph.initializers[name])
    else:
        values = graph.folded[name]
    if values.ndim != 2 or values.dtype != np.float32:
        return None
    return values.T if turned else values


def _require_plain_float(graph: GraphView, where: str) -> None:
    for node in graph.nodes:
        if node.op_type in _QUANTIZED:
            raise ArtifactError(f"{where}: is quantized already ({node_label(node)}); give the float file")
        if node.domain not in STANDARD:
            raise ArtifactError(
                f"{where}: {node_label(node)} is an operator of {node.domain}, so the graph was optimised for one runtime; "
                "export it again, without that step"
            )
        if node.op_type in ("MatMul", "Gemm", "Conv") and graph.dtype(node.output[0]) in ("fp16", "bf16"):
            raise ArtifactError(
                f"{where}: {node_label(node)} computes in {graph.dtype(node.output[0])}, expected float32; export the float32 model"
            )
    if graph.bodies:
        raise ArtifactError(f"{where}: has branches or loops ({graph.bodies[0].place.strip()}); export it without them")


class _Finder:
    """Recognition of one graph."""

    def __init__(self, graph: GraphView) -> None:
        self.graph = graph
        self.position = {id(node): number for number, node in enumerate(graph.nodes)}
        self.data = self._data()
        self.linears = {linear.output: linear for node in graph.nodes if (linear := self._linear(node)) is not None}
        self.cores = self._cores()
        self._found: dict[str, _Behind] = {}

    def pattern(self) -> Pattern:
        """Returns the blocks and the other layers."""
        if not self.cores:
            raise self._no_attention()
        residuals = [found for node in self.graph.of_type("Add") if (found := self._residual(node)) is not None]
        last = max((n for n, residual in enumerate(residuals) if residual.cores), default=-1)
        if last < 0:
            raise _Misfit(self.cores[0].nodes[-1], "no residual sum follows this attention and a linear layer")
        steps = residuals[: last + 2]
        blocks = []
        for number in range(0, len(steps), 2):
            first, second = steps[number], steps[number + 1] if number + 1 < len(steps) else None
            blocks.append(self._block(first, second))
        return Pattern(tuple(blocks), self._others(blocks))

    def _linear(self, node: NodeProto) -> Linear | None:
        if node.op_type not in ("MatMul", "Gemm") or node.domain not in STANDARD or len(node.input) < 2:
            return None
        x, weight = node.input[:2]
        if self.graph.is_constant(x) or not self.graph.is_constant(weight) or self._rank(weight) != 2:
            return None
        if node.op_type == "Gemm":
            return None if attribute(node, "transA", 0) else Linear(node, x, weight, bool(attribute(node, "transB", 0)))
        return Linear(node, x, weight)

    def _rank(self, tensor: str) -> int:
        return self.graph.folded[tensor].ndim if tensor in self.graph.folded else len(self.graph.shape(tensor) or ())

    def _data(self) -> frozenset[str]:
        """Returns the tensors that depend on the values of the images; shapes, indices and masks do not."""
        found = {value.name for value in self.graph.inputs}
        for node in self.graph.nodes:
            if node.op_type not in ("Shape", "Size") and not found.isdisjoint(node.input):
                found.update(name for name in node.output if name and self.graph.dtype(name) in _FLOATS)
        return frozenset(found)

    def _is_data(self, tensor: str) -> bool:
        return tensor in self.data

    def _cores(self) -> tuple[Core, ...]:
        found = []
        for node in self.graph.of_type("Softmax", "Attention"):
            if node.op_type == "Attention":
                found.append(Core(node.input[0], node.input[1], node.input[2], (node,)))
                continue
            scores = self._product_before(node.input[0])
            readers = self.graph.readers(node.output[0], _BEHIND_SOFTMAX)
            product = next((reader for reader in readers if reader.op_type == "MatMul"), None)
            if scores is None or product is None or product.output[0] in self.linears:
                continue
            behind = self._names_behind_softmax(node.output[0])
            values = [name for name in product.input if name not in behind]
            if len(values) == 1:
                found.append(Core(scores.input[0], scores.input[1], values[0], (scores, node, product)))
        return tuple(found)

    def _product_before(self, tensor: str) -> NodeProto | None:
        """Returns the product of two computed tensors whose scaled and masked values these are."""
        pending, seen = [tensor], {tensor}
        while pending:
            node = self.graph.producers.get(pending.pop(0))
            if node is None:
                continue
            if node.op_type == "MatMul" and all(map(self._is_data, node.input)):
                return node
            if node.op_type in _SOFT:
                fresh = [name for name in node.input if name not in seen and self._is_data(name)]
                seen.update(fresh)
                pending += fresh
        return None

    def _names_behind_softmax(self, tensor: str) -> set[str]:
        found, pending = {tensor}, [tensor]
        while pending:
            for reader in self.graph.consumers.get(pending.pop(), ()):
                if reader.op_type in _BEHIND_SOFTMAX and reader.output[0] not in found:
                    found.add(reader.output[0])
                    pending.append(reader.output[0])
        return found

    def _behind(self, tensor: str) -> _Behind:
        if tensor in self._found:
            return self._found[tensor]
        linears: dict[str, Linear] = {}
        nodes: set[int] = set()
        pending, seen = [tensor], {tensor}
        while pending:
            name = pending.pop()
            if name in self.linears:
                linears[name] = self.linears[name]
                continue
            node = self.graph.producers.get(name)
            if node is None or id(node) in nodes:
                continue
            nodes.add(id(node))
            fresh = [other for other in node.input if other not in seen and self._is_data(other)]
            seen.update(fresh)
            pending += fresh
        order = sorted(linears.values(), key=lambda linear: self.position[id(linear.node)])
        self._found[tensor] = _Behind(tuple(order), frozenset(nodes), frozenset(seen))
        return self._found[tensor]

    def _residual(self, add: NodeProto) -> _Residual | None:
        if not all(map(self._is_data, add.input)):
            return None
        for branch, stream in (tuple(add.input), tuple(add.input)[::-1]):
            behind = self._behind(branch)
            if len(behind.linears) != 1 or stream in behind.tensors:
                continue
            (linear,) = behind.linears
            if self.graph.depends_on(linear.output, stream):
                inner = self._behind(linear.input)
                cores = tuple(core for core in self.cores if id(core.nodes[-1]) in inner.nodes)
                return _Residual(add, stream, linear, inner, cores)
        return None

    def _block(self, first: _Residual, second: _Residual | None) -> Block:
        if len(first.cores) != 1:
            why = "an MLP where an attention should follow" if not first.cores else "two attentions in one branch"
            raise _Misfit(first.add, f"{why}: blocks alternate attention and MLP")
        if second is None:
            raise _Misfit(first.add, "no MLP with a residual sum follows this attention")
        if second.cores:
            raise _Misfit(second.add, "a second attention before an MLP: blocks alternate attention and MLP")
        if not self._same(second.stream, first.add.output[0]):
            raise _Misfit(
                second.add, f"adds to another tensor than the sum {first.add.output[0]} before it (parallel blocks?)"
            )
        (core,) = first.cores
        self._require_no_product(first.inner, core.nodes)
        self._require_no_product(second.inner, ())
        qkv: dict[str, Linear] = {}
        for part, tensor in (("queries", core.q), ("keys", core.k), ("values", core.v)):
            found = self._behind(tensor).linears
            if len(found) != 1 or not self.graph.depends_on(found[0].output, first.stream):
                raise _Misfit(
                    core.nodes[0], f"its {part} come from {len(found)} linear layers of the block, expected 1"
                )
            qkv[found[0].output] = found[0]
        fc1 = second.inner.linears
        if len(fc1) not in (1, 2):
            raise _Misfit(second.linear.node, f"reads {len(fc1)} linear layers, expected 1, or 2 with a gate")
        if first.linear.output in {linear.output for linear in fc1}:
            raise _Misfit(second.linear.node, "no second linear layer between two residual sums: an MLP has two")
        return Block(core, tuple(qkv.values()), first.linear, fc1, second.linear, second.add.output[0])

    def _same(self, tensor: str, other: str) -> bool:
        """Returns whether two tensors hold the same values, moved or not."""
        ends = []
        for name in (tensor, other):
            node = self.graph.producers.get(name)
            while node is not None and node.op_type in MOVES:
                name = node.input[0]
                node = self.graph.producers.get(name)
            ends.append(name)
        return ends[0] == ends[1]

    def _require_no_product(self, inner: _Behind, known: Sequence[NodeProto]) -> None:
        allowed = {id(node) for node in known}
        for number in sorted(self.position[node] for node in inner.nodes):
            node = self.graph.nodes[number]
            if node.op_type in (*PRODUCTS, "Einsum") and id(node) not in allowed:
                raise _Misfit(node, "a product inside a block that is neither attention nor a linear layer")

    def _others(self, blocks: Sequence[Block]) -> tuple[Other, ...]:
        """Returns the layers outside of the blocks; refuses linear layers and attentions between them."""
        inside = {linear.output for block in blocks for _, _, linear in block.linears}
        start = min(self.position[id(linear.node)] for linear in blocks[0].qkv)
        end, last = self.position[id(blocks[-1].fc2.node)], blocks[-1].output
        known = {id(block.core.nodes[-1]) for block in blocks}
        found = []
        for core in self.cores:
            if id(core.nodes[-1]) not in known and not self.graph.depends_on(core.output, last):
                raise _Misfit(core.nodes[-1], "no residual sum follows this attention and a linear layer")
        for node in self.graph.nodes:
            linear = self.linears.get(node.output[0])
            if node.op_type == "Conv":
                found.append(Other("patch embedding" if self.position[id(node)] < start else "convolution", node))
            elif linear is not None and linear.output not in inside:
                after = self.position[id(node)] > end or self.graph.depends_on(linear.output, last)
                if not after and self.position[id(node)] > start:
                    raise _Misfit(node, "a linear layer between the blocks that is part of no attention and no MLP")
                found.append(Other(self._kind(linear) if after else "patch embedding", node))
        return tuple(found)

    def _kind(self, linear: Linear) -> str:
        pending, seen = [linear.output], {linear.output}
        while pending:
            for reader in self.graph.consumers.get(pending.pop(), ()):
                if reader.output[0] in self.linears:
                    return "head"
                fresh = [name for name in reader.output if name not in seen]
                seen.update(fresh)
                pending += fresh
        return "classifier"

    def _no_attention(self) -> _Misfit:
        softmax = next(
            (node for node in self.graph.of_type("Softmax") if not set(node.output) & self.graph.outputs), None
        )
        if softmax is not None:
            return _Misfit(softmax, "is no attention: expected a softmax between two products of computed tensors")
        convolutions = 0
        for node in self.graph.nodes:
            convolutions += node.op_type == "Conv"
            if node.op_type in _NOT_IN_A_VIT or convolutions > 1:
                return _Misfit(
                    node, "a ViT has a patch embedding and blocks of attention and MLP; this graph has no attention"
                )
        return _Misfit(self.graph.nodes[-1], "the graph ends without an attention")
