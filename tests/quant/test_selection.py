"""What ranks patches in a quantized block is computed from exact weights and the tokens as they are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from gft_edge.budget import TokenBudget
from gft_edge.calibration.ptq import quantize_int8
from gft_edge.config.model import GFTConfig
from gft_edge.model.scores import SCORES
from gft_edge.model.selection import select_patches
from gft_edge.quant.modules import QuantLinear
from gft_edge.quant.policy import QuantPolicy, QuantRule, uniform_policy
from gft_edge.stats.metrics import sqnr_db

HEADS = 2
POLICIES = {
    "int8": uniform_policy("int8", attention="int8"),
    "fp8": uniform_policy("fp8", attention="fp8"),
    "int8-weights": uniform_policy("int8-weights"),
}


@pytest.fixture(scope="module", params=SCORES)
def model(request, tiny_config, make_model):
    return make_model(dataclasses.replace(tiny_config, score=request.param))


@pytest.fixture(scope="module", params=POLICIES)
def both(request, model):
    """The model in full precision and quantized."""
    images = np.random.default_rng(0).standard_normal((6, 3, 32, 32)).astype(np.float32)
    return model, quantize_int8(model, [images], POLICIES[request.param]).model


def slow_scores(block, x):
    """Scores (B, N) of tokens (B, T, C) from the whole matrix of products, in float64, head by head."""
    attn, name = block.attn, block.score
    z = block.norm1(x).double()
    q, k, _ = (z @ attn.qkv.weight.double().T + attn.qkv.bias.double()).chunk(3, dim=2)
    heads = slice(None, None), *(slice(h * 16, (h + 1) * 16) for h in range(HEADS))
    whole, *products = ((q[..., s] @ k[..., s].transpose(1, 2) / 4).numpy() for s in heads)
    if name == "column-mean":
        return whole[:, 1:, 1:].mean(axis=1)
    if name == "class-row":
        rows = np.stack([p[:, 0] for p in products])
        return (np.exp(rows) / np.exp(rows).sum(axis=2, keepdims=True))[..., 1:].mean(axis=0)
    axis = 1 if name == "column-gala" else 2
    steps = np.mean([np.abs(np.gradient(p[:, 1:, 1:].mean(axis=axis), axis=1)) for p in products], axis=0)
    return np.stack([np.convolve(row, np.ones(3), "same") / 3 for row in steps])


@torch.no_grad()
def test_scores_of_the_same_tokens_are_those_of_full_precision(both):
    x = 2 * torch.randn(4, 17, 32, generator=torch.Generator().manual_seed(0))
    for full, low in zip(both[0].blocks[:2], both[1].blocks[:2], strict=True):
        assert isinstance(low.attn.qkv, QuantLinear)
        expected, found = (block(x, 8, select_patches, maps=True) for block in (full, low))
        assert not torch.equal(found.tokens, expected.tokens)
        assert torch.equal(found.importance, expected.importance)
        assert torch.equal(found.kept, expected.kept)
        if full.score == "random":
            assert torch.equal(found.scores, expected.scores)
            continue
        slow = slow_scores(full, x)
        scores = found.scores.double().numpy()
        if full.score == "column-mean":  # left out of the score: a factor, and what is the same for all patches
            slow, scores = (s / s.std(axis=1, keepdims=True) for s in (slow, scores))
            offset = (slow - scores).mean(axis=1, keepdims=True)
            scores = scores + offset
        np.testing.assert_allclose(scores, slow, atol=1e-5 * np.abs(slow).max())


@torch.no_grad()
def test_rounded_queries_and_keys_would_rank_otherwise(tiny_model):
    """The exact form is needed: the scores of the rounded projection are another matter."""
    x = 2 * torch.randn(64, 17, 32, generator=torch.Generator().manual_seed(0))
    policy = QuantPolicy((QuantRule("*.attn.qkv", "int8", "alone"),))
    images = np.random.default_rng(0).standard_normal((6, 3, 32, 32)).astype(np.float32)
    low = quantize_int8(tiny_model, [images], policy).model
    changed = []
    for full, block in zip(tiny_model.blocks[:2], low.blocks[:2], strict=True):
        q, k, _ = block.attn.project(block.norm1(x))
        rounded = select_patches(SCORES[block.score](q, k, HEADS, 1), 8)
        exact = full(x, 8, select_patches, maps=True).kept
        assert torch.equal(block(x, 8, select_patches, maps=True).kept, exact)
        changed.append((rounded != exact).any(dim=1).float().mean())
    assert max(changed) > 0


BACKBONES = {"deit_tiny_distilled_patch16_224": (16, 2), "vit_small_patch14_reg4_dinov2": (14, 5)}


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_tokens_before_the_patches_are_quantized_with_the_others(make_model, backbone):
    patch, prefix = BACKBONES[backbone]
    size, budget = {"patch_size": patch, "embed_dim": 32, "depth": 3, "num_heads": HEADS}, TokenBudget((10, 5), 16)
    config = GFTConfig(backbone, 4 * patch, 4, stages=(1, 2), budget=budget, num_prefix_tokens=prefix, **size)
    full = make_model(config)
    images = np.random.default_rng(0).standard_normal((8, 3, 4 * patch, 4 * patch)).astype(np.float32)
    policy = uniform_policy("int8", smoothquant=0.5, attention="int8")
    quantized = quantize_int8(full, [images], policy)
    expected, found = (model(torch.from_numpy(images), maps=True) for model in (full, quantized.model))
    assert torch.equal(found.stages[0].kept, expected.stages[0].kept), "nothing is rounded before the first block ranks"
    exact, same = (out.stages[0].scores - out.stages[0].scores.mean(dim=1, keepdim=True) for out in (expected, found))
    torch.testing.assert_close(same, exact, rtol=0, atol=1e-5 * float(exact.abs().max()))
    assert torch.equal(found.stages[0].importance, expected.stages[0].importance)
    assert sqnr_db(expected.logits.numpy(), found.logits.numpy()) > 8
    assert len(quantized.summary["precisions"]) == 3 * 5
