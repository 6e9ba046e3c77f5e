"""Every loss of training, distillation and quantization-aware training, each a plain function with a mean over images.

A teacher's answers are logits or log-probabilities (B, classes): every loss here is the same for both, since adding one number to
all logits of an image changes nothing. Sums over classes are never divided by the number of classes: with 100 classes the weight
of such a loss would be a hundredth of what it seems to be.

Shape suffixes: B images, N patches that a block scores, K patches kept, C width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def label_loss(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Returns the cross-entropy of logits (B, classes) and classes (B,) or class shares (B, classes), mean over images."""
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def teacher_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """Returns the cross-entropy of logits (B, classes) and the teacher's probabilities (B, classes), mean over images.

    Elastic training uses it between budgets: the teacher is the model itself with every patch (as MCTF, Lee et al., 2024, arXiv
    2403.10030).
    """
    return F.cross_entropy(logits, teacher)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns T^2 KL(teacher || student) of logits (B, classes) divided by T, mean over images (Hinton et al., 2015)."""
    log_p, log_q = (F.log_softmax(logits / temperature, dim=1) for logits in (teacher, student))
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def relation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0, images_weight: float = 1.0) -> Tensor:
    """Returns T^2 times the mean distance over images plus ``images_weight`` times that over classes (DIST).

    The distance is 1 minus Pearson's correlation of the probabilities, of one image over the classes and of one class over the
    images of the batch. A student then copies the order of the answers, not their scale (Huang et al., 2022, arXiv 2205.10536).

    Args:
        student, teacher: logits (B, classes). With one image the second part is 0: one image has no relation to others.
        temperature: divides the logits.
        images_weight: of the part over images.
    """
    q, p = (F.softmax(logits / temperature, dim=1) for logits in (student, teacher))
    between_classes = (1 - _correlation(q, p)).mean()
    if len(student) == 1:
        return temperature**2 * between_classes
    between_images = (1 - _correlation(q.T, p.T)).mean()
    return temperature**2 * (between_classes + images_weight * between_images)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Returns Pearson's correlation of the rows of (R, M) and (R, M); 0 where one is constant: (R,)."""
    a, b = (t - t.mean(dim=1, keepdim=True) for t in (a, b))
    return F.cosine_similarity(a, b, dim=1, eps=1e-8)


def hard_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns the cross-entropy of the student and the class that the teacher gives, mean over images (DeiT, arXiv 2012.12877)."""
    return F.cross_entropy(student, teacher.argmax(dim=1))


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns the mean squared difference of features (B, C) of the student, lifted to the teacher's width, and the teacher's.

    The squares are a mean over C too: widths differ between teachers. See :mod:`gft_edge.distill.lift` for the projector.
    """
    return F.mse_loss(student, teacher)


def map_loss(scores: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Returns KL(target || softmax(score / T)) over the patches, mean over images.

    The score is standardised for each image, since only its order decides which patches stay.

    Args:
        scores: of the student's block, (B, N).
        target: importance of the same patches, (B, N), none negative; divided by its sum.
        temperature: T, above 0.
    """
    shares = (standardised(scores.float()) / temperature).log_softmax(dim=1)
    goal = target.detach().float() + torch.finfo(torch.float32).tiny
    return F.kl_div(shares, goal / goal.sum(dim=1, keepdim=True), reduction="batchmean")


def ranking_loss(scores: Tensor, target: Tensor, kept: int) -> Tensor:
    """Returns the negative log-likelihood of the teacher's best K patches in their order, per patch, mean over images.

    The likelihood is that of Plackett and Luce: patches are drawn one after the other without replacement, each with a share
    softmax(score) of those that are left (ListMLE; Xia et al., 2008, with the sum cut off at K). The score is standardised as in
    :func:`map_loss`. The order of the patches that the teacher drops does not matter.

    Args:
        scores: of the student's block, (B, N).
        target: importance of the same patches, (B, N).
        kept: K, 1 to N.
    """
    order = target.detach().argsort(dim=1, descending=True, stable=True)
    sorted_scores = standardised(scores.float()).gather(1, order)
    left = sorted_scores.flip(1).logcumsumexp(dim=1).flip(1)  # of the patches from each place on
    return (left - sorted_scores)[:, :kept].mean(dim=1).mean()


def standardised(scores: Tensor) -> Tensor:
    """Returns scores (B, N) with mean 0 and standard deviation 1 over the patches of each image; 0 where all are equal."""
    centred = scores - scores.mean(dim=1, keepdim=True)
    return centred * (centred.square().mean(dim=1, keepdim=True) + torch.finfo(scores.dtype).eps).rsqrt()
