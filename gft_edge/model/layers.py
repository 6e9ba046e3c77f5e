"""Layers of the focal model that timm does not provide."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, Block
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
        self.qkv, self.attend, self.proj = layer.qkv, attend, layer.proj

    def forward(self, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """Maps (B, T, C) to (B, T, C), never masked."""
        q, k, v = self.qkv(x).chunk(3, dim=2)
        return self.proj(self.attend(q, k, v))


def is_plain(layer: Attention) -> bool:
    """Returns True when a layer computes no more than :class:`SelfAttention` does."""
    extras = (layer.q_norm, layer.k_norm, layer.norm)
    return layer.gate is None and all(isinstance(extra, nn.Identity) for extra in extras)


class RowAttention(nn.Module):
    """Multi-head attention for some rows only: queries from one set of tokens, keys and values from another.

    Args:
        dim: width C.
        num_heads: heads H, dividing C.
        qkv_bias: whether the three input projections have a bias.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.attend: nn.Module = Attend(num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, rows: Tensor, context: Tensor, gate: Tensor | None = None) -> Tensor:
        """Attends with (B, R, C) queries over (B, T, C) keys and values; ``gate`` (B, T) scales the values. Returns (B, R, C)."""
        k, v = self.kv(context).chunk(2, dim=2)
        if gate is not None:
            v = v * gate.unsqueeze(2).to(v.dtype)
        return self.proj(self.attend(self.q(rows), k, v))


class ClassRowBlock(nn.Module):
    """The last transformer block when only the class token is read after it: one row of attention and of the MLP.

    Computes exactly the class token of the timm block it is made from, and no other row.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        dim = block.attn.qkv.in_features
        has_bias = block.attn.qkv.bias is not None
        self.norm1 = block.norm1
        self.attn = RowAttention(dim, block.attn.num_heads, has_bias)
        self.ls1, self.drop_path1 = block.ls1, block.drop_path1
        self.norm2, self.mlp = block.norm2, block.mlp
        self.ls2, self.drop_path2 = block.ls2, block.drop_path2
        with torch.no_grad():
            self.attn.q.weight.copy_(block.attn.qkv.weight[:dim])
            self.attn.kv.weight.copy_(block.attn.qkv.weight[dim:])
            if has_bias:
                self.attn.q.bias.copy_(block.attn.qkv.bias[:dim])
                self.attn.kv.bias.copy_(block.attn.qkv.bias[dim:])
        self.attn.proj = block.attn.proj

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, T, C) to (B, 1, C)."""
        z = self.norm1(x)
        x = x[:, :1] + self.drop_path1(self.ls1(self.attn(z[:, :1], z)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


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
