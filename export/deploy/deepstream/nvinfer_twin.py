"""Computes on a CPU what DeepStream's Gst-nvinfer makes of a frame: resize, normalisation, graph, labels, attributes.

The rules are those of its sources: ``get_converted_buffer`` (gstnvinfer.cpp), ``NvDsInferConvert_*`` (nvdsinfer_conversion.cu),
``parseLabelsFile`` (nvdsinfer_context_impl.cpp), ``parseAttributesFromSoftmaxLayers`` (nvdsinfer_context_impl_output_parsing.cpp).
Not computed: the colours that NV12 frames lose, and the last bits of the interpolation of a GPU or VIC.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import ArtifactError, ConfigError, DataError
from gft_edge.export.deploy.deepstream.nvinfer_config import NvinferConfig, read_config
from gft_edge.export.verify.pixels import sampled
from gft_edge.runtime.backends.batching import run_in_batches
from gft_edge.runtime.backends.sessions import onnxruntime_session

Floats = npt.NDArray[np.float32]
UInt8Image = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]
Resizer = Callable[[UInt8Image, int, int], UInt8Image]

CLASSIFIER, TENSORS_ONLY = 1, 100
"""Values of ``network-type``: attributes by the default parser, or no parser at all."""
FILTERS = {0: "nearest", 1: "bilinear", 3: "area", 6: "nearest"}
"""Values of ``scaling-filter`` that are computed here; 3 is the averaging of a GPU, a VIC has ten taps there."""
DEFAULT_FILTER = 6
SMALLEST = 16
"""Pixels per side: nvinfer infers on no smaller object, since scaling hardware fails on it."""
FOREIGN = (
    "mean-file",
    "custom-lib-path",
    "parse-classifier-func-name",
    "input-tensor-from-meta",
    "network-input-order",
)
"""Keys that replace a rule computed here; ``network-input-order=0`` is the default."""


@dataclass(frozen=True)
class Attribute:
    """An answer that nvinfer attaches to a frame or object: output layer, class, probability, and label if the file has one."""

    layer: int
    value: int
    probability: float
    label: str | None


@dataclass(frozen=True)
class Twin:
    """nvinfer with one configuration.

    Attributes:
        config: as read.
        labels: of each attribute, in the order of the file.
        outputs: names of the graph's outputs, in order.
        size: rows and columns of the network's input.
        run: (B, 3, H, W) float32 to the outputs.
    """

    config: NvinferConfig
    labels: tuple[tuple[str, ...], ...]
    outputs: tuple[str, ...]
    size: tuple[int, int]
    run: Callable[[Floats], Sequence[npt.NDArray[Any]]]

    def __call__(self, frames: Sequence[UInt8Image]) -> list[list[Attribute]]:
        """Returns the attributes of each RGB frame (H, W, 3) uint8."""
        outputs = self.run(np.stack([tensor(scaled(frame, self.size, self.config), self.config) for frame in frames]))
        threshold = self.config.number("classifier-threshold", 0.0)
        return [attributes([out[i] for out in outputs], threshold, self.labels) for i in range(len(frames))]


def open_twin(path: Path) -> Twin:
    """Reads a configuration, its labels and its graph.

    Raises:
        ConfigError: a value that nvinfer refuses, or a key whose effect is not computed here; the line is named.
        ArtifactError: the graph cannot be loaded, or its input is none that nvinfer fills.
    """
    config = read_config(path)
    for key in FOREIGN:
        if config.line(key) and config.text(key).strip() not in ("", "0"):
            raise ConfigError(f"{config.place(key)}: its effect is not computed on a CPU; leave it out to compare")
    kind = config.integer("network-type", 0)
    if kind not in (CLASSIFIER, TENSORS_ONLY):
        raise ConfigError(f"{config.place('network-type')} is {kind}; a classifier needs 1, or 100 for tensors only")
    if config.integer("model-color-format", 0) not in (0, 1):
        raise ConfigError(f"{config.place('model-color-format')} must be 0 (RGB) or 1 (BGR)")
    if config.number("classifier-threshold", 0.0) < 0:
        raise ConfigError(f"{config.place('classifier-threshold')} is negative, which nvinfer refuses")
    if (filter_ := config.integer("scaling-filter", DEFAULT_FILTER)) not in FILTERS:
        known = ", ".join(map(str, FILTERS))
        raise ConfigError(f"{config.place('scaling-filter')} is {filter_}; computed on a CPU are {known}")
    if config.numbers("offsets") and len(config.numbers("offsets")) != 3:
        raise ConfigError(f"{config.place('offsets')}: expected three numbers")
    model = config.file("onnx-file")
    if model is None:
        raise ConfigError(f"{config.path}: has no onnx-file; name the graph beside the engine to compare on a CPU")
    outputs, size, run = _graph(model, config)
    labels = config.file("labelfile-path")
    return Twin(config, () if labels is None else read_label_file(labels), outputs, size, run)


def scaled(
    frame: UInt8Image,
    size: tuple[int, int],
    config: NvinferConfig,
    box: Box | None = None,
    resize: Resizer | None = None,
) -> UInt8Image:
    """Cuts and resizes a frame as nvinfer does: RGB (H, W, 3) uint8 to (height, width, 3) uint8.

    Left and top of the cut are rounded up to even numbers, width and height down; with ``maintain-aspect-ratio`` the rest
    of the network's input is black, at the right and bottom, or on both sides with ``symmetric-padding``.

    Args:
        frame: RGB.
        size: rows and columns of the network's input.
        config: for the keys named above and ``scaling-filter``.
        box: left, top, width and height of an object; None takes the whole frame.
        resize: takes an image, rows and columns; None resizes as ``scaling-filter`` says.

    Raises:
        DataError: the cut is smaller than 16 pixels, or leaves the frame.
    """
    left, top, width, height = (int(value) for value in box or (0, 0, frame.shape[1], frame.shape[0]))
    left, top, width, height = left + left % 2, top + top % 2, width - width % 2, height - height % 2
    cut = frame[top : top + height, left : left + width]
    if cut.shape[:2] != (height, width) or min(height, width) < SMALLEST:
        raise DataError(
            f"frame of {frame.shape[1]} x {frame.shape[0]} pixels: nvinfer cannot scale the part of {width} x {height} at "
            f"({left}, {top}); it must lie in the frame and have at least {SMALLEST} pixels a side"
        )
    rows, columns = size
    if config.flag("maintain-aspect-ratio"):
        fitting = columns * height / width
        rows, columns = (int(fitting), columns) if fitting <= rows else (rows, int(rows * width / height))
    mode = FILTERS[config.integer("scaling-filter", DEFAULT_FILTER)]
    small = resized(cut, rows, columns, mode) if resize is None else resize(cut, rows, columns)
    result = np.zeros((*size, 3), np.uint8)
    half = config.flag("symmetric-padding")
    y, x = ((size[0] - rows) // 2, (size[1] - columns) // 2) if half else (0, 0)
    result[y : y + rows, x : x + columns] = small
    return result


def resized(image: UInt8Image, rows: int, columns: int, mode: str) -> UInt8Image:
    """Resizes (H, W, 3) uint8 without antialiasing, by ``"nearest"`` or ``"bilinear"``; or by ``"area"``, the mean of each cell."""
    values = image.astype(np.float64)
    for axis, size in enumerate((rows, columns)):
        moved = np.moveaxis(values, axis, 0)
        moved = np.tensordot(_cells(len(moved), size), moved, 1) if mode == "area" else sampled(moved, size, mode)
        values = np.moveaxis(moved, 0, axis)
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


def tensor(pixels: UInt8Image, config: NvinferConfig) -> Floats:
    """Normalises RGB (H, W, 3) uint8 to (3, H, W): y = net-scale-factor * (x - offset), in the order of model-color-format."""
    planes = np.moveaxis(pixels, -1, 0)[:: -1 if config.integer("model-color-format", 0) == 1 else 1]
    offsets = np.asarray(config.numbers("offsets") or (0.0, 0.0, 0.0), np.float32)
    scale = np.float32(config.number("net-scale-factor", 1.0))
    return np.asarray(scale * (planes.astype(np.float32) - offsets[:, None, None]), np.float32)


def attributes(
    layers: Sequence[npt.NDArray[Any]], threshold: float, labels: Sequence[Sequence[str]]
) -> list[Attribute]:
    """Reads one frame's outputs by the rules of nvinfer's default parser.

    Every output is an attribute, its first axis counts the classes, and its memory is read as float32 whatever it holds. The
    attribute is there if its largest value is above the threshold and above 0.
    """
    found = []
    for layer, values in enumerate(layers):
        data = values.tobytes()
        memory = np.frombuffer(data[: len(data) // 4 * 4], np.float32)[: values.shape[0] if values.ndim else 0]
        if not len(memory):
            continue
        passing = np.where(memory > max(np.float32(threshold), np.float32(0)), memory, np.float32(0))
        value = int(np.argmax(passing))
        if passing[value] > 0:
            named = layer < len(labels) and value < len(labels[layer])
            found.append(Attribute(layer, value, float(passing[value]), labels[layer][value] if named else None))
    return found


def parse_labels(text: str) -> tuple[tuple[str, ...], ...]:
    """Reads the labels of each attribute: one attribute per line, its labels separated by ``;``; empty lines are skipped."""
    return tuple(tuple(line.split(";")) for line in text.split("\n") if line)


def read_label_file(path: Path) -> tuple[tuple[str, ...], ...]:
    """Reads a label file by :func:`parse_labels`; a byte order mark and carriage returns stay, as in nvinfer.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return parse_labels(path.read_bytes().decode("utf-8", "surrogateescape"))
    except OSError as error:
        raise ConfigError(f"labels {path}: cannot be read ({error.strerror or error})") from None


def _cells(size_in: int, size_out: int) -> npt.NDArray[np.float64]:
    """Returns the share of each input in each output cell, (size_out, size_in)."""
    edges = np.arange(size_out + 1) * size_in / size_out
    inputs = np.arange(size_in)
    overlap = np.minimum(edges[1:, None], inputs + 1) - np.maximum(edges[:-1, None], inputs)
    return np.asarray(np.maximum(overlap, 0) * size_out / size_in, np.float64)


def _graph(
    model: Path, config: NvinferConfig
) -> tuple[tuple[str, ...], tuple[int, int], Callable[[Floats], Sequence[npt.NDArray[Any]]]]:
    """Returns names of the outputs, rows and columns of the input, and what runs the graph in batches of batch-size."""
    import onnx

    try:
        graph = onnx.load(str(model), load_external_data=False).graph
    except Exception as error:  # protobuf's own class, which onnx does not export
        raise ArtifactError(f"{config.place('onnx-file')}: {model} is no ONNX model ({error})") from None
    form = graph.input[0].type.tensor_type if len(graph.input) == 1 else onnx.TypeProto.Tensor()
    axes = [axis.dim_value for axis in form.shape.dim]
    if form.elem_type != onnx.TensorProto.FLOAT or len(axes) != 4 or axes[1] != 3:
        raise ArtifactError(
            f"{model}: nvinfer fills one input of float32 (batch, 3, height, width); this graph has another"
        )
    dims = config.numbers("infer-dims")
    if dims and dims != tuple(axes[1:]):
        raise ConfigError(f"{config.place('infer-dims')} is {config.text('infer-dims')}, the graph takes {axes[1:]}")
    quantized = any(node.op_type == "QuantizeLinear" for node in graph.node)
    session = onnxruntime_session(model, quantized)
    largest = axes[0] or config.integer("batch-size", 1)

    def once(images: npt.NDArray[Any]) -> Sequence[npt.NDArray[Any]]:
        values = session(images)
        return [values[name] for name in session.outputs]

    def run(images: Floats) -> Sequence[npt.NDArray[Any]]:
        return run_in_batches(once, images, axes[0] or 1, largest)

    return session.outputs, (axes[2], axes[3]), run
