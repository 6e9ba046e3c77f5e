"""With every patch kept the focal model is the plain network of timm to the bit; what cannot be is refused."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch

from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ConfigError
from gft_edge.model.build import build_model
from gft_edge.model.gft import unsupported
from gft_edge.model.scores import SCORES


@pytest.fixture
def pair(family, plain_vit):
    """timm's network and the focal model with its weights."""
    plain, focal = plain_vit(family), build_model(family)
    focal.load_state_dict(plain.state_dict())
    return plain, focal.eval()


def images_of(config, batch):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, 3, config.image_size, config.image_size, generator=generator)


def test_weights_have_timm_s_names_and_shapes(pair):
    plain, focal = pair
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (plain, focal)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_full_budget_is_the_plain_network_to_the_bit(pair, family, batch):
    plain, focal = pair
    images, full = images_of(family, batch), family.full_budget
    assert torch.equal(focal(images, full), plain(images))
    assert torch.equal(focal(images, full, maps=True).logits, plain(images))
    features = plain.forward_features(images)
    assert torch.equal(focal.forward_features(images, full), features)
    assert torch.equal(focal.forward_head(features), plain.forward_head(features))
    assert torch.equal(focal.forward_head(features, pre_logits=True), plain.forward_head(features, pre_logits=True))


@pytest.mark.parametrize("score", SCORES)
@torch.no_grad()
def test_full_budget_is_the_plain_network_whatever_ranks(pair, family, score):
    plain, _ = pair
    focal = build_model(dataclasses.replace(family, score=score)).eval()
    focal.load_state_dict(plain.state_dict())
    out = focal(images_of(family, 3), family.full_budget, maps=True)
    assert torch.equal(out.logits, plain(images_of(family, 3)))
    assert all(stage.kept.tolist() == [list(range(16))] * 3 for stage in out.stages)


@pytest.mark.parametrize("recompute", [False, True])
def test_training_at_full_budget_is_that_of_the_plain_network(pair, family, recompute):
    plain, focal = pair
    focal.set_grad_checkpointing(recompute)
    gradients = []
    for model, arguments in ((plain, ()), (focal, (family.full_budget,))):
        logits = model.train()(images_of(family, 3), *arguments)
        logits.square().sum().backward()
        gradients.append((logits, {name: p.grad for name, p in model.named_parameters()}))
    (logits, expected), (found, grads) = gradients
    assert torch.equal(found, logits)
    for name, gradient in expected.items():
        assert torch.equal(grads[name], gradient), name


@torch.no_grad()
def test_a_stage_that_keeps_all_is_the_plain_block(pair, family):
    """The first selecting block keeps everything, the second does not: the tokens before the second are the plain network's."""
    plain, focal = pair
    images, seen = images_of(family, 2), []
    hook = focal.blocks[2].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits = focal(images, TokenBudget((16, 5), 16))
    hook.remove()
    tokens = plain._pos_embed(plain.patch_embed(images))
    tokens = plain.blocks[:2](plain.norm_pre(tokens))
    assert torch.equal(seen[0], tokens)
    assert not torch.equal(logits, plain(images))


def config_of(backbone, patch_size=16, prefix=1, **changes):
    side = 4 * patch_size
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2} | changes
    return GFTConfig(
        backbone, side, 5, patch_size, **sizes, stages=(1,), budget=TokenBudget((9,), 16), num_prefix_tokens=prefix
    )


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("resnet18", "timm cannot build it"),
        ("no_such_model", "timm cannot build it"),
        ("swin_tiny_patch4_window7_224", "timm cannot build it"),
        ("eva02_tiny_patch14_224", "is a Eva, not a timm VisionTransformer"),
        ("vit_base_patch16_rope_224", "is a Eva, not a timm VisionTransformer"),
        ("vit_small_patch16_dinov3", "is a Eva, not a timm VisionTransformer"),
        ("vit_srelpos_small_patch16_224", "is a VisionTransformerRelPos, not a timm VisionTransformer"),
        ("beit_base_patch16_224", "is a Beit, not a timm VisionTransformer"),
        ("vit_base_patch16_siglip_224", "has no class token, which the classifier of a focal model reads"),
        ("vit_base_patch16_gap_224", "has no class token, which the classifier of a focal model reads"),
        ("eva_large_patch14_196", r"classifies the pooled patches \(global_pool 'avg'\), not the class token"),
        ("vit_giant_patch14_dinov2", "has an MLP that is not two layers of ratio 4"),
        ("vit_small_patch16_18x2_224", "has blocks that are not timm's Block with timm's Attention"),
        ("vit_base_patch16_xp_224", "has blocks that are not timm's Block with timm's Attention"),
        ("vit_base_patch16_rpn_224", "has blocks that are not timm's Block with timm's Attention"),
        ("vit_small_resnet26d_224", r"timm cannot build it \(AssertionError\)"),
        ("vit_small_patch14_reg4_dinov2", "has 5 tokens before the patches, num_prefix_tokens is 1"),
        ("deit_tiny_distilled_patch16_224", "has 2 tokens before the patches, num_prefix_tokens is 1"),
        ("test_vit", "has an MLP that is not two layers of ratio 4"),
    ],
)
def test_backbones_that_cannot_select_are_refused_in_one_line(backbone, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_model(config_of(backbone))
    assert f"backbone {backbone!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, None),
        ({"global_pool": "avg"}, "classifies the pooled patches (global_pool 'avg'), not the class token"),
        ({"global_pool": "map"}, "classifies the pooled patches (global_pool 'map'), not the class token"),
        (
            {"fc_norm": True},
            "normalises the class token between its last norm and the classifier, which is not supported",
        ),
        ({"qk_norm": True}, "normalises or gates its queries, keys or attention, which is not supported"),
        ({"mlp_ratio": 3}, "has an MLP that is not two layers of ratio 4"),
        (
            {"class_token": False, "global_pool": "avg"},
            "has no class token, which the classifier of a focal model reads",
        ),
        ({"reg_tokens": 3}, "has 4 tokens before the patches, num_prefix_tokens is 1"),
        ({"pos_embed": "none"}, "needs a flat patch embedding with a position embedding"),
        ({"dynamic_img_size": True}, "needs a flat patch embedding with a position embedding"),
    ],
    ids=str,
)
def test_networks_that_cannot_select_are_told_apart(options, message):
    config = config_of("vit_tiny_patch16_224")
    sizes = {name: getattr(config, name) for name in ("num_classes", "patch_size", "embed_dim", "depth", "num_heads")}
    vit = timm.create_model(config.backbone, img_size=config.image_size, **sizes, **options)
    assert unsupported(vit, config) == message
