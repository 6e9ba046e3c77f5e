"""The scores that are compared, one plain function each, and the controls in the same form.

Notation: B images, T tokens, N patches of the block, P patches of the whole image, H heads, d channels per head, C = H d. Every
function maps the block's normalised tokens z, its queries q, keys k and values v, (B, T, C) each, the number of heads, the
number of tokens before the patches and a :class:`State` to scores (B, N). The scores of the product come from
:mod:`gft_edge.model.scores`; the others are studied here alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gft_edge.control_results import CENTRE, LEAST, ORACLE, RANDOM, STATIC
from gft_edge.control_rules import SEEDS
from gft_edge.model.choices import Rank, ranked
from gft_edge.model.places import centre_first, marked_first, random_places
from gft_edge.model.scores import SCORES, Score

COLUMN = "column-mean"
"""The score that all others are compared with."""


@dataclass(frozen=True)
class State:
    """What a score may know besides the tokens of its block.

    Attributes:
        block: number of the block, from 1.
        number: of the selection, from 0.
        grid: rows and columns of the patches of the whole image.
        positions: of the patches on that grid, (B, N), raster order.
    """

    block: int
    number: int
    grid: tuple[int, int]
    positions: Tensor


CELL = 4
"""Places along each side of a cell of :func:`each_cell`."""
TINY = 1e-12
Scorer = Callable[[Tensor, Tensor, Tensor, Tensor, int, int, State], Tensor]


@dataclass(frozen=True)
class Candidate:
    """A way to choose patches.

    Attributes:
        name: draws of one control share it.
        score: its function.
        kind: what it is compared as.
        weighs: whether each patch that stays counts for those that were dropped too: log(P / N) is added to its attention scores
            in all later blocks, the proportional attention of ToMe (Bolya et al., arXiv 2210.09461) with equal sizes.
    """

    name: str
    score: Scorer
    kind: Literal["product", "study", "control"] = "study"
    weighs: bool = False


@dataclass(frozen=True)
class Learned:
    """What candidates have learned from training images.

    Attributes:
        queries: by the name of the candidate and the number of the block, a vector (C,) for the keys.
        places: by the number of the block, values of the places for the static control, (P,).
    """

    queries: Mapping[str, Mapping[int, Tensor]]
    places: Mapping[int, Tensor]


def of_product(name: str) -> Scorer:
    """Returns a score of the product in the form of this table."""
    score = SCORES[name]

    def scored(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
        return score(q, k, heads, prefix)

    return scored


column_mean = of_product(COLUMN)


def row_mean(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
    """Returns the mean score that each patch gives, q_j . (mean_i k_i), summed over the heads."""
    return (q[:, prefix:] @ k[:, prefix:].mean(dim=1).unsqueeze(2)).squeeze(2)


SOFTMAX_COLUMN = Score("mean query", lambda products: products.softmax(dim=1).mean(dim=2), all_tokens=True)


def softmax_column(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
    """Returns the softmax over the column means of each head, mean over the heads: the attention of the mean query."""
    return SOFTMAX_COLUMN(q, k, heads, prefix)


def softmax_received(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
    """Returns the softmax attention that each patch receives from the patches, mean over queries and heads; makes the matrix."""
    query, key = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q[:, prefix:], k))
    attention = (query @ key.transpose(2, 3) * key.shape[3] ** -0.5).softmax(dim=3)
    return attention.mean(dim=(1, 2))[:, prefix:]


def standardised_heads(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
    """Returns the column means with mean 0 and deviation 1 over the patches in each head, mean over the heads."""
    products = (k[:, prefix:] * q[:, prefix:].mean(dim=1, keepdim=True)).unflatten(2, (heads, -1)).sum(dim=3)
    deviation = products.std(dim=1, correction=0, keepdim=True).clamp_min(TINY)
    return ((products - products.mean(dim=1, keepdim=True)) / deviation).mean(dim=2)


def normalised_keys(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
    """Returns the product of the mean query with the direction of k_j from the mean key, by head of length 1, mean over heads."""
    offsets = (k[:, prefix:] - k[:, prefix:].mean(dim=1, keepdim=True)).unflatten(2, (heads, -1))
    query = q[:, prefix:].mean(dim=1, keepdim=True).unflatten(2, (heads, -1))
    return ((offsets * query).sum(dim=3) / offsets.norm(dim=3).clamp_min(TINY)).mean(dim=2)


def key_distance(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
    """Returns the distance of k_j from the mean key: what is most like the mean of the patches is dropped first."""
    return (k[:, prefix:] - k[:, prefix:].mean(dim=1, keepdim=True)).norm(dim=2)


def ranks(scores: Tensor) -> Tensor:
    """Returns the rank of each patch, (B, N) int64, 0 for the highest score."""
    return scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def each_cell(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
    """Returns an order in which the best patch of every cell of 4 x 4 places comes first, then every second best, and so on.

    Within one such round, and within a cell, the order is that of :func:`softmax_column`.
    """
    scores = softmax_column(z, q, k, v, heads, prefix, state)
    rows, cols = state.positions // state.grid[1], state.positions % state.grid[1]
    cells = rows // CELL * state.grid[1] + cols // CELL
    rank, count = ranks(scores), scores.shape[1]
    ahead = (cells.unsqueeze(2) == cells.unsqueeze(1)) & (rank.unsqueeze(2) < rank.unsqueeze(1))
    return -(ahead.sum(dim=1) * count + rank).to(scores.dtype)


def half_spread(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
    """Returns the orders of :func:`softmax_column` and of :func:`spread_places` merged, one patch of each in turn."""
    best = ranks(softmax_column(z, q, k, v, heads, prefix, state))
    places = spread_places(state.grid).expand(len(k), -1).gather(1, state.positions)
    return -torch.minimum(2 * best, 2 * ranks(-places) + 1).to(k.dtype)


def spread_places(grid: tuple[int, int]) -> Tensor:
    """Returns the turn of each place, (P,) int64, distinct: regular grids with steps of 4, 2 and 1 places, each by chance."""
    rows, cols = (index.flatten() for index in torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij"))
    step = sum(((rows % size != 0) | (cols % size != 0)).long() for size in (4, 2))
    chance = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    assert isinstance(step, Tensor)
    return (step * len(rows) + chance).argsort().argsort()


def learned_query(queries: Mapping[int, Tensor]) -> Scorer:
    """Returns the score a . k_j with a vector per block that was fitted on training images; a vector (C,) is one per head."""

    def scored(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
        return k[:, prefix:] @ queries[state.block].to(k.dtype)

    return scored


def at_places(places: Mapping[int, Tensor]) -> Scorer:
    """Returns the values of the places where the patches lie, by the number of the block, (P,) each."""

    def scored(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
        return places[state.block].expand(len(k), -1).gather(1, state.positions)

    return scored


def ranked_by(rank: Rank) -> Scorer:
    """Returns a rule of the controls as a score; it is given the column mean."""

    def scored(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
        return rank(column_mean(z, q, k, v, heads, prefix, state), state.positions, state.number)

    return scored


STUDIED: tuple[Candidate, ...] = (
    *(Candidate(name, of_product(name), "product") for name in SCORES if name != "random"),
    Candidate("row-mean", row_mean),
    Candidate("softmax-column", softmax_column),
    Candidate("softmax-received", softmax_received),
    Candidate("standardised heads", standardised_heads),
    Candidate("normalised keys", normalised_keys),
    Candidate("key distance", key_distance),
    Candidate("each cell", each_cell),
    Candidate("half spread", half_spread),
    Candidate("softmax-column, weighted", softmax_column, weighs=True),
)
"""Candidates that learn nothing; learned queries and controls are added by :func:`candidates`."""

ONE_PRODUCT, BY_HEAD, NO_SCORE = "one vector a patch", "one vector a head and patch", "none"
NOTES: Mapping[str, tuple[str, str]] = {
    "column-mean": ("mean score that a patch receives, (mean_i q_i) . k_j", ONE_PRODUCT),
    "softmax-column": (
        "softmax over the column means of a head, mean over heads: the attention of the mean query",
        BY_HEAD,
    ),
    "column-gala": ("gradient of the column mean along the patches", BY_HEAD),
    "row-gala": ("gradient of the row mean along the patches, as published", BY_HEAD),
    "class-row": ("softmax attention of the class token (EViT)", BY_HEAD),
    "row-mean": ("mean score that a patch gives, q_j . (mean_i k_i)", ONE_PRODUCT),
    "softmax-received": (
        "softmax attention received from all patches",
        "the attention matrix, which is then not fused",
    ),
    "standardised heads": ("column means, standardised over the patches of a head, mean over heads", BY_HEAD),
    "normalised keys": (
        "mean query times the direction of the key from the mean key, mean over heads",
        f"{BY_HEAD}, and lengths",
    ),
    "key distance": ("distance of the key from the mean key: drops what is like the mean first", "lengths of the keys"),
    "each cell": (
        "softmax-column, but every cell of 4 x 4 places keeps as many: its best first",
        f"{BY_HEAD}, and a comparison of all pairs",
    ),
    "half spread": (
        "half of the patches by softmax-column, half on a regular grid of places",
        f"{BY_HEAD}, and two sorts of all patches",
    ),
    "softmax-column, weighted": (
        "softmax-column; log(all / kept patches) is added to the attention scores of those that stay (ToMe)",
        f"{BY_HEAD}, and a bias in attention",
    ),
    "random, weighted": ("patches by chance, one draw, with the same addition", "a bias in attention"),
    "learned query, Taylor": (
        "fitted vector times key; target: ranks of the first-order effect of dropping the patch on the loss",
        ONE_PRODUCT,
    ),
    "learned query, marks": (
        "fitted vector times key; target: whether the patch holds a part of the mark",
        ONE_PRODUCT,
    ),
    RANDOM: ("patches by chance, three draws", NO_SCORE),
    LEAST: ("lowest column-mean", ONE_PRODUCT),
    STATIC: ("the same places in every image, by mean column-mean on training images", NO_SCORE),
    CENTRE: ("places nearest to the centre", NO_SCORE),
    ORACLE: ("patches of the mark, then by column-mean", "not known at run time"),
}
"""What a candidate ranks by, and what it adds to a graph of static shapes besides TopK and Gather."""


def candidates(
    learned: Learned, grid: tuple[int, int], indices: Sequence[int], marked: Tensor | None
) -> list[Candidate]:
    """Returns everything that is compared on a batch, the three draws of random patches one by one.

    Args:
        learned: from training images.
        grid: rows and columns of the patches.
        indices: numbers of the images in their set.
        marked: which places hold a part of the mark, (B, P) bool; None leaves the oracle out.
    """
    patches = grid[0] * grid[1]
    orders = [ranked_by(ranked(0, random_places(indices, patches, seed)[:, None])) for seed in SEEDS]
    controls = [
        *((RANDOM, order) for order in orders),
        (LEAST, ranked_by(ranked(-1))),
        (STATIC, at_places(learned.places)),
        (CENTRE, ranked_by(ranked(0, centre_first(grid)[None, None]))),
    ]
    if marked is not None:
        controls.append((ORACLE, ranked_by(ranked(1, marked_first(marked.numpy())[:, None]))))
    return [
        *STUDIED,
        Candidate("random, weighted", orders[0], weighs=True),
        *(Candidate(name, learned_query(queries)) for name, queries in learned.queries.items()),
        *(Candidate(name, score, "control") for name, score in controls),
    ]
