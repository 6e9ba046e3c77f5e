"""Creates networks of timm by name."""

from __future__ import annotations

from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from gft_edge.config.model import GFTConfig
from gft_edge.errors import ConfigError


def create_network(name: str, pretrained: bool, **options: Any) -> nn.Module:
    """Creates a network of timm.

    A name with a source (``hf-hub:``, ``local-dir:``) makes timm download files or read a folder, so it is accepted only with
    pretrained weights: a checkpoint's config.json must not open connections.

    Raises:
        ConfigError: timm cannot build it, its pretrained weights are not available, or a source without them.
    """
    if not pretrained and (":" in name or "/" in name):
        raise ConfigError(
            f"backbone {name!r} names a source, which is read only with model.pretrained=true; give the name "
            "of timm's architecture"
        )
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # timm and its hub raise exceptions of any type
        hint = "; without network, set model.pretrained=false or start from a checkpoint (train.init)" * pretrained
        reason = str(error) or type(error).__name__
        raise ConfigError(f"backbone {name!r}: timm cannot build it ({reason}){hint}") from None


def architecture_of(model: nn.Module, backbone: str) -> str:
    """Returns timm's name of a model's backbone if ``backbone`` names a source, else ``backbone``."""
    if ":" not in backbone:
        return backbone
    configs = (getattr(module, "pretrained_cfg", None) for module in model.modules())
    names = (config.get("architecture") for config in configs if isinstance(config, dict))
    return next((name for name in names if isinstance(name, str) and name), backbone)


def timm_vit(config: GFTConfig, pretrained: bool, drop_path: float, **options: Any) -> VisionTransformer:
    """Creates the configuration's Vision Transformer in its sizes.

    Raises:
        ConfigError: timm cannot build it, or it is not a VisionTransformer.
    """
    vit = create_network(
        config.backbone,
        pretrained,
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        drop_path_rate=drop_path,
        **options,
    )
    if not isinstance(vit, VisionTransformer):
        raise ConfigError(f"backbone {config.backbone!r} is a {type(vit).__name__}, not a timm VisionTransformer")
    return vit
