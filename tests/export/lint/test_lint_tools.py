"""Graphs as Model-Optimizer and ONNX Runtime write them: no known hazard hides behind their forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gft_edge.export.graph.loading import load_graph
from gft_edge.export.lint.linter import lint

from .lint_graphs import graph

# A block that selects (LayerNorm, qkv, score = keys by mean query, TopK, attention of the chosen rows, proj, sum with the chosen
# patches, LayerNorm, MLP, sum; 32 patches of width 16, random weights), written by nvidia-modelopt 0.47.0:
# modelopt.onnx.quantization.quantize("toy.onnx", calibration_data={"x": 8 random inputs}, calibration_eps=["cpu"],
#     high_precision_dtype="fp32", output_path="modelopt_default.onnx")
RECORDED = Path(__file__).parent / "data" / "modelopt_default.onnx"


def test_default_of_model_optimizer():
    found = {(finding.rule, finding.node) for finding in lint(load_graph(RECORDED)).findings}
    assert ("GE002", "Add r") in found, "its branch comes from queries that were chosen after the projection"
    assert ("GE005", "QuantizeLinear s_QuantizeLinear") in found, "the scores that TopK reads are quantized"
    assert ("GE005", "QuantizeLinear n_QuantizeLinear") in found
    assert {rule for rule, _ in found} == {"GE002", "GE005"}


QUANTIZE = "xq = QuantizeLinear(x, s, z) "


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (
            QUANTIZE + "f = Relu(x) fq = QuantizeLinear(f, s, z) "
            "yq = com.microsoft.QLinearAdd(xq, s, z, fq, s, z, s, z) y = DequantizeLinear(yq, s, z)",
            "GE002",
        ),
        (QUANTIZE + "xd = DequantizeLinear(xq, s, z) f = Relu(x) y = Sum(xd, f)", "GE002"),
        (
            QUANTIZE + "xd = DequantizeLinear(xq, s, z) f = Relu(x) y = com.microsoft.SkipLayerNormalization(xd, f, g)",
            "GE002",
        ),
        (
            QUANTIZE + "xd = DequantizeLinear(xq, s, z) f = Relu(x) y = com.microsoft.SkipLayerNormalization(xd, f, g)",
            "GE004",
        ),
        (QUANTIZE + "xd = DequantizeLinear(xq, s, z) y = RMSNormalization(xd, g)", "GE004"),
    ],
)
def test_fused_forms(body, rule):
    constants = {"s": np.float32(0.1), "z": np.int8(0), "g": np.ones(32, np.float32)}
    opset = 23 if "RMS" in body else 20
    found = lint(graph(body, opset=opset, domains=("com.microsoft",), **constants)).findings
    assert rule in {finding.rule for finding in found}, found


def test_a_sum_of_two_branches_is_no_residual_sum():
    constants = {"s": np.float32(0.1), "z": np.int8(0)}
    body = "a = Relu(x) b = Tanh(x) aq = QuantizeLinear(a, s, z) ad = DequantizeLinear(aq, s, z) y = Add(ad, b)"
    assert lint(graph(body, **constants)).findings == ()
