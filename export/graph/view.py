"""A view of an ONNX graph: makers and readers of a tensor, types, shapes, constants, attention."""

from __future__ import annotations

import functools
from collections import ChainMap
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, numpy_helper

from gft_edge.export.graph.dtypes import ONNX_NAMES
from gft_edge.export.graph.preparation import PreparedGraph, constant_tensor, prepare, type_shape
from gft_edge.export.graph.structure import STANDARD, attribute_bodies, captured, node_label, sort_nodes

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
"""Operators that tensor cores compute."""

MOVES = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Slice", "Split", "Identity", "Expand", "Gather")
"""Operators that move values without changing them."""

CHOICES = ("GatherND", "GatherElements", "Concat")
"""Operators that choose values, or put them beside others, without changing them."""

RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")

_NO_NUMBERS = (TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128)


@dataclass(frozen=True)
class Attention:
    """scores = a b, softmax, product with c."""

    scores: NodeProto
    softmax: NodeProto
    product: NodeProto
    tokens: int | None
    """Keys per query; None where the shape is unknown."""


@dataclass(frozen=True)
class GraphView:
    """A graph with its shapes inferred, or a body in one: a branch of If, the inside of a Loop or Scan.

    Args:
        nodes: each after those it reads.
        producers: node that makes a tensor.
        consumers: nodes that read a tensor, those whose bodies read it among them.
        initializers: tensors with values, Constant nodes too; values in another file may be missing.
        folded: values that depend on constants and static sizes alone.
        types: of tensors, where inference found them.
        graph_inputs, outputs: of the model; a body has none of its own.
        opset: of ONNX's own operators.
        functions: domain and name of the model's local functions; their nodes are among the others.
        sparse: names of sparse initialisers.
        place: node and attribute of the body, ``""`` for the graph itself.
        bodies: in this graph; of an If whose condition is known, the branch that is taken.
    """

    nodes: tuple[NodeProto, ...]
    producers: MutableMapping[str, NodeProto]
    consumers: MutableMapping[str, tuple[NodeProto, ...]]
    initializers: MutableMapping[str, TensorProto]
    folded: MutableMapping[str, npt.NDArray[Any]]
    types: MutableMapping[str, onnx.TypeProto]
    graph_inputs: tuple[ValueInfoProto, ...]
    outputs: frozenset[str]
    opset: int
    functions: tuple[tuple[str, str], ...] = ()
    sparse: tuple[str, ...] = ()
    place: str = ""
    bodies: tuple[GraphView, ...] = ()
    _reached: dict[tuple[str, str], bool] = field(default_factory=dict, repr=False, compare=False)

    @property
    def inputs(self) -> tuple[ValueInfoProto, ...]:
        """The graph inputs that are not initialisers."""
        return tuple(v for v in self.graph_inputs if v.name not in self.initializers and v.name not in self.sparse)

    @property
    def everywhere(self) -> Iterator[GraphView]:
        """Yields this graph and every body in it."""
        pending = [self]
        while pending:
            graph = pending.pop()
            yield graph
            pending += reversed(graph.bodies)

    def dtype(self, tensor: str) -> str | None:
        """Returns ``"fp32"``, ``"fp16"``, ``"int8"``, ...; None where inference found none."""
        if tensor in self.initializers:
            return ONNX_NAMES.get(self.initializers[tensor].data_type)
        return ONNX_NAMES.get(self.types[tensor].tensor_type.elem_type) if tensor in self.types else None

    def shape(self, tensor: str) -> tuple[int | str | None, ...] | None:
        """Returns sizes: text for named dynamic axes, None for unknown ones; None where the rank is unknown."""
        if tensor in self.initializers:
            return tuple(self.initializers[tensor].dims)
        return type_shape(self.types[tensor].tensor_type) if tensor in self.types else None

    def constant(self, tensor: str) -> npt.NDArray[Any] | None:
        """Returns the value of a tensor that depends on constants and static sizes alone.

        None for computed tensors, and for constants whose value is in another file or too large to compute.
        """
        while True:
            if tensor in self.folded:
                return self.folded[tensor]
            if tensor in self.initializers:
                found = self.initializers[tensor]
                if found.data_location == TensorProto.EXTERNAL or found.data_type in _NO_NUMBERS:
                    return None
                return numpy_helper.to_array(found)
            node = self.producers.get(tensor)
            if node is None or node.op_type != "Identity":
                return None
            tensor = node.input[0]

    @functools.cached_property
    def _constants(self) -> frozenset[str]:
        found = set(self.initializers) | set(self.folded) | set(self.sparse)
        for node in self.nodes:
            if node.op_type in RANDOM:
                continue
            if all(not name or name in found for name in (*node.input, *captured(node))):
                found.update(node.output)
        return frozenset(found)

    def is_constant(self, tensor: str) -> bool:
        """Returns True if the tensor does not depend on the graph's inputs."""
        return not tensor or tensor in self._constants

    def of_type(self, *op_types: str) -> Iterator[NodeProto]:
        """Yields the nodes of these operators of ONNX's own domain, in order."""
        return (node for node in self.nodes if node.op_type in op_types and node.domain in STANDARD)

    def producer(self, tensor: str, skip: Sequence[str] = ()) -> NodeProto | None:
        """Returns the maker of a tensor, passing nodes of the operators to skip along their first input."""
        node = self.producers.get(tensor)
        while node is not None and node.op_type in skip and node.input:
            node = self.producers.get(node.input[0])
        return node

    def readers(self, tensor: str, skip: Sequence[str] = ()) -> list[NodeProto]:
        """Returns the readers of a tensor, each once, passing nodes of the operators to skip."""
        found: dict[int, NodeProto] = {}
        pending, seen = [tensor], {tensor}
        while pending:
            for node in self.consumers.get(pending.pop(), ()):
                if node.op_type not in skip:
                    found[id(node)] = node
                    continue
                fresh = [output for output in node.output if output and output not in seen]
                seen.update(fresh)
                pending += fresh
        return list(found.values())

    def is_dequantized(self, tensor: str, skip: Sequence[str] = MOVES) -> bool:
        """Returns True if a tensor comes out of a DequantizeLinear."""
        node = self.producer(tensor, skip)
        return node is not None and node.op_type == DEQUANTIZE

    @functools.cached_property
    def _position(self) -> dict[str, int]:
        return {name: number for number, node in enumerate(self.nodes) for name in node.output}

    def depends_on(self, tensor: str, on: str) -> bool:
        """Returns True if a tensor is computed from another, over any number of nodes."""
        key = (tensor, on)
        if key not in self._reached:
            self._reached[key] = self._search(tensor, on)
        return self._reached[key]

    def _search(self, tensor: str, on: str) -> bool:
        oldest = self._position.get(on, -1)
        pending, seen = [tensor], {tensor}
        while pending:
            name = pending.pop()
            number = self._position.get(name, -1)
            if number <= oldest:  # made before the wanted tensor, or by the same node
                continue
            for other in self.nodes[number].input:
                if other == on:
                    return True
                if other and other not in seen:
                    seen.add(other)
                    pending.append(other)
        return False

    def is_residual_add(self, node: NodeProto) -> bool:
        """Returns True if a node adds a tensor and a branch computed from it, in either order."""
        if node.op_type != "Add" or any(self.is_constant(name) for name in node.input):
            return False
        return self.is_residual(*node.input[:2])

    def is_residual(self, one: str, other: str, skip: Sequence[str] = ()) -> bool:
        """Returns True if one of two tensors is computed from the other.

        Args:
            one: a tensor.
            other: another one.
            skip: operators that leave a tensor what it is, besides Q/DQ: chosen patches are part of the residual stream.
        """
        first, second = (self._behind(name, (QUANTIZE, DEQUANTIZE, *skip)) for name in (one, other))
        return self.depends_on(second, first) or self.depends_on(first, second)

    def same_values(self, one: str, other: str) -> bool:
        """Returns True if two tensors are one and the same behind Q/DQ and Cast."""
        first, second = (self._behind(name, (QUANTIZE, DEQUANTIZE, "Cast")) for name in (one, other))
        return first == second

    def _behind(self, tensor: str, skip: Sequence[str]) -> str:
        node = self.producers.get(tensor)
        while node is not None and node.op_type in skip and node.input:
            tensor = node.input[0]
            node = self.producers.get(tensor)
        return tensor

    @functools.cached_property
    def attentions(self) -> tuple[Attention, ...]:
        """Each softmax between two matrix products."""
        found = []
        for node in self.of_type("Softmax"):
            scores = self.producer(node.input[0], ("Mul", "Div", "Add", "Cast", "Where"))
            readers = [r for r in self.readers(node.output[0], ("Cast", QUANTIZE, DEQUANTIZE)) if r.op_type == "MatMul"]
            if scores is not None and scores.op_type == "MatMul" and readers:
                shape = self.shape(node.output[0]) or (None,)
                tokens = shape[-1] if isinstance(shape[-1], int) else None
                found.append(Attention(scores, node, readers[0], tokens))
        return tuple(found)

    @functools.cached_property
    def importance_path(self) -> tuple[NodeProto, ...]:
        """The nodes that compute the input of TopK, back to the normalised or residual tokens."""
        found: set[int] = set()
        for topk in self.of_type("TopK"):
            pending = [topk.input[0]]
            while pending:
                number = self._position.get(pending.pop())
                if number is None or number in found or self._starts_importance(self.nodes[number]):
                    continue
                found.add(number)
                pending += self.nodes[number].input
        return tuple(self.nodes[number] for number in sorted(found))

    def _starts_importance(self, node: NodeProto) -> bool:
        return node.op_type in ("LayerNormalization", "TopK") or self.is_residual_add(node)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Returns the value of a node's attribute; the default where it is missing or has another type than in ONNX."""
    found = next((entry for entry in node.attribute if entry.name == name), None)
    if found is None or _attribute_type(node.op_type, name) not in (None, found.type):
        return default
    return onnx.helper.get_attribute_value(found)


@functools.cache
def _attribute_type(op_type: str, name: str) -> int | None:
    """Returns the type of an attribute in the newest form of an operator that has it."""
    try:
        known = onnx.defs.get_schema(op_type, "").attributes.get(name)
    except onnx.defs.SchemaError:
        return None
    return None if known is None else int(known.type.value)


def view(model: onnx.ModelProto) -> GraphView:
    """Views a model with functions inlined, constants folded and shapes inferred where possible.

    Raises:
        ArtifactError: the graph is not a graph.
    """
    prepared = prepare(model)
    return _view(prepared, prepared.graph, prepared.nodes, None, "")


def _view(
    prepared: PreparedGraph, graph: onnx.GraphProto, nodes: tuple[NodeProto, ...], outer: GraphView | None, place: str
) -> GraphView:
    consumers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in dict.fromkeys((*node.input, *sorted(captured(node)))):
            consumers.setdefault(name, []).append(node)
    tensors = prepared.tensors if outer is None else {tensor.name: tensor for tensor in graph.initializer}
    if outer is not None:
        constants = ((node, constant_tensor(node)) for node in nodes if node.op_type == "Constant")
        tensors |= {node.output[0]: tensor for node, tensor in constants if tensor is not None}
    producers = {output: node for node in nodes for output in node.output if output}
    types = {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}
    made = GraphView(
        nodes=nodes,
        producers=producers if outer is None else ChainMap(producers, outer.producers),
        consumers={name: tuple(readers) for name, readers in consumers.items()},
        initializers=tensors if outer is None else ChainMap(tensors, outer.initializers),
        folded=prepared.folded,
        types=types if outer is None else ChainMap(types, outer.types),
        graph_inputs=tuple(graph.input) if outer is None else (),
        outputs=frozenset(value.name for value in graph.output) if outer is None else frozenset(),
        opset=prepared.opset,
        functions=prepared.functions if outer is None else (),
        sparse=prepared.sparse,
        place=place,
    )
    bodies = []
    for node in nodes:
        for name, body in _live_bodies(made, node):
            where = f"{place}{node_label(node)} {name}: "
            bodies.append(_view(prepared, body, sort_nodes(body), made, where))
    object.__setattr__(made, "bodies", tuple(bodies))
    return made


def _live_bodies(graph: GraphView, node: NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """Yields the bodies of a node that can run: one of If's two where its condition is known."""
    taken = None
    if node.op_type == "If" and node.domain in STANDARD:
        condition = graph.constant(node.input[0])
        if condition is not None and condition.size:
            taken = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
    for entry in node.attribute:
        if taken is None or entry.name == taken:
            for body in attribute_bodies(entry):
                yield entry.name, body


def as_floats(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Returns the values of a constant of any type in double precision."""
    return np.asarray(values).astype(np.float64).reshape(-1)
