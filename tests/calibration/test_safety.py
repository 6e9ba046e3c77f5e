from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from gft_edge.calibration.ptq import quantize_int8
from gft_edge.calibration.safety import StageOutput, _stages, paired_outputs, safety_of, stage_safety
from gft_edge.errors import DataError


def _sides(noise, images=300, patches=60, k=20, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((images, patches))
    inputs = np.broadcast_to(np.arange(patches), scores.shape)

    def side(values):
        return StageOutput(values, inputs, np.sort(np.argsort(-values, axis=1)[:, :k], axis=1))

    shifted = scores + noise * rng.standard_normal(scores.shape) + rng.standard_normal((images, 1))
    return side(scores), side(shifted)


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
def test_predicted_flips_are_those_that_happen(noise):
    found = stage_safety(0, *_sides(noise), 0.9)
    assert found.predicted_flips == pytest.approx(found.observed_flips, rel=0.2)
    assert found.predicted_changed == pytest.approx(found.observed_changed, abs=0.08)
    assert found.noise_std == pytest.approx(noise, rel=0.1)


def test_margins_are_between_the_last_kept_and_the_first_dropped():
    scores = np.array([[5.0, 1.0, 3.0, 2.5]])
    side = StageOutput(scores, np.arange(4)[None], np.array([[0, 2]]))
    found = stage_safety(1, side, side, 0.9)
    assert found.margin_p50 == found.margin_p05 == 0.5
    assert (found.predicted_flips, found.observed_flips, found.jaccard) == (0, 0, 1)
    assert (found.patches, found.kept, found.verdict) == (4, 2, "inconclusive"), "one image proves nothing"


def test_verdicts():
    assert stage_safety(0, *_sides(0.01), 0.9).verdict == "survived"
    assert stage_safety(0, *_sides(0.5), 0.9).verdict == "not survived"
    clear = stage_safety(0, *_sides(0.1), 0.5)
    assert (clear.verdict, clear.images_needed) == ("survived", None)
    tight = stage_safety(0, *_sides(0.1, images=20), clear.jaccard - 0.003)
    assert tight.verdict == "inconclusive"
    assert tight.images_needed > 20


def test_patches_are_matched_by_their_place_on_the_grid():
    full = StageOutput(np.array([[3.0, 2.0, 1.0, 0.0]]), np.array([[10, 11, 12, 13]]), np.array([[10, 11]]))
    other = StageOutput(np.array([[9.0, 7.5, 8.0, 5.0]]), np.array([[14, 12, 11, 10]]), np.array([[11, 14]]))
    found = stage_safety(0, full, other, 0.9)
    assert found.jaccard == pytest.approx(1 / 3)
    assert found.observed_flips == pytest.approx(1 / 3), "patch 10 of the common 10, 11 and 12"


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((16, 3, 32, 32)).astype(np.float32) for _ in range(2)]


def compared(full, compressed, batches):
    return safety_of(*paired_outputs(full, compressed, batches))


def test_a_model_agrees_with_itself(tiny_model, batches):
    found = compared(tiny_model, copy.deepcopy(tiny_model), batches)
    assert found.verdict == "survived"
    assert found.images == 32
    assert [(s.patches, s.kept) for s in found.stages] == [(16, 12), (12, 6)]
    assert all((s.jaccard, s.noise_std, s.observed_flips, s.predicted_flips) == (1, 0, 0, 0) for s in found.stages)


def test_scores_are_those_of_the_stages(tiny_model, batches):
    found = compared(tiny_model, tiny_model, batches)
    with torch.no_grad():
        stages = tiny_model(torch.from_numpy(np.concatenate(batches)), maps=True).stages
    for stage, maps, k in zip(found.stages, stages, (12, 6), strict=True):
        scores, importance = (-np.sort(-values.numpy(), axis=1) for values in (maps.scores, maps.importance))
        margins, others = ((s[:, k - 1] - s[:, k]) / s.std(axis=1) for s in (scores, importance))
        assert stage.margin_p50 == pytest.approx(np.median(margins), rel=1e-4)
        assert stage.margin_p50 != pytest.approx(np.median(others), rel=0.1), "the map does not rank"


def test_scores_of_any_scale_are_compared(tiny_model, batches):
    """A factor on all keys changes the scores of every patch and the ranking of none."""
    scaled = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(scaled.blocks[0].attn.qkv, name)[32:64] *= 4
    found = compared(tiny_model, scaled, batches).stages[0]
    assert (found.jaccard, found.noise_std, found.observed_flips) == (1, pytest.approx(0, abs=1e-6), 0)


def test_equal_scores_have_no_margin():
    side = _stages({"scores_0": np.ones((2, 4)), "kept_0": np.array([[0, 1]] * 2)})[0]
    found = stage_safety(0, side, side, 0.9)
    assert (found.margin_p50, found.noise_std, found.jaccard) == (0, 0, 1)


def test_quantization_is_seen(tiny_model, batches):
    quantized = quantize_int8(tiny_model, batches).model
    found = compared(tiny_model, quantized, batches)
    assert found.stages[0].noise_std < 1e-5 < found.stages[1].noise_std, (
        "nothing is rounded before the first block ranks"
    )
    with torch.no_grad():
        kept = [m(torch.from_numpy(np.concatenate(batches)), maps=True).stages[1].kept for m in (tiny_model, quantized)]
    sets = [[set(row.tolist()) for row in side] for side in kept]
    jaccard = np.mean([len(a & b) / len(a | b) for a, b in zip(*sets)])
    assert found.stages[1].jaccard == pytest.approx(jaccard)
    text = found.describe()
    assert text.startswith("selection on 32 images: ")
    assert text.count("\n  stage ") == 2
    assert f"\n  stage 2: kept sets {jaccard:.3f}" in text, (
        "stages count from 1, as on the report page and in sweep --stage"
    )


def test_no_images_are_refused(tiny_model):
    with pytest.raises(DataError, match="selection: no images"):
        compared(tiny_model, tiny_model, [])
