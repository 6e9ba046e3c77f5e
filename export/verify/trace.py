"""Finds the first bad place of a graph by comparing intermediate tensors in order; names the node and the module.

Two comparisons find a fault wherever it is. The graph is compared with a fresh export of the same checkpoint, both run node
by node without optimisation: sound tensors are equal bit for bit, and the first tensor that differs comes from the faulty
node. The fresh export is compared with PyTorch, whose module outputs are recognised among the graph's tensors by their
values; that finds faults of the exporter and the module that a node belongs to.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import Checkpoint
from gft_edge.export.graph.node_differences import node_differences
from gft_edge.export.graph.structure import execution_order
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.export.onnx.tracing import export_graph
from gft_edge.export.verify.module_trace import (
    SAME_INT8_TENSOR_DB,
    SAME_TENSOR_DB,
    Recognizer,
    first_bad_module,
    module_calls,
    node_modules,
)
from gft_edge.export.verify.places import Place, agreement_db, decibels, finite
from gft_edge.export.verify.tensors import corresponding_tensors, node_tensors
from gft_edge.manifest import DeploymentManifest
from gft_edge.stats.agreement import Arrays

IMAGES = 4
"""Images that a trace runs on: several, so that a graph that mixes up images is found."""
EQUAL_DB = 100.0
"""Least agreement of two runs of the same arithmetic; float32 rounding in another order stays above it."""


def fresh_graph(checkpoint: Checkpoint, manifest: DeploymentManifest) -> onnx.ModelProto:
    """Exports a checkpoint again with the options of an artefact's manifest."""
    logging.getLogger("onnxslim").setLevel(logging.ERROR)
    return export_graph(checkpoint.model, checkpoint.info.preprocess, manifest.budget, GraphOptions.of(manifest))


@dataclass(frozen=True)
class _Pair:
    """Two graphs run node by node.

    Attributes:
        fresh, found: the graphs.
        names: in ``found`` of the tensors of ``fresh``.
        expected, actual: values of the tensors of both.
        broken: node that stopped ``found``, None when it ran to its end.
    """

    fresh: onnx.ModelProto
    found: onnx.ModelProto
    names: dict[str, str]
    expected: Arrays
    actual: Arrays
    broken: onnx.NodeProto | None

    @classmethod
    def run(cls, fresh: onnx.ModelProto, found: onnx.ModelProto, feed: npt.NDArray[Any]) -> _Pair:
        """Runs both on the same input."""
        expected, _ = node_tensors(fresh, feed)
        actual, broken = node_tensors(found, feed)
        return cls(fresh, found, corresponding_tensors(fresh, found), expected, actual, broken)

    def sqnr(self, name: str) -> float | None:
        """Returns the agreement of a tensor of ``fresh``; None if one side has no value."""
        other = self.names.get(name)
        if name not in self.expected or other not in self.actual:
            return None
        return agreement_db(self.expected[name], self.actual[other])

    def before(self, node: onnx.NodeProto) -> float:
        """Returns the smallest agreement of the tensors that a node of ``fresh`` reads."""
        return min((db for db in map(self.sqnr, node.input) if db is not None), default=math.inf)


def _first_wrong(pair: _Pair) -> Place | None:
    """Returns the first node that computes something else than a fresh export; None when every tensor agrees."""
    found, names = pair.found, pair.names
    producers = {name: node for node in found.graph.node for name in node.output if name}
    for node in execution_order(pair.fresh.graph):
        for tensor in filter(None, node.output):
            other = producers.get(names.get(tensor, ""))
            if other is None or tensor not in pair.expected:
                continue
            sqnr = pair.sqnr(tensor)
            if sqnr is None and other is not pair.broken:
                continue  # after the node that cannot be run
            if sqnr is not None and sqnr >= EQUAL_DB:
                continue
            missing = _first_missing(pair.fresh.graph, node, names)
            if missing is not None:
                return _missing_node(missing, node)
            place = _node_place(pair, node, other, tensor, sqnr)
            return replace(place, text=place.text + _not_finite(found.graph, pair.actual))
    if pair.broken is not None:
        broken = pair.broken
        text = f"{broken.op_type} {broken.name}: cannot be run; a fresh export has no such node"
        return Place("node", broken.name, text, broken.op_type, tensor=next(iter(broken.output), ""))
    return None


def _first_missing(graph: onnx.GraphProto, node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto | None:
    """Returns the first of the nodes before a node that the graph in question does not have."""
    producers = {name: n for n in graph.node for name in n.output if name}
    pending, missing = list(node.input), set()
    while pending:
        name = pending.pop()
        if name in producers and name not in names and name not in missing:
            missing.add(name)
            pending.extend(producers[name].input)
    return next((n for n in graph.node if missing.intersection(n.output)), None)


def _missing_node(node: onnx.NodeProto, reader: onnx.NodeProto) -> Place:
    text = f"{node.op_type} {node.name} is missing; first seen at {reader.op_type} {reader.name}"
    return Place("node", node.name, text, node.op_type, tensor=node.output[0], differences=("is missing",))


def _not_finite(graph: onnx.GraphProto, arrays: Arrays) -> str:
    """Describes the first node that gives non-finite values; "" when none does."""
    for node in graph.node:
        for name in node.output:
            if name in arrays and arrays[name].dtype.kind == "f" and not np.isfinite(arrays[name]).all():
                return f"; {node.op_type} {node.name} is the first that gives non-finite values"
    return ""


def _first_changed(pair: _Pair) -> Place | None:
    """Returns the first node that differs from a fresh export, whatever it computes.

    A branch that nothing reads counts right after the nodes that it reads.
    """
    fresh, found, names = pair.fresh, pair.found, pair.names
    producers = {name: node for node in found.graph.node for name in node.output if name}
    dead = _dead_branch(pair)
    # Names count only if they are this tool's own.
    named = sum(names.get(t) == t for n in fresh.graph.node for t in n.output) * 2 > len(names)
    for number, node in enumerate(execution_order(fresh.graph)):
        if dead is not None and dead[0] < number:
            break
        other = next((producers[names[t]] for t in node.output if names.get(t) in producers), None)
        if other is None:
            return _missing_node(node, node)
        if node_differences(fresh, found, node, other, names) or (named and _name_differences(pair, node, other)):
            return _node_place(pair, node, other, node.output[0], pair.sqnr(node.output[0]), named)
    if dead is None:
        return None
    return dead[1]


def _dead_branch(pair: _Pair) -> tuple[int, Place] | None:
    """Returns the first node that a fresh export does not have and whose results none of its nodes read, with the number of
    the last node of the fresh export before it (-1: none)."""
    known = set(pair.names.values())
    own = [node for node in pair.found.graph.node if not known.intersection(node.output)]
    # Backwards: nodes that lead to a node of the fresh export are reported at that node.
    needed = {name for node in pair.found.graph.node if known.intersection(node.output) for name in node.input}
    for node in reversed(own):
        if needed.intersection(node.output):
            needed.update(node.input)
    dead = [node for node in own if not needed.intersection(node.output)]
    if not dead:
        return None
    places = {
        pair.names[name]: (number, node)
        for number, node in enumerate(execution_order(pair.fresh.graph))
        for name in node.output
        if name in pair.names
    }
    behind: dict[str, int] = {}
    for node in dead:
        number = max((behind.get(name, places.get(name, (-1, None))[0]) for name in node.input), default=-1)
        behind.update(dict.fromkeys(node.output, number))
    first = min(dead, key=lambda node: behind[node.output[0]])
    outputs = [value.name for value in pair.found.graph.output if value.name in behind]
    text = f"{first.op_type} {first.name} of {', '.join(first.input) or 'nothing'} is not in a fresh export"
    text += (
        f"; it gives the further outputs {', '.join(outputs)}" if outputs else "; no node of a fresh export reads it"
    )
    place = Place("node", first.name, text, first.op_type, tensor=first.output[0], differences=("is added",))
    return behind[first.output[0]], place


def _name_differences(pair: _Pair, node: onnx.NodeProto, other: onnx.NodeProto) -> list[str]:
    """Describes different names of two nodes that do the same, and of their outputs and weights."""
    weights = {tensor.name for tensor in pair.fresh.graph.initializer}
    read = [(a, b) for a, b in zip(node.input, other.input) if a in weights]
    sides = (
        ("has the name", [node.name], [other.name]),
        ("gives", list(node.output), list(other.output)),
        ("reads the same values from", [a for a, _ in read], [b for _, b in read]),
    )
    return [f"{what} {', '.join(have)} instead of {', '.join(want)}" for what, want, have in sides if have != want]


def _node_place(
    pair: _Pair, node: onnx.NodeProto, other: onnx.NodeProto, tensor: str, sqnr: float | None, named: bool = False
) -> Place:
    differences = node_differences(pair.fresh, pair.found, node, other, pair.names)
    if named and not differences:
        differences = _name_differences(pair, node, other)
    before = pair.before(node)
    text = f"{node.op_type} {node.name}"
    if pair.expected:
        value = "cannot be computed" if sqnr is None else f"has {decibels(sqnr)}"
        text += f": {tensor} {value}, what it reads has {decibels(before)}"
    if differences:
        text += ": " + "; ".join(differences)
    return Place(
        "node",
        node.name,
        text,
        node.op_type,
        tensor=tensor,
        sqnr_db=None if sqnr is None else finite(sqnr),
        sqnr_before_db=finite(before),
        differences=tuple(differences),
    )


def trace(
    checkpoint: Checkpoint,
    budget: TokenBudget,
    graphs: tuple[onnx.ModelProto, onnx.ModelProto],
    images: npt.NDArray[np.float32],
    feed: npt.NDArray[Any] | None = None,
    exact: bool = False,
) -> Place | None:
    """Returns the first bad place of a graph compared with a fresh export, or of the fresh export compared with PyTorch.

    Args:
        checkpoint, budget: of both graphs.
        graphs: the fresh export (see :func:`fresh_graph`), and the artefact's graph.
        images: preprocessed, (B, 3, H, W), B > 1.
        feed: the same images as the graph's input, if that has another form.
        exact: a node that differs from the fresh export is bad whatever it computes, and is returned if it is the first in the
            order of execution.
    """
    fresh, found = graphs
    feed = images if feed is None else feed
    pair = _Pair.run(fresh, found, feed)
    place = _first_wrong(pair)
    if exact:
        place = _earlier(fresh, _first_changed(pair), place)
    calls = module_calls(checkpoint.model, images, budget, fresh.graph)
    same_db = SAME_TENSOR_DB if checkpoint.info.quantization is None else SAME_INT8_TENSOR_DB
    recognize = Recognizer(pair.expected, same_db)
    if place is None:
        return first_bad_module(calls, recognize)
    modules = node_modules(fresh.graph, calls, recognize)
    outputs = next((node.output for node in fresh.graph.node if node.name == place.name), None)
    if outputs is None:  # a node of the artefact alone belongs to the module of its inputs
        outputs = next((node.input for node in found.graph.node if node.name == place.name), ())
    module = next((modules[name] for name in outputs if name in modules), "")
    text = f"{place.text} (in {module or 'the model itself'})"
    return replace(place, module=module, text=text)


def _earlier(fresh: onnx.ModelProto, changed: Place | None, wrong: Place | None) -> Place | None:
    """Returns the first of a changed node and a node with wrong results; of the same node the one with more details."""
    if changed is None or wrong is None:
        return changed or wrong
    order = {node.name: number for number, node in enumerate(execution_order(fresh.graph))}
    return wrong if order.get(wrong.name, len(order)) <= order.get(changed.name, -1) else changed
