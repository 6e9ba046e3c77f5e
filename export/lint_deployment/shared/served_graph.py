"""What a server sees of a graph: inputs, outputs, arithmetic on the pixels, whether it ends in probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, numpy_helper

from gft_edge.errors import ArtifactError
from gft_edge.export.graph.dtypes import ONNX_NAMES
from gft_edge.export.graph.loading import read_graph
from gft_edge.export.graph.structure import require_structure, require_text
from gft_edge.manifest import input_kind

Shape = tuple[int | str, ...]
_PASSED = ("Cast", "Identity", "Transpose", "Gather", "Slice", "Reshape", "Unsqueeze", "Squeeze", "Flatten")
_PIXEL_GAIN = 0.1
"""Graphs for normalised images do not begin with a smaller factor; 1 / (255 std) is about 0.02."""


@dataclass(frozen=True)
class ServedTensor:
    """An input or output.

    Args:
        name: in the graph.
        dtype: ``"fp32"``, ``"uint8"``, ``"int32"``, ...; empty for others.
        shape: a text is a dynamic axis; None where the graph does not say.
        probabilities: comes out of a Softmax or Sigmoid.
    """

    name: str
    dtype: str
    shape: Shape | None
    probabilities: bool = False


@dataclass(frozen=True)
class ServedGraph:
    """A graph as a server sees it.

    Args:
        file: of the graph.
        inputs, outputs: without initialisers.
        gains, shifts: of each channel, (3,): the arithmetic on the image before the first layer; ones and zeros for none.
        reverses: the channels are reversed before it.
        only_normalises: there is nothing behind the arithmetic.
        quantized: activations are quantized.
        half: the weights are 16-bit.
    """

    file: Path
    inputs: tuple[ServedTensor, ...]
    outputs: tuple[ServedTensor, ...]
    gains: tuple[float, ...]
    shifts: tuple[float, ...]
    reverses: bool
    only_normalises: bool
    quantized: bool
    half: bool

    @property
    def takes_pixels(self) -> bool:
        """True if the graph normalises values from 0 to 255 itself."""
        image = self.image
        return max(self.gains) < _PIXEL_GAIN or (
            image is not None and input_kind(image.name, {"fp32": "float32"}.get(image.dtype, image.dtype)) != "float"
        )

    @property
    def image(self) -> ServedTensor | None:
        """The only input; None if there are several or none."""
        return self.inputs[0] if len(self.inputs) == 1 else None

    @property
    def layout(self) -> str:
        """``"NCHW"`` or ``"NHWC"`` of the image, empty if it has no axis of 3 channels."""
        shape = self.image.shape if self.image else None
        if shape is None or len(shape) != 4:
            return ""
        return "NCHW" if shape[1] == 3 else "NHWC" if shape[3] == 3 else ""

    @property
    def size(self) -> tuple[int | str, int | str] | None:
        """Height and width of the image."""
        shape = self.image.shape if self.image else None
        if shape is None or not self.layout:
            return None
        return (shape[2], shape[3]) if self.layout == "NCHW" else (shape[1], shape[2])

    @property
    def static_batch(self) -> int | None:
        """Images of a request if the batch axis is static, else None."""
        shape = self.image.shape if self.image else None
        return shape[0] if shape and isinstance(shape[0], int) else None

    @property
    def scores(self) -> ServedTensor | None:
        """The output with the classes: the first one."""
        return self.outputs[0] if self.outputs else None

    @property
    def classes(self) -> int | None:
        """Classes of a (batch, classes) output."""
        shape = self.scores.shape if self.scores else None
        return shape[1] if shape and len(shape) == 2 and isinstance(shape[1], int) else None


def read_served_graph(path: Path) -> ServedGraph:
    """Reads a graph.

    Raises:
        ArtifactError: missing, no ONNX graph, or not a valid one.
    """
    model = read_graph(path).model
    try:
        require_text(model)
        require_structure(model)  # following tensors relies on it: it would not end in a circle of nodes
    except ArtifactError as error:
        raise ArtifactError(f"graph {path}: {error}") from None
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    makers = {name: node for node in graph.node for name in node.output}
    inputs = tuple(_tensor(value) for value in graph.input if value.name not in constants)
    outputs = tuple(_tensor(value, _is_probability(value.name, makers)) for value in graph.output)
    front = _follow(graph, inputs[0].name if len(inputs) == 1 else "", constants)
    return ServedGraph(
        path,
        inputs,
        outputs,
        tuple(front.gains.tolist()),
        tuple(front.shifts.tolist()),
        front.reverses,
        front.end in {value.name for value in graph.output},
        any(node.op_type == "QuantizeLinear" and node.input[0] not in constants for node in graph.node),
        any(tensor.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16) for tensor in graph.initializer),
    )


def _tensor(value: onnx.ValueInfoProto, probabilities: bool = False) -> ServedTensor:
    kind = value.type.tensor_type
    shape = None
    if kind.HasField("shape"):
        shape = tuple(
            axis.dim_value if axis.HasField("dim_value") else axis.dim_param or "?" for axis in kind.shape.dim
        )
    return ServedTensor(value.name, ONNX_NAMES.get(kind.elem_type, ""), shape, probabilities)


def _is_probability(name: str, makers: dict[str, NodeProto]) -> bool:
    node = makers.get(name)
    while node is not None and node.op_type in _PASSED:
        node = makers.get(node.input[0])
    if node is None or node.op_type != "Div":
        return node is not None and node.op_type in ("Softmax", "Sigmoid")
    above, below = (makers.get(name) for name in node.input)
    return above is not None and below is not None and (above.op_type, below.op_type) == ("Exp", "ReduceSum")


@dataclass
class _Front:
    """Arithmetic on the image, and the tensor that comes out of it."""

    gains: npt.NDArray[np.float64]
    shifts: npt.NDArray[np.float64]
    reverses: bool = False
    end: str = ""


def _follow(graph: onnx.GraphProto, name: str, constants: dict[str, onnx.TensorProto]) -> _Front:
    """Follows the image as long as one node reads it and calculates with one or three constants."""
    front = _Front(np.ones(3), np.zeros(3), end=name)
    while front.end:
        readers = [node for node in graph.node if front.end in node.input and node.op_type != "Shape"]
        if len(readers) != 1 or not _apply(front, readers[0], constants):
            break
        front.end = readers[0].output[0]
    return front


def _apply(front: _Front, node: NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """Adds a node to the arithmetic; False if it is none."""
    if node.op_type in _PASSED:
        reversing = (
            node.op_type == "Gather" and node.input[1] in constants and _values(constants[node.input[1]]) == [2, 1, 0]
        )
        if reversing:
            front.gains, front.shifts, front.reverses = front.gains[::-1], front.shifts[::-1], not front.reverses
        return True
    if node.op_type not in ("Mul", "Div", "Add", "Sub"):
        return False
    values = _channel_values(node, front.end, constants)
    if values is None or (node.input[1] == front.end and node.op_type in ("Div", "Sub")):
        return False
    if node.op_type in ("Mul", "Div"):
        factor = values if node.op_type == "Mul" else 1 / values
        front.gains, front.shifts = front.gains * factor, front.shifts * factor
    else:
        front.shifts = front.shifts + (values if node.op_type == "Add" else -values)
    return True


def _values(tensor: onnx.TensorProto) -> list[float] | None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    values: list[float] = numpy_helper.to_array(tensor).reshape(-1).tolist()
    return values


def _channel_values(
    node: NodeProto, name: str, constants: dict[str, onnx.TensorProto]
) -> npt.NDArray[np.float64] | None:
    other = node.input[1] if node.input[0] == name else node.input[0]
    tensor = constants.get(other)
    if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    values = numpy_helper.to_array(tensor).astype(np.float64).reshape(-1)
    if values.size not in (1, 3) or (node.op_type == "Div" and not values.all()):
        return None
    return np.broadcast_to(values, 3)
