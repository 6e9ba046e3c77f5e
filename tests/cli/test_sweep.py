"""sweep, as a user runs it."""

from __future__ import annotations

import json

import pytest


def test_a_sweep_writes_its_figures_and_the_staircase(gft_edge, tiny_checkpoint, tmp_path):
    done = gft_edge("sweep", tiny_checkpoint, "--points", 4, "--stage", 1, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "tokens after stage 1; onnxruntime, fp32, 1 thread(s)" in done.out
    assert "free tokens: " in done.out
    data = json.loads((tmp_path / "out/sweep.json").read_text())
    assert [point["tokens"] for point in data["points"]] == [8, 9, 16, 17]
    assert [point["budget"] for point in data["points"]] == ["7-6", "8-6", "15-6", "16-6"]
    assert all(point["ms"] > 0 for point in data["points"])
    assert "<svg" in (tmp_path / "out/sweep.svg").read_text()
    page = gft_edge("report", tmp_path / "out")  # passes over a record that it does not show
    assert page.code == 2 and "sweep.json" not in page.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stage", "first"], "--stage 'first': expected the number of a stage, or uniform"),
        (["--stage", 3], "stage must be 1 to 2 or uniform, found 3"),
        (["--precision", "int9"], "unknown precision 'int9' (did you mean 'int8'?)"),
        (["--backend", "tensorrt"], "measured on onnxruntime here, not 'tensorrt'"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_one_line(gft_edge, tiny_checkpoint, options, message):
    done = gft_edge("sweep", tiny_checkpoint, *options)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert message in done.err
