"""The study of certificates: its figures from outputs, its policies, and its page."""

from __future__ import annotations

import numpy as np
import pytest

from gft_edge.benchmarks.experiments import certificates as module
from gft_edge.checkpoint import load_checkpoint
from gft_edge.quant.modules import quantized_names


def _outputs(scores, logits, k=12):
    kept = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :k], axis=1)
    return {"logits": logits, "scores_0": scores, "kept_0": kept}


@pytest.fixture(scope="module")
def row():
    rng = np.random.default_rng(0)
    scores, logits = rng.standard_normal((600, 40)), rng.standard_normal((600, 3))
    noisy = scores + 0.003 * rng.standard_normal(scores.shape), logits + 0.01 * rng.standard_normal(logits.shape)
    found = module.evaluate(
        (_outputs(scores[:300], logits[:300]), _outputs(scores[300:], logits[300:])),
        (_outputs(noisy[0][:300], noisy[1][:300]), _outputs(noisy[0][300:], noisy[1][300:])),
        logits[300:].argmax(axis=1),
    )
    times = {"speedup": {1: 1.2, module.BATCH: 1.4}, "against_plain": {1: 1.0, module.BATCH: 1.0}}
    return {"budget": "12", "variant": module.PLAIN, "int8_share": 0.5, **times, **found}


def test_figures_are_those_of_the_outputs(row):
    (stage,) = row["stages"]
    assert (row["images"], stage["images"], stage["bound_images"]) == (300, 300, 300)
    assert row["flipped"] == stage["flipped"] > 0
    assert 0 < row["certified"] < 300
    assert row["broken"] == []
    assert 0 < stage["reach_bound"] <= stage["bound"] < 0.1
    assert row["top1_reference"] == 1 > row["top1"] > 0.95
    assert sum(row["other_class"]) == round(300 * (1 - row["top1"]))


def test_page_and_exit_code(row, tmp_path, monkeypatch, capsys):
    data = {"rows": [row], "machine": {"cpu": {"model": "a processor"}}}
    monkeypatch.setattr(module, "run", lambda out, plans: data)
    assert module.main([str(tmp_path / "run"), str(tmp_path / "page.md"), "--images", "40"]) == 0
    text = (tmp_path / "page.md").read_text()
    assert f"| 12 | int8-max | 300 | {1 - row['flipped'] / 300:.1%} |" in text
    assert "a processor" in text
    data["rows"] = [{**row, "broken": [3]}]
    assert module.main([str(tmp_path / "run")]) == 1
    capsys.readouterr()


def test_policies(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint)
    names = {
        name: [
            layer
            for layer in quantized_names(checkpoint.model, module._policy(name, checkpoint))
            if "blocks.0." in layer
        ]
        for name in (module.PLAIN, module.EXACT, module.SMOOTH, module.FIRST_QKV)
    }
    assert [len(names[name]) for name in (module.PLAIN, module.EXACT, module.SMOOTH)] == [4, 0, 4]
    assert names[module.FIRST_QKV] == ["blocks.0.attn.qkv"]
    exact, every = (module.int8_share(checkpoint, module._policy(n, checkpoint)) for n in (module.EXACT, module.PLAIN))
    assert 0 < exact < every == 1
