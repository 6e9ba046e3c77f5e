"""Rules that choose patches, by their scores and by their places, besides the model's own; for controls.

Shape suffixes: B images, P patches of the whole image, N patches entering a block, K patches kept, S selections of a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gft_edge.model.places import Ranks
from gft_edge.model.selection import select_patches

Rank = Callable[[Tensor, Tensor, int], Tensor]
"""Maps scores (B, N), positions on the original grid (B, N) and the number of the selection, from 0, to values (B, N).

The patches of the highest values stay."""


class Following:
    """A :data:`gft_edge.model.focal_block.Choice` that knows where on the original grid the patches lie.

    The model passes scores and k alone, so that nothing of this is in its code or its graph. It calls the choice once at each
    selection, in order, and the patches that enter one selection are those that the choice before kept: the positions follow from
    the choices themselves. One object therefore serves one forward pass.

    Args:
        rank: values whose highest stay.

    Attributes:
        positions: of the patches kept so far, (B, K) int64, raster order; None before the first selection.
    """

    def __init__(self, rank: Rank) -> None:
        self.positions: Tensor | None = None
        self._rank, self._number = rank, 0

    def __call__(self, scores: Tensor, k: int) -> Tensor:
        """Returns the indices of the patches that stay in raster order, (B, N) to (B, k) int64."""
        if self.positions is None:
            self.positions = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
        kept = select_patches(self._rank(scores, self.positions, self._number), k)
        self.positions = self.positions.gather(1, kept)
        self._number += 1
        return kept


def ranked(weight: int, places: Ranks | None = None) -> Rank:
    """Returns the rule that ranks patches by values of their places less the weighted ranks of their scores.

    The highest score has rank 0. :mod:`gft_edge.runtime.ruled_graph` puts the same rule into an exported graph.

    Args:
        weight: of the scores: 1 for the highest first, the model's own rule; -1 for the lowest; 0 for places alone.
        places: values of places, (B, S, P), B and S may be 1; distinct within a row where the weight is 0; None for 0.
    """

    def rank(scores: Tensor, positions: Tensor, number: int) -> Tensor:
        if places is None:
            return weight * scores
        values = torch.from_numpy(places[:, min(number, places.shape[1] - 1)]).to(scores.device)
        order = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return values.expand(len(positions), -1).gather(1, positions) - weight * order

    return rank
