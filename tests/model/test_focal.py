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
from gft_edge.model import gala
from gft_edge.model.build import build_model
from gft_edge.model.selection import select_patches

VARIATIONS = {
    "conv": {},
    "linear": {"stem": "linear"},
    "stage-after-last-block": {"stages": (1, 3)},
    "linear-every-block": {"stem": "linear", "stages": (1, 2, 3), "budget": TokenBudget((12, 6, 4), 16)},
    "one-head-one-stage": {"num_heads": 1, "stages": (2,), "budget": TokenBudget((5,), 16)},
}
BUDGETS = [(12, 6), (16, 16), (16, 9), (2, 2), (7, 7)]


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


def _norm(x, weights, name):
    centered = x - x.mean(axis=-1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-6)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def _softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _gelu(x):
    return np.vectorize(lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))))(x)


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
    if config.stem == "linear":
        kernel, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
        grid = _convolve(image, kernel, config.patch_size, 0) + bias[:, None, None]
    else:
        grid, layer = image, 0
        while f"patch_embed.convs.{layer}.weight" in weights:
            grid = _convolve(grid, weights[f"patch_embed.convs.{layer}.weight"], 2, 1)
            batch_norm = f"patch_embed.convs.{layer + 1}."
            mean, variance = weights[batch_norm + "running_mean"], weights[batch_norm + "running_var"]
            scale = weights[batch_norm + "weight"] / np.sqrt(variance + 1e-5)
            grid = (grid - mean[:, None, None]) * scale[:, None, None] + weights[batch_norm + "bias"][:, None, None]
            grid, layer = np.maximum(grid, 0), layer + 3
        grid = (
            _convolve(grid, weights["patch_embed.proj.weight"], 1, 0) + weights["patch_embed.proj.bias"][:, None, None]
        )
    return np.array([grid[:, row, col] for row in range(grid.shape[1]) for col in range(grid.shape[2])])


def _heads(z, weights, name, num_heads):
    """Queries, keys and values of each head, from one joint or two separate projections."""
    if f"{name}.qkv.weight" in weights:
        joint = _linear(z, weights, f"{name}.qkv")
    else:
        joint = np.concatenate((_linear(z, weights, f"{name}.q"), _linear(z, weights, f"{name}.kv")), axis=1)
    width = z.shape[1]
    q, k, v = joint[:, :width], joint[:, width : 2 * width], joint[:, 2 * width :]
    size = width // num_heads
    return [tuple(part[:, h * size : (h + 1) * size] for part in (q, k, v)) for h in range(num_heads)]


def _reference(image, weights, config, keep):
    """Logits, and per stage the importance of its input patches and the kept positions on the grid."""
    x = np.concatenate((weights["cls_token"][0], _patches(image, weights, config))) + weights["pos_embed"][0]
    positions, importances, kept_positions = np.arange(config.num_patches), [], []
    for number in range(1, config.depth + 1):
        block = f"blocks.{number - 1}"
        out = []
        for q, k, v in _heads(_norm(x, weights, f"{block}.norm1"), weights, f"{block}.attn", config.num_heads):
            out.append(_softmax(q @ k.T / math.sqrt(q.shape[1])) @ v)
        x = x + _linear(np.concatenate(out, axis=1), weights, f"{block}.attn.proj")
        hidden = _gelu(_linear(_norm(x, weights, f"{block}.norm2"), weights, f"{block}.mlp.fc1"))
        x = x + _linear(hidden, weights, f"{block}.mlp.fc2")
        if number not in config.stages:
            continue
        index = config.stages.index(number)
        stage = f"stages.{index}"
        heads = _heads(_norm(x, weights, f"{stage}.norm"), weights, f"{stage}.attn", config.num_heads)
        gradients = []
        for q, k, _ in heads:
            matrix = q[1:] @ k[1:].T / math.sqrt(q.shape[1])
            gradients.append(np.abs(np.gradient(matrix.mean(axis=1))))
        g = np.pad(np.mean(gradients, axis=0), 1)
        kernel = weights[f"{stage}.smooth.weight"][0, 0]
        s = kernel[0] * g[:-2] + kernel[1] * g[1:-1] + kernel[2] * g[2:]
        scores = (s - s.mean()) / (s.std(ddof=1) + 1e-6)
        gate = np.concatenate(([1.0], 2 / (1 + np.exp(-scores))))
        out = []
        for q, k, v in heads:
            out.append(_softmax(q @ k.T / math.sqrt(q.shape[1])) @ (gate[:, None] * v))
        x = x + _linear(np.concatenate(out, axis=1), weights, f"{stage}.attn.proj")
        chosen = np.sort(np.argsort(-scores)[: keep[index]])
        x = np.concatenate((x[:1], x[1:][chosen]))
        positions = positions[chosen]
        importances.append(_softmax(scores / 0.1))
        kept_positions.append(positions)
    return _linear(_norm(x, weights, "norm")[0], weights, "head"), importances, kept_positions


@pytest.mark.parametrize("keep", BUDGETS, ids=str)
@torch.no_grad()
def test_model_is_the_slow_reference(config, make_model, images, keep):
    model = make_model(config).double()
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    budget = _budget(keep, config)
    out = model(images, budget, maps=True)
    for i, image in enumerate(images.numpy()):
        logits, importances, kept = _reference(image, weights, config, budget.keep)
        np.testing.assert_allclose(out.logits[i], logits, rtol=0, atol=1e-10)
        for stage, importance, positions in zip(out.stages, importances, kept, strict=True):
            assert stage.kept[i].tolist() == positions.tolist()
            np.testing.assert_allclose(stage.importance[i], importance, rtol=0, atol=1e-10)


@torch.no_grad()
def test_model_of_64_patches_is_the_slow_reference(tiny_config, make_model, images):
    config = dataclasses.replace(tiny_config, patch_size=4, budget=TokenBudget((48, 24), 64))
    model = make_model(config).double()
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    out = model(images, maps=True)
    for i, image in enumerate(images.numpy()):
        logits, _, kept = _reference(image, weights, config, (48, 24))
        np.testing.assert_allclose(out.logits[i], logits, rtol=0, atol=1e-10)
        assert [stage.kept[i].tolist() for stage in out.stages] == [positions.tolist() for positions in kept]


@torch.no_grad()
def test_maps_cost_nothing_in_the_logits(config, make_model, images):
    model = make_model(config).double()
    assert torch.equal(model(images, maps=True).logits, model(images))


def test_every_parameter_gets_a_gradient(config, make_model, images):
    model = make_model(config).double().train()
    (model(images) * torch.randn(3, 4, generator=torch.Generator().manual_seed(1))).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_every_parameter_gets_a_gradient_from_its_initial_value(tiny_config, images):
    torch.manual_seed(0)
    model = build_model(tiny_config).train()
    torch.nn.functional.cross_entropy(model(images.float()), torch.arange(3)).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


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
        assert stage.importance.shape == (3, entering)
        torch.testing.assert_close(stage.importance.sum(dim=1), torch.ones(3).double())
        for i, row in enumerate(stage.kept.tolist()):
            assert len(row) == k
            assert row == sorted(set(row))
            assert set(row) <= before[i]
        before = [set(row) for row in stage.kept.tolist()]


@torch.no_grad()
def test_full_budget_keeps_every_patch(config, make_model, images):
    out = make_model(config).double()(images, TokenBudget.full(len(config.stages), 16), maps=True)
    assert all(stage.kept.tolist() == [list(range(16))] * 3 for stage in out.stages)


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


@pytest.mark.parametrize("budget", [TokenBudget((12,), 16), TokenBudget((4, 4, 4), 16), TokenBudget((12, 6), 25)])
def test_budget_of_another_model_is_refused(tiny_model, images, budget):
    with pytest.raises(
        ConfigError, match="does not fit a model of 16 patches and 2 stages|numbers? for a model of 2 stages"
    ):
        tiny_model(images.float(), budget)


def _stage_and_scores(model, images):
    """The first stage, the tokens entering it and its scores, without side effects."""
    with torch.no_grad():
        tokens = model.blocks[0](model.embed(images))
        return model.stages[0], tokens, model.stages[0].scores(model.stages[0].norm(tokens)[:, 1:])


@torch.no_grad()
def test_moving_average_starts_at_the_batch_mean_then_moves_a_tenth(tiny_config, make_model, images):
    model = make_model(tiny_config).double()
    stage, tokens, scores = _stage_and_scores(model, images)
    stage.train()
    stage(tokens, 12, None, False)
    torch.testing.assert_close(stage.ema, scores.mean(dim=0))
    assert stage.ema_seen.all()
    _, tokens, other = _stage_and_scores(model, 2 * images.flip(3)[:2])
    _, ranking, kept = stage(tokens, 12, None, False)
    expected = 0.9 * scores.mean(dim=0) + 0.1 * other.mean(dim=0)
    torch.testing.assert_close(stage.ema, expected)
    torch.testing.assert_close(ranking, (other + expected) / 2)
    assert torch.equal(kept, ranking.topk(12).indices.sort().values)


@torch.no_grad()
def test_moving_average_is_per_position_of_the_whole_grid(tiny_config, make_model, images):
    model = make_model(tiny_config).double().eval()
    stage, tokens, _ = _stage_and_scores(model, images)
    positions = torch.tensor([[0, 3, 5, 9], [0, 3, 6, 9], [1, 3, 5, 9]])
    few = torch.cat((tokens[:, :1], tokens[:, 1:].gather(1, positions[..., None].expand(-1, -1, 32))), dim=1)
    scores = stage.scores(stage.norm(few)[:, 1:])
    before = stage.ema.clone()
    stage.train()
    _, ranking, _ = stage(few, 2, positions, False)
    for position in range(16):
        seen = scores[positions == position]
        assert stage.ema_seen[position] == (len(seen) > 0)
        torch.testing.assert_close(stage.ema[position], seen.mean() if len(seen) else before[position])
    torch.testing.assert_close(ranking, (scores + stage.ema[positions]) / 2)


@torch.no_grad()
def test_training_the_whole_model_averages_at_the_positions_kept_before(tiny_config, make_model, images):
    plain, with_maps = (make_model(tiny_config).double().train() for _ in range(2))
    plain(images)
    kept = with_maps(images, maps=True).stages[0].kept
    seen = torch.zeros(16, dtype=torch.bool)
    seen[kept.flatten()] = True
    assert not seen.all() or (kept[0] != torch.arange(12)).any(), "else positions and places are the same"
    assert torch.equal(plain.stages[1].ema_seen, seen)
    torch.testing.assert_close(plain.stages[1].ema, with_maps.stages[1].ema, rtol=0, atol=0)


def test_smoothing_starts_as_ones_and_averages_as_unseen(tiny_config):
    for stage in build_model(tiny_config).stages:
        assert torch.equal(stage.smooth.weight, torch.ones(1, 1, 3))
        assert not stage.ema_seen.any()


@torch.no_grad()
def test_moving_average_does_not_depend_on_how_often_an_image_is_repeated(tiny_config, make_model, images):
    averages = []
    for batch in (images, images.repeat(3, 1, 1, 1)):
        stage, tokens, _ = _stage_and_scores(make_model(tiny_config).double(), batch)
        stage.train()(tokens, 12, None, False)
        averages.append(stage.ema)
    torch.testing.assert_close(*averages)


@torch.no_grad()
def test_evaluation_neither_reads_nor_changes_the_moving_average(tiny_config, make_model, images):
    model = make_model(tiny_config).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = model(images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for stage in model.stages:
        stage.ema.normal_(generator=torch.Generator().manual_seed(3))
        stage.ema_seen.fill_(True)
    assert torch.equal(model(images), logits)


@torch.no_grad()
def test_moving_average_plays_no_part_in_the_gate(tiny_config, make_model, images):
    stage, tokens, _ = _stage_and_scores(make_model(tiny_config).double(), images)
    expected, _, _ = stage(tokens, 16, None, False)
    stage.train()
    stage.ema.normal_(generator=torch.Generator().manual_seed(3))
    stage.ema_seen.fill_(True)
    assert torch.equal(stage(tokens, 16, None, False)[0], expected)


@torch.no_grad()
def test_importance_stays_float32_under_autocast(tiny_model, images):
    stage, tokens, scores = _stage_and_scores(tiny_model, images.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(stage.scores(stage.norm(tokens)[:, 1:]), scores)


@torch.no_grad()
def test_maps_are_the_importance_of_the_scores(tiny_model, images):
    _, _, scores = _stage_and_scores(tiny_model, images.float())
    out = tiny_model(images.float(), maps=True)
    assert torch.equal(out.stages[0].importance, gala.importance(scores))


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
    budget = TokenBudget((9, 4), 16)
    tokens = model.forward_features(images, budget)
    assert tokens.shape == (3, 1, 32)
    features = model.forward_head(tokens, pre_logits=True)
    assert torch.equal(features, model.norm(tokens[:, 0]))
    assert torch.equal(model.head(features), model(images, budget))
    assert torch.equal(model.forward_head(tokens), model(images, budget))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("resnet18", "timm cannot build it"),
        ("no_such_model", "timm cannot build it"),
        ("eva02_tiny_patch14_224", "is a Eva, not a timm VisionTransformer"),
        ("vit_small_patch14_reg4_dinov2", "no register tokens; it has 5 prefix tokens"),
        ("vit_base_patch16_gap_224", "it has 0 prefix tokens"),
        ("deit_tiny_distilled_patch16_224", "it has 2 prefix tokens"),
        ("vit_xsmall_patch16_clip_224", "has a norm before its blocks"),
        pytest.param("vit_small_patch16_18x2_224", "backbone 'vit_small_patch16_18x2_224'", id="parallel-blocks"),
        pytest.param("vit_small_resnet26d_224", "backbone 'vit_small_resnet26d_224'", id="convolutional-hybrid"),
        pytest.param("test_vit", "backbone 'test_vit'", id="embedding-not-flat"),
    ],
)
def test_unsupported_backbones_are_refused(tiny_config, images, backbone, message):
    with pytest.raises(ConfigError, match=message):
        build_model(dataclasses.replace(tiny_config, stem="linear", backbone=backbone))(images.float())


@pytest.mark.parametrize("changes", [{"patch_size": 12}, {"patch_size": 6}, {"embed_dim": 8, "num_heads": 1}], ids=str)
def test_sizes_the_convolutional_stem_cannot_have_are_refused(changes):
    with pytest.raises(ConfigError, match=r"patch_size|embed_dim|stem"):
        build_model(preset("gft_typeface", **changes))(torch.zeros(1, 3, 96, 96))


def test_published_variant_is_not_built_as_focal(tiny_config):
    from gft_edge.model.gft import FocalGFT

    with pytest.raises(ConfigError, match="FocalGFT builds variant 'focal', the configuration says 'published'"):
        FocalGFT(dataclasses.replace(tiny_config, variant="published", stages=(1, 1), stem="linear"))
