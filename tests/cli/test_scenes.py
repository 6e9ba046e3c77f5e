"""Scenes from the command line: trained by a curriculum, evaluated at other shares, refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

RECIPE = """
[model]
preset = "gft_scenes"
image_size = 64
[data]
name = "scenes,share=0.04,distractors=2"
train_images = 48
eval_images = 16
num_workers = 0
curriculum = [[0.0, 2.0, 0], [0.5, 1.0, 2]]
[train]
steps = 4
batch_size = 4
warmup_steps = 1
checkpoint_every = 0
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenes") / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def trained(gft_edge, recipe):
    done = gft_edge("train", "--config", recipe, "--out", recipe.parent / "ckpt")
    assert done.code == 0, done.err
    return recipe.parent / "ckpt"


def test_a_trained_model_is_evaluated_on_its_task_and_on_others(gft_edge, trained, tmp_path):
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    own = gft_edge("evaluate", trained, "--images", 16, "--json")
    named = gft_edge("evaluate", trained, "--images", 16, "--json", "--data", "scenes,share=0.04,distractors=2")
    assert (own.code, own.json["results"], own.json["images"]) == (0, named.json["results"], 16)
    for other in ("scenes,share=0.1", f"scenes:{tmp_path}"):
        done = gft_edge("evaluate", trained, "--images", 16, "--json", "--data", other)
        assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("data.name=typefaces", "data.curriculum is for data 'scenes' alone"),
        ("data.name=scenes,share=0.3", "a mark of 35 px (share 0.3, scale 1) is too large for a canvas of 64 px"),
        ("data.name=scenes,sharp=0.3", "unknown key sharp (did you mean 'share'?)"),
        ("data.name=scenes:/nowhere", "scenes:/nowhere: found 0 different photographs, needs 3 or more"),
        (
            "data.curriculum=[[0,1,9]]",
            "the last phase must be the task itself, scale 1, 2 distractors and whole images",
        ),
        ("data.curriculum=[[1,1,2]]", "its shares of steps must rise from 0 to below 1"),
    ],
)
def test_bad_input_is_one_line(gft_edge, recipe, tmp_path, setting, says):
    done = gft_edge("train", "--config", recipe, "--out", tmp_path / "out", "--set", setting)
    assert done.code == 2
    assert says in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
