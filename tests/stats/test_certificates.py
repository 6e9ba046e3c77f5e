from __future__ import annotations

import dataclasses
import json
import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gft_edge.errors import DataError
from gft_edge.stats.certificates import (
    CertificateCheck,
    NoiseBound,
    StageBound,
    at_least,
    certify,
    check,
    contradicts,
    coverage_of_largest,
    flipped,
    leads,
    measure_bound,
    noise,
    reach,
    selecting,
)

PAGE = Path(__file__).parents[2] / "docs/certificates.md"


def outputs(*scores_and_k):
    """Outputs of a model from the scores (B, N) and number of kept patches of each stage."""
    found = {"logits": np.zeros((len(scores_and_k[0][0]), 2))}
    for stage, (scores, k) in enumerate(scores_and_k):
        found[f"scores_{stage}"] = np.asarray(scores, np.float32)
        found[f"kept_{stage}"] = np.sort(np.argsort(-found[f"scores_{stage}"], axis=1, kind="stable")[:, :k], axis=1)
    return found


def highest(scores, k):
    return set(np.argsort(-scores, kind="stable")[:k].tolist())


@settings(max_examples=60)
@given(st.integers(2, 12), st.integers(0, 2**31), st.floats(0.001, 1.0), st.floats(-50, 50), st.data())
def test_noise_within_the_bound_never_flips_a_certified_set(patches, seed, bound, common, data):
    k = data.draw(st.integers(1, patches - 1))
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((20, patches)) * 10 ** rng.uniform(-3, 3)
    # The worst that the bound allows: kept patches lose half of it, others win half, but for one unit in the last place.
    kept, lead = leads(found, k)
    size = bound * found.std(axis=1, keepdims=True) * (1 - 1e-9)
    error = rng.choice([-0.5, 0.5], found.shape) * size
    error[::2] = -0.5 * size[::2]
    np.put_along_axis(error[::2], kept[::2], 0.5 * size[::2], axis=1)
    reference = found - error + common
    assert (reach(reference, found, k) <= noise(reference, found, k) + 1e-9).all()
    limits = NoiseBound((StageBound(0, patches, k, 100, bound, bound),))
    given_ = certify({"scores_0": found}, limits)
    for row in range(len(found)):
        true = highest(reference[row], k)
        assert not given_.certified[row] or true == set(kept[row].tolist())
        assert set(kept[row][given_.certain[0][row]].tolist()) <= true
    np.testing.assert_array_equal(given_.certified, lead.min(axis=1) > bound)


def test_noise_is_the_largest_loss_of_lead():
    rng = np.random.default_rng(0)
    s = rng.standard_normal((5, 9))
    t = s + 0.3 * rng.standard_normal(s.shape) + rng.standard_normal((5, 1))
    for k in (1, 4, 8):
        slow = []
        for ours, theirs in zip(s, t):
            kept = highest(theirs, k)
            others = [j for j in range(9) if j not in kept]
            losses = [min(theirs[i] - theirs[j] for j in others) - min(ours[i] - ours[j] for j in others) for i in kept]
            slow.append(max(0, *losses) / theirs.std())
        np.testing.assert_allclose(noise(s, t, k), slow, rtol=1e-9)
    np.testing.assert_allclose(noise(s, s + 7, 4), 0, atol=1e-12)


def test_equal_scores_are_never_certified():
    bound = NoiseBound((StageBound(0, 4, 2, 100, 0.0, 0.0),))
    scores = np.array([[1.0, 1, 1, 1], [3, 1, 1, 0], [3, 2, 1, 0], [np.nan, 2, 1, 0]])
    found = certify({"scores_0": scores}, bound)
    assert found.certified.tolist() == [False, False, True, False]
    assert found.certain[0].tolist() == [[False, False], [True, False], [True, True], [False, False]]


@pytest.mark.parametrize("images", [20, 100])
def test_coverage_holds_with_its_confidence(images):
    """Of a heavy-tailed noise, whose distribution function is known: 1 - (1 + x)^-2."""
    rng = np.random.default_rng(images)
    largest = rng.pareto(2, (4000, images)).max(axis=1)
    covered = 1 - (1 + largest) ** -2.0
    stated = coverage_of_largest(images, 0.95)
    assert (covered >= stated).mean() == pytest.approx(0.95, abs=0.02)
    assert covered.mean() == pytest.approx(images / (images + 1), abs=0.003)


def test_coverage_of_several_stages_is_of_all_together():
    one = NoiseBound((StageBound(0, 9, 3, 200, 0.1, 0.1),))
    two = NoiseBound((*one.stages, StageBound(1, 3, 2, 100, 0.1, 0.1)))
    assert one.coverage == coverage_of_largest(200, 0.95)
    parts = [1 - coverage_of_largest(images, 0.975) for images in (200, 100)]
    assert two.coverage == pytest.approx(1 - sum(parts))


def test_certificates_hold_on_images_that_the_bound_has_not_seen():
    rng = np.random.default_rng(3)
    s = rng.standard_normal((4000, 40))
    t = s + 0.002 * rng.standard_normal(s.shape)
    sides = [(outputs((s[part], 12)), outputs((t[part], 12))) for part in (slice(1000), slice(1000, None))]
    bound = measure_bound(*sides[0])
    found = check(*sides[1], bound)
    assert found.images == 3000
    assert 0.6 < found.certified / found.images < 1 - found.flipped / found.images
    assert found.broken == ()
    assert found.lost <= 2 * 3000 * (1 - bound.coverage), (
        "a patch may lie above the largest reach of the first thousand images"
    )
    assert found.certain[0] > 0.98
    assert json.loads(json.dumps(found.to_json()))["broken"] == []


def test_a_later_stage_is_measured_where_the_earlier_ones_agree():
    first = np.array([[3.0, 2, 1, 0], [3, 2, 1, 0]])
    other = np.array([[3.0, 2, 1, 0], [3, 1, 2, 0]])
    second = np.array([[5.0, 1, 0], [5, 1, 0]])
    noisy = np.array([[5.0, 2, 0], [5, 99, 0]])
    reference, found = outputs((first, 3), (second, 1)), outputs((other, 3), (noisy, 1))
    assert flipped(reference, found).tolist() == [False, True]
    bound = measure_bound(reference, found)
    assert [stage.images for stage in bound.stages] == [2, 2]
    found = outputs((np.array([[3.0, 2, 1, 0], [0, 2, 1, 3]]), 3), (noisy, 1))
    assert [stage.images for stage in measure_bound(reference, found).stages] == [2, 1]
    with pytest.raises(DataError, match="no image keeps the same patches before stage 2"):
        measure_bound(*({name: values[1:] for name, values in side.items()} for side in (reference, found)))


def test_a_graph_may_leave_out_stages_that_drop_nothing():
    both = outputs((np.array([[3.0, 2, 1, 0]]), 3), (np.array([[3.0, 2, 1]]), 3), (np.array([[5.0, 1, 0]]), 1))
    assert selecting(both) == [0, 2]
    without = {name: values for name, values in both.items() if not name.endswith("_1")}
    assert [stage.stage for stage in measure_bound(both, without).stages] == [0, 2]


def test_a_flip_above_the_bound_is_told():
    s, t = np.array([[3.0, 2, 1, 0]] * 2), np.array([[3.0, 2, 1, 0], [3.0, 1, 2, 0]])
    found = check(outputs((s, 2)), outputs((t, 2)), NoiseBound((StageBound(0, 4, 2, 50, 0.1, 0.1),)))
    assert (found.certified, found.flipped, found.broken, found.lost) == (2, 1, (1,), 1)


def test_scores_of_another_budget_are_refused():
    bound = NoiseBound((StageBound(1, 4, 2, 50, 0.1, 0.1),))
    with pytest.raises(DataError, match="no scores at stage 2"):
        certify({"scores_0": np.zeros((1, 4))}, bound)
    with pytest.raises(DataError, match="scores of 5 patches at stage 2, the bound is of 4"):
        certify({"scores_1": np.zeros((1, 5))}, bound)
    with pytest.raises(DataError, match="no stages"):
        certify({}, NoiseBound(()))


def test_a_bound_is_read_back():
    bound = NoiseBound((StageBound(1, 4, 2, 50, 0.1, 0.1), StageBound(2, 2, 1, 40, 0.2, 0.0)), 0.9)
    data = json.loads(json.dumps(bound.to_json()))
    assert NoiseBound.from_json(data) == bound
    with pytest.raises(ValueError, match="out of range"):
        NoiseBound.from_json({**data, "stages": [dataclasses.asdict(StageBound(1, 4, 2, 50, 0.1, 0.2))]})
    with pytest.raises(KeyError):
        NoiseBound.from_json({"stages": []})


@given(st.integers(1, 60), st.data())
@settings(max_examples=60, deadline=None)
def test_tail_of_the_binomial_is_that_of_whole_numbers(total, data):
    count = data.draw(st.integers(0, total))
    share = Fraction(data.draw(st.integers(0, 50)), 50)
    exact = sum(math.comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(count, total + 1))
    assert at_least(count, total, float(share)) == pytest.approx(float(exact), abs=1e-9)


@pytest.mark.parametrize(
    ("images", "measured", "broken", "told"),
    [
        (400, 1000, 0, False),
        (400, 1000, 3, False),
        (400, 1000, 9, True),
        (12, 100, 12, True),
        (8, 12, 1, False),
        (100_000, 100_000, 50_000, True),
    ],
)
def test_broken_certificates_contradict_a_bound_beyond_its_coverage(images, measured, broken, told):
    bound = NoiseBound((StageBound(0, 16, 8, measured, 0.1, 0.1),))
    found = CertificateCheck(images, images, broken, tuple(range(broken)), (1.0,), 0)
    assert contradicts(found, bound) is told


def test_the_page_says_how_many_broken_certificates_a_bound_allows():
    rows = re.findall(r"^\| ([\d,]+) images \| (\d+) \| (\d+) \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == 3
    for measured, *allowed in rows:
        for stages, count in zip((1, 3), allowed):
            bound = NoiseBound((StageBound(0, 16, 8, int(measured.replace(",", "")), 0.1, 0.1),) * stages)
            told = [contradicts(CertificateCheck(256, 256, n, tuple(range(n)), (1.0,), 0), bound) for n in range(256)]
            assert told.index(True) == int(count) + 1
