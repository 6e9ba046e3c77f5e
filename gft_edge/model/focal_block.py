"""A transformer block that can select patches by its own queries and keys and compute the kept rows alone.

Shape suffixes: B images, N patches entering, K patches kept, T tokens, C width; the prefix is the tokens before the patches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from gft_edge.model import gala
from gft_edge.model.layers import Attend, SelfAttention
from gft_edge.model.scores import SCORES
from gft_edge.model.selection import gather_all, token_indices

Choice = Callable[[Tensor, int], Tensor]
"""Maps scores (B, N) and k to the indices of the patches that stay (B, k)."""


class Selection(NamedTuple):
    """Tokens after a selecting block and what was chosen.

    Attributes:
        tokens: (B, prefix + K, C), or (B, prefix, C) where nothing reads the patches afterwards.
        kept: indices into the N patches, (B, K), as the choice ordered them; None when all are kept.
        scores: what ranks the patches, (B, N); None unless maps are wanted.
        importance: GALA map, (B, N), rows summing to 1; None unless maps are wanted.
    """

    tokens: Tensor
    kept: Tensor | None = None
    scores: Tensor | None = None
    importance: Tensor | None = None


class FocalBlock(nn.Module):
    """A timm block with the same weights under the same names, which can also compute some of its rows.

    Args:
        block: with plain attention; shares its layers.
        score: name in :data:`gft_edge.model.scores.SCORES`.
        num_prefix_tokens: tokens before the patches, which always stay.
    """

    def __init__(self, block: Block, score: str, num_prefix_tokens: int) -> None:
        super().__init__()
        self.score, self.num_prefix_tokens = score, num_prefix_tokens
        self.norm1 = block.norm1
        self.attn = SelfAttention(block.attn, Attend(block.attn.num_heads))
        self.ls1, self.drop_path1 = block.ls1, block.drop_path1
        self.norm2, self.mlp = block.norm2, block.mlp
        self.ls2, self.drop_path2 = block.ls2, block.drop_path2

    def forward(
        self,
        x: Tensor,
        k: int | None = None,
        choose: Choice | None = None,
        class_only: bool = False,
        maps: bool = False,
    ) -> Tensor | Selection:
        """Computes every row as timm's block does, or the prefix and k chosen patches; keys and values come from every token.

        Args:
            x: tokens, (B, prefix + N, C).
            k: patches to keep; None for timm's block.
            choose: selects the patches from their scores; None keeps all.
            class_only: compute the prefix alone, since nothing reads the patches afterwards.
            maps: also return scores and importance.

        Returns:
            tokens (B, prefix + N, C) without ``k``, else a :class:`Selection`.
        """
        if k is None:
            return self._rest(x, self.attn(self.norm1(x)))
        prefix = self.num_prefix_tokens
        z = self.norm1(x)
        q, key, v = self.attn.project(z)
        scores = self._scores(z, q, key) if maps or choose is not None else None
        kept = choose(scores, k) if choose is not None and scores is not None else None
        if class_only:
            x, q = x[:, :prefix], q[:, :prefix]
        elif kept is not None:
            rows = token_indices(kept, prefix)
            x, q = gather_all((x, q), rows)
        tokens = self._rest(x, self.attn.proj(self.attn.attend(q, key, v)))
        return Selection(tokens, kept, scores, self._importance(z)) if maps else Selection(tokens, kept)

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        """Adds the attention's output to the residual and runs the MLP."""
        x = x + self.drop_path1(self.ls1(attended))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    def _scores(self, z: Tensor, q: Tensor, key: Tensor) -> Tensor:
        """Returns the scores (B, N); of a quantized layer from its exact weights, since rounded ones change the ranking."""
        attn, score = self.attn, SCORES[self.score]
        if type(attn.qkv) is nn.Linear:
            return score(q, key, attn.num_heads, self.num_prefix_tokens)
        return score.folded(z, attn.qkv.weight, attn.qkv.bias, attn.num_heads, self.num_prefix_tokens)

    def _importance(self, z: Tensor) -> Tensor:
        """Returns the GALA map of normalised tokens, (B, T, C) to (B, N), float32 even under autocast."""
        if torch.is_autocast_enabled(z.device.type):
            with torch.autocast(z.device.type, enabled=False):
                return self._importance(z.float())
        width, qkv = z.shape[-1], self.attn.qkv
        q_weight, k_weight = qkv.weight[:width], qkv.weight[width : 2 * width]
        k_bias = None if qkv.bias is None else qkv.bias[width : 2 * width]
        m = gala.mean_scores(z[:, self.num_prefix_tokens :], q_weight, k_weight, self.attn.num_heads, k_bias)
        return gala.importance(gala.standardized_scores(m))
