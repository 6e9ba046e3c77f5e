from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.export.verify.verdict import Limits, assess
from gft_edge.stats.agreement import Comparison, Computation, StageAgreement, Tie, compare, stage_agreement
from gft_edge.stats.metrics import spearman
from gft_edge.stats.paired import PairedTop1, WorstClass, difference_interval, images_needed, paired_top1


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


def _comparison(kind="compression", difference=0.0, only=(0, 0), images=1000, agreement=1.0, **changes):
    top1 = PairedTop1(images, difference, difference_interval(*only, images), *only, 1.0, None)
    base = Comparison("reference", "candidate", images, 40.0, 0.01, agreement, 0.9, 0.9, (), top1, kind=kind)
    return dataclasses.replace(base, **changes)


class TestJudge:
    def _assess(self, *comparisons, **changes):
        return assess(comparisons, Limits(**changes))

    def test_enough_equal_images_pass(self):
        assert self._assess(_comparison()).verdict == "pass"

    def test_too_few_images_are_inconclusive_and_say_how_many_would_do(self):
        found = self._assess(_comparison(images=100, only=(1, 1)))
        assert found.verdict == "inconclusive"
        assert found.failures == ()
        assert found.images_needed == images_needed(1, 1, 100, 0.01)
        assert f"about {found.images_needed} images would decide" in found.undecided[0]

    def test_certain_drop_fails(self):
        found = self._assess(_comparison(difference=-0.05, only=(60, 10), images=1000))
        assert found.verdict == "fail"
        assert "top-1 changes by -5.00%" in found.failures[0]

    def test_gain_passes(self):
        assert self._assess(_comparison(difference=0.05, only=(10, 60))).verdict == "pass"

    @pytest.mark.parametrize(
        ("agreement", "images", "verdict"), [(0.90, 1000, "fail"), (0.95, 20, "inconclusive"), (0.97, 1000, "pass")]
    )
    def test_agreement_is_held_against_its_limit_with_its_interval(self, agreement, images, verdict):
        assert self._assess(_comparison(agreement=agreement, images=images, top1=None)).verdict == verdict

    @pytest.mark.parametrize("kind", ["exact", "same_arithmetic", "compression"])
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"not_finite": 2}, "logits of 2 of 1000 images are not finite"),
            ({"reference_not_finite": 3}, "logits of reference for 3 of 1000 images are not finite"),
            ({"stages": (StageAgreement(1, 1.0, 9, 0, 9, not_finite=1),)}, "importance of stage 1 for 1 of 1000"),
        ],
    )
    def test_values_that_are_not_finite_fail_on_either_side(self, kind, changes, words):
        exact = {"max_relative_error": 0.0, "logit_sqnr_db": None}
        (failure,) = self._assess(_comparison(kind, **exact, **changes)).failures
        assert words in failure

    @pytest.mark.parametrize(
        ("stage", "words"),
        [
            (StageAgreement(0, 0.8, 1, 0, 9), "Jaccard 0.800"),
            (StageAgreement(0, 1.0, 9, 0, 9, rank_correlation=0.5), "rank correlation 0.500"),
            (StageAgreement(0, 1.0, 9, 0, 9, importance_sqnr_db=3.0), "importance of stage 0 has SQNR 3.0 dB"),
            (StageAgreement(0, 1.0, 9, 0, 9, reordered=2), "another order on 2 images"),
        ],
    )
    def test_stages_that_changed_too_much_fail(self, stage, words):
        (failure,) = self._assess(_comparison(stages=(stage,))).failures
        assert words in failure

    def test_limits_follow_the_kind_and_never_the_names(self):
        """40 dB and 1 % error: too much for float rounding, little for rounding ties, nothing for compression."""
        for kind, verdict in (("exact", "fail"), ("same_arithmetic", "pass"), ("compression", "pass")):
            for names in (("torch int8", "onnxruntime fp32"), ("", "fp8")):
                comparison = _comparison(kind, reference=names[0], candidate=names[1])
                assert self._assess(comparison).verdict == verdict

    @pytest.mark.parametrize("arithmetic", ["int8", "int8-weights", "fp8"])
    def test_20_db_are_too_few_for_the_same_arithmetic_and_enough_for_compression(self, arithmetic):
        changes = {"arithmetic": arithmetic, "logit_sqnr_db": 20.0}
        assert self._assess(_comparison("compression", **changes)).verdict == "pass"
        (failure,) = self._assess(_comparison("same_arithmetic", **changes)).failures
        assert "20.0 dB, limit 25" in failure

    @pytest.mark.parametrize(("arithmetic", "verdict"), [("fp16", "fail"), ("bf16", "pass"), ("int8", "pass")])
    def test_half_precision_is_held_to_its_own_limit(self, arithmetic, verdict):
        assert self._assess(_comparison(arithmetic=arithmetic, logit_sqnr_db=25.0)).verdict == verdict

    def test_tie_excuses_what_later_stages_see(self):
        stages = (StageAgreement(0, 0.99, 8, 1, 9), StageAgreement(1, 1.0, 9, 0, 9, importance_sqnr_db=20.0))
        comparison = _comparison("exact", max_relative_error=0.0, stages=stages, top1=None)
        assert self._assess(comparison).verdict == "pass"
        comparison = dataclasses.replace(comparison, stages=(StageAgreement(0, 1.0, 9, 0, 9), stages[1]))
        assert self._assess(comparison).verdict == "fail"


class TestImportanceAgreement:
    def _stage(self, candidate, reference=((0.4, 0.3, 0.2, 0.1),)):
        sides = [
            {"importance_0": np.array(values, np.float32), "kept_0": np.array([[0, 1]])}
            for values in (reference, candidate)
        ]
        return stage_agreement(*sides, 0, np.arange(4)[None])

    def test_same_maps_are_exact(self):
        found = self._stage([(0.4, 0.3, 0.2, 0.1)])
        assert (found.importance_sqnr_db, found.rank_correlation) == (None, 1.0)

    def test_sharper_map_keeps_its_order_and_loses_decibels(self):
        found = self._stage([(0.7, 0.2, 0.08, 0.02)])
        assert found.rank_correlation == pytest.approx(1)
        assert found.importance_sqnr_db == pytest.approx(
            10 * np.log10(0.30 / (0.09 + 0.01 + 0.0144 + 0.0064)), rel=1e-5
        )

    def test_values_that_are_not_finite_count_as_zero(self):
        assert self._stage([(np.nan, 0.3, 0.2, 0.1)]).importance_sqnr_db == pytest.approx(10 * np.log10(0.30 / 0.16))

    def test_later_stage_is_ranked_on_patches_that_enter_on_both_sides(self):
        reference = {"importance_1": np.array([[0.5, 0.3, 0.2]]), "kept_1": np.array([[0, 1]])}
        candidate = {"importance_1": np.array([[0.1, 0.2, 0.7]]), "kept_1": np.array([[0, 3]])}
        found = stage_agreement(reference, candidate, 1, np.array([[0, 1, 2]]), np.array([[3, 1, 0]]))
        assert found.rank_correlation == pytest.approx(1)  # patches 0 and 1: 0.5, 0.3 and 0.7, 0.2

    def test_map_of_another_size_is_not_told(self):
        assert self._stage([(0.5, 0.3, 0.2)]).rank_correlation is None

    def test_ties_are_named(self):
        reference = {"importance_0": np.array([[0.25, 0.25, 0.25, 0.25]]), "kept_0": np.array([[0, 1]])}
        found = stage_agreement(reference, {"kept_0": np.array([[0, 3]])}, 0, np.arange(4)[None])
        assert found.tied == (Tie(0, (1, 3)),)

    def test_another_order_of_the_same_patches_is_told(self):
        reference = {"importance_0": np.array([[0.4, 0.3, 0.2, 0.1]]), "kept_0": np.array([[0, 1]])}
        found = stage_agreement(reference, {"kept_0": np.array([[1, 0]])}, 0, np.arange(4)[None])
        assert (found.identical, found.reordered) == (1, 1)


def test_labels_give_paired_statistics():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    other = np.eye(3, dtype=np.float32)[[0, 1, 1, 0]]
    sides = (Computation("torch", "fp32", "a"), Computation("torch", "int8", "b"))
    found = compare(sides, {"logits": logits}, {"logits": other}, np.array([0, 1, 2, 0]), 4, ("ant", "bee", "cat"))
    assert found.top1.only_reference == 1
    assert found.top1.worst_class == WorstClass("cat", 1, 1, 0)
