"""Hand-built graphs before and after the rewrite."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from gft_edge.export.onnx.rewrite import rewrite

B, N, K, C = 3, 7, 4, 5


def _model(nodes, index_shape=(B, K), out_shape=(B, K, C), x_shape=(B, N, C), **constants):
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape),
        helper.make_tensor_value_info("index", TensorProto.INT64, index_shape),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, out_shape)
    initializers = [numpy_helper.from_array(np.array(v, np.int64), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _expanded(shape=(B, K, C), axes=(-1,), axis=1):
    """GatherElements over an index unsqueezed and expanded."""
    nodes = [
        helper.make_node("Unsqueeze", ["index", "axes"], ["column"]),
        helper.make_node("Expand", ["column", "shape"], ["wide"]),
        helper.make_node("GatherElements", ["x", "wide"], ["y"], name="pick", axis=axis),
    ]
    return nodes, {"axes": axes, "shape": shape}


def _run(model, index_high=N, index_shape=(B, K), x_shape=(B, N, C)):
    rng = np.random.default_rng(0)
    feed = {"x": rng.standard_normal(x_shape, np.float32), "index": rng.integers(0, index_high, index_shape)}
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def _operators(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("axes", [(-1,), (2,)])
def test_gather_over_an_expanded_index_becomes_gather_nd(axes):
    nodes, constants = _expanded(axes=axes)
    model = _model(nodes, **constants)
    before = _run(model)
    after = rewrite(model)
    assert _operators(after) == ["Unsqueeze", "GatherND"]
    assert after.graph.node[1].attribute[0].i == 1
    onnx.checker.check_model(after, full_check=True)
    np.testing.assert_array_equal(_run(after), before)


def test_what_only_the_expansion_read_is_dropped():
    nodes, constants = _expanded()
    unread = helper.make_node("Neg", ["x"], ["unread"])
    model = rewrite(_model([unread, *nodes], **constants, spare=(1, 2)))
    assert _operators(model) == ["Unsqueeze", "GatherND"]
    assert [tensor.name for tensor in model.graph.initializer] == ["axes"]


def test_two_gathers_of_one_expansion_are_both_rewritten():
    nodes, constants = _expanded()
    nodes[-1].output[0] = "first"
    second = helper.make_node("GatherElements", ["twice", "wide"], ["second"], axis=1)
    twice = helper.make_node("Add", ["x", "x"], ["twice"])
    model = _model([*nodes, twice, second, helper.make_node("Sub", ["second", "first"], ["y"])], **constants)
    before = _run(model)
    after = rewrite(model)
    assert _operators(after).count("GatherND") == 2
    assert "Expand" not in _operators(after)
    np.testing.assert_array_equal(_run(after), before)


def test_expansion_that_something_else_reads_stays():
    nodes, constants = _expanded()
    nodes[-1].output[0] = "picked"
    cast = helper.make_node("Cast", ["wide"], ["number"], to=TensorProto.FLOAT)
    model = _model([*nodes, cast, helper.make_node("Add", ["picked", "number"], ["y"])], **constants)
    before = _run(model)
    after = rewrite(model)
    assert sorted(_operators(after)) == ["Add", "Cast", "Expand", "GatherND", "Unsqueeze"]
    np.testing.assert_array_equal(_run(after), before)


def test_gather_of_a_plain_index_is_left_alone():
    node = helper.make_node("GatherElements", ["x", "index"], ["y"], axis=1)
    shapes = {"x_shape": (B, N), "index_shape": (B, K)}
    model = _model([node], out_shape=(B, K), **shapes)
    before = _run(model, **shapes)
    after = rewrite(model)
    assert _operators(after) == ["GatherElements"]
    np.testing.assert_array_equal(_run(after, **shapes), before)


def test_gather_over_an_expansion_of_something_else_is_left_alone():
    shapes = {"x_shape": (B, N, C), "index_shape": (B, K, 1)}
    nodes = [
        helper.make_node("Expand", ["index", "shape"], ["wide"]),
        helper.make_node("GatherElements", ["x", "wide"], ["y"], axis=1),
    ]
    model = _model(nodes, **shapes, shape=(B, K, C))
    before = _run(model, **shapes)
    after = rewrite(model)
    assert _operators(after) == ["Expand", "GatherElements"]
    np.testing.assert_array_equal(_run(after, **shapes), before)


@pytest.mark.parametrize(
    ("shape", "axes", "axis", "out_shape"),
    [
        pytest.param((B, N, K), (1,), 2, (B, N, K), id="along the channels"),
        pytest.param((B, K, C), (-1,), 0, (B, K, C), id="along the batch"),
        pytest.param((B, K, 2), (-1,), 1, (B, K, 2), id="of the first channels"),
    ],
)
def test_rewriting_never_changes_the_result(shape, axes, axis, out_shape):
    nodes, constants = _expanded(shape, axes, axis)
    model = _model(nodes, out_shape=out_shape, **constants)
    before = _run(model, index_high=B)
    np.testing.assert_array_equal(_run(rewrite(model), index_high=B), before)


def test_shapes_are_inferred_anew():
    nodes, constants = _expanded()
    model = _model(nodes, **constants)
    stale = helper.make_tensor_value_info("column", TensorProto.INT64, (9, 9, 9))
    model.graph.value_info.append(stale)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in rewrite(model).graph.value_info}
    assert shapes == {"column": [B, K, 1]}


@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_goes_into_the_scales_of_int8_weights_whatever_its_sign(bias):
    rng = np.random.default_rng(0)
    gamma = np.array([0.5, -2.0, 0.0, 3.0, -0.25], np.float32)
    tensors = {
        "w": rng.integers(-127, 128, (5, 3, 3, 3), dtype=np.int8),
        "s": rng.uniform(0.01, 0.1, 5).astype(np.float32),
        "z": np.zeros(5, np.int8),
        "gamma": gamma,
        "beta": rng.standard_normal(5).astype(np.float32),
        "mean": rng.standard_normal(5).astype(np.float32),
        "var": rng.uniform(0.5, 2, 5).astype(np.float32),
        **({"c": rng.standard_normal(5).astype(np.float32)} if bias else {}),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["weight"], axis=0),
        helper.make_node("Conv", ["x", "weight", *(["c"] if bias else [])], ["y"]),
        helper.make_node("BatchNormalization", ["y", "gamma", "beta", "mean", "var"], ["out"], name="bn", epsilon=1e-3),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 6, 6])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [2, 5, 4, 4])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x = rng.standard_normal((2, 3, 6, 6)).astype(np.float32)
    expected = _outputs(model, x)
    folded = rewrite(model)
    assert [node.op_type for node in folded.graph.node] == ["DequantizeLinear", "Conv"]
    np.testing.assert_allclose(_outputs(folded, x), expected, rtol=1e-4, atol=1e-4)
    scales = next(numpy_helper.to_array(t) for t in folded.graph.initializer if t.name == "s")
    assert (scales > 0).all(), "TensorRT refuses a scale of zero"


def _outputs(model, x):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]
