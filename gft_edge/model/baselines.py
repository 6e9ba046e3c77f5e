"""Models to compare a GFT with: any classifier of timm, and a Vision Transformer with TransFG's part selection.

They take the arguments of a GFT (``budget``, ``maps``) and have no stages, so every verb can use them.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gft_edge.budget import PREFIX_TOKENS, TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ConfigError
from gft_edge.model.backbone import create_network
from gft_edge.model.gft import GFTOutput, check_budget
from gft_edge.model.selection import gather_tokens


class TimmClassifier(nn.Module):
    """An unchanged classifier of timm.

    Args:
        config: variant ``"timm"``.
        pretrained: load timm's pretrained weights (needs network or cache).
        drop_path: stochastic depth, in training, for networks that have it.

    Raises:
        ConfigError: timm cannot build it.
    """

    def __init__(self, config: GFTConfig, pretrained: bool = False, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.network = _network(config, pretrained, drop_path)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes activations in the backward pass instead of keeping them."""
        self.network.set_grad_checkpointing(enable)

    def logits(self, images: Tensor) -> Tensor:
        """Returns the logits, (B, 3, H, W) to (B, classes)."""
        return self.network(images)

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns timm's features of (B, 3, H, W); their shape is the network's."""
        return self.network.forward_features(images)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Returns the logits (B, classes) of features; with ``pre_logits`` the classifier's input, (B, C)."""
        return self.network.forward_head(x, pre_logits=pre_logits)

    def forward(self, images: Tensor, budget: TokenBudget | None = None, maps: bool = False) -> Tensor | GFTOutput:
        """Classifies images.

        Args:
            images: normalised, (B, 3, H, W).
            budget: None or ``NO_BUDGET``.
            maps: return a :class:`GFTOutput` without stages.

        Returns:
            logits (B, classes), or :class:`GFTOutput` with ``maps``.
        """
        check_budget(budget or self.config.budget, self.config)
        logits = self.logits(images)
        return GFTOutput(logits, []) if maps else logits


class WeighingAttention(nn.Module):
    """timm's self-attention that also returns its weights, which therefore exist as a matrix."""

    def __init__(self, layer: Attention) -> None:
        super().__init__()
        self.num_heads, self.scale = layer.num_heads, layer.scale
        self.qkv, self.proj = layer.qkv, layer.proj

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, T, C) to (B, T, C) and weights (B, H, T, T)."""
        q, k, v = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=2))
        weights = (q * self.scale @ k.transpose(2, 3)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2)), weights


class TransFG(TimmClassifier):
    """A Vision Transformer whose last block sees the class token and one patch per head only.

    The part selection of TransFG (He et al., AAAI 2022, arXiv 2103.07976): per head, the patch that the class token
    attends to most in the product of the attention matrices of all blocks before the last. Without its overlapping
    patches and its contrastive loss.

    Raises:
        ConfigError: the backbone is not a plain timm Vision Transformer with one class token.
    """

    network: VisionTransformer

    def __init__(self, config: GFTConfig, pretrained: bool = False, drop_path: float = 0.0) -> None:
        super().__init__(config, pretrained, drop_path)
        vit = self.network
        plain = isinstance(vit, VisionTransformer) and all(
            type(block) is Block and type(block.attn) is Attention and isinstance(block.attn.q_norm, nn.Identity)
            for block in vit.blocks
        )
        if (
            not plain
            or vit.num_prefix_tokens != config.num_prefix_tokens
            or vit.cls_token is None
            or vit.global_pool != "token"
        ):
            raise ConfigError(
                f"backbone {config.backbone!r} is not a plain timm Vision Transformer with one class token"
            )
        for block in vit.blocks:
            block.attn = WeighingAttention(block.attn)
        self.recompute = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the blocks in the backward pass instead of keeping their activations."""
        self.recompute = enable

    def logits(self, images: Tensor) -> Tensor:
        """Returns the logits, (B, 3, H, W) to (B, classes)."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the normalised class token and chosen patches after the last block, (B, 1 + H, C)."""
        vit = self.network
        x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
        *earlier, last = vit.blocks
        matrices = []
        for block in earlier:
            x, weights = self._block(block, x)
            matrices.append(weights)
        x = gather_tokens(x, self.parts(matrices))
        x, _ = self._block(last, x)
        return vit.norm(x)

    def _block(self, block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.recompute and self.training:
            return checkpoint(_weighing_block, block, x, use_reentrant=False)
        return _weighing_block(block, x)

    @staticmethod
    def parts(matrices: list[Tensor]) -> Tensor:
        """Returns token indices of the class token and of the patch each head chooses, (B, 1 + H); a patch may occur twice.

        Args:
            matrices: attention weights of the blocks, first to last, (B, H, T, T) each.
        """
        # Only the class token's row of the product is read, so a row is multiplied through, not matrices.
        row = matrices[-1][:, :, :1]
        for weights in reversed(matrices[:-1]):
            row = row @ weights
        chosen = row[:, :, 0, PREFIX_TOKENS:].argmax(dim=2) + PREFIX_TOKENS
        return torch.cat((torch.zeros_like(chosen[:, :1]), chosen), dim=1)


def _weighing_block(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Runs a timm block whose attention is a :class:`WeighingAttention`."""
    y, weights = block.attn(block.norm1(x))
    x = x + block.drop_path1(block.ls1(y))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))), weights


def _network(config: GFTConfig, pretrained: bool, drop_path: float) -> Any:
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    known = timm.get_pretrained_cfg(config.backbone) if timm.is_model(config.backbone) else None
    if known is not None and known.fixed_input_size:
        options["img_size"] = config.image_size
    return create_network(config.backbone, pretrained, num_classes=config.num_classes, **options)
