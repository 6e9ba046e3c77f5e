"""FP32 on a GPU: lint and plan agree; assumptions of a plan."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from gft_edge.errors import ConfigError
from gft_edge.export.graph.summary import summarize
from gft_edge.export.lint.linter import lint
from gft_edge.export.tensorrt.options import BuildOptions
from gft_edge.export.tensorrt.planning import make_plan
from gft_edge.hardware.devices import DEVICES
from gft_edge.hardware.tensorrt_versions import Platform, platform

from .lint_graphs import graph, rules

FLOAT = {"fp32": ("float", np.float32), "fp16": ("float16", np.float16)}


def linear(precision: str, rest: str):
    """One product with a LayerNorm before it, plain or quantized."""
    text, numpy_type = FLOAT[rest]
    constants = {"g": np.ones(32, numpy_type)}
    body = "n = LayerNormalization(x, g) "
    if precision == rest:
        body, constants = body + "y = MatMul(n, w)", constants | {"w": np.ones((32, 32), numpy_type)}
    else:
        kind = TensorProto.INT8 if precision == "int8" else TensorProto.FLOAT8E4M3FN
        body += (
            "q = QuantizeLinear(n, s, z) d = DequantizeLinear(q, s, z) e = DequantizeLinear(w, s, z) y = MatMul(d, e)"
        )
        constants |= {"s": numpy_type(0.1), "z": helper.make_tensor("z", kind, [], [0])}
        constants["w"] = helper.make_tensor("w", kind, [32, 32], [1] * 1024)
    return graph(
        body,
        f"{text}[B,8,32] x",
        f"{text}[B,8,32] y",
        opset=17 if rest == "fp32" and precision != "fp8" else 19,
        **constants,
    )


GRAPHS = {
    f"{p} rest {r}": linear(p, r)
    for p, r in [("fp32", "fp32"), ("fp16", "fp16"), *((q, r) for q in ("int8", "fp8") for r in FLOAT)]
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("target", [*DEVICES, "rtx"])
@pytest.mark.parametrize("version", [None, "8.6", "10.3", "11.4.1"])
def test_lint_and_plan_agree(name, target, version):
    if target == "rtx" and version is not None:
        return
    model = GRAPHS[name]
    try:
        where = platform(target, version)
    except ConfigError:  # the plan refuses for the same reason
        with pytest.raises(ConfigError):
            make_plan(summarize(model), target, BuildOptions(tensorrt=version))
        return
    report = lint(model, where)
    messages = [finding.message for finding in report.findings if finding.rule == "GE029"]
    try:
        plan = make_plan(summarize(model), target, BuildOptions(tensorrt=version))
    except ConfigError:
        return
    assert [note for note in plan.notes if "graph is FP32" in note] == messages
    assert {finding.rule for finding in report.errors} <= {
        "GE015"
    }  # the artefact's dialect, refused by require_dialect
    assert [f.message for f in lint(model, plan.platform).findings if f.rule == "GE029"] == messages


@pytest.mark.parametrize(
    ("name", "there"), [("fp32 rest fp32", True), ("fp16 rest fp16", False), ("int8 rest fp32", True)]
)
def test_fp32_is_a_warning_on_a_board_and_none_without_a_target(name, there):
    for target in ("orin-nano", "rtx", "h100"):
        report = lint(GRAPHS[name], platform(target))
        assert ("GE029" in rules(report), report.errors) == (there, ())
    assert "GE029" not in rules(lint(GRAPHS[name])) | rules(lint(GRAPHS[name], platform(None, "10.3")))


def test_a_flag_that_allows_fp16_takes_the_warning_away():
    plan = make_plan(summarize(GRAPHS["fp32 rest fp32"]), "orin-nano", BuildOptions(tensorrt="10.3", weak=True))
    assert not any("graph is FP32" in note for note in plan.notes)
    assert "GE029" not in rules(lint(GRAPHS["fp32 rest fp32"], plan.platform))


@pytest.mark.parametrize(
    ("target", "assumed", "other"),
    [
        ("orin-nano", "10.16", "--tensorrt 10.3"),
        ("agx-orin", "11.4.1", "--tensorrt 10.3"),
        ("h100", "11.4", "--tensorrt VERSION"),
    ],
)
def test_a_plan_says_which_tensorrt_it_assumed(target, assumed, other):
    notes = make_plan(summarize(GRAPHS["fp16 rest fp16"]), target).notes
    note = next(note for note in notes if "is assumed" in note)
    assert f"TensorRT {assumed} " in note and other in note
    assert lint(GRAPHS["fp16 rest fp16"], platform(target)).notes == (note,)
    named = make_plan(summarize(GRAPHS["fp16 rest fp16"]), target, BuildOptions(tensorrt=assumed))
    assert not any("is assumed" in note for note in named.notes)
    assert lint(GRAPHS["fp16 rest fp16"], platform(target, assumed)).notes == ()
    assert Platform().note == ""
