"""Candidates of the search: token budgets whose counts fill whole tiles, each with its cost, exact where the cost is a chain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gft_edge.budget import MIN_TOKENS, TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ConfigError
from gft_edge.search.point import Cost
from gft_edge.search.staircase import free_tokens

Chains = npt.NDArray[np.int64]
Costs = npt.NDArray[np.float64]
Price = Callable[[TokenBudget], Cost]

MS, GMAC, MJ = range(3)
"""Columns of :data:`Costs`."""
MOST_CHAINS = 200_000
"""Up to so many budgets are all candidates; of more, some are drawn."""
DRAWN = 40_000
MOST_APART = 70_000
"""Budgets at most where the cost model has to be asked for each by itself."""
FREE_REACH = 64
"""Tokens more than kept that are looked at for free ones."""
FREE_MARGIN = 0.005
"""Relative difference of latencies that counts as none."""
SAME = 1e-9
"""Relative difference of a cost and its sum over neighbouring stages that is rounding."""


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
    """Returns the tile-aligned budgets of a model that have a cost.

    Args:
        config: of a focal model.
        price: cost of a budget; raises ConfigError where it has no data.
        multiple: of the tokens that stay.
        seed: of draws.
        also: budgets that are candidates whatever their counts, and without a cost too.

    Raises:
        ConfigError: the cost model has no data for any budget.
    """
    own, stages = aligned_counts(config, multiple), len(config.stages)
    extra = np.array([budget.keep for budget in also], np.int64).reshape(-1, stages)
    asked = _Asked(config, price)
    number = math.comb(len(own) + stages - 1, stages)
    complete = number <= MOST_CHAINS
    chains = np.unique(
        np.concatenate([all_chains(own, stages) if complete else drawn_chains(own, stages, DRAWN, seed), extra]), axis=0
    )
    counts = sorted({*own, *extra.flatten().tolist()})
    costs = None
    if stages > 2 and number > stages * len(counts) ** 2:
        costs = _separable_costs(chains, counts, asked, seed)
    separable = costs is not None
    if costs is None:
        if len(chains) > MOST_APART:
            complete = False
            chains = np.unique(np.concatenate([drawn_chains(own, stages, DRAWN, seed), extra]), axis=0)
        costs = asked.costs(chains)
    named = (chains[:, None] == extra[None]).all(axis=2).any(axis=1)
    costs[named] = asked.costs(chains[named])  # one that was measured may have a figure of its own
    known = ~np.isnan(costs[:, GMAC])
    if not known.any():
        assert asked.problem is not None
        raise asked.problem
    known |= named
    return Candidates(config.num_patches, chains[known], costs[known], complete, separable)


class _Asked:
    """Costs of chains by the cost model; NaN where it has no data.

    Args:
        config: of the model.
        price: raises ConfigError where it has no data; ``problem`` is the first of these errors.
    """

    def __init__(self, config: GFTConfig, price: Price) -> None:
        self.config, self.price = config, price
        self.problem: ConfigError | None = None

    def cost(self, keep: Sequence[int]) -> tuple[float, float, float]:
        """Returns the cost of one chain."""
        try:
            found = self.price(TokenBudget(tuple(int(k) for k in keep), self.config.num_patches))
        except ConfigError as error:
            self.problem = self.problem or error
            return (math.nan,) * 3
        return found.ms, found.gmac, math.nan if found.mj is None else found.mj

    def costs(self, chains: Chains) -> Costs:
        """Returns the costs of chains, (M, 3)."""
        return np.array([self.cost(chain) for chain in chains], np.float64).reshape(-1, 3)


def _separable_costs(chains: Chains, counts: Sequence[int], asked: _Asked, seed: int) -> Costs | None:
    """Returns the costs of chains as sums over neighbouring stages; None if the cost is no such sum.

    One drawn chain through every pair of counts of every two neighbouring stages is compared with the cost model.
    """
    tables = _tables(counts, chains.shape[1], asked)
    checked = _chains_through_pairs(np.array(counts, np.int64), chains.shape[1], seed)
    if not np.allclose(tables.costs(checked), asked.costs(checked), rtol=SAME, atol=1e-12, equal_nan=True):
        return None
    return tables.costs(chains)


def _chains_through_pairs(counts: npt.NDArray[np.int64], stages: int, seed: int) -> Chains:
    """Returns a drawn chain through every pair of counts at every two neighbouring stages."""
    rng = np.random.default_rng(seed)
    a, b = np.tril_indices(len(counts))
    rows = []
    for change in range(1, stages):
        before = a[:, None] + (rng.random((len(a), change - 1)) * (len(counts) - a)[:, None]).astype(np.int64)
        after = (rng.random((len(a), stages - change - 1)) * (b + 1)[:, None]).astype(np.int64)
        rows.append(np.concatenate([-np.sort(-before), a[:, None], b[:, None], -np.sort(-after)], axis=1))
    return counts[np.concatenate(rows)]


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


def _tables(counts: Sequence[int], stages: int, asked: _Asked) -> _Tables:
    size = len(counts)
    same = np.array([asked.cost((k,) * stages) for k in counts])
    pairs = []
    for change in range(1, stages):
        table = np.full((size, size, 3), math.nan)
        for i, a in enumerate(counts):
            for j, b in enumerate(counts[:i]):
                table[i, j] = asked.cost((a,) * change + (b,) * (stages - change))
            table[i, i] = same[i]
        pairs.append(table)
    return _Tables(np.array(counts, np.int64), tuple(pairs), same)


def free_counts(config: GFTConfig, budget: TokenBudget, price: Price) -> dict[int, int]:
    """Returns the stages, from 0, that can keep more tokens at the same cost, and the largest such count of patches.

    Args:
        config: of the model.
        budget: whose stages are changed one at a time.
        price: cost of a budget.
    """
    found = {}
    asked = _Asked(config, price)
    for stage, kept in enumerate(budget.keep):
        most = budget.num_patches if stage == 0 else budget.keep[stage - 1]
        counts = range(kept, min(most, kept + FREE_REACH) + 1)
        keeps = {k: (*budget.keep[:stage], k, *budget.keep[stage + 1 :]) for k in counts}
        ms = {k: value for k, keep in keeps.items() if not math.isnan(value := asked.cost(keep)[MS])}
        free = [k for k, smallest in free_tokens(ms, FREE_MARGIN).items() if smallest == kept]
        if free:
            found[stage] = max(free)
    return found
