"""The focal model against a second implementation, and what selection does."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from gft_edge.budget import TokenBudget
from gft_edge.config.model import preset
from gft_edge.errors import ConfigError
from gft_edge.model.build import build_model
from gft_edge.model.gft import FocalGFT
from gft_edge.model.scores import SCORES
from gft_edge.model.selection import select_patches, select_unordered

VARIATIONS = {
    "conv": {},
    "linear": {"stem": "linear"},
    "last-block-selects": {"stages": (1, 3)},
    "every-block-selects": {"stem": "linear", "stages": (1, 2, 3), "budget": TokenBudget((12, 6, 4), 16)},
    "one-head-one-stage": {"num_heads": 1, "stages": (2,), "budget": TokenBudget((5,), 16)},
    "column-gala": {"score": "column-gala"},
    "row-gala": {"score": "row-gala"},
    "class-row": {"score": "class-row", "stages": (2, 3)},
}
BUDGETS = [(12, 6), (16, 16), (16, 9), (9, 9), (2, 2)]


@pytest.fixture(scope="module", params=VARIATIONS)
def config(request, tiny_config):
    return dataclasses.replace(tiny_config, **VARIATIONS[request.param])


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def _budget(keep, config):
    """The counts as a budget for a model of any number of stages."""
    keep = (keep + keep[-1:])[: len(config.stages)]
    return TokenBudget(keep, config.num_patches)


# A second implementation in numpy, image by image and head by head, with whole attention matrices and for every token.


def _norm(x, weights, name, epsilon=1e-6):
    if f"{name}.weight" not in weights:
        return x
    centered = x - x.mean(axis=-1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + epsilon)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def _softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _gelu(x):
    return np.vectorize(lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))))(x)


def _quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def _convolve(image, kernel, stride, padding):
    """(C, H, W) and (O, C, k, k) to (O, H', W')."""
    size = kernel.shape[2]
    image = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    side = (image.shape[1] - size) // stride + 1
    out = np.empty((kernel.shape[0], side, side))
    for row in range(side):
        for col in range(side):
            window = image[:, row * stride : row * stride + size, col * stride : col * stride + size]
            out[:, row, col] = (kernel * window).sum(axis=(1, 2, 3))
    return out


def _patches(image, weights, config):
    """(3, H, W) to (P, C)."""
    bias = weights.get("patch_embed.proj.bias", np.zeros(config.embed_dim))[:, None, None]
    if config.stem == "linear":
        grid = _convolve(image, weights["patch_embed.proj.weight"], config.patch_size, 0) + bias
    else:
        grid, layer = image, 0
        while f"patch_embed.convs.{layer}.weight" in weights:
            grid = _convolve(grid, weights[f"patch_embed.convs.{layer}.weight"], 2, 1)
            batch_norm = f"patch_embed.convs.{layer + 1}."
            mean, variance = weights[batch_norm + "running_mean"], weights[batch_norm + "running_var"]
            scale = weights[batch_norm + "weight"] / np.sqrt(variance + 1e-5)
            grid = (grid - mean[:, None, None]) * scale[:, None, None] + weights[batch_norm + "bias"][:, None, None]
            grid, layer = np.maximum(grid, 0), layer + 3
        grid = _convolve(grid, weights["patch_embed.proj.weight"], 1, 0) + bias
    return np.array([grid[:, row, col] for row in range(grid.shape[1]) for col in range(grid.shape[2])])


def _reference(image, weights, config, keep, slow_scores):
    """Logits, and per stage the kept positions on the grid."""
    is_clip = "clip" in config.backbone
    epsilon, act = (1e-5, _quick_gelu) if is_clip else (1e-6, _gelu)
    patches, positions = _patches(image, weights, config), weights["pos_embed"][0]
    prefix = [weights[name][0] for name in ("cls_token", "dist_token", "reg_token") if name in weights]
    if len(positions) == config.num_patches:
        x = np.concatenate((*prefix, patches + positions))
    else:
        x = np.concatenate((*prefix, patches)) + positions
    x = _norm(x, weights, "norm_pre", epsilon)
    num_prefix, width = sum(len(tokens) for tokens in prefix), config.embed_dim
    places, kept_places = np.arange(config.num_patches), []
    for number in range(1, config.depth + 1):
        block = f"blocks.{number - 1}"
        joint = _linear(_norm(x, weights, f"{block}.norm1", epsilon), weights, f"{block}.attn.qkv")
        q, k, v = (np.split(part, config.num_heads, axis=1) for part in np.split(joint, 3, axis=1))
        out = [_softmax(a @ b.T / math.sqrt(a.shape[1])) @ c for a, b, c in zip(q, k, v)]
        x = x + weights.get(f"{block}.ls1.gamma", 1.0) * _linear(np.concatenate(out, 1), weights, f"{block}.attn.proj")
        hidden = act(_linear(_norm(x, weights, f"{block}.norm2", epsilon), weights, f"{block}.mlp.fc1"))
        x = x + weights.get(f"{block}.ls2.gamma", 1.0) * _linear(hidden, weights, f"{block}.mlp.fc2")
        if number in config.stages:
            scores = slow_scores[config.score](list(zip(q, k)), num_prefix)
            chosen = np.sort(np.argsort(-scores)[: keep[config.stages.index(number)]])
            x = np.concatenate((x[:num_prefix], x[num_prefix:][chosen]))
            places = places[chosen]
            kept_places.append(places)
    x = _norm(x, weights, "norm", epsilon)
    assert x.shape == (num_prefix + keep[-1], width)
    logits = _linear(x[0], weights, "head")
    return (logits + _linear(x[1], weights, "head_dist")) / 2 if "head_dist.weight" in weights else logits, kept_places


def _check(model, config, images, budget, slow_scores):
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    out, alone = model(images, budget, maps=True), model(images, budget)
    for i, image in enumerate(images.numpy()):
        logits, kept = _reference(image, weights, config, budget.keep, slow_scores)
        np.testing.assert_allclose(alone[i], logits, rtol=0, atol=1e-10)
        np.testing.assert_allclose(out.logits[i], logits, rtol=0, atol=1e-10)
        assert [stage.kept[i].tolist() for stage in out.stages] == [places.tolist() for places in kept]


@pytest.mark.parametrize("keep", BUDGETS, ids=str)
@torch.no_grad()
def test_model_is_the_slow_reference(config, make_model, images, slow_scores, keep):
    _check(make_model(config).double(), config, images, _budget(keep, config), slow_scores)


@torch.no_grad()
def test_every_family_is_the_slow_reference(family, make_model, slow_scores):
    side = family.image_size
    images = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for keep in ((9, 4), (16, 7)):
        _check(make_model(family).double(), family, images, TokenBudget(keep, 16), slow_scores)


@torch.no_grad()
def test_model_of_64_patches_is_the_slow_reference(tiny_config, make_model, images, slow_scores):
    config = dataclasses.replace(tiny_config, patch_size=4, budget=TokenBudget((48, 24), 64))
    _check(make_model(config).double(), config, images, config.budget, slow_scores)


@torch.no_grad()
def test_the_order_of_kept_patches_changes_nothing_but_float_noise(config, make_model, images):
    model = make_model(config).double()
    shuffled = lambda scores, k: select_unordered(scores, k).flip(1)  # noqa: E731
    logits = [model(images, choose=rule) for rule in (None, select_patches)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-11)
    if len(config.stages) == 1 or not SCORES[config.score].reads_neighbours:
        torch.testing.assert_close(model(images, choose=shuffled), logits[0], rtol=0, atol=1e-11)


@torch.no_grad()
def test_maps_cost_nothing_in_the_logits(config, make_model, images):
    model = make_model(config).double()
    torch.testing.assert_close(model(images, maps=True).logits, model(images), rtol=0, atol=1e-11)
    ordered = model(images, maps=True, choose=select_patches).logits, model(images, choose=select_patches)
    assert torch.equal(*ordered)


@torch.no_grad()
def test_every_budget_gives_other_logits(tiny_model, images):
    logits = [tiny_model(images.float(), TokenBudget(keep, 16)) for keep in BUDGETS]
    for i, first in enumerate(logits):
        assert all((first - second).abs().max() > 1e-3 for second in logits[:i])


@torch.no_grad()
def test_default_budget_is_the_configuration_s(tiny_model, tiny_config, images):
    assert torch.equal(tiny_model(images.float()), tiny_model(images.float(), tiny_config.budget))


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_kept_positions_are_in_raster_order_and_nested(config, make_model, images, training):
    model = make_model(config).double().train(training)
    before = [set(range(16))] * len(images)
    budget = _budget((11, 7), config)
    for stage, k, entering in zip(model(images, budget, maps=True).stages, budget.keep, budget.stage_inputs):
        assert stage.importance.shape == stage.scores.shape == (3, entering)
        torch.testing.assert_close(stage.importance.sum(dim=1), torch.ones(3).double())
        for i, row in enumerate(stage.kept.tolist()):
            assert len(row) == k
            assert row == sorted(set(row))
            assert set(row) <= before[i]
        before = [set(row) for row in stage.kept.tolist()]


@pytest.mark.parametrize("keep", [(16, 16), (16, 9), (9, 9)])
@torch.no_grad()
def test_a_stage_that_keeps_all_has_the_positions_before_it(tiny_config, make_model, images, keep):
    stages = make_model(tiny_config).double()(images, TokenBudget(keep, 16), maps=True).stages
    assert [stage.kept.shape[1] for stage in stages] == list(keep)
    if keep[0] == 16:
        assert stages[0].kept.tolist() == [list(range(16))] * 3
    if keep[0] == keep[1]:
        assert torch.equal(stages[0].kept, stages[1].kept)


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(config, make_model, images):
    model = make_model(config).double()
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]), rtol=0, atol=1e-12)


@torch.no_grad()
def test_float32_agrees_with_float64(config, make_model, images):
    model = make_model(config)
    single, double = model(images.float(), maps=True), copy.deepcopy(model).double()(images, maps=True)
    torch.testing.assert_close(single.logits.double(), double.logits, rtol=1e-4, atol=1e-4)
    for a, b in zip(single.stages, double.stages):
        assert torch.equal(a.kept, b.kept)


@torch.no_grad()
def test_random_keeps_the_same_patches_of_every_image(tiny_config, make_model, images):
    model = make_model(dataclasses.replace(tiny_config, score="random"))
    for stage in model(images.float(), maps=True).stages:
        assert torch.equal(stage.kept, stage.kept[:1].expand(3, -1))


@torch.no_grad()
def test_another_rule_chooses_other_patches(tiny_model, images):
    images = images.float()
    usual, least = (
        [stage.kept for stage in tiny_model(images, maps=True, choose=rule).stages]
        for rule in (select_patches, lambda scores, k: select_patches(-scores, k))
    )
    assert not torch.equal(usual[0], least[0])
    assert all(set(a.tolist()) | set(b.tolist()) == set(range(16)) for a, b in zip(usual[0], least[0]))
    assert all(torch.equal(a, stage.kept) for a, stage in zip(usual, tiny_model(images, maps=True).stages))
    features = tiny_model.forward_features(images, choose=lambda scores, k: select_patches(-scores, k))
    assert not torch.equal(features, tiny_model.forward_features(images))


@pytest.mark.parametrize("stages", [(1, 2), (1, 3)])
@torch.no_grad()
def test_features_and_head_make_the_logits(tiny_config, make_model, images, stages):
    model, images = make_model(dataclasses.replace(tiny_config, stages=stages)), images.float()
    for keep, tokens in (((9, 4), 1), ((16, 16), 17)):
        budget = TokenBudget(keep, 16)
        features = model.forward_features(images, budget)
        assert features.shape == (3, tokens, 32)
        assert torch.equal(model.forward_head(features), model(images, budget))
        assert torch.equal(model.head(model.forward_head(features, pre_logits=True)), model(images, budget))


@pytest.mark.parametrize("budget", [TokenBudget((12,), 16), TokenBudget((4, 4, 4), 16), TokenBudget((12, 6), 25)])
def test_budget_of_another_model_is_refused(tiny_model, images, budget):
    with pytest.raises(
        ConfigError, match="does not fit a model of 16 patches and 2 stages|numbers? for a model of 2 stages"
    ):
        tiny_model(images.float(), budget)


@pytest.mark.parametrize("changes", [{"patch_size": 12}, {"patch_size": 6}, {"embed_dim": 8, "num_heads": 1}], ids=str)
def test_sizes_the_convolutional_stem_cannot_have_are_refused(changes):
    with pytest.raises(ConfigError, match=r"patch_size|embed_dim|stem"):
        build_model(preset("gft_typeface", **changes))(torch.zeros(1, 3, 96, 96))


def test_published_variant_is_not_built_as_focal(tiny_config):
    with pytest.raises(ConfigError, match="FocalGFT builds variant 'focal', the configuration says 'published'"):
        FocalGFT(dataclasses.replace(tiny_config, variant="published", stages=(1, 1), stem="linear"))
