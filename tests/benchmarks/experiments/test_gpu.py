"""The GPU bench as a user runs it, at its quick size on a CPU, and its parts on hand-made figures."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
import torch

from gft_edge.benchmarks.experiments import compile_speed
from gft_edge.benchmarks.experiments.gpu import __main__ as gpu
from gft_edge.benchmarks.experiments.gpu import (
    candidates,
    compiled,
    exact,
    inference,
    numerics,
    pieces,
    results,
    timing,
)
from gft_edge.benchmarks.experiments.gpu.scale import SECONDS, Place, aligned, full_scale, quick_scale
from gft_edge.budget import TokenBudget
from gft_edge.config.model import preset
from gft_edge.errors import ConfigError
from gft_edge.model.macs import count_macs

CPU = Place(torch.device("cpu"), torch.float32)
HERE = ("inference", "resolution", "training", "kernels", "pieces", "numerics")


@pytest.fixture(scope="module")
def family():
    return candidates.Family(quick_scale().config, CPU)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, run_command):
    """The written file and the printed text of a quick run."""
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    return run_command(gpu.main, out, "--quick", "--only", ",".join(HERE), "--out", str(out))


def test_every_part_ran_without_errors(measured):
    data, text = measured
    assert set(data["parts"]) == set(HERE)
    for name, part in data["parts"].items():
        assert not part.get("errors"), (name, part["errors"])
        assert "error" not in part, (name, part)
        assert part["rows"]
        assert name in text
    assert "times mean nothing" in text


def test_graphs_compute_what_the_eager_networks_do(measured):
    rows = measured[0]["parts"]["inference"]["rows"]
    scale = quick_scale()
    assert {row["batch"] for row in rows} == set(scale.batches)
    merging = {row["batch"] for row in rows if row["name"] == candidates.TOME}
    assert merging == {scale.merging_batch}
    assert all(row["finite"] and row["difference"] <= 1e-6 for row in rows)
    assert all(len(row["rounds_ms"]) == scale.rounds for row in rows)
    assert all(row["over_vit"][1] <= row["over_vit"][0] <= row["over_vit"][2] for row in rows)
    macs = {row["name"]: row["macs"] for row in rows}
    assert macs[candidates.GFT] < macs[candidates.EVIT] < macs[candidates.VIT] == macs[candidates.FULL]
    assert macs[candidates.EVIT_FUSED] == macs[candidates.EVIT]
    assert macs["GFT 23-15-7"] < macs[candidates.GFT] < macs["GFT 31-23-15"]


def test_large_images_are_measured_against_the_plain_vit_of_their_size(measured):
    part = measured[0]["parts"]["resolution"]
    assert [(row["name"], row["batch"]) for row in part["rows"]] == [
        (name, 2) for name in ("ViT", "GFT", candidates.FULL)
    ]
    assert all(row["finite"] and row["difference"] <= 1e-6 for row in part["rows"])
    large, full = quick_scale().large, full_scale()
    assert part["image_size"] == large.image_size
    assert [row["macs"] for row in part["rows"]] == [
        count_macs(large, b) for b in (large.full_budget, None, large.full_budget)
    ]
    assert (full.large, full.large_batches[-1]) == (preset("gft_base_448"), 32)
    assert ("resolution", 32, candidates.VIT, 3.5) in results.LEAST_OVER


def test_model_is_the_plain_vit_and_the_slow_form(measured):
    found = measured[0]["parts"]["inference"]["exact"]
    assert set(found) == {"every patch", "pruned"}
    assert found["every patch"] == 0
    assert found["pruned"] <= 1e-5
    assert all(row["met"] for row in measured[0]["targets"])


def test_slow_form_notices_another_choice(family):
    images = family.images(3)
    expected = exact.slow_logits(family.vit, images, family.config)
    assert timing.relative_difference(family.gft()(images), expected) <= 1e-5
    assert timing.relative_difference(family.gft(score="class-row")(images), expected) > 1e-3


def test_selecting_blocks_launch_fewer_kernels_than_evit(measured):
    rows = {row["name"]: row for row in measured[0]["parts"]["kernels"]["rows"]}
    assert rows[candidates.VIT]["beyond_vit"] == 0
    assert rows[candidates.FULL]["beyond_vit"] == 0
    assert 0 < rows[candidates.GFT]["beyond_vit"] < rows[candidates.EVIT]["beyond_vit"]
    assert sum(kernel["count"] for kernel in rows[candidates.VIT]["by_name"]) == rows[candidates.VIT]["kernels"]


def test_numerics_compare_sets(tiny_model):
    pixels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()
    found = numerics.compared(tiny_model, pixels, np.zeros(8, np.int64), CPU, math.inf)
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) == set(numerics.PRECISIONS), found["errors"]
    assert rows["fp32"]["jaccard"] == [1.0, 1.0]
    assert rows["fp32"]["logit_sqnr_db"] is None
    assert rows["bf16"]["logit_sqnr_db"] < rows["fp16"]["logit_sqnr_db"]
    assert all(0 < value <= 1 for row in rows.values() for value in row["jaccard"])
    assert next(tiny_model.parameters()).dtype == torch.float32
    assert numerics.compared(tiny_model, pixels, np.zeros(8, np.int64), CPU, 0)["errors"][0]["error"] == "no time left"


def test_ways_of_a_step_give_the_same():
    block = pieces.Block(quick_scale().config, 3, Place(torch.device("cpu"), torch.float64))
    for step, ways in block.groups().items():
        first, *others = (call() for call in ways.values())
        assert others, step
        for found in others:
            if step in ("choose", "selection"):  # in any order
                found, expected = found.sort(dim=1).values, first.sort(dim=1).values
            else:
                expected = first
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10, msg=step)
    rows = block.by_sort()
    torch.testing.assert_close(rows[:3, 0], block.x[:, 0])  # the class token stays first


def test_every_budget_is_a_multiple_of_eight_tokens():
    budget = full_scale().config.budget
    assert aligned(budget, 8, up=True).keep == (151, 103, 55)
    assert aligned(budget, 8, up=False).keep == (143, 95, 47)
    assert aligned(TokenBudget((196, 98), 196), 8, up=True).keep == (196, 103)


def test_tokens_of_tome_are_those_of_the_model(family):
    entered = []
    merged = family.merging()[candidates.TOME]()
    for block in family.vit.blocks:
        block.norm2.register_forward_hook(lambda module, given, found: entered.append(found.shape[1] - 1))
    try:
        merged(family.images(1))
    finally:
        for block in family.vit.blocks:
            block.norm2._forward_hooks.clear()
    assert entered == [27, 18, 9, 9]


def test_candidate_that_fails_leaves_the_others(family):
    def broken():
        raise RuntimeError("out of memory\nand more")

    makers = {candidates.VIT: family.plain, "broken": broken}
    rows, errors = inference.measure_batch(family, makers, 1, quick_scale(), math.inf)
    assert [row["name"] for row in rows] == [candidates.VIT]
    assert errors == [{"name": "broken", "batch": 1, "error": "RuntimeError: out of memory"}]


def test_part_that_fails_leaves_the_others(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(gpu.PARTS, "kernels", lambda *_: 1 / 0)
    monkeypatch.setitem(gpu.PARTS, "numerics", lambda *_: {"rows": [], "value": float("nan"), "n": np.float32(1)})
    assert gpu.main(["--quick", "--only", "numerics, kernels", "--out", str(tmp_path / "gpu.json")]) == 0
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts["kernels"]["error"].startswith("ZeroDivisionError")
    assert (parts["numerics"]["value"], parts["numerics"]["n"]) == (None, 1.0)
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_time_that_is_over_skips_batches_but_not_rounds():
    found = inference.run(quick_scale(), CPU, time.monotonic() - 1, lambda text: None)
    assert (found["rows"], found["skipped"]) == ([], [1, 4])
    latencies = timing.interleaved({"call": lambda: time.sleep(0.001)}, 9, 0.0, CPU, until=0)
    assert len(latencies["call"].rounds_ms) == timing.LEAST_ROUNDS


def test_measurements_repeat_short_calls():
    calls = []
    timing.interleaved({"call": lambda: calls.append(time.sleep(0.001))}, 1, 10.0, CPU)
    assert 3 <= len(calls) <= 11


def test_output_that_is_not_written_is_not_finite(family):
    images = family.images(1)
    candidate = family.plain()
    replay = timing.Replay(lambda: candidate(images), CPU)
    assert inference.checked(replay, candidate, images)["finite"]
    stale = replay.output
    replay._call = lambda: stale
    found = inference.checked(replay, candidate, images)
    assert not found["finite"]
    assert math.isnan(found["difference"])


def test_targets_are_judged_by_ratios_of_rounds():
    def row(name, batch, ms):
        return {"name": name, "batch": batch, "p50_ms": ms, "rounds_ms": [[ms]] * 4}

    parts = {
        "inference": {"rows": [row("ViT", 64, 8.1), row("GFT", 64, 5.0), row(candidates.EVIT, 64, 5.3)]},
        "compile": {"ratio": 1.6, "calls": [{"name": "GFT", "difference": 2e-4}]},
    }
    found = {target["what"]: target for target in results.targets(parts, timed=True)}
    assert found["inference, batch 64: GFT over ViT"]["met"] is True
    assert found[f"inference, batch 64: GFT over {candidates.EVIT}"]["met"] is False
    assert found["inference, batch 1: GFT over ViT"]["met"] is None
    assert found["compile time: GFT over ViT"]["met"] is False
    assert found["logits in FP32, compiled"]["met"] is False
    assert len(results.targets(parts, timed=False)) == 1


def test_compiled_model_is_one_graph_with_the_same_logits(family):
    for name in (candidates.VIT, candidates.GFT):
        call = compile_speed.first_call(name, family, "aot_eager", 2)
        assert (call.graphs, call.breaks) == (1, 0)
        assert call.difference <= 1e-5
        assert call.seconds > 0


def test_process_that_does_not_end_in_time_is_told(family):
    found = compile_speed.in_fresh_processes(family.config, "cpu", "aot_eager", until=time.monotonic() + 0.2)
    assert found["ratio"] is None
    assert "did not end" in found["errors"][0]["error"]
    assert found["errors"][-1]["error"] == "no time left"


def test_process_that_fails_is_told(family, monkeypatch):
    monkeypatch.setattr(compile_speed, "ORDER", (candidates.VIT,))
    found = compile_speed.in_fresh_processes(family.config, "cpu", "nonsense", until=time.monotonic() + 120)
    assert not found["calls"]
    assert "nonsense" in found["errors"][0]["error"]


def test_compiled_models_are_timed_in_processes_of_their_own():
    found = compiled.run(quick_scale(), CPU, time.monotonic() + 120, lambda text: None)
    assert not found["errors"]
    assert [(row["name"], row["batch"]) for row in found["rows"]] == [("ViT", 2), ("GFT", 2)]
    assert all(row["finite"] and row["difference"] <= 1e-5 for row in found["rows"])
    late = compiled.run(quick_scale(), CPU, time.monotonic(), lambda text: None)
    assert late["errors"] == [{"batch": 2, "error": "no time left"}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quick", "--only", "inferense"], "inference"),
        (["--quick", "--only", ""], "training"),
    ],
)
def test_bad_part_is_refused(arguments, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        gpu.main([*arguments, "--out", str(tmp_path / "gpu.json")])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_full_run_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--quick"):
        gpu.main(["--out", str(tmp_path / "gpu.json")])


def test_macs_of_the_candidates_are_by_the_formula(family):
    found = family.gft()
    assert found.macs == count_macs(family.config)
    assert list(SECONDS)[-1] == "compile", "the last part has what the others leave"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and driver")
def test_quick_run_on_a_gpu(tmp_path):
    assert gpu.main(["--quick", "--out", str(tmp_path / "gpu.json")]) == 0
    data = json.loads((tmp_path / "gpu.json").read_text())
    assert data["gpu"]["name"]
    assert all("error" not in part and not part.get("errors") for part in data["parts"].values())
