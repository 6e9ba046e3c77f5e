"""What a training step launches: the command at a small size, and bounds on the counts."""

from __future__ import annotations

import pytest
import torch

from gft_edge.benchmarks.experiments import training_launches as study
from gft_edge.config.model import preset


@pytest.fixture(scope="module")
def measured(tmp_path_factory, run_command):
    """The written file and the printed text of a run with a narrow model of twelve blocks."""
    out, config = tmp_path_factory.mktemp("launches") / "launches.json", study.narrow()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "preset", lambda name, **sizes: config if name == "gft_base" else preset(name, **sizes))
        return run_command(study.main, out, str(out), "--rounds", "2")


def totals(measured):
    return {row["name"]: row["launches"] for row in measured[0]["rows"]}


def test_a_step_of_the_training_launches_less_than_the_usual_loop(measured):
    found = totals(measured)
    for name in study.NETWORKS:
        assert found[f"{name}: {study.TRAIN}"] < 0.82 * found[f"{name}: {study.USUAL}"], found


def test_a_selecting_block_adds_few_launches(measured):
    found = totals(measured)
    assert found["GFT: gft-edge train"] <= 560, found
    beyond = found["GFT: gft-edge train"] - found["GFT, every patch: gft-edge train"]
    assert 0 < beyond <= 45, f"{beyond} in three stages and the last block"


def test_counts_are_those_of_a_gpu_with_its_backward_pass_and_optimiser(measured):
    launches = measured[0]["launches"]["GFT: gft-edge train"]
    assert launches["index_select.default"], "the branch of GPUs"
    assert launches["native_layer_norm.default"] == launches["native_layer_norm_backward.default"] == 25
    assert launches["_foreach_norm.Scalar"] == 1
    assert launches["_fused_adamw_.default"] == 2, "weights that decay and those that do not"
    assert not any(name.startswith(("view", "transpose", "prim", "empty")) for name in launches)


def test_the_table_names_every_step(measured):
    data, text = measured
    assert len(data["rows"]) == 6
    assert all(row["name"] in text for row in data["rows"])
    assert all(row["over_vit"][1] <= row["over_vit"][0] <= row["over_vit"][2] for row in data["rows"])
    assert "index_select" in text


def test_tensors_tell_their_device_again_afterwards():
    with study.FakeTensorMode():
        assert not torch.zeros(1).is_cuda
