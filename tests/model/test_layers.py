from __future__ import annotations

import pytest
import torch
from timm.layers import Attention, PatchEmbed
from torch import nn

from gft_edge.model.layers import Attend, ConvStem, SelfAttention, embed_patches, is_plain

TOKENS = torch.randn(2, 9, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def attention(heads=3, bias=True, **options):
    torch.manual_seed(1)
    layer = Attention(24, heads, qkv_bias=bias, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer.double().eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("heads", [1, 3])
@torch.no_grad()
def test_self_attention_is_timm_s_to_the_bit(bias, heads):
    layer = attention(heads, bias)
    ours = SelfAttention(layer, Attend(heads))
    assert torch.equal(ours(TOKENS), layer(TOKENS))
    assert ours.state_dict().keys() == layer.state_dict().keys()
    assert ours.qkv is layer.qkv
    assert ours.proj is layer.proj


@torch.no_grad()
def test_projections_are_queries_keys_and_values():
    layer = attention()
    weights, biases = layer.qkv.weight.split(24), layer.qkv.bias.split(24)
    for part, weight, bias in zip(SelfAttention(layer, Attend(3)).project(TOKENS), weights, biases, strict=True):
        torch.testing.assert_close(part, TOKENS @ weight.T + bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 3])
@torch.no_grad()
def test_some_queries_attend_as_the_rows_of_the_whole_matrix(heads):
    q, k, v = torch.randn(3, 2, 9, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rows = []
    for head in range(heads):
        part = slice(head * 24 // heads, (head + 1) * 24 // heads)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / (24 // heads) ** 0.5
        rows.append(scores.softmax(dim=2) @ v[..., part])
    expected = torch.cat(rows, dim=2)[:, [5, 2]]
    torch.testing.assert_close(Attend(heads)(q[:, [5, 2]], k, v), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, True),
        ({"qk_norm": True, "norm_layer": nn.LayerNorm}, False),
        ({"scale_norm": True, "norm_layer": nn.LayerNorm}, False),
        ({"gated": True}, False),
    ],
    ids=str,
)
def test_attention_with_norms_or_a_gate_is_not_plain(options, plain):
    assert is_plain(attention(**options)) == plain


@pytest.mark.parametrize(("patch_size", "embed_dim"), [(4, 16), (8, 32), (16, 48), (16, 192)])
@torch.no_grad()
def test_conv_stem_gives_one_token_per_patch_in_raster_order(patch_size, embed_dim):
    stem = ConvStem(patch_size, embed_dim).eval()
    images = torch.randn(2, 3, 2 * patch_size, 4 * patch_size, generator=torch.Generator().manual_seed(0))
    tokens, grid = stem(images), stem.proj(stem.convs(images))
    assert tokens.shape == (2, 8, embed_dim)
    for patch in range(8):
        assert torch.equal(tokens[:, patch], grid[:, :, patch // 4, patch % 4])


class OnGPU(torch.Tensor):
    """A tensor that says it is on a GPU, so that a CPU runs what a GPU runs."""

    is_cuda = True


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_patches_embedded_by_a_product_are_those_of_the_convolution(bias):
    torch.manual_seed(0)
    layer = PatchEmbed((24, 40), 8, 3, 16, bias=bias, norm_layer=nn.LayerNorm).double()
    images = torch.randn(2, 3, 24, 40, dtype=torch.float64)
    by_product = embed_patches(layer, images.as_subclass(OnGPU))
    torch.testing.assert_close(by_product.as_subclass(torch.Tensor), layer(images), rtol=0, atol=1e-12)
    assert torch.equal(embed_patches(layer, images), layer(images))
    stem = ConvStem(8, 32).eval()
    assert torch.equal(embed_patches(stem, images.float().as_subclass(OnGPU)), stem(images.float()))
