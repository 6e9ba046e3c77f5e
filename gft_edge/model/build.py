"""From a configuration to a model."""

from __future__ import annotations

from torch import nn

from gft_edge.config import GFTConfig
from gft_edge.errors import ConfigError
from gft_edge.model.gft import FocalGFT


def build_model(config: GFTConfig, pretrained: bool = False) -> nn.Module:
    """The model of a configuration, randomly initialised unless ``pretrained``.

    Raises:
        ConfigError: the variant is not available.
    """
    if config.variant == "focal":
        return FocalGFT(config, pretrained)
    raise ConfigError(f"variant {config.variant!r} is not available in this version; use 'focal'")
