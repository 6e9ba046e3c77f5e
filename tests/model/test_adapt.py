"""Weights carried over to other sizes, and backbones of other kinds."""

import dataclasses

import pytest
import torch

from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig, preset
from gft_edge.config.recipe import DataSection, ModelSection, Recipe, TrainSection
from gft_edge.errors import ConfigError
from gft_edge.model.adapt import adapt_weights, smaller_model
from gft_edge.model.build import build_model
from gft_edge.model.macs import count_macs
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
        ModelSection("gft_scenes", image_size=96),
        DataSection("scenes,share=0.06", train_images=64, eval_images=64, num_workers=0),
        TrainSection(init="builtin", steps=1, batch_size=4, lr=1e-8, threads=1, checkpoint_every=0),
    )
    info = train(recipe, tmp_path / "run")
    assert info.model.num_patches == 144
    assert info.preprocess.height == 96
    assert info.metrics["val_top1_full"] > 0.3  # sixteen classes, letters of the size it knows


def test_position_embedding_of_every_family_is_resampled(family, make_model):
    """Those of tokens before the patches stay as they are; so do they where these have none (DeiT III, DINOv2 with registers)."""
    side = family.image_size // 4 * 6
    other = dataclasses.replace(family, image_size=side, budget=TokenBudget((20, 9), 36))
    model, fresh = make_model(family), build_model(other)
    adapted = adapt_weights(model.state_dict(), family, other)
    fresh.load_state_dict(adapted)
    prefix = fresh.pos_embed.shape[1] - 36
    assert prefix in (0, family.num_prefix_tokens)
    assert torch.equal(fresh.pos_embed[:, :prefix], model.pos_embed[:, :prefix])
    assert fresh.eval()(torch.zeros(1, 3, side, side)).shape == (1, 5)


def test_both_classifiers_of_a_distilled_model_are_left_out(small):
    config = GFTConfig(
        "deit_tiny_distilled_patch16_224", 64, 5, 16, 32, 2, 2, (1,), TokenBudget((9,), 16), num_prefix_tokens=2
    )
    weights = build_model(config).state_dict()
    adapted = adapt_weights(weights, config, dataclasses.replace(config, num_classes=9))
    assert set(weights) - set(adapted) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


@pytest.mark.parametrize(("stages", "keep"), [((2,), (5,)), ((1, 2, 3), (14, 9, 3)), ((3,), (4,))])
def test_fewer_and_other_stages(stages, keep):
    config = preset("gft_tiny", image_size=64, stages=stages, budget=TokenBudget(keep, 16), **SMALL)
    model = build_model(config).eval()
    with torch.no_grad():
        out = model(torch.randn(2, 3, 64, 64), maps=True)
    assert [stage.kept.shape[1] for stage in out.stages] == list(keep)


def test_a_smaller_model_has_the_same_weights_and_the_nearest_cost(small):
    config, model = small
    for share in ((1.0,) * 3, (0.5, 0.5, 0.25)):
        wanted = count_macs(config, TokenBudget.from_ratios(share, 16))
        new, smaller = smaller_model(model, config, wanted)
        costs = {
            size: count_macs(
                dataclasses.replace(config, image_size=size, budget=TokenBudget.full(3, (size // 16) ** 2))
            )
            for size in (32, 48)
        }
        assert new.image_size == min(costs, key=lambda size: abs(costs[size] - wanted))
        assert not smaller.training
        assert smaller(torch.zeros(1, 3, new.image_size, new.image_size)).shape == (1, 4)
        for name, tensor in smaller.state_dict().items():
            assert name == "pos_embed" or torch.equal(tensor, model.state_dict()[name])


def test_images_of_one_patch_have_no_smaller_model(small):
    config, _ = small
    tiny = dataclasses.replace(config, image_size=32, budget=TokenBudget((3, 3, 2), 4))
    assert smaller_model(build_model(tiny), tiny, 1) is None
