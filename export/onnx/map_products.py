"""Scores and GALA maps of a block in their exported form: one product with the tokens for both, and few operators after it.

A graph without maps ranks as :func:`gft_edge.model.focal_block.rank` does. With maps the scores are computed as those of a
quantized projection always are, from the normalised tokens and the projection's exact weights, since the maps are products of
the same tokens. What a positive factor does not change in the standardised gradient is left out: the halves of the central
differences and the mean over the heads.

Shape suffixes: B images, T tokens, N patches, H heads, C width; R rows, one for each map of a head and each product of the score.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gft_edge.constants import TEMPERATURE
from gft_edge.model.focal_block import FocalBlock, Ranked, rank
from gft_edge.model.gala import VARIANCE_FLOOR
from gft_edge.model.layers import SelfAttention
from gft_edge.model.scores import Score


def share_products(model: nn.Module) -> None:
    """Makes the blocks of a focal model rank in this form; other models stay."""
    for module in model.modules():
        if isinstance(module, FocalBlock):
            module.rank = rank_with_one_product


def rank_with_one_product(
    attn: SelfAttention, score: Score, tokens: Ranked, chooses: bool, maps: bool
) -> tuple[Tensor | None, ...]:
    """Returns what :func:`gft_edge.model.focal_block.rank` does, in float32 at least; no scores if nothing chooses by them."""
    if not maps:
        return rank(attn, score, tokens, chooses, maps)
    z, prefix, heads = tokens.z, tokens.prefix, attn.num_heads
    products = _products(attn, score if chooses else None, z.to(torch.promote_types(z.dtype, torch.float32)), prefix)
    importance = _importance(products[:, :heads, prefix:])
    if not chooses:
        return None, importance
    first = 0 if score.operand == "mean key" else heads
    rows = products[:, first:, 0 if score.all_tokens else prefix :]
    values = score.finish(rows.transpose(1, 2))
    return values[:, prefix:] if score.all_tokens else values, importance


def _products(attn: SelfAttention, score: Score | None, z: Tensor, prefix: int) -> Tensor:
    """Returns products of tokens z (B, T, C) with the mean key of each head, then those that a score reads, (B, R, T).

    q_i . kbar = z_i . (W_q^T kbar) but for a term that is the same for all i, and k_j . qbar = z_j . (W_k^T qbar) likewise: the
    mean query and the mean key side by side, masked by row, are carried back through the weights by one product.
    """
    width, weight = z.shape[2], attn.qkv.weight.to(z.dtype)
    bias = None if attn.qkv.bias is None else attn.qkv.bias.to(z.dtype)[: 2 * width]
    count = z.shape[1] - prefix
    # A product with a row of equal shares is faster than the mean of a slice.
    shares = torch.cat((z.new_zeros(1, prefix), z.new_full((1, count), 1 / count)), dim=1)
    vectors = F.linear(shares @ z, weight[: 2 * width], bias)  # mean query, mean key
    head_dim = width // attn.num_heads
    heads = torch.eye(attn.num_heads, dtype=z.dtype, device=z.device)
    by_head = heads.repeat_interleave(head_dim, dim=1) * head_dim**-0.5
    masks = [F.pad(by_head, (width, 0))]
    if score is not None and score.operand != "mean key":
        if score.operand == "class query":
            query = F.linear(z[:, :1], weight[:width], None if bias is None else bias[:width])
            vectors = torch.cat((query, vectors[:, :, width:]), dim=2)
        masks.append(F.pad(by_head if score.by_head else z.new_ones(1, width), (0, width)))
    directions = (vectors * torch.cat(masks)) @ torch.cat((weight[width : 2 * width], weight[:width]))
    return directions @ z.transpose(1, 2)


def _importance(m: Tensor) -> Tensor:
    """Returns the GALA map (B, N) of mean scores (B, H, N), each known but for a factor.

    The standardisation with an unbiased deviation, over the temperature, is a layer norm with a constant weight.
    """
    heads, count = m.shape[1:]
    wide = F.pad(m, (1, 1), mode="replicate")
    steps = (wide[:, :, 2:] - wide[:, :, :-2]).abs()
    ends = m.new_full((1,), 2.0)  # the differences at both ends are of neighbours, the others of the next but one
    steps = steps * torch.cat((ends, m.new_ones(count - 2), ends))
    smooth = F.conv1d(steps, m.new_ones(1, heads, 3), padding=1)
    scale = m.new_full((count,), (1 - 1 / count) ** 0.5 / TEMPERATURE)
    return F.layer_norm(smooth, (count,), scale, eps=VARIANCE_FLOOR).softmax(dim=2).squeeze(1)
