"""Computes the multiply-accumulates of one image by formula; agrees exactly with torch.utils.flop_counter.

Notation: C width, T tokens with the class token, R rows that attend, N patches, H heads.
"""

from __future__ import annotations

import itertools

from gft_edge.budget import TokenBudget, patches_per_block
from gft_edge.config.model import GFTConfig, conv_stem_widths
from gft_edge.errors import ConfigError
from gft_edge.model.scores import SCORES


def count_macs(config: GFTConfig, budget: TokenBudget | None = None) -> int:
    """Returns the multiply-accumulates of all matrix products and convolutions for the logits of one image.

    Args:
        config: of either variant; the published one is counted as deployed, without its stages.
        budget: the configuration's own by default.

    Raises:
        ConfigError: the model is a baseline.
    """
    if config.is_baseline:
        raise ConfigError(
            f"multiply-accumulates of {config.backbone}: there is no formula for variant {config.variant!r}"
        )
    budget = budget or config.budget
    width, prefix = config.embed_dim, config.num_prefix_tokens
    total = _embedding(config) + width * config.num_classes
    if config.variant == "published":
        tokens = config.num_patches + prefix
        return total + config.stages[0] * _block(tokens, tokens, width)
    keep = dict(zip(config.stages, budget.keep))
    is_pruned = budget.keep[-1] < config.num_patches
    if config.is_distilled:
        total += width * config.num_classes
    patches_of = patches_per_block(config.stages, budget.keep, config.num_patches, config.depth)
    for number, patches in enumerate(patches_of, start=1):
        kept = keep.get(number, patches)
        class_only = is_pruned and number == config.depth
        rows = prefix if class_only else kept + prefix
        total += _block(rows, patches + prefix, width)
        if kept < patches and not class_only:
            total += _scores(config.score, patches + prefix, width)
    return total


def _block(rows: int, tokens: int, width: int) -> int:
    """Counts queries, keys and values of T tokens, attention, output projection and an MLP of ratio 4 of R rows."""
    return 3 * tokens * width**2 + 2 * rows * tokens * width + 9 * rows * width**2


def _scores(score: str, tokens: int, width: int) -> int:
    """Counts the matrix products of a score: one vector with every token, or none where heads are read apart."""
    return 0 if SCORES[score].by_head else tokens * width


def _embedding(config: GFTConfig) -> int:
    patches, width, size = config.num_patches, config.embed_dim, config.image_size
    if config.stem == "linear":
        return patches * width * 3 * config.patch_size**2
    pairs = itertools.pairwise(conv_stem_widths(config.patch_size, width))
    strided = sum(
        (size >> halvings) ** 2 * 9 * before * after for halvings, (before, after) in enumerate(pairs, start=1)
    )
    return strided + patches * width**2
