from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.stats.metrics import accuracy, mcnemar, spearman, sqnr_db, wilson_interval

LOGITS = np.array([[0.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, -1.0, -2.0], [0.0, 5.0, 2.0]])


@pytest.mark.parametrize(("labels", "share"), [([2, 0, 0, 1], 1.0), ([2, 0, 1, 0], 0.5), ([0, 1, 2, 0], 0.0)])
def test_accuracy_is_the_share_of_rows_with_the_largest_value_at_the_label(labels, share):
    assert accuracy(LOGITS, np.array(labels)) == share


@pytest.mark.parametrize(("factor", "decibel"), [(0.1, 20.0), (0.01, 40.0), (1.0, 0.0), (10.0, -20.0)])
def test_sqnr_of_noise_of_known_size(factor, decibel):
    assert sqnr_db(LOGITS, LOGITS * (1 + factor)) == pytest.approx(decibel)


@given(st.integers(0, 99), st.floats(1e-3, 1e3))
def test_sqnr_does_not_depend_on_the_unit(seed, unit):
    reference, noise = np.random.default_rng(seed).standard_normal((2, 20))
    assert sqnr_db(unit * reference, unit * (reference + noise)) == pytest.approx(sqnr_db(reference, reference + noise))


def test_sqnr_of_equal_arrays_is_infinite():
    assert sqnr_db(LOGITS, LOGITS.copy()) == float("inf")


def test_sqnr_is_computed_in_double_precision():
    reference = np.full(10, 1e25, np.float32)
    assert sqnr_db(reference, reference * np.float32(1.5)) == pytest.approx(6.0206, abs=1e-3)


@given(st.integers(1, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_bounds_are_the_shares_the_count_is_just_1_96_deviations_from(counts):
    right, total = counts
    low, high = wilson_interval(right, total)
    assert 0 <= low <= right / total + 1e-12
    assert right / total - 1e-12 <= high <= 1
    for bound in (low, high):
        deviation = np.sqrt(bound * (1 - bound) / total)
        assert abs(right / total - bound) == pytest.approx(1.959964 * deviation, abs=1e-7)


def test_wilson_interval_of_a_textbook_example():
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson_interval(81, 263) == pytest.approx((0.25529, 0.36621), abs=1e-4)


@pytest.mark.parametrize(("only_a", "only_b"), itertools.product(range(5), range(6)))
def test_mcnemar_counts_the_outcomes_at_least_as_uneven(only_a, only_b):
    a = np.array([True] * only_a + [False] * only_b + [True, False])
    b = np.array([False] * only_a + [True] * only_b + [True, False])
    outcomes = [abs(2 * sum(coins) - len(coins)) for coins in itertools.product((0, 1), repeat=only_a + only_b)]
    expected = sum(uneven >= abs(only_a - only_b) for uneven in outcomes) / len(outcomes)
    assert mcnemar(a, b) == pytest.approx(expected)


class TestSpearman:
    def _slow(self, a, b):
        def ranks(v):
            return np.array([np.mean([sum(x < y for x in v) + 1, sum(x <= y for x in v)]) for y in v])

        return np.corrcoef(ranks(a), ranks(b))[0, 1]

    @given(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12).filter(
            lambda pairs: all(len(set(side)) > 1 for side in zip(*pairs))
        )
    )
    def test_equals_the_correlation_of_ranks(self, pairs):
        a, b = (np.array(side, float) for side in zip(*pairs))
        assert spearman(a, b) == pytest.approx(self._slow(a, b), abs=1e-12)

    def test_depends_on_order_alone(self):
        a = np.random.default_rng(0).standard_normal(50)
        assert spearman(a, np.exp(3 * a)) == pytest.approx(1)
        assert spearman(a, -a) == pytest.approx(-1)

    def test_constants_agree_with_each_other_only(self):
        assert spearman(np.ones(4), np.zeros(4)) == 1
        assert spearman(np.ones(4), np.arange(4)) == 0
