"""The comparison of elastic training with one budget alone, in small."""

import itertools

import numpy as np
import pytest

from gft_edge.benchmarks.experiments import fixed_budget as fixed
from gft_edge.checkpoint import read_info
from gft_edge.stats.metrics import mcnemar


def test_both_trainings_differ_in_their_budgets_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(fixed, "EVAL_IMAGES", 16)
    data = fixed.run("builtin", tmp_path, steps=1, num_images=16)
    recipes = [read_info(tmp_path / name).provenance["recipe"] for name in ("elastic", "fixed")]
    assert [recipe["train"].pop("elastic") for recipe in recipes] == [True, False]
    assert recipes[0] == recipes[1]
    assert recipes[0]["model"]["budget"] == data["fixed_budget"] == "43-43-43"
    assert len(data["budgets"]) == len(data["right"]["elastic"]) == 10
    assert all(12 <= right <= 16 for right in data["right"]["fixed"]), (
        "a step from a trained checkpoint unlearns little"
    )


@pytest.mark.parametrize(("only_a", "only_b"), itertools.product(range(5), range(6)))
def test_mcnemar_counts_the_outcomes_at_least_as_uneven(only_a, only_b):
    a = np.array([True] * only_a + [False] * only_b + [True, False])
    b = np.array([False] * only_a + [True] * only_b + [True, False])
    outcomes = [abs(2 * sum(coins) - len(coins)) for coins in itertools.product((0, 1), repeat=only_a + only_b)]
    expected = sum(uneven >= abs(only_a - only_b) for uneven in outcomes) / len(outcomes)
    assert mcnemar(a, b) == pytest.approx(expected)
