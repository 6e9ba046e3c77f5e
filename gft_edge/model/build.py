"""From a configuration to a model."""

from __future__ import annotations

from torch import nn

from gft_edge.config import GFTConfig
from gft_edge.model.gft import FocalGFT
from gft_edge.model.published import PublishedGFT


def build_model(config: GFTConfig, pretrained: bool = False) -> nn.Module:
    """The model of a configuration, randomly initialised unless ``pretrained``.

    Raises:
        ConfigError: the backbone is of a kind that is not supported.
    """
    return PublishedGFT(config, pretrained) if config.variant == "published" else FocalGFT(config, pretrained)
