"""Candidates of the search: token budgets whose counts fill whole tiles, each with its cost, exact where the cost is a chain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gft_edge.budget import MIN_TOKENS, TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.search.point import Cost

Chains = npt.NDArray[np.int64]
Costs = npt.NDArray[np.float64]
Price = Callable[[TokenBudget], Cost]

MS, GMAC, MJ = range(3)
"""Columns of :data:`Costs`."""
MOST_CHAINS = 200_000
"""Up to so many budgets are all candidates; of more, some are drawn."""
DRAWN = 40_000
DRAWN_APART = 4_000
"""Budgets that are drawn where each has to be asked for by itself."""
CHECKED = 24
"""Drawn budgets on which a chain's sum is compared with the cost itself."""
SAME = 1e-9


@dataclass(frozen=True)
class Candidates:
    """Budgets of one model at one precision.

    Attributes:
        num_patches: of the model.
        chains: patches kept, (M, stages), one row per budget.
        costs: of each budget, (M, 3): milliseconds, billions of MACs, millijoules; NaN where there is no figure.
        is_complete: every non-increasing chain of the counts is there; otherwise they were drawn.
        is_separable: the cost is a sum over neighbouring stages, so that the costs are exact from a table per pair of stages.
    """

    num_patches: int
    chains: Chains
    costs: Costs
    is_complete: bool
    is_separable: bool

    def budget(self, row: int) -> TokenBudget:
        """Returns the budget of a row."""
        return TokenBudget(tuple(int(k) for k in self.chains[row]), self.num_patches)

    def row_of(self, budget: TokenBudget) -> int | None:
        """Returns the row of a budget, None when it is no candidate."""
        found = np.flatnonzero((self.chains == np.array(budget.keep)).all(axis=1))
        return int(found[0]) if len(found) else None


def aligned_counts(config: GFTConfig, multiple: int) -> tuple[int, ...]:
    """Returns the counts of patches, ascending, with which the tokens are a multiple, and that of every patch.

    The same counts that :meth:`TokenBudget.align` gives.
    """
    prefix = config.num_prefix_tokens
    counts = [k for k in range(multiple - prefix, config.num_patches, multiple) if k >= MIN_TOKENS]
    return (*counts, config.num_patches)


def all_chains(counts: Sequence[int], stages: int) -> Chains:
    """Returns every non-increasing chain of the counts, (M, stages), in lexicographic order of the counts."""
    options = np.array(sorted(counts), np.int64)
    rows = np.arange(len(options))[:, None]
    for _ in range(stages - 1):
        lengths = rows[:, -1] + 1
        ends = np.cumsum(lengths)
        following = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        rows = np.concatenate([np.repeat(rows, lengths, axis=0), following[:, None]], axis=1)
    return options[rows]


def drawn_chains(counts: Sequence[int], stages: int, number: int, seed: int) -> Chains:
    """Returns so many non-increasing chains at most, drawn uniformly, and those with the same count in every stage."""
    options = np.array(sorted(counts), np.int64)
    rng = np.random.default_rng(seed)
    # A multiset of n of m counts is a set of n of m + n - 1 places (stars and bars), so a uniform set is a uniform chain.
    places = rng.random((number, len(options) + stages - 1)).argpartition(stages - 1, axis=1)[:, :stages]
    rows = np.sort(places, axis=1) - np.arange(stages)
    same = np.repeat(np.arange(len(options))[:, None], stages, axis=1)
    return np.unique(options[np.concatenate([rows[:, ::-1], same])], axis=0)


def find_candidates(
    config: GFTConfig, price: Price, multiple: int = 8, seed: int = 0, also: Sequence[TokenBudget] = ()
) -> Candidates:
    """Returns the tile-aligned budgets of a model with their costs.

    Args:
        config: of a focal model.
        price: cost of a budget.
        multiple: of the tokens that stay.
        seed: of draws.
        also: budgets that are candidates whatever their counts.

    Raises:
        ConfigError: the cost model has no data for this model.
    """
    own, stages = aligned_counts(config, multiple), len(config.stages)
    extra = np.array([budget.keep for budget in also], np.int64).reshape(-1, stages)
    number = math.comb(len(own) + stages - 1, stages)

    def candidates(complete: bool, chains: Chains, tables: _Tables | None) -> Candidates:
        chains = np.unique(np.concatenate([chains, extra]), axis=0)
        costs = tables.costs(chains) if tables is not None else _one_by_one(chains, config, price)
        return Candidates(config.num_patches, chains, costs, complete, tables is not None)

    complete = number <= MOST_CHAINS
    chains = all_chains(own, stages) if complete else drawn_chains(own, stages, DRAWN, seed)
    counts = sorted({*own, *extra.flatten().tolist()})
    if stages > 1 and number > (stages - 1) * len(counts) * (len(counts) + 1) // 2:
        tables = _tables(counts, config, price)
        rows = np.random.default_rng(seed).choice(len(chains), min(CHECKED, len(chains)), replace=False)
        exact = _one_by_one(chains[rows], config, price)
        if np.allclose(tables.costs(chains[rows]), exact, rtol=SAME, atol=1e-12, equal_nan=True):
            return candidates(complete, chains, tables)
    if len(chains) > DRAWN_APART:
        return candidates(False, drawn_chains(own, stages, DRAWN_APART, seed), None)
    return candidates(complete, chains, None)


def _row(cost: Cost) -> tuple[float, float, float]:
    return cost.ms, cost.gmac, math.nan if cost.mj is None else cost.mj


def _one_by_one(chains: Chains, config: GFTConfig, price: Price) -> Costs:
    budgets = (TokenBudget(tuple(int(k) for k in chain), config.num_patches) for chain in chains)
    return np.array([_row(price(budget)) for budget in budgets], np.float64).reshape(-1, 3)


@dataclass(frozen=True)
class _Tables:
    """Costs of the budgets ``a, ..., a, b, ..., b`` that change behind one stage.

    If the cost is a sum of terms of neighbouring stages, C(k) = sum over i of C(k_i x i, k_(i+1) x (n - i)) less the sum over the
    inner i of C(k_i x n): every term of the chain is then counted once.

    Attributes:
        counts: ascending.
        pairs: for each place of the change: costs by a and b, (counts, counts, 3); NaN where b exceeds a.
        same: costs with one count in every stage, (counts, 3).
    """

    counts: npt.NDArray[np.int64]
    pairs: tuple[Costs, ...]
    same: Costs

    def costs(self, chains: Chains) -> Costs:
        """Returns the costs of chains, (M, 3)."""
        places = np.searchsorted(self.counts, chains)
        total = np.zeros((len(chains), 3))
        for i, table in enumerate(self.pairs):
            total += table[places[:, i], places[:, i + 1]]
            if i:
                total -= self.same[places[:, i]]
        return total


def _tables(counts: Sequence[int], config: GFTConfig, price: Price) -> _Tables:
    stages, size = len(config.stages), len(counts)

    def cost(keep: tuple[int, ...]) -> tuple[float, float, float]:
        return _row(price(TokenBudget(keep, config.num_patches)))

    same = np.array([cost((k,) * stages) for k in counts])
    pairs = []
    for change in range(1, stages):
        table = np.full((size, size, 3), math.nan)
        for i, a in enumerate(counts):
            for j, b in enumerate(counts[:i]):
                table[i, j] = cost((a,) * change + (b,) * (stages - change))
            table[i, i] = same[i]
        pairs.append(table)
    return _Tables(np.array(counts, np.int64), tuple(pairs), same)
