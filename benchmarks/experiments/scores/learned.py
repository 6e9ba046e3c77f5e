"""What candidates learn from training images with every patch: places for the static control, and queries by ridge regression."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gft_edge.benchmarks.experiments.scores.candidates import column_mean, standardised
from gft_edge.benchmarks.experiments.scores.passes import Entry, places_of
from gft_edge.model import choices
from gft_edge.model.focal_block import FocalBlock
from gft_edge.model.gft import FocalGFT

RIDGE = 0.01
"""Penalty as a part of the mean variance of a key's channels."""
TAYLOR, MARKS = "learned query, Taylor", "learned query, marks"
Classify = Callable[[Tensor], Tensor]
"""Maps what the classifier reads (B, C) to logits (B, classes)."""


class Ridge:
    """Ridge regression of a target on the keys of the patches, image by image centred, since a score ranks one image's patches.

    The solution is a vector a (C,), one query per head, and the score a . k_j. A vector added to every key changes nothing.

    Args:
        width: C.
    """

    def __init__(self, width: int) -> None:
        self._gram = torch.zeros(width, width, dtype=torch.float64)
        self._moment = torch.zeros(width, dtype=torch.float64)

    def add(self, keys: Tensor, target: Tensor) -> None:
        """Adds the patches of a batch: keys (B, P, C), target (B, P), which is standardised here."""
        centred = (keys - keys.mean(dim=1, keepdim=True)).double().flatten(0, 1)
        self._gram += centred.T @ centred
        self._moment += centred.T @ standardised(target.double()).flatten()

    def solve(self) -> Tensor:
        """Returns the query, (C,) float32."""
        penalty = RIDGE * self._gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        ridge = penalty * torch.eye(len(self._gram), dtype=torch.float64)
        return torch.linalg.solve(self._gram + ridge, self._moment).float()


class Places:
    """Mean standardised column mean of each place over images, by block; as :func:`gft_edge.controls.learn_places`, at any block.

    Args:
        num_patches: P.
        blocks: numbers of blocks.
    """

    def __init__(self, num_patches: int, blocks: Sequence[int]) -> None:
        self._total = {number: torch.zeros(num_patches, dtype=torch.float64) for number in blocks}

    def add(self, entries: Mapping[int, Entry], heads: int, prefix: int) -> None:
        """Adds the images of a batch, of a model with so many heads and tokens before the patches."""
        for number, total in self._total.items():
            entry = entries[number]
            scores = column_mean(*entry.projected, heads, prefix, places_of(entry))
            total += standardised(scores.double()).sum(dim=0)

    def ranks(self) -> dict[int, Tensor]:
        """Returns the values of the places by block, (P,) int64, distinct."""
        return {number: choices.distinct(total) for number, total in self._total.items()}


def taylor(
    model: FocalGFT, images: Tensor, labels: Tensor, blocks: Sequence[int], classify: Classify
) -> dict[int, tuple[Tensor, Tensor]]:
    """Returns keys (B, P, C) of the patches, and ranks (B, P) of the effect of dropping them at the input of the blocks.

    The effect is of first order, |sum_c x_jc dL/dx_jc|, of the cross-entropy L of the label with every patch (Molchanov et al.,
    2017, arXiv 1611.06440, for channels). The effects of an image differ by orders of magnitude, so their ranks are the target.

    Args:
        model: in eval mode.
        images: normalised, (B, 3, H, W).
        labels: (B,).
        blocks: numbers of blocks, from 1.
        classify: the classifier.
    """
    prefix, found = model.num_prefix_tokens, {}
    inputs: dict[int, Tensor] = {}
    with torch.enable_grad():
        x = model.embed(images)
        for number, block in enumerate(model.blocks, start=1):
            assert isinstance(block, FocalBlock)
            if number in blocks:
                x = inputs[number] = x if x.requires_grad else x.requires_grad_()
            x = block(x)
        logits = classify(model.forward_head(model.norm(x), pre_logits=True))
        loss = F.cross_entropy(logits, labels, reduction="sum")
        gradients = torch.autograd.grad(loss, list(inputs.values()))
    with torch.no_grad():
        for (number, x), gradient in zip(inputs.items(), gradients):
            block = model.blocks[number - 1]
            assert isinstance(block, FocalBlock)
            effect = (x * gradient).sum(dim=2)[:, prefix:].abs()
            keys = block.attn.project(block.norm1(x))[1][:, prefix:]
            found[number] = keys, effect.argsort(dim=1).argsort(dim=1)
    return found
