"""PPS: selects the patches that stay and gathers their tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def select_patches(scores: Tensor, k: int) -> Tensor:
    """Returns the indices of the k highest scores in raster (ascending) order. (B, N) to (B, k) int64.

    A constant k keeps every shape in the exported graph static.
    """
    return select_unordered(scores, k).sort(dim=1).values


def select_unordered(scores: Tensor, k: int) -> Tensor:
    """Returns the indices of the k highest scores in any order. (B, N) to (B, k) int64."""
    return scores.topk(k, dim=1, sorted=False).indices


def gather_tokens(x: Tensor, indices: Tensor) -> Tensor:
    """Returns the rows of (B, N, C) at (B, k): (B, k, C)."""
    return x.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def token_indices(kept: Tensor, num_prefix_tokens: int) -> Tensor:
    """Returns positions among the tokens: every prefix token, then the patches at ``kept``. (B, k) to (B, prefix + k)."""
    tokens = kept + num_prefix_tokens
    for prefix in reversed(range(num_prefix_tokens)):
        tokens = F.pad(tokens, (1, 0), value=prefix or None)  # None is 0, and one node less in the exported graph
    return tokens
