"""The suite as a user runs it, and its parts on hand-made figures."""

from __future__ import annotations

import collections
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from gft_edge.benchmarks.experiments.peers import footprint, suite, targets
from gft_edge.benchmarks.experiments.peers.gemms import products_alone
from gft_edge.benchmarks.experiments.peers.operators import profile
from gft_edge.benchmarks.experiments.peers.results import markdown
from gft_edge.benchmarks.experiments.peers.scale import quick_scale
from gft_edge.benchmarks.experiments.peers.session_options import with_uint8_activations
from gft_edge.benchmarks.experiments.peers.timed_models import focal_group
from gft_edge.benchmarks.measuring.protocol import Latency
from gft_edge.calibration.options import METHODS
from gft_edge.runtime.backends.sessions import onnxruntime_session


@pytest.fixture(scope="module")
def images():
    side = quick_scale().config.image_size
    return np.random.default_rng(0).standard_normal((2, 3, side, side), dtype=np.float32)


@pytest.fixture(scope="module")
def focal(images):
    """The focal model and its peers at the quick run's sizes."""
    return focal_group(quick_scale(), images)


@pytest.fixture(scope="module")
def graphs(focal):
    return {kind: onnx.ModelProto.FromString(focal[f"GFT {kind.upper()}"].model) for kind in ("fp32", "int8")}


@pytest.mark.slow
def test_quick_run_writes_both_files(focal, exported, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(suite, "focal_group", lambda scale, images: focal)
    monkeypatch.setattr(suite, "export_artifact", lambda *_: exported)  # a small one to start up with
    assert suite.main([str(tmp_path / "peers.json"), str(tmp_path / "RESULTS.md"), "--quick"]) == 0
    data = json.loads((tmp_path / "peers.json").read_text())
    page = (tmp_path / "RESULTS.md").read_text()
    assert page == markdown(data)
    assert page in capsys.readouterr().out
    names = {row["name"] for row in data["latency"]}
    assert {name for one in targets.RATIOS for name in (one.over, one.under)} <= names
    macs = {row["name"]: row["macs"] for row in data["latency"]}
    assert macs["ViT of as many blocks"] == macs["published"]
    assert macs["GFT INT8"] == macs["GFT FP32"] < macs["ViT FP32"]
    assert all(len(row["rounds_ms"]) == 2 for row in data["latency"])
    assert {p["candidate"] for p in data["profiles"]} >= {"GFT INT8", "GFT FP32"}
    missed = {t["candidate"] for t in data["targets"] if "candidate" in t and t["met"] is False}
    assert missed <= {p["candidate"] for p in data["profiles"]}
    gains = [t for t in data["targets"] if "against its FP32" in t["what"]]
    assert [t["what"] for t in gains] == ["GFT INT8 against its FP32, 1 thread"]
    assert len(data["targets"]) == len(targets.RATIOS) + 1 + 8 + len(METHODS)
    assert "GELU" not in page and "nan" not in page


def test_products_alone_are_those_of_the_model(graphs):
    for kind, graph in graphs.items():
        alone = onnx.ModelProto.FromString(products_alone(graph)[0])
        onnx.checker.check_model(alone, full_check=True)
        for operator in ("MatMul", "Gemm", "Conv"):
            expected = [n for n in graph.graph.node if n.op_type == operator]
            assert len([n for n in alone.graph.node if n.op_type == operator]) == len(expected), kind
        weights = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
        for tensor in alone.graph.initializer:
            if tensor.name in weights:
                np.testing.assert_array_equal(numpy_helper.to_array(tensor), weights[tensor.name])


def test_int8_products_alone_run_as_int8(graphs, tmp_path, monkeypatch):
    model, feeds = products_alone(graphs["int8"])
    real, file = ort.InferenceSession, tmp_path / "optimized.onnx"

    def recording(source, options, **more):
        options.optimized_model_filepath = str(file)
        return real(source, options, **more)

    monkeypatch.setattr(ort, "InferenceSession", recording)
    session = onnxruntime_session(model, quantized=True, threads=1)
    count = collections.Counter(node.op_type for node in onnx.load(file).graph.node)
    layers = sum(n.op_type == "QuantizeLinear" for n in graphs["int8"].graph.node)
    assert count["MatMulIntegerToFloat"] == layers
    assert count["DequantizeLinear"] == 0
    outputs = session._session.run(None, feeds)
    assert len(outputs) == sum(n.op_type in ("MatMul", "Gemm", "Conv") for n in graphs["int8"].graph.node)
    assert all(o.size == 1 and np.isfinite(o).all() for o in outputs)


def test_uint8_activations_are_the_same_arithmetic(graphs, images):
    model = graphs["int8"].SerializeToString()
    found = [onnxruntime_session(m, True, 1)(images)["logits"] for m in (model, with_uint8_activations(model))]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_profile_counts_the_operators_of_the_session(graphs, images):
    rows = profile(graphs["int8"].SerializeToString(), ["MatMulAddFusion"], images[:1], runs=2)
    count = {row["operator"]: row["count"] for row in rows}
    assert count["MatMulIntegerToFloat"] == sum(n.op_type == "QuantizeLinear" for n in graphs["int8"].graph.node)
    assert count["Softmax"] == sum(n.op_type == "Softmax" for n in graphs["int8"].graph.node)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert [row["ms"] for row in rows] == sorted((row["ms"] for row in rows), reverse=True)


def test_both_ways_to_the_mean_scores_agree():
    q, k = torch.randn(2, 1, 3, 20, 8, dtype=torch.float64).unbind(0)
    torch.testing.assert_close(footprint.by_mean_key(q, k), footprint.by_matrix(q, k), rtol=1e-12, atol=1e-12)


def test_memory_of_the_matrix_grows_with_the_square():
    rows = footprint.importance((32, 64), 16, 2, 1)["rows"]
    matrix, mean = ([row["bytes"][way] for row in rows] for way in ("matrix", "mean key"))
    assert matrix[0] >= 2 * 32 * 32 * 4
    assert matrix[1] / matrix[0] > 3
    assert mean[1] / mean[0] <= 2.1


def test_code_that_fails_in_its_process_is_told():
    assert footprint.fresh("print(1 + 1)") == 2
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        footprint.fresh("1 / 0")


def _latencies(threads=1, **ms):
    default = {name: 10.0 for one in targets.RATIOS for name in (one.over, one.under)}
    return {threads: {name: Latency.of([[value] * 2] * 3) for name, value in {**default, **ms}.items()}}


def test_targets_are_met_by_their_ratio_alone():
    def verdict(what, threads=1, **ms):
        return next(t for t in targets.latency_targets(_latencies(threads, **ms)) if t["what"].startswith(what))

    fast = verdict("GFT INT8 against", **{"ViT FP32": 63.0})
    assert (fast["met"], fast["value"], fast["target"], fast["candidate"]) == (True, "6.3x", ">= 6.2x", "GFT INT8")
    assert not verdict("GFT INT8 against", **{"ViT FP32": 61.0})["met"]
    assert verdict("GFT INT8 against", threads=2, **{"ViT FP32": 51.0})["met"]
    assert verdict("GFT INT8 against", threads=8, **{"ViT FP32": 51.0})["met"] is None
    assert verdict("GFT against ToMe at equal MACs")["met"] is None
    assert verdict("published against its blocks", published=10.05)["met"]
    assert not verdict("published against its blocks", published=10.2)["met"]
    assert not verdict("published against its blocks", published=9.8)["met"]


def test_limits_of_start_up_and_export_are_held():
    costs = {
        "importance": {
            "rows": [{"patches": 9, "time_ratio": (120, 110, 130), "memory_ratio": 99.0}],
            "exponent": 1.2,
        },
        "start_up": {"import gft_edge": [10], "gft-edge --help": [151], "load and first prediction": [400]},
        "export": {"seconds": 61, "peak_bytes": 3.9e9},
        "calibration": {
            "ratios": {
                "tiny": dict.fromkeys(("max", "percentile", "mse"), (0.91, 0.89, 0.93)) | {"entropy": (0.89, 0.8, 0.91)}
            }
        },
    }
    met = [row["met"] for row in targets.cost_targets(costs)]
    assert met == [True, False, False, True, False, True, False, True, True, True, False, True]


def test_gains_of_int8_have_a_target_at_one_thread():
    slow, fast = Latency.of([[25.0] * 2] * 3), Latency.of([[10.0] * 2] * 3)
    found = {"GFT FP32": slow, "GFT INT8": fast, "gft_tiny FP32": slow, "gft_tiny INT8": fast}
    rows = targets.int8_gains({1: found, 2: found})
    assert [(row["value"], row["target"], row["met"]) for row in rows] == [
        ("2.5x", ">= 1.8x", True),
        ("2.5x", ">= 2.8x", False),
        ("2.5x", "", None),
        ("2.5x", "", None),
    ]
    assert rows[2]["what"] == "gft_tiny INT8 against its FP32, 2 threads"
