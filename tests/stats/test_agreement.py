from __future__ import annotations

import numpy as np
import pytest

from gft_edge.stats.agreement import Computation, Tie, compare, stage_agreement
from gft_edge.stats.paired import WorstClass


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
        reference = {"scores_0": np.array([[0.25, 0.25, 0.25, 0.25]]), "kept_0": np.array([[0, 1]])}
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


def test_images_with_other_patches_do_not_count_as_settled():
    logits = np.array([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0]])
    other = np.array([[4.0, 0.0], [0.0, 4.4], [0.0, 4.0]])
    kept = {"kept_0": np.array([[0, 1], [1, 2], [0, 3]]), "kept_1": np.array([[0], [1], [3]])}
    found = {"kept_0": np.array([[0, 1], [2, 1], [0, 3]]), "kept_1": np.array([[0], [1], [0]])}
    sides = (Computation("torch", "int8", "a"), Computation("onnxruntime", "int8", "b"))
    both = compare(sides, {"logits": logits, **kept}, {"logits": other, **found}, None, 4)
    assert (both.images, both.settled) == (3, 2)
    assert both.settled_sqnr_db == pytest.approx(10 * np.log10(32 / 0.16))
    assert both.logit_sqnr_db == pytest.approx(10 * np.log10(48 / 32.16))
    plain = compare(sides, {"logits": logits}, {"logits": other}, None, 4)
    assert (plain.settled, plain.settled_sqnr_db) == (3, plain.logit_sqnr_db)
