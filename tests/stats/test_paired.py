from __future__ import annotations

import numpy as np
import pytest

from gft_edge.stats.paired import WorstClass, difference_interval, images_needed, paired_top1


class TestPairedTop1:
    LABELS = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    A = np.array([0, 0, 0, 1, 1, 1, 0, 2])
    B = np.array([0, 0, 1, 0, 0, 1, 1, 2])

    def test_counts_and_worst_class(self):
        found = paired_top1(self.A, self.B, self.LABELS, ("ant", "bee", "cat"))
        assert (found.only_reference, found.only_candidate, found.images) == (3, 1, 8)
        assert found.difference == pytest.approx(-2 / 8)
        assert found.mcnemar_p == pytest.approx(2 * (1 + 4) / 16)
        assert found.worst_class == WorstClass("ant", 3, 3, 2)  # -1/3, against -1/4 of bee

    def test_no_class_lost(self):
        assert paired_top1(self.B, self.B, self.LABELS).worst_class is None

    def test_interval_is_that_of_resampled_images(self):
        rng = np.random.default_rng(1)
        each = np.repeat([-1, 1, 0], [14, 4, 182])
        means = [rng.choice(each, 200).mean() for _ in range(8000)]
        found = difference_interval(14, 4, 200)
        assert found == pytest.approx(np.percentile(means, (2.5, 97.5)), abs=0.006)

    def test_interval_without_differences_follows_the_rule_of_three(self):
        low, high = difference_interval(0, 0, 300)
        assert high == -low == pytest.approx(3 / 300, rel=0.01)

    def test_interval_does_not_depend_on_chance(self):
        assert difference_interval(5, 3, 100) == difference_interval(5, 3, 100)


class TestImagesNeeded:
    def test_power_is_what_it_says(self):
        """Simulated: with that many images, the interval excludes the margin in about 80 % of the trials."""
        needed = images_needed(20, 20, 1000, 0.01)
        assert 2000 < needed < 4000
        counts = np.random.default_rng(0).multinomial(needed, [0.02, 0.02, 0.96], size=4000)
        difference = (counts[:, 1] - counts[:, 0]) / needed
        error = np.sqrt(((counts[:, 0] + counts[:, 1]) / needed - difference**2) / needed)
        assert np.mean(difference - 1.959964 * error > -0.01) == pytest.approx(0.8, abs=0.03)

    def test_no_difference_seen(self):
        assert images_needed(0, 0, 50, 0.01) == 299
        assert difference_interval(0, 0, 299)[0] > -0.01 > difference_interval(0, 0, 297)[0]

    def test_drop_that_equals_the_margin_is_never_decided(self):
        assert images_needed(3, 1, 200, 0.01) is None

    def test_is_more_than_was_seen(self):
        assert images_needed(1, 1, 100_000, 0.01) == 100_001
