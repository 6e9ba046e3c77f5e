"""Trainings with a teacher: every kind of loss, both sources of answers, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

import gft_edge.distill.distiller as module
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import load_checkpoint, read_weights
from gft_edge.config.model import preset
from gft_edge.config.reader import load_dataclass
from gft_edge.config.recipe import DistillSection, Recipe
from gft_edge.distill.losses import map_loss, ranking_loss
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.model.gft import StageMaps
from gft_edge.preprocess import PreprocessSpec
from gft_edge.train.loop import train


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def same(first, second):
    first, second = read_weights(first), read_weights(second)
    return first.keys() == second.keys() and all(torch.equal(t, second[name]) for name, t in first.items())


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "kl", "temperature": 2.0},
        {"loss": "dist"},
        {"loss": "hard"},
        {"masked": True},
        {"map_weight": 0.5, "ranking_weight": 0.5},
        {"map_weight": 0.5, "map": "rollout"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_a_training_learns_from_its_teacher(recipe, tmp_path, settings):
    info = train(recipe(**settings), tmp_path / "run")
    assert info.provenance["recipe"]["distill"]["loss"] == settings.get("loss", "kl")
    assert all(loss > 0 for loss in losses(tmp_path / "run"))
    load_checkpoint(tmp_path / "run")


def test_the_loss_is_the_sum_of_its_parts(recipe, tmp_path):
    for name, settings in {
        "labels": {"weight": 0.0},
        "kl": {"loss": "kl", "label_weight": 0.0},
        "both": {"loss": "kl", "weight": 2.0, "label_weight": 0.5},
    }.items():
        train(recipe(train={"steps": 1}, **settings), tmp_path / name)
    labels, kl, both = (losses(tmp_path / name)[0] for name in ("labels", "kl", "both"))
    assert both == pytest.approx(0.5 * labels + 2 * kl, rel=1e-5)


def test_without_weight_it_is_the_training_without_a_teacher(recipe, tmp_path):
    train(recipe(weight=0.0), tmp_path / "off")
    train(recipe(at=None), tmp_path / "none")
    assert same(tmp_path / "off", tmp_path / "none")


def test_the_teacher_answers_once_and_further_trainings_equal_the_first(recipe, tmp_path, monkeypatch):
    stored = {"answers": "stored", "answers_file": str(tmp_path / "shared.safetensors"), "top_k": 3}
    train(recipe(**stored), tmp_path / "first")
    monkeypatch.setattr(module, "load_teacher", _refuse)
    lines = []
    train(recipe(**stored), tmp_path / "second", report=lines.append)
    assert "has those of 3 of 3 batches" in "".join(lines)
    assert same(tmp_path / "first", tmp_path / "second")
    with pytest.raises(ConfigError, match="another augmentation: mixup is 0.2, was 0.0"):
        train(recipe(train={"mixup": 0.2}, **stored), tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_answers_of_another_teacher_or_other_data_are_refused(recipe, teach, tmp_path):
    stored = {"answers": "stored", "answers_file": str(tmp_path / "shared.safetensors")}
    train(recipe(train={"steps": 1}, **stored), tmp_path / "first")
    for changed, message in (
        (recipe(teach(seed=3), train={"steps": 1}, **stored), "another teacher: sha256"),
        (recipe(train={"steps": 1}, data={"train_images": 20}, **stored), "another data: images is 20, was 40"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(changed, tmp_path / "other")


def _refuse(*arguments):
    raise AssertionError("the teacher was loaded")


def test_an_interrupted_training_resumes_with_its_stored_answers(recipe, tmp_path):
    of = recipe(answers="stored", train={"accumulate": 2})
    train(of, tmp_path / "whole")
    train(of, tmp_path / "parts", stop_after=1)
    train(of, tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")
    for name in ("whole", "parts"):
        assert (tmp_path / name / "answers.safetensors").is_file()


def test_stored_answers_of_every_class_are_nearly_the_live_ones(recipe, tmp_path):
    for answers in ("live", "stored"):
        train(recipe(answers=answers, top_k=99, train={"steps": 1}), tmp_path / answers)
    assert losses(tmp_path / "stored") == pytest.approx(losses(tmp_path / "live"), rel=1e-3)


def test_features_are_lifted_and_the_checkpoint_has_the_students_own_form(recipe, wide, tmp_path):
    of = recipe(wide, feature_weight=1.0, train={"eval_every": 2, "ema": 0.5})
    train(of, tmp_path / "run")
    train(of, tmp_path / "parts", stop_after=2)
    train(of, tmp_path / "parts", resume=True)
    assert same(tmp_path / "run", tmp_path / "parts")
    for folder in (tmp_path / "run", tmp_path / "run" / "best"):
        assert load_checkpoint(folder).model.head.weight.shape == (16, 128)


def test_a_teacher_of_another_kind_size_and_normalisation_teaches(recipe, teach, tmp_path):
    config = preset("resnet50", backbone="resnet10t", image_size=48)
    spec = PreprocessSpec(48, 48, mean=(0.5,) * 3, std=(0.5,) * 3)
    train(recipe(teach(config, spec), feature_weight=0.1, train={"steps": 1}), tmp_path / "run")
    for settings, name in (({"map_weight": 1.0}, "map_weight"), ({"masked": True}, "masked")):
        with pytest.raises(ConfigError, match=f"{name}: the teacher is a resnet10t .* has no maps"):
            train(recipe(teach(config, spec), **settings), tmp_path / "none")


def test_a_map_of_another_grid_is_resampled():
    flat = torch.arange(4.0).view(1, 2, 2)
    assert torch.equal(module.on_grid(flat, (2, 2)), flat.flatten(1))
    assert module.on_grid(torch.full((2, 8, 8), 0.25), (4, 4)).tolist() == [[0.25] * 16] * 2


def test_later_blocks_learn_the_map_at_the_patches_they_still_see(tiny_config):
    """By hand: two selecting blocks of 16 patches; the second scores the 12 that the first kept."""
    section = DistillSection("teacher", map_weight=2.0, ranking_weight=3.0)
    distiller = module.Distiller(section, tiny_config, load=_refuse, taught=2)
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(2, 4, 4, generator=generator)
    kept = torch.rand(2, 16, generator=generator).argsort(dim=1)[:, :12].sort(dim=1).values
    scores = torch.rand(2, 16, generator=generator), torch.rand(2, 12, generator=generator)
    stages = [StageMaps(scores[0], kept, scores[0]), StageMaps(scores[1], kept[:, :6], scores[1])]
    flat = target.flatten(1)
    seen = torch.stack([flat[n, kept[n]] for n in range(2)])
    expected = sum(
        2 * map_loss(score, goal, 1.0) + 3 * ranking_loss(score, goal, keep)
        for score, goal, keep in ((scores[0], flat, 12), (scores[1], seen, 6))
    )
    assert distiller._map_losses(stages, target).item() == pytest.approx(expected.item() / 2, rel=1e-5)


def test_smaller_budgets_weigh_what_the_recipe_says(recipe, tmp_path):
    settings = {"train": {"steps": 2}, "weight": 0.0}
    for name, weight in {"none": 0.0, "one": 1.0, "again": 1.0}.items():
        train(recipe(consistency_weight=weight, **settings), tmp_path / name)
    assert same(tmp_path / "one", tmp_path / "again")
    assert not same(tmp_path / "none", tmp_path / "one")


def test_a_teacher_of_other_classes_is_refused(recipe, teach, labels, tmp_path):
    changed = (*labels[:2], "other", *labels[3:])
    with pytest.raises(ConfigError, match=f"class 2 is 'other' for the teacher and '{labels[2]}' in the data"):
        train(recipe(teach(classes=changed)), tmp_path / "run")
    with pytest.raises(ArtifactError, match="nothing: no such folder"):
        train(recipe(tmp_path / "nothing"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_narrower_teacher_has_no_features_to_lift_to(recipe, tmp_path):
    with pytest.raises(ConfigError, match="features are 32 wide, the student's 128"):
        train(recipe(feature_weight=1.0), tmp_path / "run")


def test_a_masked_teacher_has_the_grid_of_its_student(recipe, teach, tmp_path):
    other = teach(patch_size=16, budget=TokenBudget((4, 2), 4))
    with pytest.raises(ConfigError, match="the teacher has 2 x 2 patches, the student 4 x 4"):
        train(recipe(other, masked=True), tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answers": "stored", "masked": True}, "masked needs the teacher in every step"),
        ({"answers": "stored", "map_weight": 1.0}, "map_weight needs the teacher in every step"),
        ({"masked": True, "mask_keep": 0.2}, "mask_keep must be at least 0.3, found 0.2"),
        ({"masked": True, "map_weight": 1.0}, "leave out map_weight"),
        ({"answers_file": "x"}, "answers_file needs answers = 'stored'"),
        ({"weight": -1.0, "temperature": 0.0, "top_k": 0}, "weight must.*temperature must.*top_k must"),
        ({"feature_weight": float("nan")}, "feature_weight must be at least 0 and finite"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_in_one_line(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        DistillSection("x", **settings)
    assert "\n" not in str(caught.value)


def test_a_recipe_without_a_teacher_has_no_section(recipe):
    assert "distill" not in recipe(at=None).to_json()
    assert load_dataclass(Recipe, recipe().to_json(), "again") == recipe()
