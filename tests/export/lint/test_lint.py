"""Every rule on a graph that breaks it and nothing else, and on the same graph mended; exported graphs break none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gft_edge.errors import ArtifactError
from gft_edge.export.graph.loading import load_graph
from gft_edge.export.graph.summary import summarize
from gft_edge.export.lint.linter import lint
from gft_edge.export.lint.rules import RULES
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.hardware.tensorrt_versions import platform
from gft_edge.manifest import MODEL

from .lint_graphs import graph
from .rule_cases import CASES, NANO, OLD


@pytest.mark.parametrize("name", CASES)
def test_the_bad_graph_breaks_this_rule_alone_and_the_good_one_none(name):
    case = CASES[name]
    found = besides(case, lint(case.bad, case.platform).findings)
    assert {finding.rule for finding in found} == {case.rule}
    assert {finding.severity for finding in found} == {case.severity}
    assert any(case.at in f"{finding.node} {finding.message}" for finding in found), found
    assert besides(case, lint(case.good, case.platform).findings) == ()


def besides(case, findings):
    """Findings without the word on FP32, which these graphs are in for brevity and which is no business of their rules."""
    return tuple(finding for finding in findings if finding.rule != "GE029" or case.rule == "GE029")


def test_operator_newer_than_the_parser_comes_with_the_opset():
    found = lint(graph("y = Gelu(x)"), OLD).findings
    assert {f.rule for f in found} == {"GE015", "GE022"}
    assert lint(graph("y = Gelu(x)"), NANO).findings == ()


def test_every_rule_has_a_case_an_id_of_its_own_and_a_source():
    elsewhere = {"GE022", "GE025", "GE026", "GE027", "GE028", "GE029"}  # test_lint_operators.py, test_lint_types.py
    assert {case.rule for case in CASES.values()} | elsewhere == {rule.id for rule in RULES}
    assert [rule.id for rule in RULES] == [f"GE{number:03}" for number in range(1, len(RULES) + 1)]
    for rule in RULES:
        assert re.search(r"TensorRT|arXiv|onnx|Model-Optimizer|IEEE", rule.why), rule.id
        assert rule.why.endswith(".")


def test_the_page_has_the_number_of_rules():
    page = (Path(__file__).parents[3] / "docs/artefact.md").read_text(encoding="utf-8")
    assert f"{len(RULES)} rules" in page


@pytest.mark.parametrize("name", ["fp32-compact-full", "fp32-none", "fp32-compact", "int8-none", "int8-compact"])
@pytest.mark.parametrize("target", [None, "rtx", "orin-nano", "agx-orin", "thor", "h100", "t4"])
def test_exported_graphs_are_clean(exported, name, target):
    report = lint(load_graph(exported(name).path / MODEL), platform(target))
    expected = set() if target is None else {"GE029"}  # all of these graphs are FP32, or have an FP32 rest
    assert {finding.rule for finding in report.findings} == expected
    assert report.errors == ()


@pytest.mark.parametrize(
    ("checkpoint", "options"),
    [
        ("fp32", GraphOptions(rest="bf16")),
        ("int8", GraphOptions("compact", rest="fp16")),
        ("int8", GraphOptions("compact", rest="bf16")),
        ("int8", GraphOptions("dense", rest="fp16", input="float255", batch=(1, 1, 1), probabilities=True)),
    ],
)
def test_half_precision_is_clean(exported_once, checkpoint, options):
    """Graphs that tests/export/onnx/test_options.py runs."""
    model, rest = load_graph(exported_once(checkpoint, options).path / MODEL), options.rest
    summary = summarize(model)
    assert (summary.precision, summary.rest) == (checkpoint if checkpoint == "int8" else rest, rest)
    assert summary.products == (rest, "fp32")  # scores and importance stay FP32
    for target in (None, "rtx", "thor", "h100"):
        assert lint(model, platform(target)).findings == ()


def test_decomposed_normalisation_of_importance_is_no_layer_norm_in_fp32(exported):
    model = load_graph(exported("fp32-compact").path / MODEL)
    assert any(node.op_type == "Sqrt" for node in model.graph.node)
    assert "GE001" not in {f.rule for f in lint(model, OLD).findings}


def test_severity_orders_the_findings():
    model = graph(
        "q = NonZero(x) f = Cast<to: int = 1>(q) m = ReduceMean<keepdims: int = 1>(f) y = Add(m, x) "
        "g_ = Gather<axis: int = 1>(x, i)",
        "float[B,8,32] x, int64[8] i",
    )
    assert [f.severity for f in lint(model).findings] == ["error", "warning"]


def test_report_is_plain_json():
    report = lint(CASES["NonZero"].bad).to_json()
    assert report["ok"] is False
    assert report["findings"] == [
        {"rule": "GE012", "severity": "error", "node": "NonZero i", "message": report["findings"][0]["message"]}
    ]
    assert set(report["rules"]) == {rule.id for rule in RULES}


@pytest.mark.parametrize("data", [None, b"", b"no graph at all", b"\x08\x07"])
def test_files_that_are_no_graphs_are_refused(tmp_path, data):
    path = tmp_path / "model.onnx"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"graph .*model\.onnx"):
        load_graph(path)
