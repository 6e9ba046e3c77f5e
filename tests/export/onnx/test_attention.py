"""Graphs with quantized attention: what stands where, run in ONNX Runtime, compiled, and refused when half done."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from gft_edge.calibration.ptq import quantize_int8
from gft_edge.checkpoint import load_checkpoint, save_checkpoint
from gft_edge.export.graph.summary import summarize
from gft_edge.export.graph.view import view
from gft_edge.export.lint.linter import lint
from gft_edge.export.onnx.artifact import export_artifact
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.export.onnx.tracing import export_graph
from gft_edge.export.tensorrt.builders import compile_plan
from gft_edge.export.tensorrt.options import BuildOptions
from gft_edge.export.tensorrt.planning import make_plan
from gft_edge.hardware.tensorrt_versions import platform
from gft_edge.manifest import MODEL
from gft_edge.quant.policy import QuantPolicy, uniform_policy
from gft_edge.runtime.backends.sessions import open_session
from gft_edge.stats.metrics import sqnr_db


@pytest.fixture(scope="module")
def make(checkpoints, clear_images, tmp_path_factory):
    """Checkpoint and artefact with attention in a precision."""

    def build(precision, rest="fp32"):
        source = checkpoints["fp32"]
        quantized = quantize_int8(source.model, [clear_images], uniform_policy(precision, attention=precision))
        folder = tmp_path_factory.mktemp("attention")
        info = dataclasses.replace(source.info, quantization=quantized.summary)
        save_checkpoint(folder / "q", info, quantized.model)
        checkpoint = load_checkpoint(folder / "q")
        options = GraphOptions("compact", rest)
        return checkpoint, export_artifact(checkpoint, folder / "x", clear_images, options=options)

    return build


@pytest.fixture(scope="module", params=["int8", "fp8"])
def made(request, make):
    return request.param, *make(request.param)


@torch.no_grad()
def test_onnxruntime_computes_what_torch_computes(made, checkpoints, clear_images):
    precision, checkpoint, artifact = made
    assert artifact.manifest.precision == precision
    found = open_session(artifact)(clear_images)
    twin, full = (m(torch.from_numpy(clear_images), maps=True) for m in (checkpoint.model, checkpoints["fp32"].model))
    assert sqnr_db(twin.logits.numpy(), found["logits"]) >= 50
    assert 15 < sqnr_db(full.logits.numpy(), found["logits"]) < 45
    for number, stage in enumerate(twin.stages):
        assert (np.sort(stage.kept.numpy(), axis=1) == np.sort(found[f"kept_{number}"], axis=1)).all()


def test_every_operand_is_quantized_right_at_its_product(made):
    precision, _, artifact = made
    graph = view(onnx.load(artifact.path / MODEL))
    largest = 448 if precision == "fp8" else 127
    assert len(graph.attentions) == 3
    for attention in graph.attentions:
        ends = (*attention.scores.input, *attention.product.input)
        nodes = [graph.producers[name] for name in ends]
        assert [node.op_type for node in nodes] == ["DequantizeLinear"] * 4, "nothing stands between"
        assert attention.softmax.input[0] == attention.scores.output[0], "the scale stands before the product"
        quantizers = [graph.producers[node.input[0]] for node in nodes]
        assert [node.op_type for node in quantizers] == ["QuantizeLinear"] * 4
        for node, quantizer in zip(nodes, quantizers):
            assert list(node.input[1:]) == list(quantizer.input[1:])
            assert (graph.shape(node.input[1]), graph.dtype(node.input[2])) == ((), precision)
            assert float(graph.constant(node.input[2]).astype(np.float32)) == 0
        assert graph.producers[quantizers[0].input[0]].op_type == "Mul"
        assert quantizers[2].input[0] == attention.softmax.output[0]
        assert graph.constant(nodes[2].input[1]) == np.float32(1 / largest)
        rank = len(graph.shape(attention.scores.output[0]))
        assert rank == 4


def test_half_precision_keeps_the_form(make, clear_images):
    checkpoint, artifact = make("int8", "fp16")
    model = onnx.load(artifact.path / MODEL)
    graph = view(model)
    assert summarize(model).quantized_tokens == 17
    for attention in graph.attentions:
        for name in (*attention.scores.input, *attention.product.input):
            assert (graph.producers[name].op_type, graph.dtype(name)) == ("DequantizeLinear", "fp16")
    assert {finding.rule for finding in lint(model, platform("rtx")).findings} <= {"GE029"}
    with torch.no_grad():
        twin = checkpoint.model(torch.from_numpy(clear_images)).numpy()
    assert sqnr_db(twin, open_session(artifact)(clear_images)["logits"]) > 20


def test_a_policy_without_attention_gives_the_bytes_it_gave(checkpoints, exported):
    """Rules for attention in high precision leave no trace in the graph."""
    info, images = checkpoints["fp32"].info, np.random.default_rng(1).standard_normal((32, 3, 32, 32), dtype=np.float32)
    default = uniform_policy("int8")
    older = QuantPolicy(tuple(rule for rule in default.rules if not rule.pattern.endswith("attend")))
    assert len(older.rules) == len(default.rules) - 1
    model = quantize_int8(checkpoints["fp32"].model, [images], older).model
    graph = export_graph(model, info.preprocess, info.model.budget).SerializeToString(deterministic=True)
    assert hashlib.sha256(graph).hexdigest() == exported("int8-none").manifest.files[MODEL].sha256


@pytest.mark.parametrize("capability", ["8.6", "8.9", "12.0"])
def test_rtx_compiles_it(made, capability):
    trt = pytest.importorskip("tensorrt_rtx")
    precision, _, artifact = made
    if precision == "fp8" and capability == "8.6":
        pytest.skip("no FP8 before 8.9")
    summary = summarize(onnx.load(artifact.path / MODEL))
    plan = make_plan(summary, "rtx", BuildOptions(compute_capabilities=(capability,)))
    assert "linears and attention products" in plan.meaning
    blob, _ = compile_plan(trt, artifact.path / MODEL, plan)
    assert len(blob) > 10_000


def _bypass(model, node, index):
    """The product reads its operand unquantized."""
    producers = {output: n for n in model.graph.node for output in n.output}
    node.input[index] = producers[producers[node.input[index]].input[0]].input[0]


def _products(model):
    attention = view(model).attentions[0]
    named = {n.output[0]: n for n in model.graph.node}
    return named[attention.scores.output[0]], named[attention.product.output[0]]


def _softmax_alone(model):
    scores, _ = _products(model)
    _bypass(model, scores, 0)
    _bypass(model, scores, 1)


def _first_product_alone(model):
    _, product = _products(model)
    _bypass(model, product, 0)
    _bypass(model, product, 1)


def _keys_alone_unquantized(model):
    _bypass(model, _products(model)[0], 1)


def _values_unquantized(model):
    _bypass(model, _products(model)[1], 1)


def _scale_after_dequantization(model):
    scores, _ = _products(model)
    factor = numpy_helper.from_array(np.float32(0.25), "late_factor")
    model.graph.initializer.append(factor)
    late = onnx.helper.make_node("Mul", [scores.input[0], "late_factor"], ["late_q"], name="late")
    scores.input[0] = "late_q"
    model.graph.node.insert(list(model.graph.node).index(scores), late)


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        (_softmax_alone, {"GE003"}),
        (_first_product_alone, {"GE003"}),
        (_keys_alone_unquantized, {"GE003", "GE006"}),
        (_values_unquantized, {"GE006"}),
        (_scale_after_dequantization, {"GE003", "GE006"}),
    ],
)
def test_lint_passes_the_graph_and_fails_a_broken_one(made, change, rules):
    model = onnx.load(made[2].path / MODEL)
    assert {finding.rule for finding in lint(model, platform("rtx")).findings} <= {"GE029"}
    change(model)
    onnx.checker.check_model(model)
    assert {finding.rule for finding in lint(model, platform("rtx")).findings} - {"GE029"} == rules


def test_only_quantized_attention_counts_for_the_limit(made):
    model = onnx.load(made[2].path / MODEL)
    summary = summarize(model)
    assert (summary.tokens, summary.quantized_tokens) == (17, 17)
    while len(found := [a for a in view(model).attentions if view(model).is_dequantized(a.scores.input[0])]) > 1:
        named = {node.output[0]: node for node in model.graph.node}
        longest = max(found, key=lambda attention: attention.tokens)
        for end in (longest.scores, longest.product):
            for index in (0, 1):
                _bypass(model, named[end.output[0]], index)
    summary = summarize(model)
    assert (summary.tokens, summary.quantized_tokens, summary.quantized_attention) == (17, 7, True)
