"""Multiply-accumulates of one image, by formula; agrees with torch.utils.flop_counter to the last one.

Notation: C width, T tokens with the class token, R rows that attend, N patches, H heads.
"""

from __future__ import annotations

from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ConfigError


def count_macs(config: GFTConfig, budget: TokenBudget | None = None) -> int:
    """Multiply-accumulates of the matrix products and convolutions of the logits of one image.

    Args:
        config: of either variant; the published one is counted as deployed, without its stages.
        budget: the configuration's own by default.

    Raises:
        ConfigError: a baseline, whose backbone only timm knows.
    """
    if config.is_baseline:
        raise ConfigError(
            f"multiply-accumulates of {config.backbone}: there is no formula for variant {config.variant!r}"
        )
    budget = budget or config.budget
    width, patches = config.embed_dim, config.num_patches
    total = _embedding(config) + width * config.num_classes
    if config.variant == "published":
        return total + config.stages[0] * _block(patches + 1, patches + 1, width)
    kept = dict(zip(config.stages, budget.keep))
    for number in range(1, config.depth + 1):
        # Only the class token is read after the last block or the last stage.
        last = number == config.depth
        total += _block(1 if last and number not in kept else patches + 1, patches + 1, width)
        if number in kept:
            rows = 1 if last else kept[number] + 1
            total += _attention(rows, patches + 1, width) + _scores(patches, width, config.num_heads)
            patches = kept[number]
    return total


def _attention(rows: int, tokens: int, width: int) -> int:
    """Queries and output projection of R rows, keys and values of T tokens, and two products with the attention."""
    return 2 * rows * width**2 + 2 * tokens * width**2 + 2 * rows * tokens * width


def _block(rows: int, tokens: int, width: int) -> int:
    """Attention and an MLP of ratio 4: 12 T C^2 + 2 T^2 C when every token attends."""
    return _attention(rows, tokens, width) + 8 * rows * width**2


def _scores(patches: int, width: int, num_heads: int) -> int:
    """Mean key and its projection (2 C^2), one product per patch and head (N H C), smoothing (3 N)."""
    return 2 * width**2 + patches * num_heads * width + 3 * patches


def _embedding(config: GFTConfig) -> int:
    patches, width, size = config.num_patches, config.embed_dim, config.image_size
    if config.stem == "linear":
        return patches * width * 3 * config.patch_size**2
    num_convs = config.patch_size.bit_length() - 1
    widths = [3, *(max(width >> (num_convs - 1 - i), 16) for i in range(num_convs))]
    strided = sum((size >> (i + 1)) ** 2 * 9 * widths[i] * widths[i + 1] for i in range(num_convs))
    return strided + patches * width**2
