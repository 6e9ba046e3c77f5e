from __future__ import annotations

import itertools

import numpy as np
import pytest

from gft_edge.budget import TokenBudget
from gft_edge.config.model import preset
from gft_edge.errors import ConfigError
from gft_edge.search.latency import TERMS, block_terms, fit_latencies, not_negative
from gft_edge.search.measuring import design

SCENES = preset("gft_scenes")


def brute_force(a, b):
    """The best solution over every subset of free variables."""
    best = np.zeros(a.shape[1])
    for size in range(1, a.shape[1] + 1):
        for free in itertools.combinations(range(a.shape[1]), size):
            x = np.zeros(a.shape[1])
            x[list(free)] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            if (x >= 0).all() and np.linalg.norm(a @ x - b) < np.linalg.norm(a @ best - b) - 1e-12:
                best = x
    return best


@pytest.mark.parametrize("seed", range(20))
def test_least_squares_without_negative_values(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random((9, 4)), rng.standard_normal(9) + 0.3
    assert not_negative(a, b) == pytest.approx(brute_force(a, b), abs=1e-9)


def test_terms_by_hand():
    found = block_terms(SCENES, TokenBudget((144, 72, 72), 576))
    entering, rows = [577, 145, 73, 73, 73, 73], [145, 73, 73, 73, 73, 1]
    assert found[1:3] * 577 == pytest.approx([sum(entering), sum(rows)])
    assert found[3] * 577**2 == pytest.approx(sum(t * r for t, r in zip(entering, rows)))
    assert found[4:] == pytest.approx([2, (577 + 145) / 577])


def test_a_fit_recovers_what_made_the_figures_and_predicts_other_budgets():
    truth = np.array([1.5, 0.4, 0.9, 2.0, 0.05, 0.1])
    budgets = design(SCENES)
    fit = fit_latencies(SCENES, {b: float(block_terms(SCENES, b) @ truth) for b in budgets})
    assert fit.coefficients == pytest.approx(tuple(truth), rel=1e-6)
    other = TokenBudget((300, 123, 45), 576)
    assert other not in budgets
    assert fit.predict(SCENES, other) == pytest.approx(float(block_terms(SCENES, other) @ truth))


def test_few_budgets_have_few_terms_and_fewer_are_refused():
    few = {TokenBudget((k, k, k), 576): 1 + k / 100 for k in (576, 288, 144, 72)}
    assert np.count_nonzero(fit_latencies(SCENES, few).coefficients) <= 3
    with pytest.raises(ConfigError, match="4 measured budgets or more, found 3"):
        fit_latencies(SCENES, dict(list(few.items())[:3]))


@pytest.mark.parametrize("name", ["gft_scenes", "gft_typeface", "gft_base", "gft_small_448"])
def test_a_design_spans_the_range_and_tells_all_terms_apart(name):
    config = preset(name)
    budgets = design(config)
    assert len(budgets) == len(set(budgets)) <= 24
    for stage in range(3):
        counts = [budget.keep[stage] for budget in budgets]
        assert (min(counts), max(counts)) == (7, config.num_patches)
    terms = np.stack([block_terms(config, budget) for budget in budgets])
    assert np.linalg.matrix_rank(terms / terms.max(axis=0)) == len(TERMS)
