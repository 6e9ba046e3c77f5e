"""Sizes of a plain Vision Transformer, as the peers' counts of multiply-accumulates need them."""

from __future__ import annotations

from dataclasses import dataclass

from gft_edge.config.model import GFTConfig


@dataclass(frozen=True)
class VitSizes:
    """Sizes of a model.

    Attributes:
        depth: blocks.
        patches: without the class token.
        width, heads: of every block.
        patch_pixels: values of one patch, channels included.
        classes: outputs of the classifier.
    """

    depth: int
    patches: int
    width: int
    heads: int
    patch_pixels: int
    classes: int

    @classmethod
    def of(cls, config: GFTConfig, classes: int) -> VitSizes:
        """Returns the sizes of a configuration's backbone."""
        pixels = 3 * config.patch_size**2
        return cls(config.depth, config.num_patches, config.embed_dim, config.num_heads, pixels, classes)

    @property
    def ends(self) -> int:
        """Multiply-accumulates of the patch embedding and the classifier."""
        return self.patches * self.width * self.patch_pixels + self.width * self.classes
