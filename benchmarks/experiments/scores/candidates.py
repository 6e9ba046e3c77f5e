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
import torch.nn.functional as F
from torch import Tensor

from gft_edge.control_results import CENTRE, LEAST, ORACLE, RANDOM, STATIC
from gft_edge.control_rules import SEEDS
from gft_edge.distill.losses import standardised
from gft_edge.model import choices
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
        depths: sum over the blocks before of the standardised column means of these patches, (B, N).
    """

    block: int
    number: int
    grid: tuple[int, int]
    positions: Tensor
    depths: Tensor


Scorer = Callable[[Tensor, Tensor, Tensor, Tensor, int, int, State], Tensor]


@dataclass(frozen=True)
class Candidate:
    """A way to choose patches.

    Attributes:
        name: draws of one control share it.
        score: its function.
        kind: what it is compared as.
        fuses: whether each selection adds one token, the weighted mean of the patches that it drops.
        reads_depths: whether the score reads ``State.depths``, which is then kept up to date.
    """

    name: str
    score: Scorer
    kind: Literal["product", "study", "control"] = "study"
    fuses: bool = False
    reads_depths: bool = False


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


def head_attention(query: Tensor, k: Tensor, heads: int) -> Tensor:
    """Returns the softmax attention of one query (B, C) to all keys (B, T, C), by head: (B, T, H)."""
    products = (k * query.unsqueeze(1)).unflatten(2, (heads, -1)).sum(dim=3)
    return (products * (k.shape[2] // heads) ** -0.5).softmax(dim=1)


SOFTMAX_COLUMN = Score("mean query", lambda products: products.softmax(dim=1).mean(dim=2), all_tokens=True)


def softmax_column(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
    """Returns the softmax over the column means of each head, mean over the heads: the attention of the mean query."""
    return SOFTMAX_COLUMN(q, k, heads, prefix)


def softmax_received(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
    """Returns the softmax attention that each patch receives from the patches, mean over queries and heads; makes the matrix."""
    query, key = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q[:, prefix:], k))
    attention = (query @ key.transpose(2, 3) * key.shape[3] ** -0.5).softmax(dim=3)
    return attention.mean(dim=(1, 2))[:, prefix:]


def _value_norms(v: Tensor, heads: int) -> Tensor:
    """Returns the length of each token's value in each head, (B, T, H)."""
    return v.unflatten(2, (heads, -1)).norm(dim=3)


def column_values(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
    """Returns the attention of the mean query times the length of the value, mean over the heads.

    The plain column mean cannot be weighted: a vector added to every key, which attention ignores, adds a constant to it, and a
    constant times the length of the value would change the ranking. Its softmax does not change.
    """
    attention = head_attention(q[:, prefix:].mean(dim=1), k, heads)
    return (attention * _value_norms(v, heads)).mean(dim=2)[:, prefix:]


def class_values(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
    """Returns class attention times the length of the value, mean over heads: the rule of ATS (Fayyaz et al., arXiv 2111.15667)."""
    return (head_attention(q[:, 0], k, heads) * _value_norms(v, heads)).mean(dim=2)[:, prefix:]


def column_gala_2d(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
    """Returns the gradient of the column mean on the grid: its length, mean over heads, mean over the 3 x 3 neighbours that exist.

    Of two neighbours in a line the difference is halved; at a border, or beside a dropped patch, it is taken to the only one.
    """
    query = q[:, prefix:].mean(dim=1)
    products = (k[:, prefix:] * query.unsqueeze(1)).unflatten(2, (heads, -1)).sum(dim=3).transpose(1, 2)
    rows, cols = state.grid
    there = torch.zeros(len(q), rows * cols, dtype=q.dtype).scatter(1, state.positions, 1.0).view(-1, 1, rows, cols)
    places = state.positions.unsqueeze(1).expand_as(products)
    values = products.new_zeros(len(q), heads, rows * cols).scatter(2, places, products).unflatten(2, (rows, cols))
    lengths = (_difference(values, there, 2).square() + _difference(values, there, 3).square()).sqrt() * there
    edges = lengths.mean(dim=1, keepdim=True)
    window = torch.ones(1, 1, 3, 3, dtype=q.dtype)
    smooth = F.conv2d(edges, window, padding=1) / F.conv2d(there, window, padding=1).clamp_min(1)
    return smooth.flatten(1).gather(1, state.positions)


def _difference(values: Tensor, there: Tensor, dim: int) -> Tensor:
    """Returns differences along a dimension of the grid between the neighbours that are there, (B, H, rows, cols)."""
    total, count = torch.zeros_like(values), torch.zeros_like(there)
    for step in (1, -1):
        has = _moved(there, step, dim)
        total = total + step * has * (_moved(values, step, dim) - values)
        count = count + has
    return total / count.clamp_min(1)


def _moved(values: Tensor, step: int, dim: int) -> Tensor:
    """Returns the neighbour ahead (step 1) or behind (step -1) of each place, 0 outside of the grid."""
    moved = torch.zeros_like(values)
    size = values.shape[dim] - 1
    moved.narrow(dim, 0 if step == 1 else 1, size).copy_(values.narrow(dim, 1 if step == 1 else 0, size))
    return moved


def several_depths(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
    """Returns the mean over the blocks up to this one of the standardised column means."""
    return (state.depths + standardised(column_mean(z, q, k, v, heads, prefix, state))) / state.block


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


def ranked_by(rank: choices.Rank) -> Scorer:
    """Returns a rule of the controls as a score; it is given the column mean."""

    def scored(z: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, prefix: int, state: State) -> Tensor:
        return rank(column_mean(z, q, k, v, heads, prefix, state), state.positions, state.number)

    return scored


def fused_weights(q: Tensor, k: Tensor, heads: int, prefix: int, kept: Tensor) -> Tensor:
    """Returns the weights of the dropped patches in the fused token, (B, N): the attention of the mean query, summing to 1.

    EViT (Liang et al., 2022, arXiv 2202.07800) weights by the attention of the class token.

    Args:
        q, k: queries and keys of all tokens, (B, T, C).
        heads: their number.
        prefix: tokens before the patches.
        kept: indices of the patches that stay, (B, K), which have weight 0.
    """
    weights = SOFTMAX_COLUMN(q, k, heads, prefix).scatter(1, kept, 0.0)
    return weights / weights.sum(dim=1, keepdim=True)


STUDIED: tuple[Candidate, ...] = (
    *(Candidate(name, of_product(name), "product") for name in SCORES if name != "random"),
    Candidate("row-mean", row_mean),
    Candidate("softmax-column", softmax_column),
    Candidate("softmax-received", softmax_received),
    Candidate("column x value", column_values),
    Candidate("class x value", class_values),
    Candidate("column-gala-2d", column_gala_2d),
    Candidate("several depths", several_depths, reads_depths=True),
    Candidate("column-mean, fused", column_mean, fuses=True),
)
"""Candidates that learn nothing; learned queries and controls are added by :func:`candidates`."""

NOTES: Mapping[str, str] = {
    "column-mean": "mean score that a patch receives, (mean_i q_i) . k_j",
    "column-gala": "gradient of the column mean along the patches",
    "row-gala": "gradient of the row mean along the patches, as published",
    "class-row": "softmax attention of the class token (EViT)",
    "row-mean": "mean score that a patch gives, q_j . (mean_i k_i)",
    "softmax-column": "softmax over the column means of a head, mean over heads",
    "softmax-received": "softmax attention received from all patches; needs the attention matrix",
    "column x value": "softmax-column times the length of the value, by head",
    "class x value": "class-row times the length of the value, by head (ATS)",
    "column-gala-2d": "gradient of the column mean on the grid, 3 x 3 mean",
    "several depths": "mean of the standardised column means of all blocks so far",
    "column-mean, fused": "column-mean; each selection adds one token, the weighted mean of what it drops (EViT)",
    "learned query, Taylor": "fitted vector times key; target: ranks of the first-order effect of dropping the patch on the loss",
    "learned query, marks": "fitted vector times key; target: whether the patch holds a part of the mark",
    RANDOM: "patches by chance, three draws",
    LEAST: "lowest column-mean",
    STATIC: "the same places in every image, by mean column-mean on training images",
    CENTRE: "places nearest to the centre",
    ORACLE: "patches of the mark, then by column-mean",
}


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
    orders = [choices.random_places(indices, grid[0] * grid[1], seed) for seed in SEEDS]
    controls = [
        *((RANDOM, ranked_by(choices.by_place(order))) for order in orders),
        (LEAST, ranked_by(choices.least_important)),
        (STATIC, at_places(learned.places)),
        (CENTRE, ranked_by(choices.by_place(choices.centre_first(grid)))),
    ]
    if marked is not None:
        controls.append((ORACLE, ranked_by(choices.marks_first(marked))))
    return [
        *STUDIED,
        *(Candidate(name, learned_query(queries)) for name, queries in learned.queries.items()),
        *(Candidate(name, score, "control") for name, score in controls),
    ]
