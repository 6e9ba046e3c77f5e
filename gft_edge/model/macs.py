"""Computes the multiply-accumulates of one image by formula; agrees exactly with torch.utils.flop_counter.

Notation: C width, T tokens with the class token, R rows that attend, N patches, H heads.
"""

from __future__ import annotations

import itertools

from gft_edge.budget import TokenBudget, patches_per_block, rows_per_block
from gft_edge.config.model import GFTConfig, conv_stem_widths
from gft_edge.errors import ConfigError

BY_PRODUCT = ("column-mean", "random")
"""Scores whose heads are summed, so that one matrix product gives them; :mod:`gft_edge.model.scores` has the scores."""


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
    if config.is_distilled:
        total += width * config.num_classes
    sizes = config.stages, budget.keep, config.num_patches, config.depth
    for patches, kept in zip(patches_per_block(*sizes), rows_per_block(*sizes)):
        total += _block(kept + prefix, patches + prefix, width)
        if 0 < kept < patches:  # for the class token alone nothing is selected
            total += _scores(config, patches)
    return total


def _block(rows: int, tokens: int, width: int) -> int:
    """Counts queries, keys and values of T tokens, attention, output projection and an MLP of ratio 4 of R rows."""
    return 3 * tokens * width**2 + 2 * rows * tokens * width + 9 * rows * width**2


def _scores(config: GFTConfig, patches: int) -> int:
    """Counts the matrix products of a score: one vector with every patch, none for scores that read the heads apart."""
    return patches * config.embed_dim if config.score in BY_PRODUCT else 0


def _embedding(config: GFTConfig) -> int:
    patches, width, size = config.num_patches, config.embed_dim, config.image_size
    if config.stem == "linear":
        return patches * width * 3 * config.patch_size**2
    pairs = itertools.pairwise(conv_stem_widths(config.patch_size, width))
    strided = sum(
        (size >> halvings) ** 2 * 9 * before * after for halvings, (before, after) in enumerate(pairs, start=1)
    )
    return strided + patches * width**2
