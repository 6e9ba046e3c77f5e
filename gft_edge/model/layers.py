"""Layers of the focal model that timm does not provide."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from gft_edge.config.model import conv_stem_widths


class Attend(nn.Module):
    """Softmax attention between projected tokens, fused; a separate module so that export can replace it.

    Args:
        num_heads: heads H, dividing the width.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends with queries (B, R, C) over keys and values (B, T, C): (B, R, C)."""
        q, k, v = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """timm's self-attention with its two products in a separate module.

    Args:
        layer: plain (:func:`is_plain`); shares its projections.
        attend: computes the attention, as :class:`Attend`.
    """

    def __init__(self, layer: Attention, attend: nn.Module) -> None:
        super().__init__()
        self.num_heads = layer.num_heads
        self.qkv, self.attend, self.proj = layer.qkv, attend, layer.proj

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns queries, keys and values of tokens (B, T, C), the same shape each."""
        return self.qkv(x).chunk(3, dim=2)

    def forward(self, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """Maps (B, T, C) to (B, T, C), never masked."""
        return self.proj(self.attend(*self.project(x)))


def is_plain(layer: Attention) -> bool:
    """Returns True when a layer computes no more than :class:`SelfAttention` does."""
    extras = (layer.q_norm, layer.k_norm, layer.norm)
    gate = getattr(layer, "gate", None)  # the oldest timm that is supported has none
    return gate is None and all(isinstance(extra, nn.Identity) for extra in extras)


class ConvStem(nn.Module):
    """Patch embedding by strided 3x3 convolutions: needs far fewer images to learn than one large convolution.

    Args:
        patch_size: a power of two, at least 4; halved by each convolution.
        embed_dim: width C of the tokens.

    Shapes: (B, 3, H, W) to (B, N, C) with N = (H / patch_size) (W / patch_size).
    """

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(conv_stem_widths(patch_size, embed_dim)):
            layers += [
                nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width_out),
                nn.ReLU(),
            ]
        self.convs = nn.Sequential(*layers)
        self.proj = nn.Conv2d(embed_dim, embed_dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Maps (B, 3, H, W) to (B, N, C)."""
        return self.proj(self.convs(images)).flatten(2).transpose(1, 2)


def embed_patches(layer: nn.Module, images: Tensor) -> Tensor:
    """Returns the embedded patches, (B, 3, H, W) to (B, P, C).

    timm's convolution of patches that do not overlap is one matrix product. On a GPU the product is several times faster: at
    batch 64 the convolution takes a tenth of a plain ViT-B's time. Elsewhere timm's layer runs, and results stay equal to the bit.

    Args:
        layer: timm's PatchEmbed with flat output, or a :class:`ConvStem`.
        images: normalised.
    """
    if not images.is_cuda or not isinstance(layer, PatchEmbed):
        return layer(images)
    weight, side = layer.proj.weight, layer.patch_size[0]
    grid = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, 3, rows, side, cols, side)
    patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return layer.norm(F.linear(patches, weight.flatten(1), layer.proj.bias))
