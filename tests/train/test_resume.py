"""Interrupted anywhere and resumed, a training ends with the same bits; every option of the loop does what it says."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from gft_edge.checkpoint import read_info, read_weights
from gft_edge.config.recipe import DataSection, ModelSection, Recipe, TrainSection
from gft_edge.train.loop import train
from gft_edge.train.optim import step_in_backward

OPTIONS = {
    "plain": {},
    "all": {
        "accumulate": 2,
        "ema": 0.9,
        "mixup": 0.3,
        "cutmix": 0.5,
        "drop_path": 0.3,
        "layer_decay": 0.8,
        "precision": "bf16",
        "elastic_samples": 2,
        "eval_every": 2,
    },
    "fp16": {"precision": "fp16", "batch_size": 2},
    "lean": {"elastic": False, "grad_clip": 0.0, "recompute": True, "step_in_backward": True, "drop_path": 0.3},
}


def make(**changes) -> Recipe:
    settings = {"steps": 5, "batch_size": 4, "warmup_steps": 2, "lr": 1e-3, "threads": 1, "checkpoint_every": 0}
    return Recipe(
        ModelSection("gft_typeface", image_size=32),
        DataSection("typefaces", train_images=200, eval_images=16, num_workers=0),
        TrainSection(**{**settings, **changes}),
    )


@pytest.fixture(scope="module", params=OPTIONS)
def whole(request, tmp_path_factory):
    recipe = make(**OPTIONS[request.param])
    out = tmp_path_factory.mktemp("whole")
    train(recipe, out)
    return recipe, out


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_resumed_at_any_step_gives_the_same_bits(whole, tmp_path, stop):
    recipe, out = whole
    train(recipe, tmp_path, stop_after=stop)
    train(recipe, tmp_path, resume=True)
    assert (tmp_path / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    if recipe.train.eval_every:
        best = [folder / "best/model.safetensors" for folder in (tmp_path, out)]
        assert best[0].read_bytes() == best[1].read_bytes()


def test_recomputing_and_stepping_in_the_backward_pass_change_nothing(tmp_path):
    common = {"elastic": False, "grad_clip": 0.0, "drop_path": 0.3, "steps": 3}
    for name, options in {"usual": {}, "lean": {"recompute": True, "step_in_backward": True}}.items():
        train(make(**common, **options), tmp_path / name)
    usual, lean = (read_weights(tmp_path / name) for name in ("usual", "lean"))
    for name, tensor in usual.items():
        assert torch.equal(tensor, lean[name]), name


def test_gradients_are_freed_as_they_arrive():
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
    before = [parameter.clone() for parameter in model.parameters()]
    step_in_backward(torch.optim.AdamW(model.parameters(), lr=0.1))
    model(torch.ones(2, 4)).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    common = {"elastic": False, "steps": 3, "precision": "fp32", "label_smoothing": 0.1}
    recipe = make(batch_size=2, accumulate=4, **common)
    linear = dataclasses.replace(recipe, model=ModelSection("gft_tiny", image_size=32, num_classes=16, budget="4,4,4"))
    large = dataclasses.replace(linear, train=dataclasses.replace(linear.train, batch_size=8, accumulate=1))
    train(linear, tmp_path / "a")
    train(large, tmp_path / "b")
    first, second = read_weights(tmp_path / "a"), read_weights(tmp_path / "b")
    # Batches are scored apart, so the averages of the importance see the same images in another grouping.
    for name in first:
        if not name.endswith(("ema", "ema_seen")):
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=2e-4)


def test_averaged_weights_are_saved_and_differ_from_the_last_ones(tmp_path):
    train(make(), tmp_path / "last")
    train(make(ema=0.5), tmp_path / "average")
    first, second = (load_file(str(tmp_path / name / "model.safetensors")) for name in ("last", "average"))
    assert not torch.equal(first["head.weight"], second["head.weight"])
    torch.testing.assert_close(first["head.weight"], second["head.weight"], rtol=0, atol=0.02)


def test_training_stops_early_and_keeps_the_best(tmp_path):
    recipe = make(steps=40, eval_every=1, early_stop=3, lr=1e-12, warmup_steps=0)
    lines = []
    info = train(recipe, tmp_path, report=lines.append)
    assert info.metrics["steps"] < 40
    assert "stopped at step" in lines[-1]
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    scores = [row["val_top1_full"] + row["val_top1_budget"] for row in rows]
    best = read_info(tmp_path / "best").metrics
    assert best["val_top1_full"] + best["val_top1_budget"] == max(scores)
    assert best["steps"] == rows[scores.index(max(scores))]["step"]
    assert info.metrics["steps"] == best["steps"] + 3
