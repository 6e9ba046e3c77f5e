"""The verb distill: what it prints, that train with the same recipe does the same, resuming, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gft_edge.checkpoint import CheckpointInfo, read_weights, save_checkpoint
from gft_edge.data.datasets import open_images
from gft_edge.preprocess import PreprocessSpec

RECIPE = """
[model]
preset = "gft_typeface"
image_size = 32
[data]
train_images = 40
eval_images = 4
num_workers = 0
[train]
steps = 2
batch_size = 4
warmup_steps = 1
threads = 1
checkpoint_every = 1
"""
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def teacher(tiny_config, make_model, tmp_path_factory):
    labels = open_images("typefaces", "train", 4, 32, 0).labels
    config = type(tiny_config).from_json({**tiny_config.to_json(), "num_classes": len(labels)})
    folder = tmp_path_factory.mktemp("teacher")
    save_checkpoint(folder, CheckpointInfo(config, labels, PreprocessSpec(32, 32)), make_model(config))
    return folder


@pytest.fixture
def distill(gft_edge, teacher, tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)

    def run(*arguments, teacher=teacher, out="run"):
        config = ("--config", tmp_path / "recipe.toml", "--out", tmp_path / out)
        return gft_edge("distill", "--teacher", teacher, *config, *arguments)

    return run


def test_a_student_is_trained_as_by_train_and_resumes(distill, gft_edge, teacher, tmp_path):
    done = distill("--json")
    assert done.code == 0
    assert json.loads(done.out)["steps"] == 2
    setting = f"distill.teacher={json.dumps(str(teacher))}"
    paths = ("--config", tmp_path / "recipe.toml", "--out", tmp_path / "same")
    assert gft_edge("train", *paths, "--set", setting).code == 0
    first, same = read_weights(tmp_path / "run"), read_weights(tmp_path / "same")
    assert all((tensor == same[name]).all() for name, tensor in first.items())
    again = distill()
    assert again.code == 2 and "resume it with --resume" in again.err
    assert distill("--resume").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "distill.map_weight=1", "--set", "model.preset=vit_tiny"], "map_weight: the student is a vit_tiny"),
        (["--set", "distill.answers=stored", "--set", "distill.masked=true"], "distill: masked needs the teacher"),
        (["--set", "distill.loss=kd"], "distill.loss must be one of 'kl', 'dist', 'hard', found 'kd'"),
    ],
)
def test_mistakes_are_one_line(distill, tmp_path, arguments, message):
    done = distill(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert message in done.err
    assert not (tmp_path / "run").exists()


def test_teachers_that_cannot_teach_are_one_line(distill, tmp_path):
    for teacher, message in ((tmp_path / "none", "none: no such folder"), ("builtin", "for the teacher and")):
        done = distill(teacher=teacher)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert message in done.err


def test_answers_of_another_training_are_one_line(distill, tmp_path):
    stored = ("--set", "distill.answers=stored", "--set", f"distill.answers_file={tmp_path}/answers.safetensors")
    assert distill(*stored).code == 0
    done = distill(*stored, "--set", "data.augment=light", out="other")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert 'are of another augmentation: augment is "light", was "none"' in done.err
