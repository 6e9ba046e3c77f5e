"""Bootstrap of several columns on the same images, against resampling image by image."""

from __future__ import annotations

import numpy as np
import pytest

from gft_edge.stats.gain import mean_difference, mean_estimate, normalised_gain
from gft_edge.stats.paired import difference_interval


def answers(seed, images, *shares):
    rng = np.random.default_rng(seed)
    return [rng.random(images) < share for share in shares]


def slow_interval(images, statistic, resamples=4000):
    rng = np.random.default_rng(9)
    values = [statistic(rng.integers(0, images, images)) for _ in range(resamples)]
    return np.percentile(values, (2.5, 97.5))


def test_a_difference_of_right_answers_is_that_of_the_paired_bootstrap():
    a, b = answers(0, 300, 0.8, 0.7)
    found = mean_difference(a, b)
    assert found.value == pytest.approx(a.mean() - b.mean())
    assert found.interval == pytest.approx(difference_interval((b & ~a).sum(), (a & ~b).sum(), 300), abs=0.007)


def test_a_mean_of_draws_agrees_with_resampling_images():
    own, *draws = answers(1, 200, 0.9, 0.6, 0.6, 0.6)
    values = own - np.mean(draws, axis=0)
    slow = slow_interval(200, lambda rows: values[rows].mean())
    assert mean_difference(own, np.mean(draws, axis=0)).interval == pytest.approx(slow, abs=0.006)
    assert mean_estimate(values).interval == pytest.approx(slow, abs=0.006)


def test_no_difference_on_any_image_is_bounded_by_the_rule_of_three():
    (a,) = answers(2, 100, 0.5)
    found = mean_difference(a, a)
    assert found.value == 0
    assert found.interval == pytest.approx((-0.0295, 0.0295), abs=0.001)


def test_gain_agrees_with_resampling_images():
    own, random, oracle = answers(3, 400, 0.8, 0.3, 0.95)
    found = normalised_gain(own, random, oracle)
    assert found.value == pytest.approx((own.mean() - random.mean()) / (oracle.mean() - random.mean()))

    def gain(rows):
        return (own[rows].mean() - random[rows].mean()) / (oracle[rows].mean() - random[rows].mean())

    assert found.interval == pytest.approx(slow_interval(400, gain), abs=0.01)
    assert normalised_gain(oracle, random, oracle).interval == (1, 1)
    assert normalised_gain(random, random, oracle).value == 0


def test_where_an_oracle_gains_nothing_there_is_no_gain():
    own, random = answers(4, 200, 0.7, 0.7)
    assert normalised_gain(own, random, random) is None
    hardly = random.copy()
    hardly[np.flatnonzero(~random)[:6]] = True
    hardly[np.flatnonzero(random)[:3]] = False
    assert hardly.mean() > random.mean()
    assert normalised_gain(own, random, hardly) is None
