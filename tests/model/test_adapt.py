"""Weights carried over to other sizes, and backbones of other kinds."""

import dataclasses

import pytest
import torch

from gft_edge.budget import TokenBudget
from gft_edge.config.model import preset
from gft_edge.config.recipe import DataSection, ModelSection, Recipe, TrainSection
from gft_edge.errors import ConfigError
from gft_edge.model.adapt import adapt_weights
from gft_edge.model.build import build_model
from gft_edge.train.loop import train

SMALL = {"embed_dim": 32, "num_heads": 2, "depth": 3, "num_classes": 4}


@pytest.fixture(scope="module")
def small():
    config = preset("gft_tiny", image_size=64, stages=(1, 2, 3), budget=TokenBudget((12, 8, 4), 16), **SMALL)
    torch.manual_seed(1)
    return config, build_model(config)


def test_same_model_takes_over_everything(small):
    config, model = small
    assert adapt_weights(model.state_dict(), config, config).keys() == model.state_dict().keys()


def test_position_embedding_is_resampled_to_another_grid(small):
    config, model = small
    other = dataclasses.replace(config, image_size=96, budget=TokenBudget((27, 18, 9), 36))
    weights = {**model.state_dict(), "pos_embed": torch.ones(1, 17, 32)}
    adapted = adapt_weights(weights, config, other)
    torch.testing.assert_close(adapted["pos_embed"], torch.ones(1, 37, 32))
    fresh = build_model(other)
    fresh.load_state_dict({**fresh.state_dict(), **adapted})
    assert fresh.eval()(torch.zeros(1, 3, 96, 96)).shape == (1, 4)
    assert not any(name.endswith("ema") for name in adapted)


def test_classifier_is_left_out_for_other_classes(small):
    config, model = small
    adapted = adapt_weights(model.state_dict(), config, dataclasses.replace(config, num_classes=9))
    assert set(model.state_dict()) - set(adapted) == {"head.weight", "head.bias"}


def test_another_architecture_is_refused_and_said(small):
    config, model = small
    with pytest.raises(ConfigError, match="its model differs in num_heads, stem"):
        adapt_weights(model.state_dict(), config, dataclasses.replace(config, num_heads=4, stem="conv"))


def test_stages_and_score_do_not_change_the_weights(small):
    config, model = small
    other = dataclasses.replace(config, stages=(1, 2), budget=TokenBudget((9, 4), 16), score="class-row")
    adapted = adapt_weights(model.state_dict(), config, other)
    assert adapted.keys() == build_model(other).state_dict().keys()


def test_the_shipped_checkpoint_starts_a_training_at_another_size(tmp_path):
    recipe = Recipe(
        ModelSection("gft_typeface", image_size=64),
        DataSection("typefaces", train_images=64, eval_images=64, num_workers=0),
        TrainSection(init="builtin", steps=1, batch_size=4, lr=1e-8, threads=1, checkpoint_every=0),
    )
    info = train(recipe, tmp_path / "run")
    assert info.model.num_patches == 64
    assert info.preprocess.height == 64
    assert info.metrics["val_top1_full"] > 0.2  # sixteen classes, words two thirds of the size it knows


@pytest.mark.parametrize(
    ("backbone", "patch_size", "names"),
    [
        ("vit_small_patch14_dinov2", 14, "blocks.0.ls1.gamma"),
        ("deit_small_patch16_224", 16, "blocks.0.norm1.weight"),
        ("deit3_small_patch16_224", 16, "blocks.0.ls1.gamma"),
        ("vit_small_patch16_224.augreg_in21k", 16, "blocks.0.attn.qkv.bias"),
    ],
)
def test_other_backbones_train_and_prune(backbone, patch_size, names):
    side = 4 * patch_size
    try:
        config = ModelSection("gft_small", backbone=backbone, patch_size=patch_size, image_size=side, budget="12,8,4")
        model = build_model(dataclasses.replace(config.resolve(5), depth=6, embed_dim=48, num_heads=3))
    except ConfigError as error:
        assert "position embedding" in str(error)  # DeiT III has none for its class token
        assert backbone.startswith("deit3")
        return
    assert names in model.state_dict()
    model(torch.randn(2, 3, side, side)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert not torch.equal(model(images, TokenBudget((16, 16, 16), 16)), model(images))


@pytest.mark.parametrize(("stages", "keep"), [((2,), (5,)), ((1, 2, 3), (14, 9, 3)), ((3,), (4,))])
def test_fewer_and_other_stages(stages, keep):
    config = preset("gft_tiny", image_size=64, stages=stages, budget=TokenBudget(keep, 16), **SMALL)
    model = build_model(config).eval()
    with torch.no_grad():
        out = model(torch.randn(2, 3, 64, 64), maps=True)
    assert [stage.kept.shape[1] for stage in out.stages] == list(keep)
