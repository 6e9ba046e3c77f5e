"""The graph that ONNX Runtime is given for long-lived INT8 sessions, against the stored one."""

from __future__ import annotations

import collections
import itertools
import platform

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper, parser

from gft_edge.manifest import MODEL
from gft_edge.runtime.backends.integer_products import X86, rewritten
from gft_edge.runtime.backends.sessions import DISABLED_FOR_INT8, onnxruntime_session

pytestmark = pytest.mark.skipif(platform.machine() not in X86, reason="activations stay INT8 on other processors")

K, N = 8, 5
PAIR = "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear<axis: int = 1>(w, ws, wz)"
PLAIN = PAIR + " m = MatMul(xd, wd) y = Add(m, b)"
SQUARE = {
    "w": np.ones((K, K), np.int8),
    "ws": np.ones(K, np.float32),
    "wz": np.zeros(K, np.int8),
    "b": np.ones(K, np.float32),
}


def _model(body=PLAIN, **other):
    """A quantized product of (2, 3, K) with its bias; ``other`` replaces constants."""
    rng = np.random.default_rng(0)
    constants = {
        "s": np.float32(0.02),
        "z": np.int8(0),
        "w": rng.integers(-127, 128, (K, N), np.int8),
        "ws": rng.random(N, np.float32),
        "wz": np.zeros(N, np.int8),
        "b": rng.standard_normal(N, np.float32),
        "c": rng.standard_normal((1, N), np.float32),
        **other,
    }
    text = f'<ir_version: 10, opset_import: ["": 20]> g (float[2, 3, {K}] x) => (float[2, 3, {N}] y) {{ {body} }}'
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return model


def _run(data, x=None):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    x = np.random.default_rng(1).standard_normal((2, 3, K), np.float32) * 3 if x is None else x  # some saturate
    session = ort.InferenceSession(
        data, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(DISABLED_FOR_INT8)
    )
    return session.run(None, {session.get_inputs()[0].name: x})


def _counts(data):
    return collections.Counter(node.op_type for node in onnx.ModelProto.FromString(data).graph.node)


def test_product_adds_its_bias_with_the_same_result():
    model = _model().SerializeToString()
    found = rewritten(model)
    assert _counts(found) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    for one, other in zip(_run(found), _run(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_scales_of_both_halves_of_a_pair_are_kept():
    """Arithmetic is that of the graph, also where the graph is wrong, so that a check of outputs finds the fault."""
    body = PLAIN.replace("DequantizeLinear(xq, s, z)", "DequantizeLinear(xq, s2, z)")
    model = _model(body, s2=np.float32(0.05)).SerializeToString()
    found = rewritten(model)
    assert _counts(found)["MatMulIntegerToFloat"] == 1
    np.testing.assert_array_equal(_run(found)[0], _run(model)[0])


def test_two_products_share_an_activation():
    body = PAIR + " m = MatMul(xd, wd) a = Add(m, b) n = MatMul(xd, wd) y = Mul(a, n)"
    model = _model(body).SerializeToString()
    found = rewritten(model)
    assert _counts(found) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 2, "Mul": 1}
    np.testing.assert_allclose(_run(found)[0], _run(model)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        (PLAIN.replace("Add(m, b)", "Identity(m)"), {}),
        (PLAIN.replace("Add(m, b)", "Add(m, c)"), {}),
        (PLAIN.replace("axis: int = 1", "axis: int = 0"), {"ws": np.ones(K, np.float32), "wz": np.zeros(K, np.int8)}),
        (PLAIN.replace("axis: int = 1", "axis: int = 0"), SQUARE),
        (PLAIN, {"z": np.int8(1)}),
        (PLAIN, {"wz": np.ones(N, np.int8)}),
        (PLAIN, {"ws": np.float32(1), "wz": np.int8(0)}),
        (PAIR + " m = MatMul(xd, wd) a = Add(m, b) r = ReduceMean(xd) y = Add(a, r)", {}),
        (PAIR + " m = MatMul(xd, wd) a = Add(m, b) r = Neg(m) y = Add(a, r)", {}),
    ],
    ids=[
        "no bias",
        "a matrix as bias",
        "scales of rows",
        "scales of rows of a square matrix",
        "zero point of the activation",
        "zero points of weights",
        "one scale for all columns",
        "the activation is read elsewhere",
        "the product is read elsewhere",
    ],
)
def test_other_graphs_are_left_to_onnxruntime(body, constants):
    assert rewritten(_model(body, **constants).SerializeToString()) is None


def test_a_graph_in_a_node_may_read_the_activation():
    branches = "then_branch = t () => (float[2, 3, 8] o) { o = Identity(xd) }, "
    branches += "else_branch = e () => (float[2, 3, 8] p) { p = Neg(xd) }"
    body = f"{PAIR} m = MatMul(xd, wd) a = Add(m, b) r = If(flag) <{branches}> n = ReduceMean(r) y = Add(a, n)"
    model = _model(body, flag=np.bool_(True)).SerializeToString()
    images = np.ones((2, 3, K), np.float32)
    plain, lasting = (onnxruntime_session(model, True, 1, huge_pages=huge)(images) for huge in (False, True))
    np.testing.assert_array_equal(lasting["y"], plain["y"])


def test_weights_in_a_file_of_their_own_are_left_there(tmp_path):
    model = _model()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert rewritten(tmp_path / "m.onnx") is None


def test_what_cannot_be_read_is_left_to_onnxruntime(tmp_path):
    assert rewritten(tmp_path / "nowhere.onnx") is None
    assert rewritten(b"no model") is None


def test_another_processor_and_a_missing_package_leave_the_graph(monkeypatch):
    model = _model().SerializeToString()
    with monkeypatch.context() as patch:
        patch.setattr(platform, "machine", lambda: "aarch64")
        assert rewritten(model) is None
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert rewritten(model) is None


def test_long_lived_session_of_an_artefact_answers_as_the_plain_one(int8, images):
    model = onnx.load(int8.path / MODEL)
    biased = itertools.count()
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name.endswith("bias"):
            shape = tuple(tensor.dims)
            values = np.random.default_rng(next(biased)).standard_normal(shape, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values / 10, tensor.name))
    data = model.SerializeToString()
    plain, lasting = (onnxruntime_session(data, True, 1, huge_pages=huge) for huge in (False, True))
    assert (plain.options["fused_biases"], lasting.options["fused_biases"]) == (False, True)
    found, expected = lasting(images), plain(images)
    assert found.keys() == expected.keys()
    for name, value in expected.items():  # the sums after a bias are fused otherwise, which rounds otherwise
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6 * np.abs(value).max())
