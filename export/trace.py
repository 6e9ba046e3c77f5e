"""The first bad place: intermediate tensors compared in order, the node and the module named.

Two comparisons, so that a fault is found wherever it is. A graph is held against a fresh export of the same checkpoint,
both run node by node without optimisation: what agrees is equal bit for bit, and the first tensor that differs
comes from the faulty node. The fresh export is held against PyTorch, whose module outputs are recognised among the
graph's tensors by their values; that finds faults of the exporter, and tells which module a node belongs to.
"""

from __future__ import annotations

import difflib
import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import Checkpoint
from gft_edge.export.agreement import Arrays
from gft_edge.export.differences import node_differences
from gft_edge.export.module_trace import (
    SAME_INT8_TENSOR_DB,
    SAME_TENSOR_DB,
    Recognizer,
    first_bad_module,
    module_calls,
    node_modules,
)
from gft_edge.export.onnx import GraphOptions, export_graph
from gft_edge.export.places import Place, agreement_db, decibels, finite
from gft_edge.manifest import DeploymentManifest

IMAGES = 4
"""Images a trace runs on: more than one, so that a graph that mixes up images is caught."""
EQUAL_DB = 100.0
"""Two runs of the same arithmetic; float32 rounding in another order stays above."""


def fresh_graph(checkpoint: Checkpoint, manifest: DeploymentManifest) -> onnx.ModelProto:
    """The graph that a checkpoint gives today with the flags an artefact's manifest tells."""
    logging.getLogger("onnxslim").setLevel(logging.ERROR)
    return export_graph(checkpoint.model, checkpoint.info.preprocess, manifest.budget, GraphOptions.of(manifest))


def node_tensors(model: onnx.ModelProto, feed: npt.NDArray[Any]) -> tuple[Arrays, onnx.NodeProto | None]:
    """Output of every node by tensor name, and the first node that cannot be run (None: all can)."""
    count = len(model.graph.node)
    arrays = _run_prefix(model, count, feed)
    if arrays is not None:
        return arrays, None
    good, bad = 0, count
    arrays = {}
    while bad - good > 1:
        middle = (good + bad) // 2
        found = _run_prefix(model, middle, feed)
        if found is None:
            bad = middle
        else:
            good, arrays = middle, found
    return arrays, model.graph.node[bad - 1]


def _run_prefix(model: onnx.ModelProto, count: int, feed: npt.NDArray[Any]) -> Arrays | None:
    """Runs the first nodes of a graph as they stand; None when ONNX Runtime refuses."""
    import onnxruntime as ort

    part = onnx.ModelProto()
    part.CopyFrom(model)
    nodes = list(model.graph.node[:count])
    names = [name for node in nodes for name in node.output if name]
    for repeated in (part.graph.node, part.graph.output, part.graph.value_info):
        del repeated[:]
    part.graph.node.extend(nodes)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return dict(zip(names, session.run(names, {model.graph.input[0].name: feed})))
    except Exception:  # ONNX Runtime raises a dozen classes that share no public base
        return None


def plain_error(fresh: onnx.ModelProto, found: onnx.ModelProto, feed: npt.NDArray[Any]) -> float | None:
    """Largest relative difference of the logits when both graphs run as they stand, without optimisation.

    Optimisers may mend a fault, as ONNX Runtime's INT8 fusion does that reads every per-channel scale along the columns; on another
    backend it is there. None when ``found`` cannot be run; inf when its logits are not finite.
    """
    sides = [_run_prefix(model, len(model.graph.node), feed) for model in (fresh, found)]
    if sides[0] is None or sides[1] is None:
        return None
    name = fresh.graph.output[0].name
    expected, value = sides[0][name], sides[1].get(name)
    if value is None or value.shape != expected.shape or not np.isfinite(value).all():
        return math.inf
    return float(np.abs(expected - value).max() / max(float(np.abs(expected).max()), 1e-12))


def first_difference(fresh: onnx.ModelProto, found: onnx.ModelProto, feed: npt.NDArray[Any]) -> Place | None:
    """The first node of a graph that does not compute what a fresh export computes; None when every tensor agrees.

    Args:
        fresh: exported anew from the same checkpoint with the same flags.
        found: the graph in question.
        feed: input of both, several images.
    """
    names = corresponding_tensors(fresh, found)
    expected, _ = node_tensors(fresh, feed)
    actual, broken = node_tensors(found, feed)
    producers = {name: node for node in found.graph.node for name in node.output if name}
    for node in fresh.graph.node:
        for tensor in filter(None, node.output):
            other = producers.get(names.get(tensor, ""))
            if other is None or tensor not in expected:
                continue
            value = actual.get(names[tensor])
            if value is None and other is not broken:
                continue  # behind the node that cannot be run
            sqnr = None if value is None else agreement_db(expected[tensor], value)
            if sqnr is not None and sqnr >= EQUAL_DB:
                continue
            missing = _first_missing(fresh.graph, node, names)
            if missing is not None:
                return _missing_node(missing, node)
            before = [
                agreement_db(expected[name], actual[names[name]])
                for name in node.input
                if name in expected and names.get(name) in actual
            ]
            place = _node_place(fresh, found, node, other, names, tensor, sqnr, min(before, default=math.inf))
            return replace(place, text=place.text + _not_finite(found.graph, actual))
    if broken is not None:
        text = f"{broken.op_type} {broken.name}: cannot be run; a fresh export has no such node"
        return Place("node", broken.name, text, broken.op_type, tensor=next(iter(broken.output), ""))
    return None


def _first_missing(graph: onnx.GraphProto, node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto | None:
    """The first of the nodes that lead to a node and that the graph in question does not have."""
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
    """The first node that gives values that are not finite, in words; "" when none does."""
    for node in graph.node:
        for name in node.output:
            if name in arrays and arrays[name].dtype.kind == "f" and not np.isfinite(arrays[name]).all():
                return f"; {node.op_type} {node.name} is the first that gives values that are not finite"
    return ""


def silent_difference(fresh: onnx.ModelProto, found: onnx.ModelProto) -> Place | None:
    """The first node that stands otherwise in a fresh export, whatever it computes."""
    names = corresponding_tensors(fresh, found)
    producers = {name: node for node in found.graph.node for name in node.output if name}
    for node in fresh.graph.node:
        other = next((producers[names[t]] for t in node.output if names.get(t) in producers), None)
        if other is None:
            return _missing_node(node, node)
        if node_differences(fresh, found, node, other, names):
            return _node_place(fresh, found, node, other, names, node.output[0], math.inf, math.inf)
    return None


def _node_place(
    fresh: onnx.ModelProto,
    found: onnx.ModelProto,
    node: onnx.NodeProto,
    other: onnx.NodeProto,
    names: dict[str, str],
    tensor: str,
    sqnr: float | None,
    before: float,
) -> Place:
    differences = node_differences(fresh, found, node, other, names)
    value = "cannot be computed" if sqnr is None else f"has {decibels(sqnr)}"
    text = f"{node.op_type} {node.name}: {tensor} {value}, what it reads has {decibels(before)}"
    if differences:
        text += ": " + "; ".join(differences)
    return Place(
        "node",
        node.name,
        text,
        node.op_type,
        tensor=tensor,
        sqnr_db=finite(sqnr),
        sqnr_before_db=finite(before),
        differences=tuple(differences),
    )


def corresponding_tensors(fresh: onnx.ModelProto, found: onnx.ModelProto) -> dict[str, str]:
    """Names in ``found`` of the tensors of ``fresh``: the same name, or the same place in the order of operators.

    The second where another tool has renamed most tensors.
    """
    there = {name for node in found.graph.node for name in node.output}
    there.update(value.name for value in found.graph.input)
    ours = [value.name for value in fresh.graph.input]
    ours += [name for node in fresh.graph.node for name in node.output if name]
    if sum(name in there for name in ours) >= len(ours) / 2:
        return {name: name for name in ours if name in there}
    names = dict(zip([v.name for v in fresh.graph.input], [v.name for v in found.graph.input]))
    left, right = list(fresh.graph.node), list(found.graph.node)
    matcher = difflib.SequenceMatcher(None, [n.op_type for n in left], [n.op_type for n in right], autojunk=False)
    for a, b, size in matcher.get_matching_blocks():
        for one, two in zip(left[a : a + size], right[b : b + size]):
            names.update(zip(one.output, two.output))
    return names


def trace(
    checkpoint: Checkpoint,
    budget: TokenBudget,
    fresh: onnx.ModelProto,
    found: onnx.ModelProto,
    images: npt.NDArray[np.float32],
    feed: npt.NDArray[Any] | None = None,
) -> Place | None:
    """The first bad place of a graph: against a fresh export, and that against PyTorch.

    Args:
        checkpoint: both graphs are of.
        budget: likewise.
        fresh: see :func:`fresh_graph`.
        found: the artefact's graph.
        images: preprocessed, (B, 3, H, W), B > 1.
        feed: the same images as the graph takes them, where that is another form.
    """
    feed = images if feed is None else feed
    calls = module_calls(checkpoint.model, images, budget)
    same_db = SAME_TENSOR_DB if checkpoint.info.quantization is None else SAME_INT8_TENSOR_DB
    recognize = Recognizer(node_tensors(fresh, feed)[0], same_db)
    place = first_difference(fresh, found, feed)
    if place is None:
        return first_bad_module(calls, recognize)
    modules = node_modules(fresh.graph, calls, recognize)
    outputs = next((node.output for node in fresh.graph.node if node.name == place.name), ())
    module = next((modules[name] for name in outputs if name in modules), "")
    text = f"{place.text} (in {module or 'the model itself'})"
    return replace(place, module=module, text=text)
