"""A gate that lets the loss reach the score: values are scaled by 1 + tanh(g) times the standardised score, with g = 0 at first.

It changes the network that is exported: each selecting block has one more parameter and scales its values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gft_edge.distill.alignment import taught_blocks
from gft_edge.distill.losses import standardised
from gft_edge.model.focal_block import FocalBlock
from gft_edge.model.gft import FocalGFT
from gft_edge.model.layers import SelfAttention
from gft_edge.model.scores import SCORES


class GatedAttention(SelfAttention):
    """Self-attention whose values grow with the score of their patch.

    With the gate at 0 every value is multiplied by exactly 1: the outputs are those without a gate, to the bit.

    Args:
        layer: to replace; its layers are shared.
        score: name in :data:`gft_edge.model.scores.SCORES`.
        num_prefix_tokens: tokens before the patches, which are not scaled.
    """

    def __init__(self, layer: SelfAttention, score: str, num_prefix_tokens: int) -> None:
        nn.Module.__init__(self)
        self.num_heads = layer.num_heads
        self.qkv, self.attend, self.proj = layer.qkv, layer.attend, layer.proj
        self.score, self.num_prefix_tokens = score, num_prefix_tokens
        self.gate = nn.Parameter(torch.zeros(1))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns queries, keys and scaled values of tokens (B, T, C), the same shape each."""
        q, k, v = super().project(x)
        scores = SCORES[self.score](q, k, self.num_heads, self.num_prefix_tokens)
        factor = 1 + self.gate.tanh() * F.pad(standardised(scores.float()), (self.num_prefix_tokens, 0))
        return q, k, v * factor.unsqueeze(2).to(v.dtype)


def add_gates(model: FocalGFT) -> list[nn.Parameter]:
    """Gives every selecting block that is read afterwards a gate at 0, in place; returns the gates."""
    gates = []
    for number in taught_blocks(model):
        block = model.blocks[number - 1]
        assert isinstance(block, FocalBlock)
        gated = GatedAttention(block.attn, block.score, block.num_prefix_tokens)
        block.attn = gated.to(block.attn.qkv.weight.device)
        gates.append(gated.gate)
    return gates
