"""Scores and maps in their exported form, against the form in which the model computes them."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.models.vision_transformer import Attention

from gft_edge.export.onnx.map_products import rank_with_one_product, share_products
from gft_edge.model.focal_block import Ranked, rank
from gft_edge.model.layers import Attend, SelfAttention
from gft_edge.model.scores import SCORES

HEADS, PREFIX = 3, 2


def ranked(dtype=torch.float64, qkv_bias=True):
    torch.manual_seed(0)
    attn = SelfAttention(Attention(24, num_heads=HEADS, qkv_bias=qkv_bias).to(dtype), Attend(HEADS)).eval()
    for parameter in attn.parameters():
        torch.nn.init.normal_(parameter)
    z = torch.randn(2, PREFIX + 11, 24, dtype=dtype)
    q, key, _ = attn.project(z)
    return attn, Ranked(z, q, key, PREFIX)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("name", SCORES)
@torch.no_grad()
def test_one_product_gives_scores_and_maps(name, qkv_bias):
    attn, tokens = ranked(qkv_bias=qkv_bias)
    expected, found = (form(attn, SCORES[name], tokens, True, True) for form in (rank, rank_with_one_product))
    # A score need only rank: a term that is the same for all patches is left out where it costs something.
    a, b = (s.double() - s.double().mean(dim=1, keepdim=True) for s in (expected[0], found[0]))
    torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_nothing_is_scored_where_nothing_is_chosen():
    attn, tokens = ranked()
    score = SCORES["column-mean"]
    scores, importance = rank_with_one_product(attn, score, tokens, chooses=False, maps=True)
    assert scores is None
    torch.testing.assert_close(importance, rank(attn, score, tokens, False, True)[1], rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_without_maps_scores_are_those_of_the_model():
    attn, tokens = ranked()
    expected, found = (form(attn, SCORES["row-gala"], tokens, True, False) for form in (rank, rank_with_one_product))
    assert torch.equal(found[0], expected[0])
    assert found[1] is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_is_ranked_in_float32(dtype):
    attn, tokens = ranked(dtype)
    scores, importance = rank_with_one_product(attn, SCORES["column-mean"], tokens, True, True)
    assert scores.dtype == importance.dtype == torch.float32


def test_blocks_of_a_focal_model_are_given_the_form(tiny_model):
    model = copy.deepcopy(tiny_model)
    share_products(model)
    assert all(block.rank is rank_with_one_product for block in model.blocks)
    assert all(block.rank is rank for block in tiny_model.blocks)
