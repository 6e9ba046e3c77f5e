"""Training on windows of an image: a small image has few patches, so a step costs little, and sees the marks alone."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from gft_edge.config.model import GFTConfig


def window_logits(network: nn.Module, images: Tensor, config: GFTConfig, seed: int, step: int) -> Tensor:
    """Classifies windows with every patch kept, as if they lay at one place of the whole image, drawn from seed and step.

    The position embedding of that place is used, so the embedding of the whole image learns.

    Args:
        network: a focal model with a convolutional stem, or one wrapped for several processes.
        images: normalised windows, (B, 3, h, w), smaller than the model's images; sides are multiples of its patches.
        config: of the model.
        seed: of the training.
        step: number of the step.

    Returns:
        logits (B, classes).
    """
    wrapped = isinstance(network, nn.parallel.DistributedDataParallel)
    name = "module.pos_embed" if wrapped else "pos_embed"
    positions = network.get_parameter(name)
    prefix = positions.shape[1] - config.num_patches
    rows, columns = (side // config.patch_size for side in images.shape[2:])
    rng = np.random.default_rng([seed, 11, step])
    top, left = int(rng.integers(config.grid[0] - rows + 1)), int(rng.integers(config.grid[1] - columns + 1))
    grid = positions[:, prefix:].unflatten(1, config.grid)[:, top : top + rows, left : left + columns]
    part = torch.cat((positions[:, :prefix], grid.flatten(1, 2)), dim=1)
    return cast(Tensor, functional_call(network, {name: part}, (images, config.full_budget)))
