"""The recipe chosen for a folder, and the estimate of its duration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from gft_edge.config.model import preset
from gft_edge.config.recipe import ModelSection, Recipe, TrainSection
from gft_edge.model.build import build_model
from gft_edge.train.estimate import estimate_line, seconds_per_step
from gft_edge.train.own_data import choose_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of five images for training and one for validation."""
    root = tmp_path_factory.mktemp("own")
    for split, numbers in (("train", range(5)), ("val", [5]), ("test", [6])):
        for name in ("bolt", "nut"):
            (root / split / name).mkdir(parents=True)
            for number in numbers:
                pixels = np.full((4, 4, 3), number + 10 * len(name), np.uint8)  # no two images are the same
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return str(root)


def test_few_images_make_a_small_batch_and_enough_steps(folder):
    recipe = choose_recipe(folder, gpu=False).recipe
    assert (recipe.train.batch_size, recipe.train.steps, recipe.train.init) == (10, 300, "builtin")
    assert recipe.data.name == folder


def test_a_gpu_fine_tunes_pretrained_weights(folder):
    chosen = choose_recipe(folder, gpu=True)
    assert chosen.recipe.model.pretrained
    assert "a GPU is here" in chosen.why


def test_changes_come_last(folder):
    recipe = choose_recipe(folder, ["train.steps=7", "data.name=other"], gpu=False).recipe
    assert (recipe.train.steps, recipe.data.name) == (7, "other")


def test_a_recipe_file_of_that_name_in_the_folder_is_not_taken(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "image-folder.toml").write_text("nonsense")
    assert choose_recipe(folder, gpu=False).recipe.train.init == "builtin"


def test_an_estimate_changes_neither_model_nor_random_numbers():
    config = preset("gft_typeface", num_classes=3, image_size=32, stages=(1, 2, 3))
    model = build_model(config).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe = Recipe(ModelSection(), train=TrainSection(batch_size=8, accumulate=2))
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    images = torch.zeros(2, 3, 32, 32)
    small = seconds_per_step(model, config, recipe, iter([(images, torch.zeros(2, dtype=torch.long))]))
    assert small > 0
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_estimate_in_words():
    assert estimate_line(2.0, 300).startswith("about 10 min for 300 steps of 2 s")
