from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from gft_edge.benchmarks.experiments.peers.operators import profile
from gft_edge.benchmarks.measuring import linears
from gft_edge.benchmarks.measuring.linears import LayerShape, bound_times, layer_graph, layer_shapes, measured_times
from gft_edge.benchmarks.measuring.protocol import BenchProtocol
from gft_edge.errors import ConfigError
from gft_edge.hardware.devices import DEVICES, device
from gft_edge.quant.modules import quantized_names
from gft_edge.quant.policy import DEFAULT_POLICY
from gft_edge.runtime.backends.sessions import onnxruntime_session

LINEAR = LayerShape((24, 16), (10, 16), True, 10)
CONV = LayerShape((8, 2, 3, 3), (4, 9, 9), True, 25, (2, 2), (1, 1), 2)
SHAPES = [LINEAR, LayerShape((24, 16), (10, 16), False, 10), CONV]
QUICK = BenchProtocol(warmup_seconds=0, rounds=2, runs_per_round=1)


def slow(shape, x, int8):
    """The layer in torch, from the constants of its graph; INT8 by rounding both inputs."""
    graph = onnx.ModelProto.FromString(layer_graph(shape, int8)).graph
    constants = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    weight = constants["weight"].double()
    conv = len(shape.weight) == 4
    x = torch.from_numpy(x).double()
    if int8:
        scale = constants["weight_scale"].double()
        weight = weight * (scale.reshape(-1, 1, 1, 1) if conv else scale)
        step = constants["code_scale"].double()
        x = torch.round(x / step).clamp(-128, 127) * step
    bias = constants["bias"].double() if shape.bias else None
    if conv:
        return torch.nn.functional.conv2d(x, weight, bias, shape.stride, shape.padding, groups=shape.groups)
    return x @ weight + (0 if bias is None else bias)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("int8", [False, True])
def test_the_graph_of_a_layer_computes_the_layer(shape, int8):
    x = np.random.default_rng(0).standard_normal((1, *shape.input), dtype=np.float32)
    model = onnx.ModelProto.FromString(layer_graph(shape, int8))
    onnx.checker.check_model(model, full_check=True)
    found = onnxruntime_session(model.SerializeToString(), int8, 1)(x)["y"]
    expected = slow(shape, x, int8).numpy()
    assert found.shape == expected.shape
    assert np.prod(found.shape) == shape.rows * shape.weight[0]
    assert found == pytest.approx(expected, abs=1e-4 if not int8 else 0.15)
    assert np.abs(found - expected).mean() < 1e-3


def test_the_graph_of_a_linear_layer_is_run_as_an_integer_product():
    x = np.zeros((1, 10, 16), np.float32)
    operators = {row["operator"] for row in profile(layer_graph(LINEAR, True), ["MatMulAddFusion"], x, runs=1)}
    assert "MatMulIntegerToFloat" in operators
    assert "MatMul" not in operators


def test_shapes_are_those_at_the_budget(tiny_model):
    names = [*quantized_names(tiny_model, DEFAULT_POLICY), "patch_embed.proj", "head"]
    shapes = layer_shapes(tiny_model, names, 32)
    assert list(shapes) == names
    rows = {name: shape.rows for name, shape in shapes.items()}
    assert [rows[f"blocks.{block}.attn.qkv"] for block in range(3)] == [17, 13, 7]
    for layer in ("attn.proj", "mlp.fc1", "mlp.fc2"):
        assert [rows[f"blocks.{block}.{layer}"] for block in range(3)] == [13, 7, 1], "of the patches kept inside"
    assert (rows["patch_embed.proj"], rows["head"]) == (16, 1)
    assert shapes["blocks.0.mlp.fc1"] == LayerShape((128, 32), (13, 32), True, 13)
    assert shapes["patch_embed.proj"].input == (32, 4, 4)
    assert (str(shapes["blocks.0.mlp.fc1"]), shapes["blocks.0.mlp.fc1"].macs) == ("13 x 32 x 128", 13 * 32 * 128)
    assert not any(module._forward_hooks for module in tiny_model.modules())


def test_a_layer_that_is_never_run_is_refused(tiny_model):
    import copy

    model = copy.deepcopy(tiny_model)
    model.spare = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="layer times: spare never runs"):
        layer_shapes(model, ["spare"], 32)


def test_layers_of_one_shape_share_a_measurement(monkeypatch):
    ran = []
    real = linears._measured
    monkeypatch.setattr(linears, "_measured", lambda *a: ran.append(a[0]) or real(*a))
    times = measured_times({"a": LINEAR, "b": CONV, "c": LINEAR}, protocol=QUICK)
    assert ran == [LINEAR, CONV]
    assert times["a"] == times["c"] != times["b"]
    assert all(time.high_ms > 0 < time.int8_ms for time in times.values())
    assert times["a"].saved_ms == times["a"].high_ms - times["a"].int8_ms


def test_negative_threads_are_refused():
    with pytest.raises(ConfigError, match="threads must be 0"):
        measured_times({"a": LINEAR}, threads=-1, protocol=QUICK)


def test_bounds_are_the_largest_of_compute_memory_and_launch():
    orin = device("orin-nano")  # 16.7 TFLOPS in FP16, twice that in INT8, 102 GB/s, 4 MB of cache
    large = LayerShape((3072, 768), (197, 768), True, 197)
    time = bound_times({"x": large}, orin)["x"]
    assert time.high_ms == pytest.approx(2 * 197 * 768 * 3072 / 16.7e9)
    assert time.int8_ms == pytest.approx(2 * 197 * 768 * 3072 / 33.4e9)
    one_row = LayerShape((3072, 768), (1, 768), True, 1)
    layers = {str(i): one_row for i in range(100)}
    time = bound_times(layers, orin)["7"]
    weights = 3072 * 768
    assert time.high_ms == pytest.approx(2 * weights / 102e6 * (1 - 4 * 2**20 / (200 * weights)))
    assert time.int8_ms == pytest.approx(weights / 102e6 * (1 - 4 * 2**20 / (100 * weights)))
    tiny = bound_times({"x": LINEAR}, orin)["x"]
    assert (tiny.high_ms, tiny.saved_ms) == (0.002, 0), "one launch, whatever the precision"


def test_a_device_without_known_peaks_is_refused():
    assert DEVICES["xavier-nx"].int8_tops is None
    with pytest.raises(ConfigError, match="no FP16 peak of Jetson Xavier NX is known"):
        bound_times({"x": LINEAR}, device("xavier-nx"))
