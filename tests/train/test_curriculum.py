"""A curriculum draws each step's images as its phase says; resumed anywhere and with workers, the training is the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from gft_edge.config.model import preset
from gft_edge.config.recipe import DataSection, ModelSection, Recipe, TrainSection, load_recipe
from gft_edge.data.scenes import MarkWindows, Scenes
from gft_edge.errors import ConfigError
from gft_edge.model.build import build_model
from gft_edge.train.distributed import Workers
from gft_edge.train.loop import train
from gft_edge.train.schedule import learning_rate, phases, pixels_seen
from gft_edge.train.training_data import open_training_data
from gft_edge.train.windows import window_logits

CURRICULUM = ((0.0, 2.0, 0.0), (0.34, 1.5, 2.0), (0.67, 1.0, 3.0))

ALONE = Workers()


def make(curriculum=CURRICULUM, name="scenes,share=0.04,distractors=3", workers=0, **changes) -> Recipe:
    settings = {"steps": 6, "batch_size": 4, "warmup_steps": 2, "lr": 1e-3, "threads": 1, "checkpoint_every": 0}
    return Recipe(
        ModelSection("gft_scenes", image_size=64),
        DataSection(name, train_images=48, eval_images=16, num_workers=workers, curriculum=curriculum),
        TrainSection(**{**settings, **changes}),
    )


def drawn(recipe: Recipe, steps: range, group: Workers = ALONE) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(open_training_data(recipe, group).batches(recipe, group, steps))


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(first, second)
    )


@pytest.fixture(scope="module")
def whole():
    return drawn(make(), range(6))


def test_each_step_has_the_images_of_its_phase(whole):
    recipe = make()
    data = open_training_data(recipe, Workers())
    for first, (_, scale, distractors, *_) in ((0, CURRICULUM[0]), (3, CURRICULUM[1]), (5, CURRICULUM[2])):
        images = Scenes("train", 48, 64, 0, 0.04, int(distractors), scale)
        plain = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, curriculum=()))
        expected = list(dataclasses.replace(data, images=images).batches(plain, Workers(), range(first, first + 1)))
        assert same(expected, whole[first : first + 1])


@pytest.mark.parametrize("start", [1, 2, 3, 5])
def test_batches_from_any_step_are_those_of_the_whole(whole, start):
    assert same(drawn(make(), range(start, 6)), whole[start:])


def test_batches_of_workers_are_those_of_one_process(whole):
    assert same(drawn(make(workers=2), range(6)), whole)


def test_processes_share_the_batches(whole):
    recipe = make(steps=3)
    shares = [drawn(recipe, range(3), Workers(rank, 2)) for rank in range(2)]
    assert [len(share) for share in shares] == [3, 3]
    assert not same(*shares)
    accumulated = drawn(make(steps=3, accumulate=2), range(3))
    assert same([batch for pair in zip(*shares) for batch in pair], accumulated)


def test_order_and_labels_are_those_without_a_curriculum(whole):
    plain = drawn(make(()), range(6))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(plain, whole))
    assert not same(plain[:1], whole[:1])
    assert same(plain[5:], whole[5:]), "the last phase is the task itself"


def test_evaluation_is_on_the_task_itself():
    val = open_training_data(make(), Workers()).val
    image, label = val[3]
    expected, number = Scenes("val", 16, 64, 0, 0.04, 3)[3]
    assert (image.tobytes(), label) == (expected.tobytes(), number)


@pytest.mark.parametrize("stop", [1, 3])
def test_resumed_in_any_phase_gives_the_same_bits(tmp_path, stop):
    recipe = make(eval_every=3)
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts", stop_after=stop)
    train(recipe, tmp_path / "parts", resume=True)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_resuming_with_another_curriculum_is_refused(tmp_path):
    train(make(), tmp_path, stop_after=1)
    with pytest.raises(ConfigError, match=r"data\.curriculum is "):
        train(make(()), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("steps", "run", "expected"),
    [
        (6, range(6), [range(3), range(3, 5), range(5, 6)]),
        (6, range(4, 6), [range(4, 5), range(5, 6)]),
        (100, range(100), [range(34), range(34, 67), range(67, 100)]),
        (2, range(2), [range(1), range(1, 2)]),
        (100, range(7, 7), []),
    ],
)
def test_phases_cover_every_step_once(steps, run, expected):
    found = phases(CURRICULUM, TrainSection(steps=steps), run)
    assert [part for _, part in found] == expected


@pytest.mark.parametrize(
    ("name", "curriculum", "message"),
    [
        ("typefaces", CURRICULUM, "data.curriculum is for data 'scenes' alone; leave it out"),
        (
            "scenes",
            CURRICULUM,
            r"data.curriculum\[2\]: the last phase must be the task itself, scale 1, 6 distractors and whole images, found "
            r"\[1.0, 3.0, 0.0\]",
        ),
        (
            "scenes",
            ((0.0, 9.0, 0.0), (0.5, 1.0, 6.0)),
            r"data.curriculum\[0\]: scenes: a mark of 71 px .* canvas of 64 px",
        ),
        ("scenes", ((0.0, 1.0, 900.0), (0.5, 1.0, 6.0)), r"data.curriculum\[0\]: scenes: distractors must be 0 to 200"),
        (
            "scenes",
            ((0.0, 2.0, 6.0, 16.0), (0.5, 1.0, 6.0)),
            r"data.curriculum\[0\]: scenes: windows must have 21 px, .* to less than 64 px, the whole image; found 16 px",
        ),
        ("scenes", ((0.0, 1.0, 6.0, 64.0), (0.5, 1.0, 6.0)), r"data.curriculum\[0\]: scenes: windows must have 11 px"),
        (
            "scenes",
            ((0.0, 1.0, 6.0, 12.0), (0.5, 1.0, 6.0)),
            r"data.curriculum\[0\]: windows of 12 px need a model .* found stem 'conv' and patches of 8 px",
        ),
        ("scenes", ((0.0, 1.0, 6.0, 32.0),), r"data.curriculum\[0\]: the last phase must be the task itself"),
    ],
)
def test_a_curriculum_that_does_not_fit_is_refused_before_the_training(tmp_path, name, curriculum, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        train(make(curriculum, name), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("curriculum", "message"),
    [
        (
            "[[0.0, 2.0]]",
            r"curriculum\[0\] must be \[share of steps, mark scale, distractors\] or the same with .*, found \[0.0, 2.0\]",
        ),
        ("[[0.0, 2.0, 1, 8.5]]", r"curriculum\[0\]: the side of a window must be a whole number from 0, found 8.5"),
        ("[[0.0, 0.0, 1]]", r"curriculum\[0\]: the mark scale must be above 0 and finite, found 0"),
        ("[[0.0, 1.0, 1.5]]", r"curriculum\[0\]: distractors must be a whole number from 0, found 1.5"),
        ("[[0.0, 1.0, -1]]", r"curriculum\[0\]: distractors must be a whole number from 0, found -1"),
        ("[[0.1, 1.0, 1]]", r"curriculum: its shares of steps must rise from 0 to below 1, found \[0.1\]"),
        ("[[0.0, 1.0, 1], [0.0, 1.0, 2]]", "curriculum: its shares of steps must rise"),
        ("[[0.0, 1.0, 1], [1.0, 1.0, 2]]", "curriculum: its shares of steps must rise"),
        ("[0.0]", r"data.curriculum\[0\] must be a list, found 0.0"),
        ('[["a", 1, 1]]', r"data.curriculum\[0\]\[0\] must be of type float, found 'a'"),
        ("3", "data.curriculum must be a list, found 3"),
    ],
)
def test_malformed_curricula_are_refused_when_the_recipe_is_read(tmp_path, curriculum, message):
    path = tmp_path / "recipe.toml"
    path.write_text("")
    with pytest.raises(ConfigError, match=message):
        load_recipe(path, [f"data.curriculum={curriculum}"])


def test_the_shipped_recipe_ends_with_its_task():
    """Its images, drawn small, pass the checks of a training."""
    recipe = load_recipe(Path(__file__).parents[2] / "recipes/scenes.toml")
    small = dataclasses.replace(recipe.data, train_images=128, eval_images=16)
    data = open_training_data(dataclasses.replace(recipe, data=small), Workers())
    assert data.config == preset("gft_scenes", stages=(2, 3, 4))
    assert (data.config.num_patches, data.config.budget.id) == (576, "144-72-72")
    assert recipe.data.curriculum[0] == (0.0, 1.25, 6.0, 48.0)


WINDOWS = ((0.0, 1.0, 3.0, 32.0), (0.5, 1.0, 3.0, 48.0), (0.75, 1.0, 3.0, 0.0))


def test_windows_are_cut_out_around_the_mark():
    scenes = Scenes("train", 64, 96, 3, 0.04, 3)
    windows = MarkWindows(scenes, 32)
    places = set()
    for index in range(64):
        window, label = windows[index]
        whole, same_label = scenes[index]
        views = np.lib.stride_tricks.sliding_window_view(whole, (32, 32), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
        ((y, x),) = np.argwhere((views == window).all(axis=(2, 3, 4)))
        left, top, right, bottom = scenes.mark_box(index)
        assert x <= left and right <= x + 32 and y <= top and bottom <= y + 32
        assert label == same_label
        places.add((left - x, top - y))
    assert len(places) > 40
    assert (windows.labels, windows.name(3), len(windows)) == (scenes.labels, "scenes train 3", 64)
    assert windows.class_numbers() == scenes.class_numbers()


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    config = preset("gft_scenes", image_size=64)
    model = build_model(config).eval()
    model.pos_embed.data.normal_()
    return config, model


@pytest.mark.parametrize("step", range(4))
def test_a_window_is_classified_by_a_smaller_model_at_its_place(small, step):
    """The smaller model has the positions of one place of the grid; places are tried until one fits."""
    config, model = small
    images = torch.randn(2, 3, 32, 24)
    found = window_logits(model, images, config, seed=5, step=step)
    grid = model.pos_embed[:, 1:].reshape(8, 8, -1)
    fitting = []
    for top in range(5):
        for left in range(6):
            x = model.patch_embed(images) + grid[top : top + 4, left : left + 3].reshape(1, 12, -1)
            x = torch.cat([model.cls_token.expand(2, -1, -1) + model.pos_embed[:, :1], x], dim=1)
            for block in model.blocks:
                x = block(x)
            if torch.equal(model.head(model.norm(x)[:, 0]), found):
                fitting.append((top, left))
    assert len(fitting) == 1
    model.zero_grad()
    found.sum().backward()
    changed = model.pos_embed.grad[0, 1:].abs().sum(dim=1).reshape(8, 8) > 0
    ((top, left),) = fitting
    assert changed[top : top + 4, left : left + 3].all()
    assert changed.sum() == 12


def test_windows_lie_at_different_places_from_step_to_step(small):
    config, model = small
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        found = [window_logits(model, images, config, 0, step) for step in range(12)]
    assert len({tuple(logits[0].tolist()) for logits in found}) > 6
    assert torch.equal(found[3], window_logits(model, images, config, 0, 3))


@pytest.mark.parametrize("stop", [1, 4])
def test_a_training_that_begins_with_windows_resumes_with_the_same_bits(tmp_path, stop):
    recipe = make(WINDOWS, steps=8, elastic_start=0.0)
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts", stop_after=stop)
    train(recipe, tmp_path / "parts", resume=True)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_a_step_on_windows_is_one_pass_with_every_patch(tmp_path, monkeypatch):
    """Six of eight steps are on windows; elastic budgets are for whole images."""
    passes = []

    def counted(network, images, config, seed, step):
        passes.append((step, images.shape[-1]))
        return window_logits(network, images, config, seed, step)

    monkeypatch.setattr("gft_edge.train.steps.window_logits", counted)
    train(make(WINDOWS, steps=8, elastic=True, elastic_start=0.0), tmp_path / "out")
    assert passes == [(step, 32 if step < 4 else 48) for step in range(6)]


def test_windows_need_a_stem_that_takes_any_size():
    recipe = Recipe(
        ModelSection("gft_tiny", image_size=64),
        DataSection("scenes", train_images=16, eval_images=16, curriculum=((0.0, 1.0, 6.0, 32.0), (0.5, 1.0, 6.0))),
        TrainSection(batch_size=4),
    )
    with pytest.raises(ConfigError, match=r"windows of 32 px need a model with stem 'conv' .* found stem 'linear'"):
        open_training_data(recipe, Workers())


def test_the_learning_rate_follows_the_pixels_seen():
    settings = TrainSection(steps=400, warmup_steps=10, lr=1.0, min_lr=0.0)
    plain = [learning_rate(settings, step) for step in range(400)]
    same_size = pixels_seen(((0.0, 2.0, 0.0, 0.0), (0.5, 1.0, 3.0, 0.0)), settings, 64)
    assert [learning_rate(settings, step, same_size) for step in range(400)] == plain
    seen = pixels_seen(WINDOWS, settings, 64)
    assert [seen(step) for step in (0, 4, 200, 300, 400)] == [0, 1, 50, 50 + 56.25, 206.25]
    rates = [learning_rate(settings, step, seen) for step in range(400)]
    assert rates[:10] == plain[:10]
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.0)
    assert rates[300] > 2.5 * plain[300]
