"""PPS: which patches stay."""

from __future__ import annotations

from torch import Tensor


def select_patches(scores: Tensor, k: int) -> Tensor:
    """Indices of the k highest scores in raster (ascending) order. (B, N) to (B, k) int64.

    A constant k keeps every shape in the exported graph static.
    """
    return scores.topk(k, dim=1).indices.sort(dim=1).values


def gather_tokens(x: Tensor, indices: Tensor) -> Tensor:
    """Rows of (B, N, C) at (B, k): (B, k, C)."""
    return x.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
