"""The parts of a plain ViT in a graph: linear layers, attentions, blocks, and what lies outside of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import NodeProto


@dataclass(frozen=True)
class Linear:
    """A product with a constant matrix.

    Attributes:
        node: MatMul or Gemm.
        input: the activation.
        weight: the matrix, (in, out), or (out, in) where ``transposed``.
    """

    node: NodeProto
    input: str
    weight: str
    transposed: bool = False

    @property
    def output(self) -> str:
        """The product, without a bias that is added by another node."""
        return str(self.node.output[0])


@dataclass(frozen=True)
class Core:
    """The products of an attention.

    Attributes:
        q, k, v: tensors that they read.
        nodes: products and softmax; the last one gives the result.
    """

    q: str
    k: str
    v: str
    nodes: tuple[NodeProto, ...]

    @property
    def output(self) -> str:
        """The attended values."""
        return str(self.nodes[-1].output[0])


@dataclass(frozen=True)
class Block:
    """A block of a ViT; ``qkv`` holds one to three linear layers in the order q, k, v; ``fc1`` two where the MLP has a gate."""

    core: Core
    qkv: tuple[Linear, ...]
    proj: Linear
    fc1: tuple[Linear, ...]
    fc2: Linear
    output: str

    @property
    def linears(self) -> Iterator[tuple[str, str, Linear]]:
        """Yields name within the block, part by our own names, and layer."""
        names = {1: ("qkv",), 2: ("q", "kv"), 3: ("q", "k", "v")}[len(self.qkv)]
        for name, linear in zip(names, self.qkv):
            yield f"attn.{name}", "attn.qkv", linear
        yield "attn.proj", "attn.proj", self.proj
        for number, linear in enumerate(self.fc1):
            yield "mlp.fc1" if number == 0 else "mlp.fc1_gate", "mlp.fc1", linear
        yield "mlp.fc2", "mlp.fc2", self.fc2


@dataclass(frozen=True)
class Other:
    """A layer with weights outside of the blocks; ``kind`` says which."""

    kind: str
    node: NodeProto


@dataclass(frozen=True)
class Pattern:
    """A recognised ViT: its blocks in order, and its other layers with weights."""

    blocks: tuple[Block, ...]
    others: tuple[Other, ...]
