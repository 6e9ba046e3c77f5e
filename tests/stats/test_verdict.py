from __future__ import annotations

import dataclasses

import pytest

from gft_edge.stats.agreement import Comparison, StageAgreement
from gft_edge.stats.paired import PairedTop1, difference_interval, images_needed
from gft_edge.stats.verdict import Limits, assess


def _comparison(kind="compression", difference=0.0, only=(0, 0), images=1000, agreement=1.0, **changes):
    top1 = PairedTop1(images, difference, difference_interval(*only, images), *only, 1.0, None)
    base = Comparison("reference", "candidate", images, 40.0, 0.01, agreement, 0.9, 0.9, (), top1, kind=kind)
    return dataclasses.replace(base, **changes)


class TestAssess:
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
            ({"stages": (StageAgreement(1, 1.0, 9, 0, 9, not_finite=1),)}, "importance of stage 2 for 1 of 1000"),
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
            (StageAgreement(0, 1.0, 9, 0, 9, importance_sqnr_db=3.0), "importance of stage 1 has SQNR 3.0 dB"),
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

    def test_logits_of_the_same_arithmetic_are_held_to_their_limit_where_the_same_patches_stay(self):
        settled = {"images": 100, "top1": None, "logit_sqnr_db": 20.0, "settled": 60}
        assert self._assess(_comparison("same_arithmetic", settled_sqnr_db=26.0, **settled)).failures == ()
        assert self._assess(_comparison("same_arithmetic", settled_sqnr_db=None, **settled)).failures == ()
        (failure,) = self._assess(_comparison("same_arithmetic", settled_sqnr_db=24.0, **settled)).failures
        assert "24.0 dB on 60 images that keep the same patches, limit 25" in failure

    def test_where_no_image_keeps_the_same_patches_all_count(self):
        found = self._assess(_comparison("same_arithmetic", logit_sqnr_db=20.0, settled=0, settled_sqnr_db=None))
        assert "20.0 dB, limit 25" in found.failures[0]

    def test_the_same_arithmetic_has_to_keep_the_same_patches(self):
        stages = (StageAgreement(0, 1.0, 9, 0, 9), StageAgreement(1, 0.89, 3, 0, 9))
        (failure,) = self._assess(_comparison("same_arithmetic", stages=stages)).failures
        assert failure.endswith("stage 2 Jaccard 0.890, limit 0.9")

    @pytest.mark.parametrize(
        ("rest", "sqnr", "verdict"), [("fp16", 24.0, "pass"), ("fp16", 23.7, "fail"), ("fp32", 24.0, "fail")]
    )
    def test_a_rest_in_fp16_adds_its_own_noise(self, rest, sqnr, verdict):
        """25 dB and 30 dB of independent noise together are 23.8 dB."""
        comparison = _comparison("same_arithmetic", settled=1000, settled_sqnr_db=sqnr, rest=rest)
        assert self._assess(comparison).verdict == verdict

    @pytest.mark.parametrize(("arithmetic", "verdict"), [("fp16", "fail"), ("bf16", "pass"), ("int8", "pass")])
    def test_half_precision_is_held_to_its_own_limit(self, arithmetic, verdict):
        assert self._assess(_comparison(arithmetic=arithmetic, logit_sqnr_db=25.0)).verdict == verdict

    def test_tie_excuses_what_later_stages_see(self):
        stages = (StageAgreement(0, 0.99, 8, 1, 9), StageAgreement(1, 1.0, 9, 0, 9, importance_sqnr_db=20.0))
        comparison = _comparison("exact", max_relative_error=0.0, stages=stages, top1=None)
        assert self._assess(comparison).verdict == "pass"
        comparison = dataclasses.replace(comparison, stages=(StageAgreement(0, 1.0, 9, 0, 9), stages[1]))
        assert self._assess(comparison).verdict == "fail"

    def test_tie_excuses_no_values_of_its_own_stage(self):
        """Also where the graph of a comparison has only the second of two stages."""
        stage = StageAgreement(1, 0.99, 8, 1, 9, importance_sqnr_db=20.0)
        comparison = _comparison("exact", max_relative_error=0.0, stages=(stage,), top1=None)
        (failure,) = self._assess(comparison).failures
        assert "importance of stage 2 has SQNR 20.0 dB" in failure
