"""train.align: what the alignment loss of a step reaches, when it acts, what is refused."""

from __future__ import annotations

import dataclasses
import types

import pytest
import torch

from gft_edge.budget import TokenBudget
from gft_edge.config.model import preset
from gft_edge.config.recipe import DataSection, ModelSection, Recipe, TrainSection
from gft_edge.distill.alignment import alignment_loss, gradient_attention, model_alignment, trace
from gft_edge.errors import ConfigError
from gft_edge.train.loop import train
from gft_edge.train.optim import make_optimizer
from gft_edge.train.state import TrainingState
from gft_edge.train.steps import Stepper

SETTINGS = TrainSection(steps=10, warmup_steps=0, batch_size=6, grad_clip=0, label_smoothing=0, align=0.5)


@pytest.fixture(scope="module")
def config():
    stages, budget = (1, 2, 4), TokenBudget((16, 8, 8), 64)
    return preset("gft_scenes", image_size=64, embed_dim=32, depth=4, num_heads=2, stages=stages, budget=budget)


@pytest.fixture
def model(config, make_model):
    return make_model(config).train()


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 64, 64, generator=generator), torch.tensor([0, 5, 9, 1, 2, 3])


def _step(model, config, settings, batch):
    """Weights after one optimiser step, and its sums."""
    optimizer = make_optimizer(model, config, settings)
    state = TrainingState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), None)
    sums = Stepper(model, state, config, settings, None).step([batch], 0)
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}, sums


def _changed(config, make_model, batch, **changes):
    """Names of the parameters that come out otherwise with align than without; Adam's first step looks at each one alone."""
    settings = dataclasses.replace(SETTINGS, **changes)
    with_it, sums = _step(make_model(config).train(), config, settings, batch)
    without, plain = _step(make_model(config).train(), config, dataclasses.replace(settings, align=0.0), batch)
    assert torch.equal(sums, plain), "the loss of the log is that of the labels"
    return {name for name, tensor in with_it.items() if not torch.equal(tensor, without[name])}


def test_it_is_the_mean_over_the_blocks_whose_choice_is_read(model, batch):
    images, labels = batch
    traces = trace(model, images, labels)
    expected = [
        alignment_loss(model.blocks[n - 1], traces[n].tokens, gradient_attention(traces, n, 2, 1), 1.0) for n in (1, 2)
    ]
    assert model_alignment(model, images, labels).item() == pytest.approx(sum(expected).item() / 2, rel=1e-6)


def test_a_step_reaches_queries_and_keys_of_the_selecting_blocks_alone(config, make_model, batch):
    changed = _changed(config, make_model, batch)
    weights = {f"blocks.{place}.attn.qkv.weight" for place in (0, 1)}
    assert weights <= changed <= weights | {f"blocks.{place}.attn.qkv.bias" for place in (0, 1)}


def test_the_first_quarter_of_the_batch_gives_the_targets(model, config, batch, monkeypatch):
    seen = []

    def spy(model, images, labels):
        seen.append((images, labels))
        return sum(parameter.sum() for parameter in model.parameters()) * 0.0

    monkeypatch.setattr("gft_edge.train.steps.model_alignment", spy)
    _step(model, config, SETTINGS, batch)
    assert len(seen) == 1
    assert torch.equal(seen[0][0], batch[0][:2])
    assert seen[0][1].tolist() == [0, 5]


def test_the_weight_scales_the_gradient(model, config, batch):
    def gradient(weight):
        model.zero_grad()
        step = types.SimpleNamespace(
            state=types.SimpleNamespace(model=model), settings=dataclasses.replace(SETTINGS, align=weight)
        )
        Stepper._alignment(step, *batch).backward()
        return model.blocks[0].attn.qkv.weight.grad.clone()

    assert torch.allclose(gradient(2.0), 4 * gradient(0.5))


def test_before_the_sampled_budgets_begin_nothing_is_aligned(config, make_model, batch):
    assert _changed(config, make_model, batch, elastic_start=0.5) == set()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"preset": "vit_tiny"}, "train.align needs a focal model with a stage before its last block"),
        ({"stages": (6,), "budget": "8"}, "train.align needs a focal model with a stage before its last block"),
    ],
)
def test_a_model_without_a_score_that_is_read_is_refused(model, message, tmp_path):
    size = {} if "preset" in model else {"image_size": 32}
    settings = TrainSection(steps=1, batch_size=2, threads=1, align=1.0)
    recipe = Recipe(ModelSection(**size, **model), DataSection(train_images=8, eval_images=8, num_workers=0), settings)
    with pytest.raises(ConfigError, match=message):
        train(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"align": 1.0, "elastic": False}, "align needs elastic = true"), ({"align": -1.0}, "align must be at least 0")],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainSection(**settings)
