"""Teachers against slow forms: pixels, classes, masked passes, rollout, ranked patches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from gft_edge.distill.teacher import (
    masked_logits,
    pixel_change,
    ranked_patches,
    require_same_classes,
    rollout,
    rollout_map,
)
from gft_edge.errors import ConfigError
from gft_edge.preprocess import PreprocessSpec

STUDENT = PreprocessSpec(32, 32)


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_pixels_of_the_teacher_are_those_of_its_own_preprocessing(order):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    theirs = dataclasses.replace(STUDENT, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), color_order=order)
    found = pixel_change(STUDENT, theirs)(torch.from_numpy(STUDENT.normalize(pixels)))
    assert torch.allclose(found, torch.from_numpy(theirs.normalize(pixels)), atol=1e-4)


def test_pixels_are_resized_and_left_alone_where_nothing_differs(images):
    assert pixel_change(STUDENT, STUDENT)(images) is images
    larger = pixel_change(STUDENT, PreprocessSpec(48, 64))(torch.full((1, 3, 32, 32), 0.7))
    assert larger.shape == (1, 3, 48, 64)
    assert torch.allclose(larger, torch.tensor(0.7))


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (("a", "c"), "class 1 is 'c' for the teacher and 'b' in the data"),
        (("a",), "class 1 is no class for the teacher and 'b'"),
        (("a", "b", "c"), "class 2 is 'c' for the teacher and no class in the data"),
    ],
)
def test_other_classes_are_refused_with_the_first_that_differs(theirs, message):
    require_same_classes(("a", "b"), ("a", "b"), "x")
    with pytest.raises(ConfigError, match=message):
        require_same_classes(theirs, ("a", "b"), "x")


def test_a_masked_teacher_that_sees_every_patch_is_the_teacher(tiny_model, images):
    everything = torch.arange(16).expand(2, -1)
    with torch.no_grad():
        expected = tiny_model(images, tiny_model.config.full_budget)
        assert torch.allclose(masked_logits(tiny_model, images, everything), expected, atol=1e-5)


def test_a_masked_teacher_does_not_see_the_other_patches(tiny_model, images):
    """The patch in the corner lies outside the reach of the stem of the patch in the other corner."""
    changed = images.clone()
    changed[:, :, 24:, 24:] += 5
    with torch.no_grad():
        first, second = (masked_logits(tiny_model, x, torch.tensor([[0, 1], [0, 4]])) for x in (images, changed))
        assert torch.allclose(first, second, atol=1e-5)
        seen = [masked_logits(tiny_model, x, torch.tensor([[0, 15], [0, 15]])) for x in (images, changed)]
        assert not torch.allclose(*seen, atol=1e-3)


def test_ranked_patches_survive_longest_then_score_highest(tiny_model, tiny_config, images):
    with torch.no_grad():
        stages = tiny_model(images, tiny_config.budget, maps=True).stages
    for share, count in ((0.3, 5), (0.5, 8), (0.75, 12)):
        found = ranked_patches(stages, 16, share)
        assert found.shape == (2, count)
        for image in range(2):
            first = set(stages[0].kept[image].tolist())
            assert set(found[image].tolist()) <= first
    best = ranked_patches(stages, 16, 12 / 16)
    assert torch.equal(best, stages[0].kept)
    assert torch.equal(ranked_patches(stages, 16, 6 / 16), stages[1].kept)


def test_rollout_is_the_class_row_of_the_product():
    generator = torch.Generator().manual_seed(1)
    attention = [torch.rand(2, 5, 5, generator=generator).softmax(dim=2) for _ in range(3)]
    product = torch.eye(5).expand(2, -1, -1)
    for weights in attention:
        product = (weights + torch.eye(5)) / 2 @ product
    assert torch.allclose(rollout(attention), product[:, 0], atol=1e-6)


def test_the_map_of_a_rollout_comes_with_the_logits_of_the_teacher(tiny_model, images):
    with torch.no_grad():
        logits, found = rollout_map(tiny_model, images)
        assert torch.equal(logits, tiny_model(images, tiny_model.config.full_budget))
    assert found.shape == (2, 16)
    assert bool((found > 0).all()) and bool((found.sum(dim=1) < 1).all())
