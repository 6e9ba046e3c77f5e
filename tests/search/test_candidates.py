"""Candidates against brute force, and against cost models that are no chains."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from gft_edge.budget import TokenBudget
from gft_edge.config.model import preset
from gft_edge.errors import ConfigError
from gft_edge.model.macs import count_macs
from gft_edge.search import candidates
from gft_edge.search.candidates import (
    GMAC,
    MS,
    aligned_counts,
    all_chains,
    drawn_chains,
    find_candidates,
    free_counts,
)
from gft_edge.search.point import Cost

FOUR = preset("gft_typeface", image_size=128, depth=6, stages=(1, 2, 4, 6), budget=TokenBudget.full(4, 256))


def macs(config):
    def price(budget):
        found = count_macs(config, budget) / 1e9
        return Cost(2 * found, found, "measured", 3 * found)

    return price


def brute(counts, stages):
    return [chain for chain in itertools.product(sorted(counts), repeat=stages) if all(np.diff(chain) <= 0)]


@pytest.mark.parametrize("prefix", [1, 2])
def test_counts_are_those_of_align(prefix):
    config = preset("gft_typeface", image_size=64, num_prefix_tokens=prefix)
    aligned = {TokenBudget((k,) * 3, 64).align(8, prefix).keep[0] for k in range(8 - prefix, 65)}
    assert set(aligned_counts(config, 8)) == aligned


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_chains_are_every_falling_one(stages):
    counts = (3, 7, 15, 16)
    assert all_chains(counts, stages).tolist() == [list(chain) for chain in brute(counts, stages)]


def test_costs_of_a_chain_are_those_of_brute_force():
    found = find_candidates(FOUR, macs(FOUR), multiple=32)
    expected = brute(aligned_counts(FOUR, 32), 4)
    assert found.is_complete and found.is_separable
    assert found.chains.tolist() == sorted(map(list, expected))
    for row, chain in enumerate(found.chains):
        gmac = count_macs(FOUR, TokenBudget(tuple(chain.tolist()), 256)) / 1e9
        np.testing.assert_allclose(found.costs[row], [2 * gmac, gmac, 3 * gmac], rtol=1e-12)


@pytest.mark.parametrize("odd", [(95, 63, 63, 31), (95, 95, 31, 31), (63, 63, 63, 63)])
@pytest.mark.parametrize("chain", [True, False])
def test_a_cost_that_is_no_chain_is_asked_for_each_budget(odd, chain):
    """A budget with a figure of its own, as a bench file has, does not change those of others."""

    def price(budget):
        whole = sum(budget.keep) if chain else math.prod(budget.keep)
        return Cost(float(whole + (budget.keep == odd)), 1.0, "measured")

    found = find_candidates(FOUR, price, multiple=32, also=(TokenBudget(odd, 256),))
    assert not (found.is_separable and not chain)
    assert [price(found.budget(n)).ms for n in range(len(found.chains))] == found.costs[:, MS].tolist()


def test_too_many_budgets_are_drawn(monkeypatch):
    monkeypatch.setattr(candidates, "MOST_CHAINS", 100)
    monkeypatch.setattr(candidates, "DRAWN", 60)
    own = TokenBudget((200, 100, 50, 20), 256)
    first, again = (find_candidates(FOUR, macs(FOUR), 32, seed=3, also=(own,)) for _ in range(2))
    assert not first.is_complete and first.chains.tolist() == again.chains.tolist()
    every = set(brute(aligned_counts(FOUR, 32), 4)) | {own.keep}
    drawn = {tuple(chain) for chain in first.chains.tolist()}
    assert drawn <= every and own.keep in drawn
    assert {(k,) * 4 for k in aligned_counts(FOUR, 32)} <= drawn  # with them the cheapest


def test_draws_are_uniform():
    found = drawn_chains((2, 3, 4), 2, 3000, seed=0)
    assert sorted(map(tuple, found.tolist())) == brute((2, 3, 4), 2)


def test_budgets_without_data_are_left_out():
    own = TokenBudget((64, 64, 64, 64), 256)

    def price(budget):
        if budget.keep[0] > 127 or budget == own:
            raise ConfigError("not measured")
        return macs(FOUR)(budget)

    found = find_candidates(FOUR, price, 32, also=(own,))
    assert max(keep[0] for keep in found.chains.tolist()) == 127
    row = found.row_of(own)
    assert row is not None and np.isnan(found.costs[row, GMAC])
    with pytest.raises(ConfigError, match="nothing at all"):
        find_candidates(FOUR, lambda budget: (_ for _ in ()).throw(ConfigError("nothing at all")), 32)


def test_free_tokens_of_a_staircase():
    def stairs(budget):
        return Cost(sum(-(-(k + 1) // 16) for k in budget.keep), 1.0, "measured")

    budget = TokenBudget((70, 63, 40, 40), 256)
    assert free_counts(FOUR, budget, stairs) == {0: 79, 2: 47}
