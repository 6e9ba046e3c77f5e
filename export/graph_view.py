"""An ONNX graph prepared for questions: who makes a tensor, who reads it, what is known of it, where attention is."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from gft_edge.errors import ArtifactError

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
"""Operators that tensor cores compute."""

MOVES = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Slice", "Split", "Identity", "Expand", "Gather")
"""Operators that move values without changing them."""

DTYPES = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "fp64",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.INT4: "int4",
}
FLOATS = ("fp32", "fp16", "bf16", "fp64")

_SHORT_PATH = 12  # nodes between a residual and the branch that returns to it, in one block of a transformer


@dataclass(frozen=True)
class Attention:
    """scores = a b, softmax, product with c."""

    scores: NodeProto
    softmax: NodeProto
    product: NodeProto
    tokens: int | None
    """Keys per query; None where the shape is not known."""


@dataclass(frozen=True)
class GraphView:
    """The graph with its shapes inferred."""

    model: onnx.ModelProto
    nodes: tuple[NodeProto, ...]
    producers: dict[str, NodeProto]
    consumers: dict[str, tuple[NodeProto, ...]]
    initializers: dict[str, TensorProto]
    types: dict[str, onnx.TypeProto.Tensor]
    opset: int

    @property
    def inputs(self) -> tuple[onnx.ValueInfoProto, ...]:
        """Graph inputs that are not initialisers."""
        return tuple(value for value in self.model.graph.input if value.name not in self.initializers)

    @property
    def outputs(self) -> frozenset[str]:
        """Names of the graph's outputs."""
        return frozenset(value.name for value in self.model.graph.output)

    def dtype(self, tensor: str) -> str | None:
        """``"fp32"``, ``"fp16"``, ``"int8"``, ...; None where inference did not tell."""
        if tensor in self.initializers:
            return DTYPES.get(self.initializers[tensor].data_type)
        return DTYPES.get(self.types[tensor].elem_type) if tensor in self.types else None

    def shape(self, tensor: str) -> tuple[int | str | None, ...] | None:
        """Text for named dynamic axes, None for unknown ones; None where not even the rank is known."""
        if tensor in self.initializers:
            return tuple(self.initializers[tensor].dims)
        if tensor not in self.types or not self.types[tensor].HasField("shape"):
            return None
        return tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in self.types[tensor].shape.dim
        )

    def constant(self, tensor: str) -> npt.NDArray[Any] | None:
        """The value of an initialiser or Constant node; None for computed tensors."""
        if tensor in self.initializers:
            return numpy_helper.to_array(self.initializers[tensor])
        node = self.producers.get(tensor)
        if node is None or node.op_type not in ("Constant", "Identity"):
            return None
        if node.op_type == "Identity":
            return self.constant(node.input[0])
        value = attribute(node, "value")
        return None if value is None else numpy_helper.to_array(value)

    def is_constant(self, tensor: str) -> bool:
        """Whether nothing of the tensor depends on the graph's inputs."""
        if tensor in self.initializers or not tensor:
            return True
        node = self.producers.get(tensor)
        return node is not None and all(self.is_constant(name) for name in node.input)

    def of_type(self, *op_types: str) -> Iterator[NodeProto]:
        """Nodes of these operators, in order."""
        return (node for node in self.nodes if node.op_type in op_types)

    def producer(self, tensor: str, skip: Sequence[str] = ()) -> NodeProto | None:
        """Who makes a tensor, looking through nodes of the operators to skip along their first input."""
        node = self.producers.get(tensor)
        while node is not None and node.op_type in skip:
            node = self.producers.get(node.input[0])
        return node

    def readers(self, tensor: str, skip: Sequence[str] = ()) -> list[NodeProto]:
        """Who reads a tensor, looking through nodes of the operators to skip."""
        found = []
        for node in self.consumers.get(tensor, ()):
            if node.op_type in skip:
                found += [reader for output in node.output for reader in self.readers(output, skip)]
            else:
                found.append(node)
        return found

    def is_dequantized(self, tensor: str, skip: Sequence[str] = MOVES) -> bool:
        """Whether a tensor comes out of a DequantizeLinear."""
        node = self.producer(tensor, skip)
        return node is not None and node.op_type == DEQUANTIZE

    def depends_on(self, tensor: str, on: str, depth: int = _SHORT_PATH) -> bool:
        """Whether a tensor is computed from another within ``depth`` nodes."""
        reached = {tensor}
        for _ in range(depth):
            before = {name for t in reached if (node := self.producers.get(t)) is not None for name in node.input}
            if on in before:
                return True
            reached = before
        return False

    def is_residual_add(self, node: NodeProto) -> bool:
        """Whether a node adds to a tensor what a branch made of that same tensor."""
        if node.op_type != "Add" or any(self.is_constant(name) for name in node.input):
            return False
        first, second = (self._behind_qdq(name) for name in node.input)
        return self.depends_on(second, first) or self.depends_on(first, second)

    def _behind_qdq(self, tensor: str) -> str:
        node = self.producers.get(tensor)
        while node is not None and node.op_type in (QUANTIZE, DEQUANTIZE):
            tensor = node.input[0]
            node = self.producers.get(tensor)
        return tensor

    @functools.cached_property
    def attentions(self) -> tuple[Attention, ...]:
        """Softmax between two matrix products."""
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
        """Nodes that make what TopK sorts, back to the normalised or residual tokens they start from."""
        found: dict[str, NodeProto] = {}
        for topk in self.of_type("TopK"):
            pending = [topk.input[0]]
            while pending:
                node = self.producers.get(pending.pop())
                if node is None or node.output[0] in found or self._starts_importance(node):
                    continue
                found[node.output[0]] = node
                pending += node.input
        return tuple(node for node in self.nodes if node.output and node.output[0] in found)

    def _starts_importance(self, node: NodeProto) -> bool:
        return node.op_type in ("LayerNormalization", "TopK") or self.is_residual_add(node)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute."""
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def label(node: NodeProto) -> str:
    """What a message calls a node."""
    name = node.name or (node.output[0] if node.output else "")
    return f"{node.op_type} {name}".strip()


def view(model: onnx.ModelProto) -> GraphView:
    """Prepares a model; shapes are inferred as far as they can be.

    Raises:
        ArtifactError: the graph is not a graph.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise ArtifactError(f"the graph is not valid ONNX: {error}") from None
    graph = inferred.graph
    consumers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            consumers.setdefault(name, []).append(node)
    return GraphView(
        model=model,
        nodes=tuple(graph.node),
        producers={output: node for node in graph.node for output in node.output},
        consumers={name: tuple(nodes) for name, nodes in consumers.items()},
        initializers={tensor.name: tensor for tensor in graph.initializer},
        types={v.name: v.type.tensor_type for v in (*graph.input, *graph.value_info, *graph.output)},
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0),
    )


def as_floats(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """A constant's values in double precision, whatever its type."""
    return np.asarray(values).astype(np.float64).reshape(-1)
