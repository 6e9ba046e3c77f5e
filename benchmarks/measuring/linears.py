"""Time of single layers in high precision and in INT8: measured in ONNX Runtime, or bounded for a device.

Both treat a layer as if it were alone. Savings and costs between layers of a whole graph (a quantized input that two of
them read, a fused GELU) are missing, so sums predict an order only; measure the whole graph.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from gft_edge.benchmarks.measuring.latency import measure
from gft_edge.benchmarks.measuring.protocol import BenchProtocol
from gft_edge.benchmarks.roofline import BYTES, LAUNCH_MS
from gft_edge.constants import GRAPH_IR_VERSION, OPSET
from gft_edge.errors import ConfigError
from gft_edge.hardware.devices import Device, PeakPrecision
from gft_edge.progress import Track, silent
from gft_edge.quant.levels import QMAX
from gft_edge.runtime.backends.sessions import onnxruntime_session

RANGE = 4.0  # of standard normal inputs; the time does not depend on it
PROTOCOL = BenchProtocol(warmup_seconds=0.05, warmup_cap_seconds=1.0, rounds=20, runs_per_round=10)


@dataclass(frozen=True)
class LayerShape:
    """The work of a layer for one image.

    Attributes:
        weight: (out, in) of a linear layer, (out, in / groups, height, width) of a convolution.
        input: (rows, in) with the tokens before the patches among the rows, or (in, height, width).
        bias: whether it has one.
        stride, padding, groups: of a convolution.
        rows: positions of the output, each of ``out`` values.
    """

    weight: tuple[int, ...]
    input: tuple[int, ...]
    bias: bool
    rows: int
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    groups: int = 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.rows * math.prod(self.weight)

    def __str__(self) -> str:
        """For example ``145 x 128 x 384``: rows, inputs of each, outputs."""
        return f"{self.rows} x {math.prod(self.weight[1:])} x {self.weight[0]}"


@dataclass(frozen=True)
class LayerTime:
    """Milliseconds of one layer for one image."""

    high_ms: float
    int8_ms: float

    @property
    def saved_ms(self) -> float:
        """Time that INT8 saves; negative if it is slower."""
        return self.high_ms - self.int8_ms


@torch.no_grad()
def layer_shapes(model: nn.Module, names: Sequence[str], image_size: int) -> dict[str, LayerShape]:
    """Shapes of layers as they are run for one image, at the model's own token budget.

    Args:
        model: in eval mode.
        names: of linear layers and convolutions.
        image_size: rows and columns.

    Raises:
        ConfigError: a layer is not run.
    """
    shapes: dict[str, LayerShape] = {}

    def watch(name: str, layer: nn.Linear | nn.Conv2d) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            weight, bias = tuple(layer.weight.shape), layer.bias is not None
            rows = output.numel() // weight[0]
            if isinstance(layer, nn.Conv2d):
                padding = tuple(int(p) for p in layer.padding)
                whole = tuple(inputs[0].shape[1:])
                shapes[name] = LayerShape(weight, whole, bias, rows, tuple(layer.stride), padding, layer.groups)
            else:
                shapes[name] = LayerShape(weight, (rows, weight[1]), bias, rows)

        handles.append(layer.register_forward_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name in names:
        watch(name, model.get_submodule(name))  # type: ignore[arg-type]
    try:
        model(torch.zeros(1, 3, image_size, image_size))
    finally:
        for handle in handles:
            handle.remove()
    never = [name for name in names if name not in shapes]
    if never:
        raise ConfigError(f"layer times: {never[0]} never runs; is it part of this model at this budget?")
    return {name: shapes[name] for name in names}


def measured_times(
    shapes: Mapping[str, LayerShape], threads: int = 1, protocol: BenchProtocol = PROTOCOL, track: Track = silent
) -> dict[str, LayerTime]:
    """Measures layers in ONNX Runtime, FP32 and INT8 interleaved; layers of one shape share a measurement.

    Both run as in a graph of mixed precision: there MatMulAddFusion is off, so FP32 layers keep their Add.

    Args:
        shapes: by name.
        threads: intra-op; 0 takes one per core.
        protocol: how long.
        track: progress callback.

    Raises:
        ConfigError: a negative number of threads.
    """
    distinct = list(dict.fromkeys(shapes.values()))
    times = {shape: _measured(shape, threads, protocol) for shape in track(distinct, "layer times", len(distinct))}
    return {name: times[shape] for name, shape in shapes.items()}


def _measured(shape: LayerShape, threads: int, protocol: BenchProtocol) -> LayerTime:
    x = np.random.default_rng(protocol.seed).standard_normal((1, *shape.input), dtype=np.float32)
    graphs = {name: layer_graph(shape, int8=name == "int8") for name in ("high", "int8")}
    sessions = {name: onnxruntime_session(graph, quantized=True, threads=threads) for name, graph in graphs.items()}
    found = measure({name: lambda session=session: session(x) for name, session in sessions.items()}, protocol)  # type: ignore[misc]
    return LayerTime(found["high"].p50_ms, found["int8"].p50_ms)


def layer_graph(shape: LayerShape, int8: bool) -> bytes:
    """Returns a layer of that shape as an ONNX model, ``x`` (1, ...) to ``y``, in the form that export writes."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape.weight, dtype=np.float32)
    bias = rng.standard_normal(shape.weight[0], dtype=np.float32)
    conv = len(shape.weight) == 4
    constants: dict[str, npt.NDArray[np.generic]] = {}
    nodes = []

    def dequantized(name: str, axis: int | None = None) -> str:
        inputs = [name, f"{name}_scale", f"{name}_zero"]
        nodes.append(
            helper.make_node("DequantizeLinear", inputs, [f"{name}_high"], **({} if axis is None else {"axis": axis}))
        )
        return f"{name}_high"

    read, product = "x", "weight"
    if int8:
        scale = np.abs(weight).reshape(shape.weight[0], -1).max(axis=1) / QMAX
        codes = np.round(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8)
        constants |= {"weight": codes if conv else codes.T.copy(), "weight_scale": scale}
        constants |= {"weight_zero": np.zeros(len(scale), np.int8), "code_zero": np.array(0, np.int8)}
        constants["code_scale"] = np.array(RANGE / QMAX, np.float32)
        nodes.append(helper.make_node("QuantizeLinear", ["x", "code_scale", "code_zero"], ["code"]))
        read, product = dequantized("code"), dequantized("weight", axis=0 if conv else 1)
    else:
        constants["weight"] = weight if conv else weight.T.copy()
    if shape.bias:
        constants["bias"] = bias
    if conv:
        inputs = [read, product, *(["bias"] if shape.bias else [])]
        pads = [*shape.padding, *shape.padding]
        nodes.append(helper.make_node("Conv", inputs, ["y"], strides=shape.stride, pads=pads, group=shape.groups))
    else:
        nodes.append(helper.make_node("MatMul", [read, product], ["sum" if shape.bias else "y"]))
        if shape.bias:
            nodes.append(helper.make_node("Add", ["sum", "bias"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, *shape.input))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, *[None] * len(shape.input)))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", OPSET)]
    return onnx.ModelProto.SerializeToString(helper.make_model(graph, opset_imports=opset, ir_version=GRAPH_IR_VERSION))


def bound_times(shapes: Mapping[str, LayerShape], device: Device) -> dict[str, LayerTime]:
    """Returns lower bounds of each layer's time on a device, FP16 and INT8; bounds, never latencies.

    The largest of products at the dense peak, weights that the last-level cache cannot hold over the memory bandwidth, and
    one kernel launch; where the launch is the largest in both, INT8 saves nothing.

    Raises:
        ConfigError: no peak of the device is known.
    """
    return {
        name: LayerTime(*(_bound(shape, shapes.values(), device, precision) for precision in ("fp16", "int8")))
        for name, shape in shapes.items()
    }


def _bound(shape: LayerShape, shapes: Collection[LayerShape], device: Device, precision: PeakPrecision) -> float:
    peak = device.peak(precision)
    if peak is None:
        raise ConfigError(
            f"layer times: no {precision.upper()} peak of {device.title} is known, so nothing can be predicted for it; "
            "leave --target out, or name another device"
        )
    size = BYTES[precision] * math.prod(shape.weight)
    total = sum(BYTES[precision] * math.prod(one.weight) for one in shapes)
    uncached = max(0.0, 1 - device.l2_mb * 2**20 / total)
    return max(2 * shape.macs / (peak * 1e9), uncached * size / (device.bandwidth_gb_s * 1e6), LAUNCH_MS)
