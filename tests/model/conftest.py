"""Families of Vision Transformers in small sizes, and scores computed slowly, from whole attention matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import timm

from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig

FAMILIES = {
    "vit": ("vit_tiny_patch16_224", 16, 1),
    "deit": ("deit_tiny_patch16_224", 16, 1),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", 16, 2),
    "dinov2": ("vit_small_patch14_dinov2", 14, 1),
    "dinov2-registers": ("vit_small_patch14_reg4_dinov2", 14, 5),
    "clip": ("vit_base_patch16_clip_quickgelu_224", 16, 1),
    "deit3": ("deit3_small_patch16_224", 16, 1),
}
"""timm's name, patch size, tokens before the patches."""


@pytest.fixture(scope="session", params=FAMILIES)
def family(request) -> GFTConfig:
    """16 patches, 4 blocks; 2 and 3 select."""
    name, patch_size, prefix = FAMILIES[request.param]
    return GFTConfig(
        name, 4 * patch_size, 5, patch_size, 32, 4, 2, (2, 3), TokenBudget((9, 4), 16), num_prefix_tokens=prefix
    )


@pytest.fixture(scope="session")
def plain_vit(randomize) -> Callable[[GFTConfig], timm.models.VisionTransformer]:
    """Builds timm's own network of a configuration, with random weights."""

    def build(config: GFTConfig) -> timm.models.VisionTransformer:
        sizes = {
            name: getattr(config, name) for name in ("num_classes", "patch_size", "embed_dim", "depth", "num_heads")
        }
        return randomize(timm.create_model(config.backbone, img_size=config.image_size, **sizes), seed=7)

    return build


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _gala(means: list[np.ndarray]) -> np.ndarray:
    """Gradient along the patches of each head's mean, absolute value, mean over heads, sum of three neighbours."""
    g = np.pad(np.mean([np.abs(np.gradient(mean)) for mean in means], axis=0), 1)
    return g[:-2] + g[1:-1] + g[2:]


@pytest.fixture(scope="session")
def slow_scores() -> dict[str, Callable[[list[tuple[np.ndarray, np.ndarray]], int], np.ndarray]]:
    """Scores by name from queries and keys (T, d) of each head of one image, and the number of tokens before the patches."""

    def matrices(heads, prefix):
        """Scaled scores between the patches, one matrix per head; a row per query, a column per key."""
        return [q[prefix:] @ k[prefix:].T / np.sqrt(q.shape[1]) for q, k in heads]

    return {
        "column-mean": lambda heads, prefix: np.mean([m.mean(axis=0) for m in matrices(heads, prefix)], axis=0),
        "column-gala": lambda heads, prefix: _gala([m.mean(axis=0) for m in matrices(heads, prefix)]),
        "row-gala": lambda heads, prefix: _gala([m.mean(axis=1) for m in matrices(heads, prefix)]),
        "class-row": lambda heads, prefix: np.mean(
            [_softmax(q @ k.T / np.sqrt(q.shape[1]))[0, prefix:] for q, k in heads], axis=0
        ),
    }
