"""Describes how two nodes differ: operator, attributes, inputs, weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper


def node_differences(
    fresh: onnx.ModelProto,
    found: onnx.ModelProto,
    node: onnx.NodeProto,
    other: onnx.NodeProto,
    names: Mapping[str, str],
) -> list[str]:
    """Describes the differences of a node from its counterpart in a fresh export.

    Args:
        fresh: model of ``node``.
        found: model of ``other``.
        node: of the fresh export.
        other: of the graph in question.
        names: tensors of ``fresh`` under their names in ``found``.
    """
    differences = []
    if node.op_type != other.op_type:
        differences.append(f"is {other.op_type} instead of {node.op_type}")
    if node.domain != other.domain:
        differences.append(f"is of the operators {other.domain or 'ai.onnx'} instead of {node.domain or 'ai.onnx'}")
    if len(node.output) != len(other.output):
        differences.append(f"has {len(other.output)} outputs instead of {len(node.output)}")
    expected, actual = _attributes(node), _attributes(other)
    for key in sorted(expected.keys() | actual.keys()):
        if expected.get(key) != actual.get(key):
            have, want = (_text(side[key]) if key in side else "not set" for side in (actual, expected))
            differences.append(f"{key} is {have} instead of {want}")
    weights, other_weights = _initializers(fresh), _initializers(found)
    makers = {name: n for n in found.graph.node for name in n.output}
    own = {name for n in fresh.graph.node for name in n.output} | {value.name for value in fresh.graph.input}
    known = {names.get(name) for name in own}
    for place in range(max(len(node.input), len(other.input))):
        want = node.input[place] if place < len(node.input) else ""
        have = other.input[place] if place < len(other.input) else ""
        if want in weights and have in other_weights:
            change = weight_change(numpy_helper.to_array(weights[want]), numpy_helper.to_array(other_weights[have]))
            if change:
                differences.append(f"{want} {change}")
        elif (names.get(want, want) if want in own else want) != have:
            text = f"reads {have or 'nothing'} instead of {want or 'nothing'}"
            if have in other_weights and other_weights[have].dims in ([], [1]):
                text += f" ({have} is {_text(numpy_helper.to_array(other_weights[have]).reshape(-1)[0])})"
            if have in makers and have not in known:
                text += f" (made by {makers[have].op_type} {makers[have].name}, which a fresh export lacks)"
            differences.append(text)
    return differences


def _text(value: Any) -> str:
    """Returns an attribute or an element in up to six digits."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def weight_change(expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> str:
    """Describes the change of a weight; "" without one."""
    if expected.dtype != found.dtype:
        return f"is {found.dtype} instead of {expected.dtype}"
    if expected.shape != found.shape:
        return f"has shape {found.shape} instead of {expected.shape}"
    differs = expected != found
    if expected.dtype.kind == "f":
        differs &= ~(np.isnan(expected) & np.isnan(found))
    count = int(differs.sum())
    if not count:
        return ""
    if expected.size == 1:
        return f"is {_text(found.reshape(-1)[0])} instead of {_text(expected.reshape(-1)[0])}"
    if not found.any():
        return "is all zeros"
    if not np.isfinite(found.astype(np.float64)).all():
        return f"is not finite in {int((~np.isfinite(found.astype(np.float64))).sum())} of {found.size} elements"
    if expected.ndim == 2 and expected.shape[0] == expected.shape[1] and np.array_equal(expected.T, found):
        return "is transposed"
    for axis in range(expected.ndim):
        if _is_permuted(expected, found, axis):
            return f"is permuted along axis {axis}"
    if count == 1:
        at = np.argwhere(differs)[0].tolist()
        return f"differs in the element {at}: {_text(found[tuple(at)])} instead of {_text(expected[tuple(at)])}"
    wide, changed = expected.astype(np.float64), found.astype(np.float64)
    ratios = changed[wide != 0] / wide[wide != 0]
    if len(ratios) > 1 and np.allclose(ratios, ratios[0], rtol=1e-5):
        return f"is scaled by {ratios[0]:.6g}"
    return f"differs in {count} of {found.size} elements, by {np.abs(changed - wide).max():.3g} at most"


def _is_permuted(expected: npt.NDArray[Any], found: npt.NDArray[Any], axis: int) -> bool:
    """Returns True if the slices along an axis are the same in another order."""
    sides = (np.moveaxis(side, axis, 0) for side in (expected, found))
    rows = [sorted(np.ascontiguousarray(row).tobytes() for row in side) for side in sides]
    return rows[0] == rows[1]
