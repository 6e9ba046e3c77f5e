"""Rules that choose patches, beside the model's own: least important, by chance, by place, by known marks; for controls.

Shape suffixes: B images, P patches of the whole image, N patches entering a block, K patches kept, S selections of a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gft_edge.model import places
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


def most_important(scores: Tensor, positions: Tensor, number: int) -> Tensor:
    """Returns the model's own scores."""
    return scores


def least_important(scores: Tensor, positions: Tensor, number: int) -> Tensor:
    """Returns the negative scores."""
    return -scores


def by_place(values: Tensor) -> Rank:
    """Returns the rule that keeps the places of the highest values.

    Args:
        values: of places, (S, B, P), distinct within a row; S and B may be 1, for all selections and all images.
    """

    def rank(scores: Tensor, positions: Tensor, number: int) -> Tensor:
        of_places = values[min(number, len(values) - 1)].to(scores.device)
        return of_places.expand(len(positions), -1).gather(1, positions)

    return rank


def marks_first(marked: Tensor) -> Rank:
    """Returns the rule that keeps the patches of the mark, and of these and of the others those of the highest score.

    Args:
        marked: which places hold a part of the mark, (B, P) bool.
    """

    def rank(scores: Tensor, positions: Tensor, number: int) -> Tensor:
        order = scores.argsort(dim=1, stable=True).argsort(dim=1)
        return order + scores.shape[1] * marked.to(scores.device).gather(1, positions)

    return rank


def random_places(indices: Sequence[int], num_patches: int, seed: int) -> Tensor:
    """Returns :func:`gft_edge.model.places.random_places` as a tensor, (1, B, P)."""
    return torch.from_numpy(places.random_places(indices, num_patches, seed)).unsqueeze(0)


def centre_first(grid: tuple[int, int]) -> Tensor:
    """Returns values of places that fall with the distance from the centre of the grid, (1, 1, P)."""
    return torch.from_numpy(places.centre_first(grid)).view(1, 1, -1)


def distinct(values: Tensor) -> Tensor:
    """Returns the ranks of values along the last dimension, int64, 0 for the lowest; of equal ones the first place is higher."""
    return torch.from_numpy(places.distinct(values.detach().cpu().numpy()))
