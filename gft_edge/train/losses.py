"""Losses of training: labels, and the answers of a teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def label_loss(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Returns the cross-entropy of logits (B, classes) and classes (B,) or class shares (B, classes), mean over images."""
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def teacher_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """Returns the cross-entropy of logits (B, classes) and the teacher's probabilities (B, classes), mean over images."""
    return F.cross_entropy(logits, teacher)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns T^2 KL(teacher || student) of logits (B, classes) divided by T, mean over images (Hinton et al., 2015)."""
    log_p, log_q = (F.log_softmax(logits / temperature, dim=1) for logits in (teacher, student))
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
