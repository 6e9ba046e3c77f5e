"""Linear probes: logistic regression on what the classifier of a network would read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

DECAY = 0.1
"""Penalty on the squares of the weights, of features with standard deviation 1; by cross-validation on 512 images to learn from."""
STEPS = 100
FOLDS = 5
Tokens = npt.NDArray[np.float32]
Classes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Probe:
    """A linear classifier.

    Attributes:
        weight: (classes, C).
        bias: (classes,).
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        """Returns logits (B, classes) of tokens (B, C)."""
        return F.linear(tokens, self.weight, self.bias)

    def classes(self, tokens: Tokens) -> Classes:
        """Returns the class numbers of tokens (B, C), (B,)."""
        found: Classes = self(torch.from_numpy(tokens)).argmax(dim=1).numpy()
        return found


def fit_probe(tokens: Tokens, labels: Classes, num_classes: int, decay: float | None = None) -> Probe:
    """Fits multinomial logistic regression by L-BFGS, on standardised features in float64.

    Args:
        tokens: (B, C).
        labels: (B,).
        num_classes: of the task; a class may have no images.
        decay: penalty; :data:`DECAY` by default.
    """
    x, y = torch.from_numpy(tokens).double(), torch.from_numpy(labels)
    mean, scale = x.mean(dim=0), x.std(dim=0, correction=0).clamp_min(1e-6)
    x = (x - mean) / scale
    weight = torch.zeros(num_classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    penalty = DECAY if decay is None else decay
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), y) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    folded = weight.detach() / scale
    return Probe(folded.float(), (bias.detach() - folded @ mean).float())


def refit_classes(tokens: Tokens, labels: Classes, num_classes: int) -> Classes:
    """Returns the class of each image by a probe that was fitted on the others, fold by fold; images alternate between folds.

    Args:
        tokens: (B, C).
        labels: (B,).
        num_classes: of the task.
    """
    found = np.empty(len(labels), np.int64)
    fold = np.arange(len(labels)) % FOLDS
    for number in range(FOLDS):
        held_out = fold == number
        if held_out.any():
            probe = fit_probe(tokens[~held_out], labels[~held_out], num_classes)
            found[held_out] = probe.classes(tokens[held_out])
    return found
