"""EViT: keeps the patches the class token attends to and fuses the rest (Liang et al., arXiv 2202.07800), on a timm ViT.

In three blocks, between attention and MLP, the patches with the highest class attention (mean over the heads) stay, and the
others become one token: their sum weighted by that attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from gft_edge.benchmarks.experiments.peers.vit_sizes import VitSizes
from gft_edge.config.model import GFTConfig
from gft_edge.model.layers import embed_patches
from gft_edge.model.selection import gather_tokens, select_unordered

PLACES = (4, 7, 10)
"""Blocks that drop patches, counted from 1, as in the paper."""


def places(config: GFTConfig) -> tuple[int, ...]:
    """Returns the blocks of the paper, or those in which the focal model selects where there are fewer blocks."""
    return PLACES if config.depth >= max(PLACES) else config.stages


def keep_and_fuse(x: Tensor, attention: Tensor, k: int) -> Tensor:
    """Returns the class token, the k patches of highest attention in any order, and the fused rest.

    The sum over the rest is the sum over all minus that over the kept ones, so that only the kept rows are gathered.

    Args:
        x: class token and N patches, (B, 1 + N, C).
        attention: of the class token to the patches, (B, N).
        k: patches to keep.

    Returns:
        (B, 1 + k + 1, C)
    """
    kept = select_unordered(attention, k)
    patches = gather_tokens(x[:, 1:], kept)
    fused = attention.unsqueeze(1) @ x[:, 1:] - attention.gather(1, kept).unsqueeze(1) @ patches
    return torch.cat((x[:, :1], patches, fused), dim=1)


class EViT(nn.Module):
    """A timm Vision Transformer that keeps ``keep[i]`` patches in block ``places[i]`` (counted from 1).

    Args:
        vit: the network; its blocks are used as they are.
        keep: patches kept.
        places: blocks.
        fused: attention by a fused kernel and the class row once more by itself, which is faster on a GPU than the whole
            matrix of the published code; the same outputs.
    """

    def __init__(
        self, vit: VisionTransformer, keep: Sequence[int], places: Sequence[int] = PLACES, fused: bool = False
    ) -> None:
        super().__init__()
        self.fused = fused
        self.vit, self.keep = vit, dict(zip(places, keep))
        self.num_heads = vit.blocks[0].attn.num_heads

    def forward(self, images: Tensor) -> Tensor:
        """Maps (B, 3, H, W) to logits (B, classes)."""
        vit = self.vit
        x = embed_patches(vit.patch_embed, images)
        x = torch.cat((vit.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + vit.pos_embed
        for number, block in enumerate(vit.blocks, start=1):
            x = self._dropping(block, x, self.keep[number]) if number in self.keep else block(x)
        return vit.head(vit.norm(x[:, 0]))

    def _dropping(self, block: Block, x: Tensor, k: int) -> Tensor:
        qkv, proj = block.attn.qkv, block.attn.proj
        q, key, v = (t.unflatten(2, (self.num_heads, -1)) for t in qkv(block.norm1(x)).chunk(3, dim=2))
        q, key, v = q.transpose(1, 2), key.transpose(1, 2), v.transpose(1, 2)
        rows = q[:, :, :1] if self.fused else q
        weights = (rows * q.shape[-1] ** -0.5 @ key.transpose(2, 3)).softmax(dim=-1)
        attended = F.scaled_dot_product_attention(q, key, v) if self.fused else weights @ v
        x = x + proj(attended.transpose(1, 2).flatten(2))
        x = keep_and_fuse(x, weights[:, :, 0, 1:].mean(dim=1), k)
        return x + block.mlp(block.norm2(x))


def count_macs(keep: Sequence[int], sizes: VitSizes, places: Sequence[int] = PLACES) -> int:
    """Returns multiply-accumulates of the matrix products of one image, those of the fusion included."""
    total, tokens, width = sizes.ends, sizes.patches + 1, sizes.width
    dropping = dict(zip(places, keep))
    for number in range(1, sizes.depth + 1):
        total += 4 * tokens * width**2 + 2 * tokens**2 * width
        if number in dropping:
            total += (tokens - 1 + dropping[number]) * width
            tokens = dropping[number] + 2
        total += 8 * tokens * width**2
    return total


def keep_counts(macs: int, sizes: VitSizes, places: Sequence[int] = PLACES) -> list[int]:
    """Returns the patches kept by the one keep rate whose multiply-accumulates come closest to ``macs``."""

    def counts(rate: float) -> list[int]:
        kept, n = [], sizes.patches
        for _ in places:
            kept.append(math.ceil(rate * n))
            n = kept[-1] + 1
        return kept

    candidates = [counts(step / 1000) for step in range(50, 999)]
    return min(candidates, key=lambda kept: abs(count_macs(kept, sizes, places) - macs))
