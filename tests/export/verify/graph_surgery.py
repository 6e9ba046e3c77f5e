"""A graph with its weights, and the cuts that seed faults into it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Graph:
    """A graph under the knife; weights are found by their values, so that no name of the exporter is relied on."""

    def __init__(self, model: onnx.ModelProto, weights: dict[str, np.ndarray]):
        self.model, self.weights = model, weights
        self.nodes = model.graph.node

    def of(self, op: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type == op]

    def value(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(next(t for t in self.model.graph.initializer if t.name == name))

    def tensor(self, weight: str) -> str:
        """Name of the initialiser that holds a weight of the checkpoint (or its transpose), or of its INT8 form."""
        for tensor in self.model.graph.initializer:
            if tensor.name == f"model.{weight}":
                return tensor.name
            held = numpy_helper.to_array(tensor)
            want = self.weights.get(weight)
            if want is not None and (np.array_equal(held, want) or np.array_equal(held, want.T)):
                return tensor.name
        raise AssertionError(f"no initialiser holds {weight}")

    def set(self, name: str, array: np.ndarray) -> None:
        next(t for t in self.model.graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(array, name))

    def reader(self, name: str) -> onnx.NodeProto:
        return next(node for node in self.nodes if name in node.input)

    def maker(self, name: str) -> onnx.NodeProto:
        return next(node for node in self.nodes if name in node.output)

    def own(self, node: onnx.NodeProto, place: int, array: np.ndarray) -> None:
        """Gives a node a constant of its own in the place of one it may share."""
        name = f"fault_{len(self.model.graph.initializer)}"
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        while len(node.input) <= place:
            node.input.append("")
        node.input[place] = name

    def bypass(self, node: onnx.NodeProto, instead: str) -> None:
        """Removes a node; its readers read something else."""
        for other in self.nodes:
            for place, name in enumerate(other.input):
                if name == node.output[0]:
                    other.input[place] = instead
        self.nodes.remove(node)

    def after(self, name: str, *made: onnx.NodeProto) -> None:
        """Puts nodes behind a tensor; its readers read the last one's output."""
        for other in self.nodes:
            for place, read in enumerate(other.input):
                if read == name:
                    other.input[place] = made[-1].output[0]
        makers = [i for i, node in enumerate(self.nodes) if name in node.output]
        for node in reversed(made):
            self.nodes.insert(makers[0] + 1 if makers else 0, node)

    def attribute(self, node: onnx.NodeProto, name: str, value: object) -> None:
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    def selections(self) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
        """The TopK that choose, and those that sort what was chosen."""
        smallest = [any(a.name == "largest" and a.i == 0 for a in node.attribute) for node in self.of("TopK")]
        nodes = self.of("TopK")
        return [n for n, s in zip(nodes, smallest) if not s], [n for n, s in zip(nodes, smallest) if s]

    def kept(self, stage: int) -> str:
        """The indices that a stage keeps, sorted where the graph sorts them."""
        chosen, sorts = self.selections()
        return sorts[stage].output[0] if sorts else chosen[stage].output[1]

    def rows(self, stage: int) -> tuple[onnx.NodeProto, onnx.NodeProto]:
        """The nodes that gather tokens and queries of a stage."""
        split = self.of("Split")[stage].output[0]
        nodes = self.of("GatherND")[2 * stage : 2 * stage + 2]
        return tuple(sorted(nodes, key=lambda node: node.input[0] == split))

    def scored(self, stage: int) -> onnx.NodeProto:
        """The slice of the tokens whose products with one vector rank the patches of a stage."""
        product = self.maker(self.maker(self.selections()[0][stage].input[0]).input[0])
        node = self.maker(product.input[0])
        assert (product.op_type, node.op_type) == ("MatMul", "Slice")
        return node

    def is_weight(self, name: str) -> bool:
        """Whether a tensor is an initialiser."""
        return any(tensor.name == name for tensor in self.model.graph.initializer)
