"""Verbs on a graph that takes batches of two, as pixels of 0 to 255, and gives probabilities, beside the usual graph."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def other(gft_edge, made, animals, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("other") / "static"
    options = ["--batch", 2, "--input", "float255", "--probabilities"]
    done = gft_edge("export", made["ckpt"], "--data", animals, *options, "--out", out, "--json")
    assert done.code == 0, done.err
    assert (done.json["input"], done.json["output"], done.json["batch"]) == ("float255", "probabilities", [2, 2, 2])
    return out


def test_batch_of_a_plan_is_the_one_exported_for_unless_given(gft_edge, made, other):
    found = gft_edge("build", other, "--target", "rtx", "--plan", "--json").json["plan"]
    assert found["batch"] == [2, 2, 2]
    done = gft_edge("build", other, "--target", "rtx", "--plan", "--batch", "1:1:8")
    assert done.code == 2
    assert "the graph is exported for batch 2 only" in done.err
    found = gft_edge("build", made["fp32"], "--target", "rtx", "--plan", "--batch", "1:2:4", "--json").json
    assert found["plan"]["batch"] == [1, 2, 4]


def test_predictions_are_the_same(gft_edge, made, other, animals):
    usual, found = (
        gft_edge("predict", path, animals, "--top", 4, "--json").json["predictions"] for path in (made["fp32"], other)
    )
    assert len(usual) > 20
    for a, b in zip(usual, found, strict=True):
        assert (a["image"], a["label"]) == (b["image"], b["label"])
        assert [entry["label"] for entry in a["top"]] == [entry["label"] for entry in b["top"]]
        assert a["probability"] == pytest.approx(b["probability"], abs=1e-5)


def test_accuracy_is_the_same(gft_edge, made, other, animals):
    usual, found = (gft_edge("evaluate", path, "--data", animals, "--json").json for path in (made["fp32"], other))
    assert usual["results"][0]["top1"] == found["results"][0]["top1"]


def test_verify_and_lint_pass(gft_edge, other):
    done = gft_edge("verify", other, "--json")
    assert (done.code, done.json["verdict"]) == (0, "pass")
    assert any("log-softmax" in note for note in done.json["notes"])
    assert "log-softmax" in gft_edge("verify", other).out
    assert gft_edge("lint", other).code == 0
