from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gft_edge.budget import MIN_TOKENS, NO_BUDGET
from gft_edge.checkpoint import load_checkpoint, read_weights, save_checkpoint
from gft_edge.config.model import preset
from gft_edge.config.recipe import DataSection, ModelSection, Recipe, TrainSection
from gft_edge.data.batches import evaluation_batches
from gft_edge.data.datasets import open_images
from gft_edge.errors import ArtifactError, CheckFailed, ConfigError, DataError
from gft_edge.model.build import logits_function
from gft_edge.train.loop import train
from gft_edge.train.optim import parameter_groups
from gft_edge.train.schedule import learning_rate, seed_step, step_budgets
from gft_edge.train.training_data import TrainingData

STEPS = 6


class Labelled:
    """Images with given classes."""

    notes = ()

    def __init__(self, images, classes, labels):
        self.images, self.classes, self.labels = images, classes, labels

    def name(self, index):
        return self.images.name(index)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index][0], int(self.classes[index])


def _recipe(model=None, data=None, **settings):
    """Images of 32 pixels, 16 patches, six steps of four images."""
    model = {"image_size": 32, "stages": (1, 3, 6), "budget": "12,8,4", **(model or {})}
    data = {"train_images": 40, "eval_images": 16, "num_workers": 0, **(data or {})}
    settings = {"steps": STEPS, "batch_size": 4, "warmup_steps": 2, "elastic_samples": 2, "threads": 1, **settings}
    return Recipe(ModelSection(**model), DataSection(**data), TrainSection(**settings))


def _same_weights(first, second):
    first, second = read_weights(first), read_weights(second)
    assert first.keys() == second.keys()
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.fixture(scope="module")
def recipe():
    return _recipe()


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    train(recipe, out)
    return out


@pytest.fixture
def interrupted(recipe, tmp_path):
    train(recipe, tmp_path / "run", stop_after=3)
    return tmp_path / "run"


@pytest.mark.parametrize(("warmup", "steps"), [(0, 10), (3, 10), (100, 1000)])
def test_learning_rate_rises_linearly_then_falls_by_a_cosine(warmup, steps):
    settings = TrainSection(steps=steps, warmup_steps=warmup, lr=2.0, min_lr=0.5)
    rates = [learning_rate(settings, step) for step in range(steps)]
    assert rates[:warmup] == pytest.approx([2.0 * (i + 1) / warmup for i in range(warmup)])
    last = steps - 1 - warmup
    cosine = [0.5 + 1.5 * (1 + math.cos(math.pi * i / last)) / 2 for i in range(steps - warmup)]
    assert rates[warmup:] == pytest.approx(cosine)
    assert (max(rates), rates[-1]) == pytest.approx((2.0, 0.5))


def test_warm_up_longer_than_the_training_never_reaches_the_rate():
    settings = TrainSection(steps=5, warmup_steps=10, lr=1.0)
    assert [learning_rate(settings, step) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


settings_of_sampling = st.builds(
    TrainSection, seed=st.integers(0, 99), elastic_samples=st.just(2), smallest_ratio=st.floats(0.01, 1.0)
)


@given(settings_of_sampling, st.integers(0, 10_000), st.sampled_from(["gft_base", "gft_typeface"]))
def test_step_budgets_lie_between_the_smallest_and_the_full_one(settings, step, name):
    config = preset(name)
    full, smallest, drawn = step_budgets(config, settings, step)
    assert full == config.full_budget
    assert smallest.keep == tuple(max(MIN_TOKENS, int(k * settings.smallest_ratio)) for k in config.budget.keep)
    assert smallest.num_patches == drawn.num_patches == config.num_patches
    assert all(low <= k <= config.num_patches for low, k in zip(smallest.keep, drawn.keep, strict=True))


@given(settings_of_sampling, st.integers(0, 10_000))
def test_one_sample_takes_both_kinds_in_turn_and_depends_on_seed_and_step_alone(settings, step):
    config = preset("gft_base")
    full, *both = step_budgets(config, settings, step)
    np.random.default_rng().random()
    assert step_budgets(config, settings, step) == [full, *both]
    assert step_budgets(config, dataclasses.replace(settings, elastic_samples=1), step) == [full, both[step % 2]]


def test_drawn_budgets_reach_over_the_whole_range():
    config, settings = preset("gft_base"), TrainSection(elastic_samples=2)
    drawn = [step_budgets(config, settings, step)[2] for step in range(300)]
    assert len(set(drawn)) > 200
    shares = [budget.keep[0] / 196 for budget in drawn]
    assert min(shares) < 0.5
    assert max(shares) > 0.95


def test_step_budgets_begin_at_their_share_of_the_steps():
    config, settings = preset("gft_base"), TrainSection(steps=100, elastic_start=0.5)
    counts = [len(step_budgets(config, settings, step)) for step in range(100)]
    assert counts == [1] * 50 + [2] * 50


def test_without_elastic_training_the_models_own_budget_is_trained_alone():
    settings = TrainSection(elastic=False)
    assert step_budgets(preset("gft_base"), settings, 7) == [preset("gft_base").budget]
    assert step_budgets(preset("resnet50"), TrainSection(elastic=True), 7) == [NO_BUDGET]


def test_the_seed_of_a_step_is_torchs():
    seed_step(3, 5, 1)
    drawn = torch.rand(4), np.random.random(3)  # noqa: NPY002
    first, second = np.random.SeedSequence([3, 5, 1]).generate_state(2).tolist()
    torch.manual_seed(first)
    assert torch.equal(drawn[0], torch.rand(4))
    assert np.array_equal(drawn[1], np.random.RandomState(second).random(3))


def test_weight_decay_is_for_matrices_and_kernels_only(tiny_model, tiny_config):
    names = {id(parameter): name for name, parameter in tiny_model.named_parameters()}
    groups = parameter_groups(tiny_model, tiny_config, TrainSection(weight_decay=0.05))
    decayed, rest = ([names[id(p)] for p in group["params"]] for group in groups)
    assert [(group["weight_decay"], group["lr_scale"]) for group in groups] == [(0.05, 1.0), (0.0, 1.0)]
    assert sorted(decayed + rest) == sorted(names.values())
    assert {"pos_embed", "cls_token", "blocks.0.norm1.weight", "norm.weight", "head.bias"} <= set(rest)
    assert {"head.weight", "blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.weight", "patch_embed.proj.weight"} <= set(
        decayed
    )


def test_layer_decay_lowers_the_rate_with_the_distance_from_the_classifier(tiny_model, tiny_config):
    names = {id(parameter): name for name, parameter in tiny_model.named_parameters()}
    groups = parameter_groups(tiny_model, tiny_config, TrainSection(layer_decay=0.5))
    scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert tiny_config.stages == (1, 2)
    assert scale["head.weight"] == scale["norm.bias"] == 1.0
    assert scale["blocks.2.mlp.fc1.weight"] == 0.5
    assert scale["blocks.1.mlp.fc1.bias"] == scale["blocks.1.attn.qkv.weight"] == 0.25
    assert scale["blocks.0.norm1.weight"] == 0.125
    assert scale["pos_embed"] == scale["cls_token"] == scale["patch_embed.proj.bias"] == 0.0625
    assert len(scale) == len(names)


@pytest.mark.parametrize("training", [False, True])
def test_evaluation_counts_right_answers_at_both_budgets_and_keeps_the_mode(
    tiny_model, tiny_config, tiny_info, training
):
    images, spec = open_images("typefaces", "val", 8, 32), tiny_info.preprocess
    pixels = next(evaluation_batches(images, spec))[0]
    full, pruned = (
        logits_function(tiny_model, budget)(pixels).argmax(1)
        for budget in (tiny_config.full_budget, tiny_config.budget)
    )
    assert not np.array_equal(full, pruned)
    wrong = np.array([0, 0, 0, 1, 0, 0, 1, 0])
    truth = (full + wrong) % 4
    labelled = Labelled(images, truth, tiny_info.labels)
    data = TrainingData(labelled, spec, tiny_config, labelled, (), set())
    tiny_model.train(training)
    try:
        expected = {"val_top1_full": 6 / 8, "val_top1_budget": float((pruned == truth).mean()), "val_images": 8}
        assert data.score(tiny_model) == expected
        assert tiny_model.training is training
    finally:
        tiny_model.eval()


def test_training_writes_a_checkpoint_with_its_figures(trained, recipe):
    checkpoint = load_checkpoint(trained)
    assert checkpoint.info.model == recipe.model.resolve(16)
    assert checkpoint.info.preprocess.height == 32
    assert checkpoint.info.provenance["recipe"] == recipe.to_json()
    metrics = checkpoint.info.metrics
    assert (metrics["budget"], metrics["steps"], metrics["val_images"]) == ("12-8-4", STEPS, 16)
    assert 0 <= metrics["val_top1_full"] <= 1
    rows = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == STEPS
    assert rows[-1]["lr"] == learning_rate(recipe.train, STEPS - 1)
    assert math.isfinite(rows[-1]["loss"])


def test_training_again_gives_the_same_weights_and_another_seed_gives_others(trained, recipe, tmp_path):
    torch.manual_seed(99)
    train(recipe, tmp_path / "again")
    assert _same_weights(tmp_path / "again", trained)
    train(_recipe(seed=1), tmp_path / "other")
    assert not _same_weights(tmp_path / "other", trained)


@pytest.mark.parametrize(
    "settings",
    [
        {"elastic": False},
        {"elastic_samples": 1},
        {"elastic_start": 0.5},
        {"weight_decay": 0.0},
        {"label_smoothing": 0.0},
        {"grad_clip": 1e-3},
    ],
    ids=str,
)
def test_settings_reach_the_weights(trained, tmp_path, settings):
    train(_recipe(**settings), tmp_path / "run")
    assert not _same_weights(tmp_path / "run", trained)


def test_step_budgets_learn_from_the_logits_of_the_full_one(monkeypatch, tmp_path):
    calls, cross_entropy = [], torch.nn.functional.cross_entropy

    def record(logits, targets, **options):
        calls.append((logits.detach(), targets))
        return cross_entropy(logits, targets, **options)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", record)
    train(_recipe(steps=1, elastic_start=0.0), tmp_path)
    (full, labels), *others = calls
    assert labels.dtype == torch.int64
    assert len(others) == 2
    for logits, targets in others:
        assert not torch.equal(logits, full)
        assert not targets.requires_grad
        torch.testing.assert_close(targets, full.softmax(dim=1))


def test_unreadable_images_are_left_out_counted_and_reported(tmp_path):
    for split, count in (("train", 8), ("val", 4)):
        for name in ("auk", "wren"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (32, 32), (20 * i, 90 if split == "train" else 60, 0)).save(
                    tmp_path / split / name / f"{i}.png"
                )
    for damaged in ("train/auk/3.png", "val/wren/2.png"):
        (tmp_path / damaged).write_text(f"nothing {damaged}")
    lines = []
    recipe = _recipe(data={"name": str(tmp_path), "train_images": 16})
    metrics = train(recipe, tmp_path / "run", report=lines.append).metrics
    assert (metrics["val_images"], metrics["unreadable_images"]) == (7, 2)
    left_out = [line for line in lines if line.startswith("left out: ")]
    assert len(left_out) == 2
    assert all(any(name in line for line in left_out) for name in ("auk/3.png", "wren/2.png"))


def test_validation_without_a_readable_image_is_refused(tmp_path):
    for split in ("train", "val"):
        for name in ("auk", "wren"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.png").write_text(f"nothing {split} {name}")
    with pytest.raises(DataError, match=r"none of its validation images can be read \(.*auk/0\.png"):
        train(_recipe(data={"name": str(tmp_path)}, batch_size=1), tmp_path / "run")


def test_evaluating_and_saving_on_the_way_do_not_change_the_weights(trained, tmp_path):
    train(_recipe(eval_every=2, checkpoint_every=1), tmp_path / "run")
    assert _same_weights(tmp_path / "run", trained)


def test_resumed_training_is_bit_identical(interrupted, trained, recipe):
    assert not _same_weights(interrupted, trained)
    info = train(recipe, interrupted, resume=True)
    assert _same_weights(interrupted, trained)
    assert info.provenance["first_step"] == 3
    assert info.metrics["steps"] == STEPS


def test_resuming_after_a_crash_goes_on_from_the_last_saved_state(tmp_path):
    recipe = _recipe(checkpoint_every=2)

    def crash(items, title, total):
        for number, item in enumerate(items):
            if number == 5:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", track=crash)
    assert not (tmp_path / "run" / "config.json").exists()
    assert train(recipe, tmp_path / "run", resume=True).provenance["first_step"] == 4
    train(recipe, tmp_path / "whole")
    assert _same_weights(tmp_path / "run", tmp_path / "whole")


def test_resuming_a_finished_training_changes_nothing(trained, recipe):
    before = (trained / "model.safetensors").read_bytes()
    info = train(recipe, trained, resume=True)
    assert (trained / "model.safetensors").read_bytes() == before
    assert info.metrics["steps"] == STEPS


@pytest.mark.parametrize("holds", [(), ("notes.txt",), ("model.safetensors", "log.jsonl")])
def test_resuming_nothing_is_refused(recipe, tmp_path, holds):
    for name in holds:
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(ArtifactError, match=r"resume: .*state\.pt does not exist; start without --resume"):
        train(recipe, tmp_path / "run", resume=True)


def _regroup(file, change):
    """Groups the weights in a saved optimiser otherwise, as another version may have done."""
    saved = torch.load(file)
    saved["optimizer"]["param_groups"] = change(saved["optimizer"]["param_groups"])
    torch.save(saved, file)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"not a state"),
        lambda file: file.write_bytes(file.read_bytes()[:-2000]),
        lambda file: torch.save([1, 2], file),
        lambda file: torch.save({**torch.load(file), "progress": {"step": "x"}}, file),
        lambda file: torch.save({k: v for k, v in torch.load(file).items() if k != "optimizer"}, file),
        lambda file: _regroup(file, lambda groups: groups + groups[:1]),
        lambda file: _regroup(file, lambda groups: [{**groups[0], "params": groups[0]["params"][1:]}, *groups[1:]]),
    ],
    ids=["empty", "text", "cut", "list", "step", "no-optimizer", "other groups", "groups of other sizes"],
)
def test_damaged_state_is_refused(interrupted, recipe, damage):
    damage(interrupted / "state.pt")
    with pytest.raises(ArtifactError, match=r"resume: .*state\.pt"):
        train(recipe, interrupted, resume=True)


@pytest.mark.parametrize("settings", [{"lr": 2e-3}, {"steps": 7}, {"seed": 1}], ids=str)
def test_resuming_by_another_recipe_is_refused(interrupted, settings):
    with pytest.raises(ConfigError, match="another recipe or other --set values"):
        train(_recipe(**settings), interrupted, resume=True)


def test_loss_that_is_not_finite_ends_the_training(tmp_path):
    with pytest.raises(
        CheckFailed, match=r"loss is (nan|inf) at step \d+; lower train\.lr or raise train\.warmup_steps"
    ):
        train(_recipe(lr=1e30, warmup_steps=0), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_training_starts_from_the_weights_of_init(trained, tmp_path):
    train(_recipe(init=str(trained), lr=1e-30, warmup_steps=0, weight_decay=0.0, steps=1), tmp_path / "run")
    start, end = read_weights(trained), read_weights(tmp_path / "run")
    moving = ("running_mean", "running_var", "num_batches_tracked", "ema", "ema_seen")
    for name, tensor in start.items():
        if not name.endswith(moving):
            torch.testing.assert_close(end[name], tensor, rtol=0, atol=1e-20)


def test_init_of_another_model_is_refused(tiny_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.init .*: its model differs in "):
        train(_recipe(init=str(tiny_checkpoint)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_init_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no such folder"):
        train(_recipe(init=str(tmp_path / "none")), tmp_path / "run")


def test_init_keeps_the_preprocessing_it_was_trained_with(trained, tmp_path):
    start = load_checkpoint(trained)
    spec = dataclasses.replace(start.info.preprocess, mean=(0.5, 0.5, 0.5))
    save_checkpoint(tmp_path / "start", dataclasses.replace(start.info, preprocess=spec), start.model)
    assert train(_recipe(init=str(tmp_path / "start"), steps=1), tmp_path / "run").preprocess == spec


def test_fewer_images_than_a_batch_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="3 training images are fewer than one batch of 4"):
        train(_recipe(data={"train_images": 3}), tmp_path)


@pytest.mark.parametrize("num_classes", [4, 20])
def test_model_of_other_classes_than_the_data_is_refused_before_the_first_step(tmp_path, num_classes):
    with pytest.raises(ConfigError, match="classes"):
        train(_recipe(model={"num_classes": num_classes}, steps=1), tmp_path / "run")
    assert not (tmp_path / "run" / "state.pt").exists()


def test_bfloat16_training_is_near_the_float32_one(trained, tmp_path):
    train(_recipe(precision="bf16"), tmp_path / "run")
    single, half = read_weights(trained), read_weights(tmp_path / "run")
    assert not _same_weights(trained, tmp_path / "run")
    assert all(tensor.dtype == half[name].dtype for name, tensor in single.items())
    assert (single["head.weight"] - half["head.weight"]).abs().max() < 0.02
