"""PPS: selects the patches that stay and gathers their tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
    return gather_all((x,), indices)[0]


def gather_all(tensors: Sequence[Tensor], indices: Tensor) -> list[Tensor]:
    """Returns the same rows of several tensors of equal (B, N): each (B, N, C) at (B, k) to (B, k, C)."""
    batch, count = indices.shape
    if not indices.is_cuda:
        return [x.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[-1])) for x in tensors]
    # On a GPU copies of whole rows are about twice as fast as a gather element by element, and their backward pass is
    # deterministic without sorting an index per element.
    rows = indices.flatten()
    if batch > 1:
        first = torch.arange(0, batch * tensors[0].shape[1], tensors[0].shape[1], device=indices.device)
        rows = (indices + first.unsqueeze(1)).flatten()
    return [x.flatten(0, 1).index_select(0, rows).unflatten(0, (batch, count)) for x in tensors]


def token_indices(kept: Tensor, num_prefix_tokens: int) -> Tensor:
    """Returns positions among the tokens: every prefix token, then the patches at ``kept``. (B, k) to (B, prefix + k)."""
    tokens = kept + num_prefix_tokens
    for prefix in reversed(range(num_prefix_tokens)):
        tokens = F.pad(tokens, (1, 0), value=prefix or None)  # None is 0, and one node less in the exported graph
    return tokens
