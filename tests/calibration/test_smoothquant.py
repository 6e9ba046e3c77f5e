from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from gft_edge.calibration.ptq import quantize_int8
from gft_edge.calibration.smoothquant import folds, smooth, smoothing
from gft_edge.config.model import preset
from gft_edge.errors import ConfigError, DataError
from gft_edge.model.build import build_model
from gft_edge.model.scores import SCORES
from gft_edge.model.selection import select_patches
from gft_edge.quant.policy import DEFAULT_POLICY, QuantPolicy, QuantRule, uniform_policy

POLICY = uniform_policy("int8", smoothquant=0.5)


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((8, 3, 32, 32)).astype(np.float32) for _ in range(2)]


@pytest.fixture(scope="module")
def spiky(tiny_model):
    """Every LayerNorm has one channel a hundred times the others."""
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for fold in folds(model, DEFAULT_POLICY).values():
            fold.norm.weight[3] *= 100
            fold.linear.weight[:, 3] /= 100
    return model


def test_every_norm_before_a_quantized_linear_is_found(tiny_model):
    assert set(folds(tiny_model, DEFAULT_POLICY)) == {
        f"blocks.{i}.{norm}" for i in range(3) for norm in ("norm1", "norm2")
    }
    only = QuantPolicy((QuantRule("*.mlp.fc1", "int8", "test"),))
    assert set(folds(tiny_model, only)) == {f"blocks.{i}.norm2" for i in range(3)}


@pytest.mark.parametrize("score", SCORES)
@torch.no_grad()
def test_not_a_bit_of_logits_scores_or_importance_changes(spiky, batches, score):
    spiky = copy.deepcopy(spiky)
    for block in spiky.blocks:
        block.score = score
    smoothed = smooth(spiky, batches, POLICY)
    images = torch.from_numpy(batches[0])
    before, after = spiky(images, maps=True), smoothed(images, maps=True)
    assert torch.equal(before.logits, after.logits)
    for a, b in zip(before.stages, after.stages):
        assert torch.equal(a.importance, b.importance)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.kept, b.kept)
    changed = [n for n, t in smoothed.state_dict().items() if not torch.equal(t, spiky.state_dict()[n])]
    assert {"blocks.0.norm1.weight", "blocks.1.attn.qkv.weight", "blocks.2.mlp.fc1.weight"} <= set(changed)


@torch.no_grad()
def test_scores_of_quantized_layers_stay_the_same_to_the_bit(spiky, batches):
    """Exact weights and tokens are scaled by powers of two that cancel."""
    x = torch.randn(4, 17, 32, generator=torch.Generator().manual_seed(0))
    models = [quantize_int8(spiky, batches, QuantPolicy(POLICY.rules, alpha)).model for alpha in (None, 0.5)]
    for one, other in zip(*(model.blocks[:2] for model in models), strict=True):
        assert not torch.equal(one.norm1.weight, other.norm1.weight)
        a, b = (block(x, 8, select_patches, maps=True) for block in (one, other))
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.importance, b.importance)


@torch.no_grad()
def test_outlier_channels_cost_less_afterwards(spiky, batches):
    images = torch.from_numpy(batches[0])
    expected = spiky(images)
    plain = quantize_int8(spiky, batches, QuantPolicy(POLICY.rules)).model
    smoothed = quantize_int8(spiky, batches, POLICY).model
    errors = [float((model(images) - expected).square().mean()) for model in (plain, smoothed)]
    assert errors[1] < 0.5 * errors[0]


def test_published_models_are_smoothed_in_their_blocks():
    with torch.device("meta"):
        model = build_model(preset("gft_base_published", num_classes=3))  # of its 12 blocks the last four never run
    assert all(name.startswith("base_model.blocks.") for name in folds(model, DEFAULT_POLICY))
    assert len(folds(model, DEFAULT_POLICY)) == 16


def test_scales_are_powers_of_two_next_to_the_formula():
    found = smoothing(torch.tensor([16.0, 9.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 0.0]), 0.5)
    assert found.tolist() == [4.0, 4.0, 1.0, 1.0]


@pytest.mark.parametrize(("alpha", "scale"), [(0.0, 1 / 16), (0.25, 1 / 4), (0.5, 1.0), (0.75, 4.0), (1.0, 16.0)])
def test_the_strength_moves_the_scale_from_the_weights_to_the_inputs(alpha, scale):
    assert smoothing(torch.tensor([16.0]), torch.tensor([16.0]), alpha).tolist() == [scale]


def test_magnitudes_are_the_largest_of_all_batches(tiny_model, batches):
    """An outlier in one batch counts, wherever it comes; the batches together are one batch."""
    quiet, loud = batches[0] / 64, batches[1] * 64
    together = smooth(tiny_model, [np.concatenate((quiet, loud))], POLICY).state_dict()
    for order in ((quiet, loud), (loud, quiet)):
        apart = smooth(tiny_model, order, POLICY).state_dict()
        assert all(torch.equal(tensor, together[name]) for name, tensor in apart.items())


def test_what_cannot_be_smoothed_is_refused(tiny_model, batches):
    with pytest.raises(ConfigError, match="gives no strength"):
        smooth(tiny_model, batches, DEFAULT_POLICY)
    with pytest.raises(ConfigError, match="reads a LayerNorm"):
        smooth(tiny_model, batches, QuantPolicy((QuantRule("*.fc2", "int8", "x"),), 0.5))
    with pytest.raises(DataError, match="no images"):
        smooth(tiny_model, [], POLICY)
