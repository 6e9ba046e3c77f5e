"""Losses against their definitions in numpy."""

import itertools
import math

import numpy as np
import pytest
import torch

from gft_edge.distill.losses import (
    distillation_loss,
    feature_loss,
    hard_loss,
    label_loss,
    map_loss,
    ranking_loss,
    relation_loss,
    teacher_loss,
)


def shares(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.fixture
def logits():
    return np.random.default_rng(0).standard_normal((2, 5, 3))


def test_label_loss_is_the_cross_entropy_with_smoothed_targets(logits):
    labels = np.array([0, 2, 1, 1, 0])
    targets = 0.9 * np.eye(3)[labels] + 0.1 / 3
    expected = -(targets * np.log(shares(logits[0]))).sum(axis=1).mean()
    assert label_loss(torch.from_numpy(logits[0]), torch.from_numpy(labels), 0.1).item() == pytest.approx(expected)
    assert label_loss(torch.from_numpy(logits[0]), torch.from_numpy(targets)).item() == pytest.approx(expected)


def test_teacher_loss_is_the_cross_entropy_of_two_distributions(logits):
    teacher = shares(logits[1])
    expected = -(teacher * np.log(shares(logits[0]))).sum(axis=1).mean()
    assert teacher_loss(torch.from_numpy(logits[0]), torch.from_numpy(teacher)).item() == pytest.approx(expected)


def test_distillation_loss_is_the_scaled_divergence(logits):
    student, teacher = logits
    p, q = shares(teacher / 3), shares(student / 3)
    expected = 9 * (p * np.log(p / q)).sum(axis=1).mean()
    found = distillation_loss(torch.from_numpy(student), torch.from_numpy(teacher), 3.0)
    assert found.item() == pytest.approx(expected)
    assert distillation_loss(torch.from_numpy(teacher), torch.from_numpy(teacher), 3.0).item() == 0


def test_losses_of_answers_do_not_shrink_with_the_number_of_classes():
    """A mean over classes too would be a hundredth with 100 classes; classes of share 0 must change nothing."""
    student, teacher = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    wide = [torch.cat((logits, torch.full((1, 98), -50.0)), dim=1) for logits in (student, teacher)]
    assert distillation_loss(*wide, 1.0).item() == pytest.approx(distillation_loss(student, teacher, 1.0).item())


def test_a_number_added_to_the_logits_of_an_image_changes_no_loss(logits):
    student, teacher = (torch.from_numpy(values) for values in logits)
    for loss in (lambda s, t: distillation_loss(s, t, 2.0), relation_loss, hard_loss):
        assert loss(student, teacher.log_softmax(dim=1)).item() == pytest.approx(loss(student, teacher).item())


def test_relation_loss_is_one_minus_pearson_over_classes_and_over_images(logits):
    student, teacher = logits
    q, p = shares(student / 2), shares(teacher / 2)
    classes = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p)])
    images = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T)])
    found = relation_loss(torch.from_numpy(student), torch.from_numpy(teacher), 2.0, images_weight=3.0)
    assert found.item() == pytest.approx(4 * (classes + 3 * images))
    assert relation_loss(torch.from_numpy(student), torch.from_numpy(student)).item() == pytest.approx(0, abs=1e-12)
    assert torch.isfinite(relation_loss(torch.from_numpy(student[:1]), torch.from_numpy(teacher[:1])))


def test_relation_loss_of_opposite_answers_is_two_for_each_part():
    student = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    assert relation_loss(student, student.flip(1)).item() == pytest.approx(4)


def test_hard_loss_takes_the_class_of_the_teacher_as_label(logits):
    student, teacher = (torch.from_numpy(values) for values in logits)
    assert hard_loss(student, teacher).item() == pytest.approx(label_loss(student, teacher.argmax(dim=1)).item())


def test_feature_loss_is_a_mean_over_width_and_images():
    assert feature_loss(torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 3.0], [0, 0, 0]])).item() == pytest.approx(14 / 6)


def test_map_loss_is_the_divergence_of_standardised_scores_from_the_map():
    rng = np.random.default_rng(1)
    scores, target = rng.standard_normal((3, 6)), rng.random((3, 6))
    q = shares((scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True) / 0.5)
    p = target / target.sum(1, keepdims=True)
    expected = (p * np.log(p / q)).sum(axis=1).mean()
    for factor in (1.0, 7.0):
        found = map_loss(torch.from_numpy(factor * scores), torch.from_numpy(target), 0.5)
        assert found.item() == pytest.approx(expected, rel=1e-4)


def test_ranking_loss_is_a_likelihood_of_orders():
    """Over all orders of N patches the likelihoods of the first K sum to one, each counted (N - K)! times."""
    scores = torch.tensor([[0.3, -1.0, 0.9, 0.1]])
    for kept in (1, 2, 4):
        orders = itertools.permutations(range(4))
        total = sum(
            math.exp(-kept * ranking_loss(scores, -torch.tensor([order]).float(), kept).item()) for order in orders
        )
        assert total == pytest.approx(math.factorial(4 - kept), rel=1e-4)


def test_ranking_loss_is_least_for_the_order_of_the_teacher_and_ignores_dropped_patches():
    scores = torch.tensor([[3.0, 1.0, -1.0, -3.0]])
    right, swapped = torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([[3.0, 4.0, 2.0, 1.0]])
    assert ranking_loss(scores, right, 2) < ranking_loss(scores, swapped, 2)
    assert ranking_loss(scores, right, 2) == ranking_loss(scores, torch.tensor([[4.0, 3.0, 1.0, 2.0]]), 2)
