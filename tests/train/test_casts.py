"""Weights that are cast in groups give the bits that autocast gives, in every way of training; afterwards they are as before."""

from __future__ import annotations

import dataclasses
import types

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import nn

from gft_edge.budget import TokenBudget
from gft_edge.config.model import preset
from gft_edge.config.recipe import TrainSection
from gft_edge.model.build import build_model
from gft_edge.model.focal_block import FocalBlock
from gft_edge.train import casts, steps
from gft_edge.train.casts import GROUP, cast_weights, places_of
from gft_edge.train.optim import make_optimizer, step_in_backward
from gft_edge.train.state import TrainingState
from gft_edge.train.steps import Stepper

WAYS = {
    "elastic": {"elastic_samples": 2, "accumulate": 2, "align": 0.5, "ema": 0.5},
    "fp16": {"precision": "fp16", "elastic": False},
    "lean": {"elastic": False, "grad_clip": 0.0, "recompute": True, "step_in_backward": True, "drop_path": 0.3},
}


@pytest.fixture(scope="module")
def config():
    return preset(
        "gft_typeface", image_size=32, embed_dim=32, num_heads=2, depth=4, stages=(1, 3), budget=TokenBudget((8, 4), 16)
    )


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    return build_model(config).train()


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def weights_after(config, steps, **settings):
    """The weights after steps on fixed random images."""
    settings = TrainSection(**{"batch_size": 2, "lr": 1e-2, "precision": "bf16", **settings})
    torch.manual_seed(0)
    model = build_model(config, False, settings.drop_path).train()
    model.set_grad_checkpointing(settings.recompute)
    scaler = torch.amp.GradScaler("cpu", enabled=settings.precision == "fp16")
    optimizer = make_optimizer(model, config, settings)
    if settings.step_in_backward:
        step_in_backward(optimizer)
    average = ModelEmaV3(model, decay=settings.ema) if settings.ema else None
    state = TrainingState(model, optimizer, scaler, average)
    stepper = Stepper(model, state, config, settings, None)
    for number in range(steps):
        images = torch.randn(settings.accumulate, 2, 3, 32, 32)
        stepper.step([(one, torch.arange(2)) for one in images], number)
    return state.evaluated.state_dict()


@pytest.mark.parametrize("way", WAYS)
def test_training_gives_the_bits_of_autocast(way, config, monkeypatch):
    made = []
    copies = casts._copies
    monkeypatch.setattr(casts, "_copies", lambda tensors, dtype: made.append(dtype) or copies(tensors, dtype))
    found = weights_after(config, 2, **WAYS[way])
    assert torch.float32 in made, "no gradient passed through a cast"
    made.clear()
    monkeypatch.setattr(steps, "places_of", lambda model: [])
    expected = weights_after(config, 2, **WAYS[way])
    assert not made
    assert not torch.equal(expected["head.weight"], weights_after(config, 0)["head.weight"])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_weights_are_cast_in_place_and_put_back(model, images):
    before = dict(model.named_parameters())
    places = places_of(model)
    matrices = {id(weight) for name, weight in before.items() if weight.ndim > 1 and name.endswith("weight")}
    assert {id(parameters[name]) for parameters, name in places} >= matrices
    assert {name for _, name in places} == {"weight", "bias"}

    def fails():
        with cast_weights(places, torch.bfloat16):
            assert model.blocks[0].mlp.fc1.weight.dtype is torch.bfloat16
            assert model.blocks[0].norm1.weight.dtype is torch.float32
            assert torch.equal(model.head.bias, before["head.bias"].bfloat16())
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fails()
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is weight for name, weight in before.items())


def test_only_weights_that_learn_and_that_autocast_casts_are_cast():
    class Other(nn.Linear):
        pass

    layers = nn.Sequential(nn.Linear(2, 2), Other(2, 2), nn.LayerNorm(2), nn.Linear(2, 2).double(), nn.Conv2d(1, 1, 1))
    layers[0].bias.requires_grad_(False)
    assert [(place is layers[0]._parameters, name) for place, name in places_of(layers)] == [
        (True, "weight"),
        (False, "weight"),
        (False, "bias"),
    ]


def test_a_weight_that_is_not_used_gets_no_gradient():
    layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(GROUP))
    with cast_weights(places_of(layers), torch.bfloat16):
        layers[1](torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
    assert {name for name, weight in layers.named_parameters() if weight.grad is not None} == {"1.weight", "1.bias"}
    assert layers[1].bias.grad.dtype is torch.float32


def test_gradients_leave_the_backward_pass_by_groups():
    layers = nn.Sequential(*(nn.Linear(2, 2) for _ in range(GROUP)))
    order = []
    for number, layer in enumerate(layers):
        layer.weight.register_post_accumulate_grad_hook(lambda weight, number=number: order.append(number))
    with cast_weights(places_of(layers), torch.bfloat16):
        x = torch.ones(1, 2, dtype=torch.bfloat16)
        x = layers[: GROUP // 2](x)
        x.register_hook(lambda gradient: order.append("half"))
        layers[GROUP // 2 :](x).sum().backward()
    half = order.index("half")
    assert set(order[:half]) == set(range(GROUP // 2, GROUP)), "the last group waits for the first"


def test_gradients_of_several_processes_pass_through(model, images, tmp_path):
    labels = torch.tensor([0, 1, 2])

    def gradients(network, places):
        model.zero_grad()
        with cast_weights(places, torch.bfloat16):
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(images)
            F.cross_entropy(logits.float(), labels).backward()
        return [weight.grad.clone() for weight in model.parameters()]

    expected = gradients(model, [])
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        found = gradients(nn.parallel.DistributedDataParallel(model), places_of(model))
    finally:
        dist.destroy_process_group()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_pass_with_maps_reads_weights_in_float32(model, config, images, monkeypatch):
    """Maps are computed outside autocast."""
    config = dataclasses.replace(config, budget=model.config.budget)
    settings = TrainSection(batch_size=3, precision="bf16", elastic_samples=2)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainingState(model, make_optimizer(model, config, settings), scaler, None)
    seen = []
    distiller = types.SimpleNamespace(
        needs_maps=True,
        loss=lambda loss, logits, images, stages, batch: seen.append(len(stages)) or loss,
        consistency=lambda loss: loss,
    )
    types_of_weights = []
    forward = FocalBlock.forward

    def watched(block, *arguments):
        types_of_weights.append(block.mlp.fc1.weight.dtype)
        return forward(block, *arguments)

    monkeypatch.setattr(FocalBlock, "forward", watched)
    stepper = Stepper(model, state, config, settings, None, distiller=distiller)
    stepper.step([(images, torch.tensor([0, 1, 2]))], 0)
    assert seen == [len(config.stages)]
    depth = config.depth
    assert types_of_weights == [torch.float32] * depth + [torch.bfloat16] * 2 * depth
