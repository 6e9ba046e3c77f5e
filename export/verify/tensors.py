"""Values of the tensors of a graph, run node by node, and the tensors of two graphs that correspond. Needs no PyTorch."""

from __future__ import annotations

import difflib
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from gft_edge.manifest import PROBABILITIES
from gft_edge.runtime.backends.graph_io import log_probabilities
from gft_edge.stats.agreement import Arrays


def node_tensors(model: onnx.ModelProto, feed: npt.NDArray[Any]) -> tuple[Arrays, onnx.NodeProto | None]:
    """Returns the outputs of all nodes by tensor name, and the first node that cannot be run (None: all can)."""
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
    """Runs the first nodes of a graph without optimisation; returns None when ONNX Runtime refuses."""
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
    """Returns the largest relative difference of the logits when both graphs run without optimisation.

    Optimisers may hide a fault that another backend shows: ONNX Runtime's INT8 fusion reads every per-channel scale along the
    columns. None when ``found`` cannot be run; inf when its logits are not finite.
    """
    sides = [_run_prefix(model, len(model.graph.node), feed) for model in (fresh, found)]
    if sides[0] is None or sides[1] is None:
        return None
    name = fresh.graph.output[0].name
    expected, value = sides[0][name], sides[1].get(name)
    if value is None or value.shape != expected.shape or not np.isfinite(value).all():
        return math.inf
    if name == PROBABILITIES:
        expected, value = log_probabilities(expected), log_probabilities(value)
    return float(np.abs(expected - value).max() / max(float(np.abs(expected).max()), 1e-12))


def corresponding_tensors(fresh: onnx.ModelProto, found: onnx.ModelProto) -> dict[str, str]:
    """Returns the names in ``found`` of the tensors of ``fresh``.

    Tensors correspond by name or, if another tool has renamed most of them, by their place in the order of operators.
    """
    there = {name for node in found.graph.node for name in node.output}
    there.update(value.name for value in found.graph.input)
    ours = [value.name for value in fresh.graph.input]
    ours += [name for node in fresh.graph.node for name in node.output if name]
    if sum(name in there for name in ours) >= len(ours) / 2:
        return {name: name for name in ours if name in there} | _renamed_outputs(fresh, found, there)
    names = dict(zip([v.name for v in fresh.graph.input], [v.name for v in found.graph.input]))
    left, right = list(fresh.graph.node), list(found.graph.node)
    matcher = difflib.SequenceMatcher(None, [n.op_type for n in left], [n.op_type for n in right], autojunk=False)
    for a, b, size in matcher.get_matching_blocks():
        for one, two in zip(left[a : a + size], right[b : b + size]):
            names.update(zip(one.output, two.output))
    return names


def _renamed_outputs(fresh: onnx.ModelProto, found: onnx.ModelProto, there: set[str]) -> dict[str, str]:
    """Returns the new names of missing tensors whose nodes are still there."""
    ours = {name for node in fresh.graph.node for name in node.output}
    nodes = {node.name: node for node in found.graph.node if node.name}
    renamed = {}
    for node in fresh.graph.node:
        other = nodes.get(node.name)
        if other is not None and (other.op_type, len(other.output)) == (node.op_type, len(node.output)):
            pairs = zip(node.output, other.output)
            renamed.update({a: b for a, b in pairs if a and b and a not in there and b not in ours})
    return renamed
