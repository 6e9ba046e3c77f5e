"""Computes the multiply-accumulates of one image by formula; agrees exactly with torch.utils.flop_counter.

Notation: C width, T tokens with the class token, R rows that attend, N patches, H heads.
"""

from __future__ import annotations

import itertools

from gft_edge.budget import TokenBudget, patches_per_block
from gft_edge.config.model import GFTConfig, conv_stem_widths
from gft_edge.errors import ConfigError


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
    kept = dict(zip(config.stages, budget.keep))
    patches_of = patches_per_block(config.stages, budget.keep, config.num_patches, config.depth)
    for number, patches in enumerate(patches_of, start=1):
        # Only the class token is read after the last block or the last stage.
        last, tokens = number == config.depth, patches + prefix
        total += _block(1 if last and number not in kept else tokens, tokens, width)
        if number in kept:
            rows = 1 if last else kept[number] + prefix
            total += _attention(rows, tokens, width) + _scores(patches, width, config.num_heads)
    return total


def _attention(rows: int, tokens: int, width: int) -> int:
    """Counts queries and output projection of R rows, keys and values of T tokens, and two products with the attention."""
    return 2 * rows * width**2 + 2 * tokens * width**2 + 2 * rows * tokens * width


def _block(rows: int, tokens: int, width: int) -> int:
    """Counts attention and an MLP of ratio 4: 12 T C^2 + 2 T^2 C when every token attends."""
    return _attention(rows, tokens, width) + 8 * rows * width**2


def _scores(patches: int, width: int, num_heads: int) -> int:
    """Counts mean key and its projection (2 C^2), one product per patch and head (N H C), smoothing (3 N)."""
    return 2 * width**2 + patches * num_heads * width + 3 * patches


def _embedding(config: GFTConfig) -> int:
    patches, width, size = config.num_patches, config.embed_dim, config.image_size
    if config.stem == "linear":
        return patches * width * 3 * config.patch_size**2
    pairs = itertools.pairwise(conv_stem_widths(config.patch_size, width))
    strided = sum(
        (size >> halvings) ** 2 * 9 * before * after for halvings, (before, after) in enumerate(pairs, start=1)
    )
    return strided + patches * width**2
