"""Builds models from configurations, and runs them on NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig, Variant
from gft_edge.model.baselines import TimmClassifier, TransFG
from gft_edge.model.gft import FocalGFT
from gft_edge.model.published import PublishedGFT
from gft_edge.runtime.accuracy import Forward

_KINDS: dict[Variant, Callable[[GFTConfig, bool, float], nn.Module]] = {
    "focal": FocalGFT,
    "published": PublishedGFT,
    "timm": TimmClassifier,
    "transfg": TransFG,
}


def build_model(config: GFTConfig, pretrained: bool = False, drop_path: float = 0.0) -> nn.Module:
    """Returns the model of a configuration, randomly initialised unless ``pretrained``.

    Raises:
        ConfigError: the backbone is not supported.
    """
    return _KINDS[config.variant](config, pretrained, drop_path)


def logits_function(model: nn.Module, budget: TokenBudget | None = None, **options: Any) -> Forward:
    """Returns a function from preprocessed images (B, 3, H, W) to logits (B, classes), both float32 arrays.

    Args:
        model: in eval mode when the function is called; runs on its own device.
        budget: of every call; the model's own by default.
        options: further arguments of the model, such as ``choose``.
    """
    device = next(model.parameters()).device

    @torch.no_grad()
    def logits(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = (
            model(torch.from_numpy(images).to(device), budget, **options).float().cpu().numpy()
        )
        return found

    return logits
