"""The shipped checkpoint: its card has the figures that evaluate finds for the stored weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from gft_edge.benchmarks.experiments import publish
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import CheckpointInfo, builtin_path, load_checkpoint, save_checkpoint
from gft_edge.config.model import preset
from gft_edge.data.scenes import LABELS
from gft_edge.errors import ConfigError
from gft_edge.evaluation import EvaluationOptions, evaluate
from gft_edge.preprocess import PreprocessSpec


@pytest.fixture(scope="module")
def published(tmp_path_factory, make_model):
    folder = tmp_path_factory.mktemp("publish")
    config = preset(
        "gft_scenes", image_size=64, embed_dim=32, depth=3, num_heads=2, stages=(1, 2), budget=TokenBudget((8, 4), 64)
    )
    trained = {"recipe": {"data": {"name": "scenes"}}}
    info = CheckpointInfo(config, LABELS, PreprocessSpec(64, 64), {}, trained)
    (folder / "trained").mkdir()
    save_checkpoint(folder / "trained", info, make_model(config))
    (folder / "one.toml").write_text("[train]\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "TEST_IMAGES", 160)
        assert publish.main([str(folder / "trained"), str(folder / "out"), str(folder / "one.toml")]) == 0
    return folder / "out"


def test_figures_are_those_of_the_stored_weights_on_the_test_images(published):
    checkpoint = load_checkpoint(published)
    metrics = checkpoint.info.metrics
    options = EvaluationOptions(data="scenes", split="test", images=160, budgets=("full", "8,4"))
    full, pruned = (row.accuracy.top1 for row in evaluate(checkpoint, options).results)
    assert (metrics["test_top1_full"], metrics["test_top1_budget"]) == (full, pruned)
    assert (metrics["budget"], metrics["test_images"]) == ("8-4", 160)
    other = EvaluationOptions(data="scenes", split="val", images=160, budgets=("full", "8,4"))
    assert [row.accuracy.top1 for row in evaluate(checkpoint, other).results] != [full, pruned], "the splits differ"
    card = (published / "card.md").read_text()
    assert f"top-1 on 160 test images, all patches | {full:.1%}" in card
    assert f"top-1 on 160 test images, 8-4 patches kept | {pruned:.1%}" in card


def test_weights_are_stored_in_half_precision_with_the_recipes(published):
    kinds = {tensor.dtype for tensor in load_file(published / "model.safetensors").values()}
    assert {kind for kind in kinds if kind.is_floating_point} == {torch.float16}
    assert (published / "recipes/one.toml").read_text() == "[train]\n"
    with pytest.raises(ConfigError, match="not empty"):
        publish.publish(published, published, [])


def test_the_card_of_the_package_has_the_figures_of_its_configuration():
    folder = builtin_path()
    stored = json.loads((folder / "config.json").read_text())
    metrics = stored["metrics"]
    assert stored["provenance"]["recipe"]["train"]["init"] == "runs/scenes-selection", (
        "a path of the recipe, not of a machine"
    )
    card = (folder / "card.md").read_text()
    for name, key in (("all patches", "test_top1_full"), ("144-72-72 patches kept", "test_top1_budget")):
        assert f"top-1 on {metrics['test_images']} test images, {name} | {metrics[key]:.1%} |" in card
    assert (folder / "model.safetensors").stat().st_size < 4_000_000
    for name in ("scenes.toml", "scenes-selection.toml", "scenes-finish.toml"):
        assert f"`recipes/{name}`" in card
        assert (folder / "recipes" / name).read_bytes() == (folder.parents[1] / "recipes" / name).read_bytes()
