from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.stats.metrics import accuracy, sqnr_db, wilson_interval

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
