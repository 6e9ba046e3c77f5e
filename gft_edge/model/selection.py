"""PPS: which patches stay, and the way back from kept patches to the image grid."""

from __future__ import annotations

import torch
from torch import Tensor


def select_patches(scores: Tensor, k: int) -> Tensor:
    """Indices of the k highest scores in raster (ascending) order. (B, N) to (B, k) int64.

    A constant k keeps every shape in the exported graph static.
    """
    return scores.topk(k, dim=1).indices.sort(dim=1).values


def gather_tokens(x: Tensor, indices: Tensor) -> Tensor:
    """Rows of (B, N, C) at (B, k): (B, k, C)."""
    return x.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def scatter_to_grid(values: Tensor, kept: Tensor | None, grid: tuple[int, int]) -> Tensor:
    """Puts the values of kept patches back on the image grid, zeros where pruned.

    Args:
        values: (B, k).
        kept: positions on the original grid, (B, k) integers; None when every patch is there.
        grid: rows and columns.

    Returns:
        (B, rows, cols)
    """
    rows, cols = grid
    if kept is None:
        return values.reshape(-1, rows, cols)
    flat = torch.zeros(values.shape[0], rows * cols, dtype=values.dtype, device=values.device)
    return flat.scatter(1, kept.long(), values).reshape(-1, rows, cols)
