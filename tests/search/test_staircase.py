from __future__ import annotations

import pytest

from gft_edge.budget import TokenBudget
from gft_edge.config.model import preset
from gft_edge.errors import ConfigError
from gft_edge.report.figures.staircase import staircase
from gft_edge.search.staircase import SweepOptions, free_tokens, sweep_budgets

SCENES = preset("gft_scenes")


def test_free_tokens_cost_no_more_than_fewer():
    stairs = {8: 1.0, 12: 1.0, 16: 0.9, 17: 1.5, 24: 1.5, 25: 2.0}
    assert free_tokens(stairs) == {12: 8, 16: 8, 24: 17}
    assert free_tokens({8: 1.0, 16: 1.004, 24: 2.0}) == {}
    assert free_tokens({8: 1.0, 16: 1.004, 24: 2.0}, margin=0.01) == {16: 8}


@pytest.mark.parametrize("points", [4, 40, 200])
def test_a_sweep_has_whole_tiles_and_one_token_more(points):
    budgets = sweep_budgets(SCENES, SweepOptions(points=points))
    assert 2 <= len(budgets) <= points + 2
    assert max(budgets) == 576
    assert {(count + 1) % 8 for count in budgets} == {0, 1}
    assert all(budget.keep == (count,) * 3 for count, budget in budgets.items())


def test_a_sweep_of_a_stage_leaves_the_stages_before_it():
    budgets = sweep_budgets(SCENES, SweepOptions(stage=2, budget=TokenBudget((300, 100, 50), 576)))
    assert budgets[7] == TokenBudget((300, 7, 7), 576)
    assert budgets[300] == TokenBudget((300, 300, 50), 576)


def test_unknown_stages_are_refused():
    with pytest.raises(ConfigError, match="stage must be 1 to 3 or uniform, found 4"):
        sweep_budgets(SCENES, SweepOptions(stage=4))
    with pytest.raises(ConfigError, match="points must be at least 2"):
        SweepOptions(points=1)


def test_the_staircase_is_drawn():
    drawn = staircase([8, 9, 16], [1.0, 2.0, 2.0], {16}, "tokens after stage 1")
    assert drawn.startswith("<svg")
    assert "tokens after stage 1" in drawn
    assert "costs no more than fewer tokens" in drawn
