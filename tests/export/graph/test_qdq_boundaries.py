"""Quantization boundaries of two graphs: found whatever nodes are called, and every kind of change is named."""

from __future__ import annotations

import copy
import random

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from gft_edge.errors import ArtifactError
from gft_edge.export.graph.qdq_boundaries import compare_boundaries

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
g (float[B,8,16] x) => (float[B,8,16] y) {
  n = LayerNormalization(x, g1)
  nq = QuantizeLinear(n, s1, z) nd = DequantizeLinear(nq, s1, z)
  w1d = DequantizeLinear <axis = 1> (w1, ws1, wz)
  a0 = MatMul(nd, w1d) a1 = Add(a0, b1) a = Relu(a1)
  aq = QuantizeLinear(a, s2, z) ad = DequantizeLinear(aq, s2, z)
  w2d = DequantizeLinear <axis = 1> (w2, ws2, wz)
  c0 = MatMul(ad, w2d) c = Add(c0, b2)
  r = Add(x, c)
  m = LayerNormalization(r, g1)
  mq = QuantizeLinear(m, s3, z) md = DequantizeLinear(mq, s3, z)
  w3d = DequantizeLinear <axis = 1> (w3, ws3, wz)
  y0 = MatMul(md, w3d) y = Add(r, y0)
}"""
NAMES = ("w1", "w2", "w3")


def block() -> onnx.ModelProto:
    """Three quantized products of random INT8 weights, two residual sums; its nodes are named as their outputs."""
    rng = np.random.default_rng(0)
    model = parser.parse_model(TEXT)
    values = {"g1": np.ones(16, np.float32), "z": np.int8(0), "wz": np.zeros(16, np.int8)}
    for number, name in enumerate(NAMES, start=1):
        values[name] = rng.integers(-127, 128, (16, 16)).astype(np.int8)
        values[f"ws{number}"] = rng.uniform(0.001, 0.01, 16).astype(np.float32)
        values[f"s{number}"] = np.float32(0.01 * number)
        values[f"b{number}"] = rng.standard_normal(16).astype(np.float32)
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def node(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    return next(found for found in model.graph.node if output in found.output)


def without(model: onnx.ModelProto, *outputs: str) -> onnx.ModelProto:
    """A copy without these DequantizeLinear of activations: their readers read what was quantized."""
    model = copy.deepcopy(model)
    for output in outputs:
        source = node(model, node(model, output).input[0]).input[0]
        for reader in model.graph.node:
            for place, name in enumerate(reader.input):
                if name == output:
                    reader.input[place] = source
    return model


def put(model: onnx.ModelProto, name: str, value: object) -> onnx.ModelProto:
    """A copy with another value of an initialiser."""
    model = copy.deepcopy(model)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))
    return model


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with other names of nodes and tensors, its nodes and initialisers in another order that can be run."""
    model = copy.deepcopy(model)
    kept = {"", "x", "y"}
    for found in model.graph.node:
        found.name = f"node_{found.name[::-1]}"
        for names in (found.input, found.output):
            for place, name in enumerate(names):
                names[place] = name if name in kept else f"t_{name[::-1]}"
    for tensor in model.graph.initializer:
        tensor.name = f"t_{tensor.name[::-1]}"
    nodes = [onnx.NodeProto.FromString(found.SerializeToString()) for found in model.graph.node]
    weights = [found for found in nodes if found.op_type == "DequantizeLinear" and "w" in found.input[0]]
    del model.graph.node[:]
    model.graph.node.extend([*reversed(weights), *(found for found in nodes if found not in weights)])
    tensors = list(reversed(model.graph.initializer))
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    onnx.checker.check_model(model, full_check=True)
    return model


def optimized(model: onnx.ModelProto, level: str, tmp_path) -> onnx.ModelProto:
    """The graph as ONNX Runtime rewrites it."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(tmp_path / "optimized.onnx")


def test_names_and_order_play_no_part():
    found = compare_boundaries(block(), renamed(block()))
    assert (found.same, found.ok) == (6, True)
    assert found.lines() == ["quantization boundaries: 6 the same, 0 lost, 0 added, 0 changed"]


@pytest.mark.parametrize("level", ["BASIC", "EXTENDED"])
def test_optimizers_of_onnxruntime_change_nothing(level, tmp_path):
    found = optimized(block(), level, tmp_path)
    fused = {operator.op_type for operator in found.graph.node}
    assert ("MatMulIntegerToFloat" in fused) == (level == "EXTENDED")
    assert compare_boundaries(block(), found).same == 6
    lost = compare_boundaries(block(), optimized(without(block(), "ad"), level, tmp_path))
    folded = (
        ["weights of MatMul c0 (w2)"] if level == "EXTENDED" else []
    )  # dequantized ahead, as no INT8 product is left
    assert [text.split(":")[0] for text in lost.lost] == ["input of MatMul c0 (w2)", *folded]


def test_onnxslim_changes_nothing():
    import onnxslim

    found = compare_boundaries(block(), onnxslim.slim(block()))
    assert (found.same, found.ok) == (6, True)


def test_transposed_and_folded_weights_are_the_same_weights():
    model = block()
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "w2")
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights).T.copy(), "w2"))
    dequantize = node(model, "w2d")
    dequantize.attribute[0].i = 0
    dequantize.output[0] = "w2t"
    place = list(model.graph.node).index(dequantize)
    turn = onnx.helper.make_node("Transpose", ["w2t"], ["w2d"], "turn", perm=[1, 0])
    model.graph.node.insert(place + 1, turn)
    found = compare_boundaries(block(), model)
    assert (found.same, found.ok) == (6, True), found.lines()


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda m: without(m, "nd"), "lost", "input of MatMul a0 (w1): int8 per tensor, scale 0.01"),
        (lambda m: put(m, "s2", np.float32(0.021)), "changed", "input of MatMul c0 (w2): scale 0.021 instead of 0.02"),
        (
            lambda m: put(
                m, "ws3", np.where(np.arange(16) == 5, 1, numpy_helper.to_array(m.graph.initializer[-3])).astype("f")
            ),
            "changed",
            "weights of MatMul y0 (w3): scale in",
        ),
    ],
)
def test_changes_are_named(change, kind, words):
    found = compare_boundaries(block(), change(block()))
    texts = getattr(found, kind)
    assert len(texts) == 1 and texts[0].startswith(words), found.lines()
    assert (found.same, found.ok) == (5, False)
    assert found.to_json()["ok"] is False
    back = compare_boundaries(change(block()), block())
    assert len(getattr(back, {"lost": "added"}.get(kind, kind))) == 1


def test_another_axis_zero_point_and_type():
    model = block()
    node(model, "w1d").attribute[0].i = 0
    assert compare_boundaries(block(), model).changed == (
        "weights of MatMul a0 (w1): per channel of axis 0 instead of per output channel",
    )
    model = block()
    model.graph.initializer.append(numpy_helper.from_array(np.int8(3), "three"))
    for output in ("aq", "ad"):
        node(model, output).input[2] = "three"
    assert compare_boundaries(block(), model).changed == ("input of MatMul c0 (w2): zero point 3 instead of 0",)
    model = block()
    model.graph.initializer.append(onnx.helper.make_tensor("z8", onnx.TensorProto.FLOAT8E4M3FN, [], [0.0]))
    for output in ("aq", "ad"):
        node(model, output).input[2] = "z8"
    assert compare_boundaries(block(), model).changed == ("input of MatMul c0 (w2): fp8 instead of int8",)


def test_uint8_around_128_is_the_same_quantization():
    model = block()
    model.graph.initializer.append(numpy_helper.from_array(np.uint8(128), "u"))
    for output in ("nq", "nd", "aq", "ad"):
        node(model, output).input[2] = "u"
    assert compare_boundaries(block(), model).ok


def test_a_quantized_residual_sum_and_output_are_added():
    model = block()
    for tensor, reader in (("x", "r"), ("y0", "y")):
        place = list(model.graph.node).index(node(model, reader))
        pair = [
            onnx.helper.make_node("QuantizeLinear", [tensor, "s1", "z"], [f"{tensor}_8"], f"{tensor}q"),
            onnx.helper.make_node("DequantizeLinear", [f"{tensor}_8", "s1", "z"], [f"{tensor}_f"], f"{tensor}d"),
        ]
        names = node(model, reader).input
        names[list(names).index(tensor)] = f"{tensor}_f"
        for found in reversed(pair):
            model.graph.node.insert(place, found)
    found = compare_boundaries(block(), model)
    assert found.same == 6
    assert [text.split(":")[0] for text in found.added] == ["input of Add r", "input of Add y"]


def by_name(model: onnx.ModelProto) -> set[tuple[str, int]]:
    """Reader and place of every DequantizeLinear, by name: a slow form for graphs that share their names."""
    found = set()
    for dequantize in (n for n in model.graph.node if n.op_type == "DequantizeLinear"):
        for reader in model.graph.node:
            found |= {(reader.name, place) for place, name in enumerate(reader.input) if name == dequantize.output[0]}
    return found


@pytest.mark.parametrize("seed", range(4))
def test_lost_and_added_as_by_name(seed):
    rng = random.Random(seed)
    sides = [without(block(), *(name for name in ("nd", "ad", "md") if rng.random() < 0.5)) for _ in range(2)]
    found = compare_boundaries(sides[0], renamed(sides[1]))
    a, b = map(by_name, sides)
    assert (len(found.lost), len(found.added), found.same) == (len(a - b), len(b - a), len(a & b))
    assert found.changed == ()
    assert sorted(text.split()[3] for text in found.lost) == sorted(name for name, _ in a - b)


def test_graphs_of_different_models_are_refused():
    other = block()
    for number, name in enumerate(NAMES):
        other = put(other, name, np.random.default_rng(9 + number).integers(-127, 128, (16, 16)).astype(np.int8))
    with pytest.raises(ArtifactError, match="no weights in common"):
        compare_boundaries(block(), other)


def test_graphs_without_boundaries_are_refused():
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in "xy")
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    plain = onnx.helper.make_model(onnx.helper.make_graph(nodes, "plain", [x], [y], [weight]))
    with pytest.raises(ArtifactError, match="neither graph is quantized"):
        compare_boundaries(plain, plain)


def test_without_the_values_of_weights_their_order_decides():
    """Weights in another file are not read."""
    away = renamed(block())
    for tensor in away.graph.initializer:
        if list(tensor.dims) == [16, 16]:
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="weights.bin")
    found = compare_boundaries(block(), away)
    assert (found.same, found.ok) == (6, True), found.lines()
    assert len(compare_boundaries(without(block(), "md"), away).added) == 1
