"""ToMe: token merging by bipartite soft matching (Bolya et al., arXiv 2210.09461), on a timm Vision Transformer.

In every block, between attention and MLP, the r most similar pairs of tokens become one: their average weighted by how many
patches each stands for. Attention is proportional: log size is added to the scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from gft_edge.benchmarks.experiments.peers.vit_sizes import VitSizes
from gft_edge.config.model import GFTConfig
from gft_edge.model.layers import embed_patches
from gft_edge.model.selection import gather_tokens


def merge(x: Tensor, size: Tensor, metric: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Merges r pairs (paper, section 3 and appendix D); the class token, token 0, is never merged into another.

    Every second token is matched with its most similar partner among the others; the r pairs with the highest cosine
    similarity are merged. The sum over merged tokens is a product with a 0-1 assignment matrix, which is many times
    faster than a scatter.

    Args:
        x: tokens, (B, T, C).
        size: patches each token stands for, (B, T, 1).
        metric: keys, mean over the heads, (B, T, d).
        r: pairs, at most half of the tokens but the class token.

    Returns:
        tokens (B, T - r, C), sizes (B, T - r, 1): kept tokens of the first half, then the second half.
    """
    metric = F.normalize(metric, dim=2)
    similarity = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
    best, partner = similarity[:, 1:].max(dim=2)  # without the class token, the first of the first half
    order = best.argsort(dim=1, descending=True)
    merged = order[:, :r] + 1
    kept = F.pad(order[:, r:].sort(dim=1).values + 1, (1, 0))
    partner = partner.gather(1, order[:, :r])
    others = torch.arange(similarity.shape[2], device=x.device)
    into = (partner.unsqueeze(1) == others[:, None]).to(x.dtype)  # (B, T / 2, r)
    weighted = x * size
    total = weighted[:, 1::2] + into @ gather_tokens(weighted[:, ::2], merged)
    sizes = size[:, 1::2] + into @ gather_tokens(size[:, ::2], merged)
    size = torch.cat((gather_tokens(size[:, ::2], kept), sizes), dim=1)
    return torch.cat((gather_tokens(x[:, ::2], kept), total / sizes), dim=1), size


class ToMe(nn.Module):
    """A timm Vision Transformer that merges ``merged[i]`` tokens in block i."""

    def __init__(self, vit: VisionTransformer, merged: Sequence[int]) -> None:
        super().__init__()
        self.vit, self.merged = vit, tuple(merged)
        self.num_heads = vit.blocks[0].attn.num_heads

    def forward(self, images: Tensor) -> Tensor:
        """Maps (B, 3, H, W) to logits (B, classes)."""
        vit = self.vit
        x = embed_patches(vit.patch_embed, images)
        x = torch.cat((vit.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + vit.pos_embed
        size: Tensor | None = None
        for block, r in zip(vit.blocks, self.merged):
            x, size = self._block(block, x, size, r)
        return vit.head(vit.norm(x[:, 0]))

    def _block(self, block: Block, x: Tensor, size: Tensor | None, r: int) -> tuple[Tensor, Tensor | None]:
        attention = block.attn
        q, k, v = (t.unflatten(2, (self.num_heads, -1)) for t in attention.qkv(block.norm1(x)).chunk(3, dim=2))
        scores = (q.transpose(1, 2) * q.shape[-1] ** -0.5) @ k.permute(0, 2, 3, 1)
        if size is not None:
            scores = scores + size.log().transpose(1, 2).unsqueeze(1)
        x = x + attention.proj((scores.softmax(dim=-1) @ v.transpose(1, 2)).transpose(1, 2).flatten(2))
        if r:
            x, size = merge(x, torch.ones_like(x[..., :1]) if size is None else size, k.mean(dim=2), r)
        return x + block.mlp(block.norm2(x)), size


def count_macs(merged: Sequence[int], sizes: VitSizes) -> int:
    """Returns multiply-accumulates of the matrix products of one image, those of the matching and merging included."""
    total, tokens, width = sizes.ends, sizes.patches + 1, sizes.width
    for r in merged:
        total += 4 * tokens * width**2 + 2 * tokens**2 * width
        if r:
            first, second = (tokens + 1) // 2, tokens // 2
            total += first * second * (width // sizes.heads) + second * r * (width + 1)
        tokens -= r
        total += 8 * tokens * width**2
    return total


def schedule(macs: int, sizes: VitSizes) -> list[int]:
    """Returns the constant r (one more in the first blocks) whose multiply-accumulates come closest to ``macs``."""
    depth, patches = sizes.depth, sizes.patches
    candidates = [
        [r + (block < extra) for block in range(depth)]
        for r in range(patches // depth)
        for extra in range(depth)
        if r * depth + extra < patches
    ]
    return min(candidates, key=lambda m: abs(count_macs(m, sizes) - macs))


def same_tokens(config: GFTConfig) -> list[int]:
    """Returns the pairs per block after which as many tokens leave each block as in the focal model at its own budget."""
    dropped = {
        place: before - after
        for place, before, after in zip(config.stages, config.budget.stage_inputs, config.budget.keep)
    }
    return [dropped.get(number, 0) for number in range(1, config.depth + 1)]
