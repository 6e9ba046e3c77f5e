"""From a configuration to a model."""

from __future__ import annotations

from torch import nn

from gft_edge.config import GFTConfig
from gft_edge.model.gft import FocalGFT
from gft_edge.model.published import PublishedGFT


def build_model(config: GFTConfig, pretrained: bool = False, drop_path: float = 0.0) -> nn.Module:
    """The model of a configuration, randomly initialised unless ``pretrained``.

    Raises:
        ConfigError: the backbone is of a kind that is not supported.
    """
    kind = PublishedGFT if config.variant == "published" else FocalGFT
    return kind(config, pretrained, drop_path)
