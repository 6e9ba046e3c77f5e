"""Operators, domains, forms and types that importers do not read."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gft_edge.errors import ConfigError, MissingExtraError
from gft_edge.export.lint import parser_check
from gft_edge.export.lint.linter import lint
from gft_edge.export.lint.operators import (
    FIRST,
    RTX_MICROSOFT,
    RTX_OPERATORS,
    SINCE,
    first_version,
    reads,
    reads_foreign,
)
from gft_edge.hardware.tensorrt_versions import Platform, opsets, platform

from .lint_graphs import graph, rules

OLD, NANO, RTX = platform(None, "8.6"), platform(None, "10.3"), platform("rtx")


@pytest.mark.parametrize(
    ("body", "domain", "operator"),
    [
        ("y = Det(x)", "", "Det"),
        ("q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z)", "", "DynamicQuantizeLinear"),
        ("i = MatMulInteger(q, q) y = Cast<to: int = 1>(i)", "", "MatMulInteger"),
        ("y = com.microsoft.SkipLayerNormalization(x, x, g)", "com.microsoft", "SkipLayerNormalization"),
        ("y = com.microsoft.FusedMatMul(x, x)", "com.microsoft", "FusedMatMul"),
        ("y = com.microsoft.Gelu(x)", "com.microsoft", "Gelu"),
        ("y = my.company.FancyOp(x)", "my.company", "FancyOp"),
        ("y = ai.onnx.ml.Scaler(x)", "ai.onnx.ml", "Scaler"),
    ],
)
@pytest.mark.parametrize("where", [Platform(), OLD, NANO, RTX])
def test_what_no_importer_has_is_an_error_that_names_operator_and_domain(body, domain, operator, where):
    model = graph(body, "float[B,8,32] x, float[32] g, uint8[8,8] q", opset=17, domains=(domain,) if domain else ())
    found = [finding for finding in lint(model, where).errors if finding.rule == "GE025"]
    assert len(found) == 1
    assert operator in found[0].message
    assert (domain or "ONNX's own domain") in found[0].message


def test_a_domain_that_the_model_does_not_import_is_judged_too():
    model = graph("y = Relu(x)")
    model.graph.node[0].domain = "com.microsoft"
    assert rules(lint(model)) == {"GE025"}


def test_a_plugin_is_a_warning():
    report = lint(graph("y = trt.plugins.RotatedNms(x)", domains=("trt.plugins",)))
    assert rules(report) == {"GE028"} and report.errors == ()


@pytest.mark.parametrize(
    ("operator", "version", "there"),
    [
        ("Gelu", "8.6", False),
        ("Gelu", "10.3", True),
        ("HannWindow", "10.3", False),
        ("HannWindow", "10.7", True),
        ("Attention", "10.13", False),
        ("Attention", "10.14", True),
        ("RMSNormalization", "10.14", False),
        ("RMSNormalization", "10.16", True),
        ("Swish", "10.16", False),
        ("Swish", "11.0", True),
        ("DFT", "11.1", False),
        ("DFT", "11.2", True),
        ("DeformConv", "rtx", False),
        ("Swish", "rtx", True),
        ("Unique", "11.4", False),
    ],
)
def test_table_says_since_when(operator, version, there):
    assert reads(operator, version) is there


def test_an_operator_of_a_later_release_is_named_with_it():
    report = lint(
        graph("y = Attention(x, x, x)", "float16[2,2,8,16] x", "float16[2,2,8,16] y", 23), platform(None, "10.13")
    )
    assert rules(report) == {"GE022"}
    assert "10.14" in report.findings[0].message
    assert lint(graph("y = Attention(x, x, x)", "float16[2,2,8,16] x", "float16[2,2,8,16] y", 23)).findings == ()


def test_opsets_by_release():
    assert [opsets(v) for v in ("8.6", "10.7", "10.9", "10.13", "11.4", "11.5")] == [
        *((7, 17), (9, 20), (9, 22), (9, 24), (9, 24), (9, 25)),
    ]
    assert opsets(None) == (9, 25)


CHW, SCALES = "float[1,3,8,8] x", np.array([1, 1, 2, 2], np.float32)
FORMS = {
    "dropout": ("y = Dropout(x, r, t)", {"r": np.float32(0.5), "t": np.array(True)}),
    "batch normalisation": (
        "y, m, v = BatchNormalization<training_mode: int = 1>(x, c, c, c, c)",
        {"c": np.ones(3, np.float32)},
    ),
    "indices of pooling": ("y, i = MaxPool<kernel_shape = [2, 2]>(x) j = Neg(i)", {}),
    "dilated pooling": ("y = MaxPool<kernel_shape = [2, 2], dilations = [2, 2]>(x)", {}),
    "mean of LayerNormalization": ("y, m = LayerNormalization(x, s) n = Neg(m)", {"s": np.ones(8, np.float32)}),
    "antialias": ('y = Resize<mode: string = "linear", antialias: int = 1>(x, , s)', {"s": SCALES}),
    "coordinates": (
        'y = Resize<mode: string = "linear", coordinate_transformation_mode: string = "half_pixel_symmetric">(x, , s)',
        {"s": SCALES},
    ),
    "computed axes": ("y = ReduceSum(x, a)", {}),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_importers_refuse(name):
    body, constants = FORMS[name]
    inputs = f"{CHW}, int64[1] a" if name == "computed axes" else CHW
    report = lint(graph(body, inputs, "float[a,b,c,d] y", **constants), NANO)
    assert "GE026" in {finding.rule for finding in report.errors}


def test_usual_forms_are_clean():
    for body, constants in (
        ("y = Dropout(x)", {}),
        ("y = MaxPool<kernel_shape = [2, 2], dilations = [1, 1]>(x)", {}),
        ('y = Resize<mode: string = "cubic">(x, , s)', {"s": SCALES}),
        ("y = ReduceSum(x, axes)", {"axes": np.array([1], np.int64)}),
    ):
        assert lint(graph(body, CHW, "float[a,b,c,d] y", **constants), NANO).findings == ()


@pytest.mark.parametrize(
    ("body", "inputs", "opset"),
    [
        ("y = Slice<starts = [0], ends = [4], axes = [1]>(x)", "float[2,8] x", 9),
        ("y = Squeeze<axes = [0]>(x)", "float[1,8] x", 9),
        ("y = ReduceSum<axes = [1]>(x)", "float[2,8] x", 9),
        ("y = Pad<pads = [0, 1, 0, 1]>(x)", "float[2,8] x", 9),
        ("y = Upsample(x, s)", "float[1,1,2,2] x", 9),
        ("y = Dropout<ratio: float = 0.5>(x)", "float[2,8] x", 9),
        ("y, i = TopK<k: int = 3>(x)", "float[2,8] x", 9),
        ("y = Softmax<axis: int = 1>(x)", "float[2,8] x", 9),
        ("y = Clip<min: float = 0.0, max: float = 6.0>(x)", "float[2,8] x", 9),
    ],
)
def test_old_forms_are_judged(body, inputs, opset):
    constants = {"s": SCALES} if "Upsample" in body else {}
    assert lint(graph(body, inputs, "float[a,b] y", opset, **constants)).findings == ()
    assert "GE015" not in rules(lint(graph(body, inputs, "float[a,b] y", opset, **constants), OLD))


def test_too_large_a_k_of_opset_9_is_found():
    found = lint(graph("y, i = TopK<k: int = 4000>(x)", "float[2,5000] x", "float[2,4000] y", 9)).findings
    assert [finding.rule for finding in found] == ["GE011"] and "4000" in found[0].message


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "uint64", "string", "float8e5m2", "complex64"])
def test_types_that_importers_do_not_read(dtype):
    report = lint(graph("y = Identity(x)", f"{dtype}[2,8] x", f"{dtype}[2,8] y"))
    assert rules(report) == {"GE027"}


def test_sequences_and_optionals_are_not_read():
    model = graph("y = Identity(x)", "seq(float[2]) x", "seq(float[2]) y")
    assert "GE027" in rules(lint(model))


def test_local_functions_need_a_newer_importer_than_8_6():
    body = '<domain: "my", opset_import: ["" : 17]>\nBlock (a) => (b) { b = Relu(a) }'
    model = graph("y = my.Block(x)", opset=17, domains=("my",), more=body)
    assert rules(lint(model, OLD)) == {"GE022"}
    assert lint(model, NANO).findings == ()


def single(operator: str) -> onnx.ModelProto | None:
    """A graph of one node of an operator, as plain as its schema allows."""
    schema = onnx.defs.get_schema(operator, "")
    inputs = [f"x{number}" for number in range(schema.min_input)]
    outputs = [f"y{number}" for number in range(max(1, schema.min_output))]
    node = helper.make_node(operator, inputs, outputs, name="asked")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 8, 8]) for name in inputs]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    return helper.make_model(
        helper.make_graph([node], "g", values, results), opset_imports=[helper.make_opsetid("", 24)]
    )


class TestParser:
    """The table for TensorRT-RTX compared with the parser itself, which needs no GPU."""

    @pytest.fixture(scope="class")
    def trt(self):
        return pytest.importorskip("tensorrt_rtx")

    @pytest.fixture(scope="class")
    def parser(self, trt):
        logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        return trt.OnnxParser(network, logger), network, builder, logger  # the parser needs the others alive

    def test_every_operator_of_onnx_agrees(self, parser):
        names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
        parser_has = {name for name in names if parser[0].supports_operator(name)}
        assert parser_has == RTX_OPERATORS & names

    def test_older_names_and_those_of_microsoft_agree(self, parser):
        assert all(parser[0].supports_operator(name) for name in RTX_OPERATORS | RTX_MICROSOFT)
        assert not parser[0].supports_operator("SkipLayerNormalization")
        assert not reads_foreign("com.microsoft", "SkipLayerNormalization", "rtx")

    @pytest.mark.parametrize("name", ["Det", "Unique", "MatMulInteger", "Bernoulli"])
    def test_refused_by_both(self, trt, tmp_path, name):
        model = single(name)
        onnx.save(model, tmp_path / "m.onnx")
        title, refused = parser_check.ask_parser(tmp_path / "m.onnx", RTX)
        assert trt.__version__ in title
        assert refused and refused[0].rule == "GE000" and name in refused[0].node
        assert "GE025" in rules(lint(model, RTX))

    def test_read_by_both(self, trt, tmp_path):
        model = graph("a = Gelu(x) y = Softmax(a)", "float[2,8,32] x", "float[2,8,32] y")
        onnx.save(model, tmp_path / "m.onnx")
        assert parser_check.ask_parser(tmp_path / "m.onnx", RTX)[1] == ()
        assert not lint(model, RTX).errors

    @pytest.mark.parametrize(
        "name", [name for name in FORMS if name not in ("batch normalisation", "indices of pooling")]
    )
    def test_forms_are_refused_by_the_parser_too(self, trt, tmp_path, name):
        body, constants = FORMS[name]
        inputs = f"{CHW}, int64[1] a" if name == "computed axes" else CHW
        onnx.save(graph(body, inputs, "float[a,b,c,d] y", **constants), tmp_path / "m.onnx")
        assert parser_check.ask_parser(tmp_path / "m.onnx", RTX)[1]

    def test_a_parser_that_is_not_installed_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr(parser_check.importlib.util, "find_spec", lambda name: None)
        for where in (RTX, NANO, Platform()):
            with pytest.raises(MissingExtraError):
                parser_check.ask_parser(tmp_path / "m.onnx", where)
        monkeypatch.setattr(
            parser_check.importlib.util, "find_spec", lambda name: name if name == "tensorrt_rtx" else None
        )
        with pytest.raises(ConfigError, match="--target rtx"):
            parser_check.ask_parser(tmp_path / "m.onnx", NANO)

    def test_a_parser_of_another_version_is_not_asked(self, tmp_path, monkeypatch):
        monkeypatch.setattr(parser_check.importlib.util, "find_spec", lambda name: True)
        monkeypatch.setattr(parser_check, "_version", lambda module: "11.4.0")
        with pytest.raises(ConfigError, match=r"--tensorrt 11\.4"):
            parser_check.ask_parser(tmp_path / "m.onnx", NANO)


def test_table_is_consistent():
    assert not FIRST & set(SINCE)
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert FIRST | set(SINCE) <= known | {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}
    assert first_version("Relu") == "8.6" and first_version("Det") is None
