"""Computes shapes and other small constants of a graph.

Exporters write k as Shape, Gather, Mul 7, Div 10 where every size is known. Parsers fold such nodes, so they are no computation
at run time. Unknown sizes, such as the batch, are filled in several ways: a result that is the same each time does not depend
on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto

from gft_edge.export.graph.structure import STANDARD

Array = npt.NDArray[Any]
Shape = Sequence[int | str | None]
Values = tuple[Array, ...]
"""One array, or one for each way to fill unknown sizes in."""

MAX_ELEMENTS = 4096
"""Limit for a tensor that is folded; shapes have a handful, weights have more."""

FILLS = 3

_ELEMENTWISE = (
    *(
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Mod",
        "Pow",
        "Min",
        "Max",
        "Sum",
        "Mean",
        "Abs",
        "Neg",
        "Sign",
        "Floor",
        "Ceil",
        "Round",
    ),
    *("Sqrt", "Reciprocal", "Exp", "Log", "Clip", "Relu", "Cast", "CastLike", "Identity", "Where", "Equal", "Greater"),
    *("GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Not"),
)
_MOVING = (
    *(
        "Gather",
        "GatherElements",
        "GatherND",
        "Slice",
        "Concat",
        "Squeeze",
        "Unsqueeze",
        "Reshape",
        "Transpose",
        "Flatten",
    ),
    *(
        "Split",
        "ScatterElements",
        "ScatterND",
        "ReduceProd",
        "ReduceSum",
        "ReduceMin",
        "ReduceMax",
        "ReduceMean",
        "ArgMax",
    ),
    *("ArgMin", "CumSum", "NonZero", "TopK", "Trilu", "Compress", "Unique", "OneHot", "Shape", "Size"),
)
_GROWING = ("ConstantOfShape", "Range", "Expand", "Tile", "EyeLike", "Pad")
FOLDED = frozenset((*_ELEMENTWISE, *_MOVING, *_GROWING))


def fold(
    nodes: Sequence[NodeProto],
    known: Mapping[str, Array],
    shape: Callable[[str], Shape | None],
    opset: int,
) -> dict[str, Array]:
    """Computes the outputs of nodes that depend on constants and static sizes alone.

    Args:
        nodes: each after those it reads.
        known: small constants by name.
        shape: of a tensor, where it is known.
        opset: of the operators.

    Returns:
        the value of every such output.
    """
    values: dict[str, Values] = {name: (value,) for name, value in known.items() if value.size <= MAX_ELEMENTS}
    unknown: dict[object, int] = {}
    for node in nodes:
        if node.domain not in STANDARD or not all(name in values or not name for name in node.input):
            if node.op_type in ("Shape", "Size") and node.domain in STANDARD:
                result = _shape(node, shape(node.input[0]), unknown)
                if result is not None:
                    sizes = tuple(np.array(np.prod(sizes)) for sizes in result)
                    values[node.output[0]] = result if node.op_type == "Shape" else sizes
            continue
        if node.op_type not in FOLDED or not node.input or _is_large(node, values):
            continue
        results = _evaluate(node, values, opset)
        if results is not None:
            values.update((name, result) for name, result in zip(node.output, results, strict=False) if name)
    made = {name for node in nodes for name in node.output}
    return {name: value[0] for name, value in values.items() if name in made and name not in known and _is_one(value)}


def _is_one(values: Values) -> bool:
    return all(np.array_equal(values[0], other, equal_nan=values[0].dtype.kind == "f") for other in values[1:])


def _shape(node: NodeProto, shape: Shape | None, unknown: dict[object, int]) -> Values | None:
    """Returns the Shape of a tensor of known rank; each unknown size is filled with 1 and with two large values of its own."""
    if shape is None:
        return None
    start = next((a.i for a in node.attribute if a.name == "start"), 0)
    end = next((a.i for a in node.attribute if a.name == "end"), len(shape))
    sizes: list[tuple[int, ...]] = []
    for number, size in enumerate(shape):
        if isinstance(size, int):
            sizes.append((size,) * FILLS)
            continue
        index = unknown.setdefault(size or (node.input[0], number), len(unknown))
        sizes.append((1, 1009 + 38 * index, 7919 * (index + 1)))
    filled = tuple(np.array([size[fill] for size in sizes], np.int64)[start:end] for fill in range(FILLS))
    return filled[:1] if _is_one(filled) else filled


def _is_large(node: NodeProto, values: Mapping[str, Values]) -> bool:
    """Returns True if the result may have more than :data:`MAX_ELEMENTS`."""
    inputs = [values[name][-1] for name in node.input if name]
    if node.op_type in _ELEMENTWISE:
        try:
            return math.prod(np.broadcast_shapes(*(value.shape for value in inputs))) > MAX_ELEMENTS
        except ValueError:
            return True
    if node.op_type in ("ConstantOfShape", "Expand", "Tile", "Range", "Pad", "OneHot", "EyeLike"):
        with np.errstate(all="ignore"):
            sizes = [_grown(node.op_type, [values[name] for name in node.input if name], fill) for fill in range(FILLS)]
        return not all(size <= MAX_ELEMENTS for size in sizes)
    if node.op_type in ("Gather", "GatherND", "GatherElements"):
        return inputs[0].size * max(1, inputs[-1].size) > MAX_ELEMENTS**2 or (
            inputs[-1].size * max(1, inputs[0].size // max(1, inputs[0].shape[0] if inputs[0].ndim else 1))
            > MAX_ELEMENTS
        )
    return False


def _grown(op_type: str, inputs: list[Values], fill: int) -> float:
    arrays = [value[min(fill, len(value) - 1)].astype(np.float64) for value in inputs]
    if op_type == "ConstantOfShape":
        return float(np.prod(arrays[0]))
    if op_type == "Expand":
        return float(np.prod(np.maximum(arrays[1], 1)) * max(1, arrays[0].size))
    if op_type == "Tile":
        return float(np.prod(np.maximum(arrays[1], 1)) * arrays[0].size)
    if op_type == "Range" and len(arrays) == 3:
        start, limit, step = (float(array.reshape(-1)[0]) if array.size else math.nan for array in arrays)
        return math.inf if not step else max(0.0, (limit - start) / step)
    if op_type == "Pad":
        return (
            float(np.prod(np.array(arrays[0].shape or (1,)) + np.abs(arrays[1]).sum())) if len(arrays) > 1 else math.inf
        )
    if op_type == "OneHot":
        return float(arrays[0].size * np.abs(arrays[1]).max(initial=1))
    return float(arrays[0].size)


def _evaluate(node: NodeProto, values: Mapping[str, Values], opset: int) -> list[Values] | None:
    """Returns a node's outputs by ONNX's reference evaluator; None where it cannot compute them."""
    from onnx.reference import ReferenceEvaluator

    inputs = {name: values[name] for name in node.input if name}
    fills = max((len(value) for value in inputs.values()), default=1)
    runs = []
    try:
        evaluator = ReferenceEvaluator(node, opsets={"": opset})
        with np.errstate(all="ignore"):
            for fill in range(fills):
                feeds = {name: value[min(fill, len(value) - 1)] for name, value in inputs.items()}
                runs.append([np.asarray(array) for array in evaluator.run(None, feeds)])
    except Exception:  # any error of numpy or the evaluator: the node is not folded
        return None
    if any(array.size > MAX_ELEMENTS or array.dtype.kind not in "biuf" for run in runs for array in run):
        return None
    outputs = [tuple(run[number] for run in runs) for number in range(len(runs[0]))]
    return [output[:1] if _is_one(output) else output for output in outputs]


def as_tensor(name: str, value: Array) -> onnx.TensorProto:
    """Returns a folded value as an initialiser."""
    return onnx.numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
