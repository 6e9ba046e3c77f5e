from __future__ import annotations

import pytest
import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import nn

from gft_edge.model.layers import ClassRowBlock, ConvStem, RowAttention

TOKENS = torch.randn(2, 9, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _randomize(module):
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return module.double().eval()


def _row_attention_of(attention):
    rows = RowAttention(24, attention.num_heads, attention.qkv.bias is not None).double()
    state = {f"proj.{name}": tensor for name, tensor in attention.proj.state_dict().items()}
    for name, tensor in attention.qkv.state_dict().items():
        state[f"q.{name}"], state[f"kv.{name}"] = tensor[:24], tensor[24:]
    rows.load_state_dict(state)
    return rows


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("heads", [1, 3])
@torch.no_grad()
def test_row_attention_with_all_rows_is_timm_attention(bias, heads):
    attention = _randomize(Attention(24, heads, qkv_bias=bias))
    rows = _row_attention_of(attention)
    torch.testing.assert_close(rows(TOKENS, TOKENS), attention(TOKENS), rtol=0, atol=1e-12)


@torch.no_grad()
def test_row_attention_of_some_rows_is_those_rows():
    attention = _randomize(Attention(24, 3, qkv_bias=True))
    some = _row_attention_of(attention)(TOKENS[:, [5, 2]], TOKENS)
    torch.testing.assert_close(some, attention(TOKENS)[:, [5, 2]], rtol=0, atol=1e-12)


@torch.no_grad()
def test_gate_scales_the_values_and_not_the_scores():
    rows = _randomize(RowAttention(24, 3, qkv_bias=False))
    gate = torch.rand(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    heads = []
    k_weight, v_weight = rows.kv.weight.split(24)
    for head in range(3):
        part = slice(8 * head, 8 * head + 8)
        scores = (TOKENS @ rows.q.weight[part].T) @ (TOKENS @ k_weight[part].T).transpose(1, 2) / 8**0.5
        heads.append(scores.softmax(dim=2) @ (gate[..., None] * (TOKENS @ v_weight[part].T)))
    expected = rows.proj(torch.cat(heads, dim=2))
    torch.testing.assert_close(rows(TOKENS, TOKENS, gate), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(rows(TOKENS, TOKENS, torch.ones_like(gate)), rows(TOKENS, TOKENS), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"qkv_bias": True}, {"qkv_bias": True, "init_values": 0.1}], ids=str)
@torch.no_grad()
def test_class_row_block_is_the_class_row_of_the_timm_block(options):
    block = _randomize(Block(24, 3, **options)).float()
    class_row = ClassRowBlock(block).double()
    expected = block.double()(TOKENS)[:, :1]
    torch.testing.assert_close(class_row(TOKENS), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("patch_size", "embed_dim"), [(4, 16), (8, 32), (16, 48), (16, 192)])
@torch.no_grad()
def test_conv_stem_gives_one_token_per_patch_in_raster_order(patch_size, embed_dim):
    stem = ConvStem(patch_size, embed_dim).eval()
    images = torch.randn(2, 3, 2 * patch_size, 4 * patch_size, generator=torch.Generator().manual_seed(0))
    tokens, grid = stem(images), stem.proj(stem.convs(images))
    assert tokens.shape == (2, 8, embed_dim)
    for patch in range(8):
        assert torch.equal(tokens[:, patch], grid[:, :, patch // 4, patch % 4])
