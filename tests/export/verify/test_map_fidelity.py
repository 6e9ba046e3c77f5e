from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.export.verify.map_fidelity import (
    POINTS,
    area,
    assess_maps,
    blurred,
    curve,
    map_agreement,
    map_fidelity,
    mean_color,
    top_k_overlap,
)

GRID = (4, 4)
RNG = np.random.default_rng(0)


@pytest.fixture
def images():
    """Checkered noise, one patch of each image much brighter: the only one that the model below looks at."""
    images = RNG.standard_normal((5, 3, 16, 16)).astype(np.float32) * 0.05
    for row in range(5):
        r, c = divmod(3 * row, 4)
        images[row, :, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4] += np.where(np.indices((4, 4)).sum(0) % 2, 4, -4)
    return images


def _contrast(images):
    patches = images.reshape(-1, 3, 4, 4, 4, 4).transpose(0, 2, 4, 1, 3, 5)
    return patches.reshape(len(images), 16, -1).std(axis=2)


def bright(images, invert=False):
    """Class 0 if some patch has much contrast; importance: the contrast of each patch."""
    contrast = _contrast(images)
    importance = np.exp(-contrast if invert else contrast)
    logits = np.stack([4 * contrast.max(axis=1) - 6, np.zeros(len(images))], axis=1)
    kept = np.sort(np.argsort(-importance, axis=1)[:, :6], axis=1)
    return {
        "logits": logits,
        "importance_0": importance / importance.sum(axis=1, keepdims=True),
        "kept_0": kept,
    }


def test_curve_replaces_patch_after_patch(images):
    seen = []

    def run(batch):
        seen.append(batch)
        return {"logits": np.stack([batch.mean(axis=(1, 2, 3)), np.zeros(len(batch))], axis=1)}

    order = np.stack([RNG.permutation(16) for _ in images])
    start, end = np.zeros_like(images), np.ones_like(images)
    found = curve(run, start, end, order, np.zeros(5, int), GRID)
    assert found.shape == (5, POINTS)
    shares = np.array([round(share * 16) / 16 for share in np.linspace(0, 1, POINTS)])
    np.testing.assert_allclose(found, np.broadcast_to(1 / (1 + np.exp(-shares)), found.shape))
    third = seen[3]  # a quarter of the way: four patches
    for row in range(5):
        for patch in range(16):
            r, c = divmod(patch, 4)
            block = third[row, :, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4]
            assert (block == (1 if patch in order[row, :4] else 0)).all()


def test_good_map_beats_a_random_order_and_an_upside_down_one_loses(images):
    found = map_fidelity(("right", bright), ("wrong", lambda batch: bright(batch, invert=True)), images, GRID)
    right, wrong = found["gain_over_random"]["right"], found["gain_over_random"]["wrong"]
    assert right["insertion"]["mean"] > 0.2 and right["deletion"]["mean"] > 0.2
    assert wrong["insertion"]["mean"] < -0.2 and wrong["deletion"]["mean"] < -0.2
    for kind in ("insertion", "deletion"):
        low, high = right[kind]["interval"]
        assert low <= right[kind]["mean"] <= high
    assert found["auc_change"]["insertion"]["interval"][1] < 0 < found["auc_change"]["deletion"]["interval"][0]
    (stage,) = found["stages"]
    assert stage["rank_correlation"] == pytest.approx(-1)
    assert stage["kept"] == 6 and stage["top"] == 1
    assert stage["kept_overlap"] == stage["top_overlap"] == 0
    assert [side["name"] for side in found["sides"]] == ["right", "wrong"]
    assert len(found["fractions"]) == len(found["sides"][0]["insertion"]["curve"]) == POINTS


def test_same_sides_agree(images):
    found = map_fidelity(("a", bright), ("b", bright), images, GRID)
    assert found["auc_change"]["insertion"] == {"mean": 0, "interval": [0, 0]}
    assert found["stages"][0]["rank_correlation"] == found["stages"][0]["kept_overlap"] == 1


def test_ends_of_the_curves_are_the_images_themselves(images):
    found = map_fidelity(("a", bright), ("b", bright), images, GRID)["sides"][0]
    logits = bright(images)["logits"]
    whole = float((1 / (1 + np.exp(logits[:, 1] - logits[:, 0]))).mean())
    assert found["deletion"]["curve"][0] == pytest.approx(whole)
    assert found["insertion"]["curve"][-1] == pytest.approx(whole)
    assert found["deletion"]["curve"][-1] == pytest.approx(found["deletion_random"]["curve"][-1])


def test_area_of_a_line_is_its_mean():
    assert area(np.linspace(0, 1, POINTS)[None]) == pytest.approx([0.5])
    assert area(np.full((2, POINTS), 0.3)) == pytest.approx([0.3, 0.3])


def test_blur_is_three_box_filters_with_repeated_edges():
    image = RNG.standard_normal((1, 1, 9, 7)).astype(np.float32)
    slow = image[0, 0].astype(float)
    for _ in range(3):
        for axis in (0, 1):
            padded = np.pad(slow, [(2, 2) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
            slow = np.apply_along_axis(lambda v: np.convolve(v, np.ones(5) / 5, mode="valid"), axis, padded)
    np.testing.assert_allclose(blurred(image, 2)[0, 0], slow, atol=1e-6)


def test_mean_color_keeps_the_mean(images):
    flat = mean_color(images)
    assert flat.shape == images.shape
    assert (np.ptp(flat, axis=(2, 3)) == 0).all()
    np.testing.assert_allclose(flat[:, :, 0, 0], images.mean(axis=(2, 3)))


@given(st.permutations(range(8)), st.permutations(range(8)), st.integers(1, 8))
def test_overlap_counts_common_places(a, b, k):
    a, b = np.array(a), np.array(b)
    common = sum(x >= 8 - k and y >= 8 - k for x, y in zip(a, b))
    assert top_k_overlap(a[None], b[None], k) == pytest.approx(common / k)


def test_later_stages_are_compared_on_patches_that_both_sides_kept():
    reference = {
        "logits": np.zeros((1, 2)),
        "importance_0": np.array([[0.4, 0.3, 0.2, 0.1]]),
        "kept_0": np.array([[0, 1, 2]]),
        "importance_1": np.array([[0.5, 0.3, 0.2]]),
        "kept_1": np.array([[0, 1]]),
    }
    candidate = {
        **reference,
        "importance_0": np.array([[0.4, 0.3, 0.1, 0.2]]),
        "kept_0": np.array([[0, 1, 3]]),
        "importance_1": np.array([[0.6, 0.3, 0.1]]),
    }
    first, second = map_agreement(reference, candidate, 4)
    assert first["rank_correlation"] == pytest.approx(0.8)
    assert first["kept_overlap"] == pytest.approx(2 / 3)
    assert second["rank_correlation"] == pytest.approx(1)
    assert second["kept_overlap"] == 1


def record(mean, low, high, ranks=(1.0, 0.96), images=100):
    change = {"mean": mean, "interval": [low, high]}
    still = {"mean": 0.0, "interval": [0.0, 0.0]}
    stages = [{"stage": number, "rank_correlation": value} for number, value in enumerate(ranks)]
    return {"images": images, "auc_change": {"insertion": still, "deletion": change}, "stages": stages}


def test_maps_pass_if_the_whole_interval_is_within_the_limit():
    assert assess_maps(record(0.002, -0.004, 0.008)).verdict == "pass"
    assert assess_maps(record(-0.002, -0.009, 0.005)).verdict == "pass"


@pytest.mark.parametrize("sign", [1, -1])
def test_maps_fail_if_the_whole_interval_is_beyond_the_limit(sign):
    low, high = sorted((0.011 * sign, 0.03 * sign))
    found = assess_maps(record(0.02 * sign, low, high))
    assert found.verdict == "fail"
    assert "deletion area" in found.failures[0]


@pytest.mark.parametrize(
    ("mean", "low", "high"),
    [
        (0.0, -0.02, 0.02),
        (0.008, -0.002, 0.018),
        (-0.03, -0.07, 0.01),
        (0.012, 0.004, 0.02),  # a change for certain, within the limit or beyond it
        (-0.012, -0.02, -0.004),
    ],
)
def test_too_few_images_say_how_many_decide(mean, low, high):
    found = assess_maps(record(mean, low, high))
    assert found.verdict == "inconclusive"
    needed = 100 * ((high - low) / 2 / abs(0.01 - abs(mean))) ** 2
    assert found.images_needed == pytest.approx(needed, abs=1)
    assert f"about {found.images_needed} images" in found.undecided[0]


def test_maps_fail_by_the_rank_of_one_stage():
    found = assess_maps(record(0.0, 0.0, 0.0, ranks=(1.0, 0.94)))
    assert found.verdict == "fail"
    assert "stage 2" in found.failures[0]
    assert "0.940" in found.failures[0]
