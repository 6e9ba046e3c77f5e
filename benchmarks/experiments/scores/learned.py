"""What candidates learn from training images with every patch: places for the static control, and queries by ridge regression."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gft_edge.benchmarks.experiments.scores.candidates import column_mean
from gft_edge.benchmarks.experiments.scores.measuring import BATCH, Arrays, Cache
from gft_edge.benchmarks.experiments.scores.passes import Entry, full_pass, places_of
from gft_edge.data.batches import batch_count, indexed_batches
from gft_edge.data.marks import marked_patches, marks_of
from gft_edge.data.sets import ImageSet
from gft_edge.distill.losses import standardised
from gft_edge.model.focal_block import FocalBlock
from gft_edge.model.gft import FocalGFT
from gft_edge.model.places import distinct
from gft_edge.preprocess import PreprocessSpec
from gft_edge.progress import Track, silent

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
    """Mean standardised column mean of each place, by block; :func:`gft_edge.control_checkpoint.learn_places` at any block.

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
        return {number: torch.from_numpy(distinct(total.numpy())) for number, total in self._total.items()}


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


def learn(
    model: FocalGFT, images: ImageSet, spec: PreprocessSpec, blocks: Sequence[int], cache: Cache, track: Track = silent
) -> Arrays:
    """Returns what one pass with every patch teaches, by name.

    ``tokens`` (N, C) is what the classifier reads, with the ``labels`` (N,); ``places B`` (P,) are the values of the places for the
    static control at block B; ``marks B`` (C,) is the query whose target are the patches of the marks, where these are known.

    Args:
        model: in eval mode.
        images: to learn from.
        spec: preprocessing.
        blocks: numbers of blocks.
        cache: keeps the result.
        track: shows progress, batch by batch.
    """
    arrays = cache.get("learned")
    if arrays:
        return arrays
    config, mark = model.config, marks_of(images)
    heads, prefix = config.num_heads, config.num_prefix_tokens
    places, fits = Places(config.num_patches, blocks), {block: Ridge(config.embed_dim) for block in blocks}
    tokens, labels = [], []
    batches = indexed_batches(images, spec, BATCH)
    for indices, pixels, truth in track(batches, "images to learn from", batch_count(len(images), BATCH)):
        with torch.no_grad():
            entries, full = full_pass(model, torch.from_numpy(pixels), blocks)
        places.add(entries, heads, prefix)
        if mark is not None:
            marked = torch.from_numpy(np.stack([marked_patches(mark(index), spec, config.grid) for index in indices]))
            for block, fit in fits.items():
                fit.add(entries[block].projected[2][:, prefix:], marked)
        tokens.append(full.numpy())
        labels.append(truth)
    arrays = {"tokens": np.concatenate(tokens), "labels": np.concatenate(labels)}
    arrays.update({f"places {block}": found.numpy() for block, found in places.ranks().items()})
    if mark is not None:
        arrays.update({f"marks {block}": fit.solve().numpy() for block, fit in fits.items()})
    cache.put("learned", arrays)
    return arrays


def learn_taylor(
    model: FocalGFT,
    images: ImageSet,
    spec: PreprocessSpec,
    blocks: Sequence[int],
    classify: Classify,
    cache: Cache,
    track: Track = silent,
) -> dict[int, Tensor]:
    """Returns the query of each block whose target is the effect of dropping a patch; see :func:`taylor`.

    Args:
        model: in eval mode.
        images: to learn from.
        spec: preprocessing.
        blocks: numbers of blocks.
        classify: the classifier.
        cache: keeps the result.
        track: shows progress, batch by batch.
    """
    arrays = cache.get("queries")
    if not arrays:
        fits = {block: Ridge(model.config.embed_dim) for block in blocks}
        batches = indexed_batches(images, spec, BATCH)
        for _, pixels, labels in track(batches, "learned queries", batch_count(len(images), BATCH)):
            found = taylor(model, torch.from_numpy(pixels), torch.from_numpy(labels), blocks, classify)
            for block, (keys, target) in found.items():
                fits[block].add(keys, target)
        arrays = {str(block): fit.solve().numpy() for block, fit in fits.items()}
        cache.put("queries", arrays)
    return {block: torch.from_numpy(arrays[str(block)]) for block in blocks}


def by_block(arrays: Arrays, what: str, blocks: Sequence[int]) -> dict[int, Tensor]:
    """Returns the arrays ``what B`` of :func:`learn`, by the number of the block."""
    return {block: torch.from_numpy(arrays[f"{what} {block}"]) for block in blocks}
