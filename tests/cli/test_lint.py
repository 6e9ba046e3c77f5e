"""gft-edge lint as a user types it."""

from __future__ import annotations

import re

import onnx
import pytest


@pytest.fixture
def broken(tmp_path):
    """A graph with a computed k, which is an error, and an INT64 input, which is a warning."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[B,8] x, int64[1] k) => (float[B,K] y) { y, i = TopK(x, k) }"""
    path = tmp_path / "broken.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.mark.parametrize("target", [[], ["--target", "rtx"], ["--target", "orin-nano", "--tensorrt", "10.3"]])
@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_artefacts_are_clean(gft_edge, made, name, target):
    done = gft_edge("lint", made[name], *target)
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith(f"rules: 0 errors, {1 if target else 0} warnings\n")
    assert ("GE029" in done.out) == bool(target)  # both have an FP32 rest, which matters where a GPU is named


def test_errors_fail_with_rule_place_and_reason(gft_edge, broken):
    done = gft_edge("lint", broken)
    assert done.code == 1
    assert "GE011  error     TopK y" in done.out
    assert "GE014  warning   input k" in done.out
    assert "\nGE011: TensorRT refuses k above 3840" in done.out
    assert "1 errors, 1 warnings" in done.out


def test_json_holds_the_findings_and_the_reasons(gft_edge, broken, made):
    found = gft_edge("lint", broken, "--json").json
    assert not found["ok"]
    assert [finding["rule"] for finding in found["findings"]] == ["GE011", "GE014"]
    assert found["rules"]["GE011"]["why"]
    assert gft_edge("lint", made["fp32"], "--json").json["ok"]


def test_old_tensorrt_wants_an_older_opset(gft_edge, made):
    done = gft_edge("lint", made["int8"], "--target", "orin-nano", "--tensorrt", "8.6")
    assert done.code == 1
    assert "GE015" in done.out and "export with --dialect trt8" in done.out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["{none}"], "none.onnx: no such file"),
        (["{text}"], "cannot be read as ONNX"),
        (["{folder}"], "has no manifest.json"),
        (["{broken}", "--target", "tardis"], "unknown device 'tardis'"),
        (["{broken}", "--target", "thor", "--tensorrt", "10.3"], "needs 10.13 or newer"),
        (["{broken}", "--tensorrt", "x"], "expected numbers with dots"),
    ],
)
def test_bad_input_is_one_line(gft_edge, broken, tmp_path, command, words):
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "folder").mkdir()
    paths = {
        "none": tmp_path / "none.onnx",
        "text": tmp_path / "text.onnx",
        "folder": tmp_path / "folder",
        "broken": broken,
    }
    done = gft_edge("lint", *(part.format(**paths) for part in command))
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert done.err.count("\n") == 1


def test_notes_say_what_was_assumed_and_what_is_missing(gft_edge, tmp_path):
    text = '<ir_version: 10, opset_import: ["" : 20]>\ng (float[B,8] x) => (float[B,8] y) { y = Add(x, w) }'
    model = onnx.parser.parse_model(text)
    tensor = model.graph.initializer.add(name="w", data_type=onnx.TensorProto.FLOAT, dims=[8], data_location=1)
    tensor.external_data.add(key="location", value="gone.bin")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    done = gft_edge("lint", tmp_path / "m.onnx", "--target", "orin-nano")
    assert (done.code, done.err) == (0, "")
    assert "note: gone.bin, which holds weights, is missing" in done.out
    assert "TensorRT 10.16 is assumed" in done.out and "--tensorrt 10.3" in done.out
    assert len(gft_edge("lint", tmp_path / "m.onnx", "--json").json["notes"]) == 1


def test_the_parser_is_asked_on_request(gft_edge, broken, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    text = '<ir_version: 10, opset_import: ["" : 20]>\ng (float[2,8,8] x) => (float[2] y) { y = Det(x) }'
    (tmp_path / "det.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    done = gft_edge("lint", tmp_path / "det.onnx", "--target", "rtx", "--parser")
    assert done.code == 1
    assert "GE000" in done.out and "GE025" in done.out and "refuses the file" in done.out
    assert "GE000" in gft_edge("lint", tmp_path / "det.onnx", "--target", "rtx", "--parser", "--json").json["rules"]
    done = gft_edge("lint", broken, "--target", "orin-nano", "--tensorrt", "10.3", "--parser")
    assert done.code in (2, 3) and done.err.count("\n") == 1


def test_one_line_for_a_graph_that_is_none(gft_edge, tmp_path):
    text = '<ir_version: 10, opset_import: ["" : 20]>\ng (float[2,8] x) => (float[2,8] y) { y = Relu(y) }'
    (tmp_path / "loop.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    done = gft_edge("lint", tmp_path / "loop.onnx")
    assert (done.code, done.out) == (2, "")
    assert "reads its own output" in done.err and done.err.count("\n") == 1


def test_same_boundaries(gft_edge, made, tmp_path):
    done = gft_edge("lint", made["int8"], "--same-boundaries", made["int8"] / "model.onnx")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"\nquantization boundaries: \d\d the same, 0 lost, 0 added, 0 changed\n$", done.out)
    done = gft_edge("lint", made["fp32"], "--same-boundaries", made["int8"])
    assert done.code == 1, "the delivered graph is not the one that was measured"
    assert f"against {made['int8']}" in done.out
    assert re.search(
        r"\nlost: weights of MatMul \S+ \(\S*blocks\.0\.attn\.qkv\S*\): int8 per output channel\n", done.out
    )
    found = gft_edge("lint", made["int8"], "--same-boundaries", made["fp32"], "--json").json
    assert not found["ok"] and not found["boundaries"]["ok"]
    assert len(found["boundaries"]["added"]) > 10 and found["findings"] == []
    (tmp_path / "config.txt").write_text("[property]\nonnx-file=model.onnx\n")
    done = gft_edge("lint", tmp_path / "config.txt", "--same-boundaries", made["int8"])
    assert done.code == 2 and "has no quantization boundaries; give the graph or the bundle" in done.err
