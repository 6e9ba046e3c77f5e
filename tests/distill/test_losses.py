"""Losses against their definitions in numpy."""

import numpy as np
import pytest
import torch

from gft_edge.distill.losses import distillation_loss, label_loss, teacher_loss


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
