"""Finds the node at which a quantized graph parts from its float original, by the tensors that both have."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import onnx

from gft_edge.export.graph.structure import execution_order
from gft_edge.export.verify.places import Place, agreement_db, decibels, finite
from gft_edge.export.verify.tensors import corresponding_tensors, node_tensors

LOSS_DB = 6.0
"""A node that loses more than this from what it reads is where two graphs part; gradual loss has no such node."""


def parting_node(
    original: onnx.ModelProto, found: onnx.ModelProto, feed: npt.NDArray[np.float32], least_db: float
) -> Place | None:
    """Returns the first node whose output differs by more than a limit, best one that loses much of the agreement itself.

    Both graphs run node by node without optimisation. Tensors correspond by name, or by the order of operators where another tool
    has renamed them; those that one side alone has (between QuantizeLinear and DequantizeLinear) are not compared.

    Args:
        original: the float graph.
        found: made from it, with QuantizeLinear and DequantizeLinear.
        feed: input of both.
        least_db: agreement that is expected.

    Returns:
        The place, None when every common tensor has ``least_db``, or when the original cannot be run node by node (2 GB and more).
    """
    expected, stopped = node_tensors(original, feed)
    if stopped is not None:
        return None
    actual, broken = node_tensors(found, feed)
    names = corresponding_tensors(original, found)
    known: dict[str, float] = {}
    candidates: list[tuple[float, Place]] = []
    for node in execution_order(original.graph):
        before = min((known[name] for name in node.input if name in known), default=math.inf)
        for tensor in filter(None, node.output):
            known[tensor] = before  # what is not compared passes on what it reads
            value, other = expected.get(tensor), actual.get(names.get(tensor, ""))
            if value is None or other is None or value.dtype.kind != "f" or value.shape != other.shape:
                continue
            agreement = known[tensor] = agreement_db(value, other.astype(value.dtype))
            if agreement < least_db:
                candidates.append((before - agreement, _place(node, tensor, agreement, before)))
    if broken is not None:
        text = f"{broken.op_type} {broken.name or broken.output[0]}: cannot be run"
        return Place("node", broken.name, text, broken.op_type, tensor=next(iter(broken.output), ""))
    sharp = (place for loss, place in candidates if loss > LOSS_DB)
    return next(sharp, candidates[0][1] if candidates else None)


def _place(node: onnx.NodeProto, tensor: str, agreement: float, before: float) -> Place:
    name = node.name or tensor
    text = f"{node.op_type} {name}: {tensor} has {decibels(agreement)}, what it reads has {decibels(before)}"
    return Place(
        "node", name, text, node.op_type, tensor=tensor, sqnr_db=finite(agreement), sqnr_before_db=finite(before)
    )
