"""A selecting block against timm's whole block with whole attention matrices, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import QuickGELU
from timm.models.vision_transformer import Block
from torch import nn

from gft_edge.model import gala
from gft_edge.model.focal_block import FocalBlock
from gft_edge.model.scores import SCORES
from gft_edge.model.selection import select_patches, select_unordered

EXACT = {"rtol": 1e-10, "atol": 1e-10}


@st.composite
def cases(draw):
    """timm's block with random weights, tokens (B, prefix + N, C), tokens before the patches, patches to keep."""
    heads, head_dim = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    patches, prefix = draw(st.integers(2, 24)), draw(st.integers(1, 5))
    torch.manual_seed(draw(st.integers(0, 10_000)))
    block = Block(
        heads * head_dim,
        heads,
        qkv_bias=draw(st.booleans()),
        init_values=draw(st.sampled_from([None, 0.1])),
        act_layer=draw(st.sampled_from([nn.GELU, QuickGELU])),
    )
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.7)
    x = torch.randn(draw(st.integers(1, 3)), prefix + patches, heads * head_dim, dtype=torch.float64)
    return block.double().eval(), x, prefix, draw(st.integers(1, patches))


def projected(block, x):
    """Queries, keys and values of each head, (B, H, T, d)."""
    parts = block.attn.qkv(block.norm1(x)).chunk(3, dim=2)
    return [part.unflatten(2, (block.attn.num_heads, -1)).transpose(1, 2) for part in parts]


def slow_block(block, x):
    """Every row, from the whole attention matrix."""
    q, k, v = projected(block, x)
    attended = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(dim=3) @ v
    x = x + block.ls1(block.attn.proj(attended.transpose(1, 2).flatten(2)))
    return x + block.ls2(block.mlp(block.norm2(x)))


def picked(tokens, kept, prefix):
    """The tokens before the patches and the kept ones, image by image."""
    return torch.stack([torch.cat((image[:prefix], image[prefix:][rows])) for image, rows in zip(tokens, kept)])


@given(cases())
@torch.no_grad()
def test_block_without_selection_is_timm_s_to_the_bit(case):
    block, x, prefix, _ = case
    whole = FocalBlock(block, "column-mean", prefix)
    assert torch.equal(whole(x), block(x))
    assert torch.equal(whole(x, x.shape[1] - prefix).tokens, block(x))
    assert whole.state_dict().keys() == block.state_dict().keys()


@given(cases(), st.sampled_from(tuple(SCORES)))
@torch.no_grad()
def test_selecting_first_equals_selecting_from_the_whole_block(case, score):
    block, x, prefix, k = case
    found = FocalBlock(block, score, prefix)(x, k, select_patches)
    assert found.kept.shape == (len(x), k)
    torch.testing.assert_close(found.tokens, picked(slow_block(block, x), found.kept, prefix), **EXACT)


@given(cases(), st.integers(0, 99))
@torch.no_grad()
def test_rows_come_in_the_order_of_the_choice(case, seed):
    block, x, prefix, k = case
    generator = torch.Generator().manual_seed(seed)
    patches = x.shape[1] - prefix
    rows = torch.stack([torch.randperm(patches, generator=generator)[:k] for _ in x])
    found = FocalBlock(block, "column-mean", prefix)(x, k, lambda scores, count: rows)
    torch.testing.assert_close(found.tokens, picked(slow_block(block, x), rows, prefix), **EXACT)


@given(cases())
@torch.no_grad()
def test_class_only_computes_the_tokens_before_the_patches(case):
    block, x, prefix, k = case
    focal, slow = FocalBlock(block, "column-mean", prefix), slow_block(block, x)[:, :prefix]
    torch.testing.assert_close(focal(x, k, None, class_only=True).tokens, slow, **EXACT)
    with_maps = focal(x, k, select_patches, class_only=True, maps=True)
    torch.testing.assert_close(with_maps.tokens, slow, **EXACT)
    assert torch.equal(with_maps.kept, select_patches(with_maps.scores, k))


@pytest.mark.parametrize("score", [name for name in SCORES if name != "random"])
@given(case=cases())
@torch.no_grad()
def test_kept_are_the_highest_of_the_slow_scores(slow_scores, score, case):
    block, x, prefix, k = case
    found = FocalBlock(block, score, prefix)(x, k, select_unordered, maps=True)
    q, keys, _ = projected(block, x)
    for image, kept in enumerate(found.kept.tolist()):
        slow = slow_scores[score](list(zip(q[image].numpy(), keys[image].numpy())), prefix)
        last = np.sort(slow)[-k]
        assert len(set(kept)) == k
        assert (slow[kept] >= last - 1e-10).all()


@given(cases(), st.sampled_from(tuple(SCORES)))
@torch.no_grad()
def test_importance_is_the_gala_map_whatever_ranks(case, score):
    block, x, prefix, k = case
    found = FocalBlock(block, score, prefix)(x, k, select_patches, maps=True)
    q, keys, _ = (part[:, :, prefix:] for part in projected(block, x))
    mean = (q @ keys.transpose(2, 3) / q.shape[3] ** 0.5).mean(dim=3)
    gradient = torch.gradient(mean, dim=2)[0].abs().mean(dim=1, keepdim=True)
    smooth = F.conv1d(gradient, torch.ones(1, 1, 3, dtype=torch.float64), padding=1)[:, 0]
    slow = (smooth - smooth.mean(1, keepdim=True)) / (smooth.std(1, keepdim=True) + gala.STD_EPSILON)
    # With two patches the standard deviation may be as small as the difference of two equal sums.
    if (smooth.std(1) > 1e-6).all():
        torch.testing.assert_close(found.importance, (slow / 0.1).softmax(dim=1), rtol=1e-6, atol=1e-10)
    else:
        torch.testing.assert_close(found.importance.sum(dim=1), torch.ones(len(x)).double())


@torch.no_grad()
def test_maps_change_nothing_else(randomize):
    block = randomize(Block(24, 3, qkv_bias=True))
    x = torch.randn(2, 11, 24, generator=torch.Generator().manual_seed(0))
    focal = FocalBlock(block, "column-gala", 2)
    without, with_maps = focal(x, 4, select_patches), focal(x, 4, select_patches, maps=True)
    assert torch.equal(without.tokens, with_maps.tokens)
    assert torch.equal(without.kept, with_maps.kept)
    assert without.scores is without.importance is None
    assert with_maps.scores.shape == with_maps.importance.shape == (2, 9)
    whole = focal(x, 9, None, maps=True)
    assert torch.equal(whole.tokens, block(x))
    assert whole.kept is None


@pytest.mark.parametrize("score", [name for name in SCORES if name != "random"])
@torch.no_grad()
def test_quantized_projection_ranks_by_its_exact_weights(randomize, score):
    """A layer that is no plain linear one may round its output; the scores then come from its weights."""

    class Rounded(nn.Linear):
        def forward(self, x):
            return (4 * super().forward(x)).round() / 4

    block = randomize(Block(24, 3, qkv_bias=True))
    x = torch.randn(2, 11, 24, generator=torch.Generator().manual_seed(0))
    exact = FocalBlock(block, score, 2)(x, 9, None, maps=True).scores
    rounded = Rounded(24, 72)
    rounded.load_state_dict(block.attn.qkv.state_dict())
    block.attn.qkv = rounded
    found = FocalBlock(block, score, 2)(x, 9, None, maps=True).scores
    if score == "column-mean":
        exact, found = (scores - scores.mean(dim=1, keepdim=True) for scores in (exact, found))
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


def test_gradients_of_a_selection_are_those_of_the_picked_rows(randomize):
    block = randomize(Block(24, 3, qkv_bias=True)).double()
    x = torch.randn(2, 11, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = []
    for form in ("focal", "slow"):
        block.zero_grad()
        inputs = x.clone().requires_grad_()
        found = FocalBlock(block, "column-mean", 2)(inputs, 4, select_patches)
        tokens = found.tokens if form == "focal" else picked(slow_block(block, inputs), found.kept, 2)
        tokens.square().sum().backward()
        gradients.append([inputs.grad, *(p.grad.clone() for p in block.parameters())])
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
