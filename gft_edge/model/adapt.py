"""Adapts the weights of one model to another image size, number of classes, budget, stages or score."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from gft_edge.budget import MIN_TOKENS, PREFIX_TOKENS, TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ConfigError
from gft_edge.model.build import build_model
from gft_edge.model.macs import count_macs

CLASSIFIERS = ("head.", "head_dist.", "classifier.", "network.head.", "network.fc.", "network.classifier.")
POSITIONS = ("pos_embed", "base_model.pos_embed", "network.pos_embed")


def adapt_weights(weights: Mapping[str, Tensor], old: GFTConfig, new: GFTConfig) -> dict[str, Tensor]:
    """Returns the weights of a model of configuration ``old`` that fit one of configuration ``new``.

    Another grid resamples the position embedding (bicubic, antialiased); another number of classes drops the classifier. The
    weights of a focal model do not depend on its stages and score.

    Raises:
        ConfigError: the models differ in more than image size, classes and budget, or stages and score of a focal model.
    """
    free = {"image_size", "num_classes", "budget"}
    if old.variant == new.variant == "focal":
        free |= {"stages", "score"}
    names = [f.name for f in dataclasses.fields(new) if f.name not in free]
    different = [name for name in names if getattr(old, name) != getattr(new, name)]
    if different:
        raise ConfigError(f"its model differs in {', '.join(different)}")
    fitting = dict(weights)
    if old.num_classes != new.num_classes:
        fitting = {name: tensor for name, tensor in fitting.items() if not name.startswith(CLASSIFIERS)}
    if old.image_size != new.image_size or old.grid != new.grid:
        for name in POSITIONS:
            if name in fitting:
                grid = _grid(new, old, fitting[name])
                prefix = fitting[name].shape[1] - (old.num_patches or fitting[name].shape[1] - PREFIX_TOKENS)
                fitting[name] = resample_abs_pos_embed(fitting[name], grid, num_prefix_tokens=prefix)
    return fitting


def smaller_model(model: nn.Module, config: GFTConfig, macs: int) -> tuple[GFTConfig, nn.Module] | None:
    """Returns a focal model's weights as a model for smaller images, with every patch, at the cost nearest to ``macs``.

    Args:
        model: not quantized.
        config: of the model.
        macs: wanted multiply-accumulates of an image.

    Returns:
        Configuration and model in eval mode; None where no smaller image has at least two patches.
    """
    sizes = range(config.patch_size, config.image_size, config.patch_size)
    counts = {size: (size // config.patch_size) ** 2 for size in sizes}
    possible = [
        dataclasses.replace(config, image_size=size, budget=TokenBudget.full(len(config.stages), count))
        for size, count in counts.items()
        if count >= MIN_TOKENS
    ]
    if not possible:
        return None
    new = min(possible, key=lambda one: abs(count_macs(one) - macs))
    smaller = build_model(new)
    smaller.load_state_dict(adapt_weights(model.state_dict(), config, new))
    return new, smaller.eval()


def _grid(new: GFTConfig, old: GFTConfig, positions: Tensor) -> list[int]:
    """Returns rows and columns of the new grid; a baseline's old grid follows from its number of positions."""
    if not new.is_baseline:
        return list(new.grid)
    side = round((positions.shape[1] - PREFIX_TOKENS) ** 0.5)
    return [side * new.image_size // old.image_size] * 2
