"""From a configuration to a model."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from gft_edge.config.model import GFTConfig, Variant
from gft_edge.model.baselines import TimmClassifier, TransFG
from gft_edge.model.gft import FocalGFT
from gft_edge.model.published import PublishedGFT

_KINDS: dict[Variant, Callable[[GFTConfig, bool, float], nn.Module]] = {
    "focal": FocalGFT,
    "published": PublishedGFT,
    "timm": TimmClassifier,
    "transfg": TransFG,
}


def build_model(config: GFTConfig, pretrained: bool = False, drop_path: float = 0.0) -> nn.Module:
    """The model of a configuration, randomly initialised unless ``pretrained``.

    Raises:
        ConfigError: the backbone is of a kind that is not supported.
    """
    return _KINDS[config.variant](config, pretrained, drop_path)
