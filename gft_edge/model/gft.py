"""The focal GFT: a Vision Transformer that drops patches inside its blocks, with the tokens that matter to the logits.

Shape suffixes: B images, P patches of the whole image, N patches entering a block, K patches kept, T tokens, C width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.layers import Mlp, PatchEmbed
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ConfigError
from gft_edge.model.backbone import timm_vit
from gft_edge.model.focal_block import Choice, FocalBlock
from gft_edge.model.layers import ConvStem, embed_patches, is_plain
from gft_edge.model.scores import SCORES
from gft_edge.model.selection import select_patches, select_unordered

EXTRA_TOKENS = ("dist_token", "reg_token")
"""timm's names of tokens between the class token and the patches."""


class StageMaps(NamedTuple):
    """Importance and kept patches of one selecting block.

    Attributes:
        importance: GALA map of the block's input patches, whatever ranks them, (B, N), rows summing to 1.
        kept: positions kept, on the original grid, (B, K) int64, raster order.
        scores: what ranked the patches, (B, N).
    """

    importance: Tensor
    kept: Tensor
    scores: Tensor


class GFTOutput(NamedTuple):
    """Logits (B, classes) and one :class:`StageMaps` per stage."""

    logits: Tensor
    stages: list[StageMaps]


class FocalGFT(nn.Module):
    """The project's own variant: the selected patches matter, and one set of weights serves every token budget.

    It has the layers and the weights of the timm Vision Transformer it stands on, under timm's names, and no others. A
    selecting block scores its patches by its own queries and keys; attention rows, projection and MLP are computed for the
    kept patches and the tokens before them, keys and values for all. Behind the last selection nothing but the class token
    is read, so the last block computes no other patch. With every patch kept each block is timm's own: the logits are those of the
    plain Vision Transformer to the bit.

    Args:
        config: variant ``"focal"``.
        pretrained: load timm's pretrained weights for the backbone (needs network or cache).
        drop_path: stochastic depth of the last block, in training.

    Raises:
        ConfigError: the timm model is not a supported Vision Transformer (class token that alone is classified, learned
            position embedding, plain attention, an MLP of ratio 4).
    """

    def __init__(self, config: GFTConfig, pretrained: bool = False, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.num_prefix_tokens = config.num_prefix_tokens
        vit = _backbone(config, pretrained, drop_path)
        conv_stem = config.stem == "conv"
        self.patch_embed = ConvStem(config.patch_size, config.embed_dim) if conv_stem else vit.patch_embed
        self.cls_token = vit.cls_token
        for name in EXTRA_TOKENS:
            if getattr(vit, name, None) is not None:
                setattr(self, name, getattr(vit, name))
        self.pos_embed = vit.pos_embed
        self.norm_pre = vit.norm_pre
        self.blocks = nn.ModuleList(FocalBlock(block, config.score, config.num_prefix_tokens) for block in vit.blocks)
        self.norm = vit.norm
        self.head = vit.head
        if hasattr(vit, "head_dist"):
            self.head_dist = vit.head_dist
        if not pretrained:
            for head in self._heads():
                nn.init.trunc_normal_(head.weight, std=0.02)
                nn.init.zeros_(head.bias)
        self.recompute = False

    def _heads(self) -> list[nn.Linear]:
        """Returns the classifiers: of the class token and, where there is one, of the distillation token."""
        heads: list[nn.Linear] = [self.head]
        if hasattr(self, "head_dist"):
            heads.append(self.head_dist)
        return heads

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the blocks in the backward pass instead of keeping their activations."""
        self.recompute = enable

    def no_weight_decay(self) -> set[str]:
        """Returns the names of weights of two or more dimensions that do not decay."""
        return {"pos_embed", "cls_token", *EXTRA_TOKENS}

    def layer_of(self, name: str) -> int:
        """Returns the layer of a parameter; see :func:`layer_number`."""
        return layer_number(name, "", self.config)

    def embed(self, images: Tensor) -> Tensor:
        """Returns the tokens before the first block: (B, 3, H, W) to (B, prefix + P, C)."""
        x = embed_patches(self.patch_embed, images)
        extra = [getattr(self, name) for name in EXTRA_TOKENS if hasattr(self, name)]
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, *extra)]
        if self.pos_embed.shape[1] == x.shape[1]:  # positions of the patches alone
            return self.norm_pre(torch.cat((*prefix, x + self.pos_embed), dim=1))
        return self.norm_pre(torch.cat((*prefix, x), dim=1) + self.pos_embed)

    def forward(
        self,
        images: Tensor,
        budget: TokenBudget | None = None,
        maps: bool = False,
        choose: Choice | None = None,
    ) -> Tensor | GFTOutput:
        """Classifies images.

        Args:
            images: normalised, (B, 3, H, W).
            budget: patches kept by each selecting block; the configuration's own by default.
            maps: also return importance, kept patches and scores of every stage.
            choose: selects the patches from their scores; another rule is for controls and studies.

        Returns:
            logits (B, classes), or :class:`GFTOutput` with ``maps``.
        """
        x, trace = self._run_blocks(images, budget, maps, choose)
        logits = self.forward_head(self.norm(x))
        return GFTOutput(logits, trace) if maps else logits

    def forward_features(
        self, images: Tensor, budget: TokenBudget | None = None, choose: Choice | None = None
    ) -> Tensor:
        """Returns the normalised tokens after the last block, class token first, (B, T, C); :meth:`forward_head` reads them.

        As timm's with every patch kept; otherwise the tokens before the patches alone.
        """
        return self.norm(self._run_blocks(images, budget, False, choose)[0])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Returns the logits (B, classes) of normalised tokens (B, T, C); with ``pre_logits`` the classifier's input, (B, C).

        With a distillation token it is the mean of both classifiers (DeiT; Touvron et al., 2021, arXiv 2012.12877).
        """
        heads = self._heads()
        if len(heads) == 1:
            return x[:, 0] if pre_logits else self.head(x[:, 0])
        if pre_logits:
            return (x[:, 0] + x[:, 1]) / 2
        return (heads[0](x[:, 0]) + heads[1](x[:, 1])) / 2

    def _run_blocks(
        self, images: Tensor, budget: TokenBudget | None, maps: bool, choose: Choice | None
    ) -> tuple[Tensor, list[StageMaps]]:
        config, prefix = self.config, self.num_prefix_tokens
        budget = budget or config.budget
        check_budget(budget, config)
        keep = dict(zip(config.stages, budget.keep))
        is_pruned = budget.keep[-1] < config.num_patches
        if choose is None:
            reads_order = maps or (len(keep) > 1 and SCORES[config.score].reads_neighbours)
            choose = select_patches if reads_order else select_unordered
        x = self.embed(images)
        positions: Tensor | None = None
        trace: list[StageMaps] = []
        for number, block in enumerate(self.blocks, start=1):
            assert isinstance(block, FocalBlock)
            recompute = self.recompute and self.training
            patches = x.shape[1] - prefix
            k = keep.get(number, patches)
            class_only = is_pruned and number == config.depth
            rule = choose if k < patches and (maps or not class_only) else None
            wants_maps = maps and number in keep
            if rule is None and not class_only and not wants_maps:
                x = run_block(block, x, recompute)
                continue
            x, kept, scores, importance = run_block(block, x, recompute, k, rule, class_only, wants_maps)
            if wants_maps:
                positions = _compose(positions, kept)
                trace.append(StageMaps(importance, _all_if_none(positions, importance), scores))
        return x, trace


def layer_number(name: str, stages: str, config: GFTConfig) -> int:
    """Returns 0 for the embedding, n for block n (and a published stage after it), depth + 1 for norm and classifier.

    Args:
        name: of a parameter.
        stages: name of the model's list of stages; empty for a model without.
        config: of the model.
    """
    parts = name.split(".")
    if parts[0] == "blocks":
        return int(parts[1]) + 1
    if parts[0] == stages:
        return config.stages[int(parts[1])]
    return 0 if parts[0] in ("patch_embed", "pos_embed", "cls_token", "norm_pre", *EXTRA_TOKENS) else config.depth + 1


def run_block(block: Callable[..., Any], x: Tensor, recompute: bool, *arguments: Any) -> Any:
    """Runs one block; keeps its activations for the backward pass or recomputes them there."""
    return checkpoint(block, x, *arguments, use_reentrant=False) if recompute else block(x, *arguments)


def check_budget(budget: TokenBudget, config: GFTConfig) -> None:
    """Raises ConfigError when a budget does not have the model's number of patches and stages."""
    if len(budget.keep) != len(config.stages) and budget.num_patches == config.num_patches and config.stages:
        given = f"{len(budget.keep)} number{'s' * (len(budget.keep) != 1)}"
        raise ConfigError(
            f"token budget {budget.id}: {given} for a model of {len(config.stages)} stages; give one for each, for example "
            f"{','.join(map(str, config.budget.keep))}"
        )
    if budget.num_patches != config.num_patches or len(budget.keep) != len(config.stages):
        raise ConfigError(
            f"token budget {budget.id} of {budget.num_patches} patches does not fit a model of "
            f"{config.num_patches} patches and {len(config.stages)} stages"
        )


def _compose(positions: Tensor | None, kept: Tensor | None) -> Tensor | None:
    """Returns original-grid positions after keeping ``kept`` of the patches at ``positions``."""
    if positions is None or kept is None:
        return kept if positions is None else positions
    return positions.gather(1, kept)


def _all_if_none(positions: Tensor | None, like: Tensor) -> Tensor:
    if positions is not None:
        return positions
    return torch.arange(like.shape[1], device=like.device).expand_as(like)


def _backbone(config: GFTConfig, pretrained: bool, drop_path: float) -> VisionTransformer:
    if config.variant != "focal":
        raise ConfigError(f"FocalGFT builds variant 'focal', the configuration says {config.variant!r}")
    vit = timm_vit(config, pretrained, drop_path, num_classes=config.num_classes)
    if problem := unsupported(vit, config):
        raise ConfigError(f"backbone {config.backbone!r} {problem}")
    return vit


def unsupported(vit: VisionTransformer, config: GFTConfig) -> str | None:
    """Returns why a Vision Transformer cannot select inside its blocks, None if it can."""
    positions = None if vit.pos_embed is None else vit.pos_embed.shape[1] - config.num_patches
    if not all(type(block) is Block and type(block.attn) is Attention for block in vit.blocks):
        return "has blocks that are not timm's Block with timm's Attention"
    if not all(is_plain(block.attn) for block in vit.blocks):
        return "normalises or gates its queries, keys or attention, which is not supported"
    if not all(type(block.mlp) is Mlp and block.mlp.fc1.out_features == 4 * config.embed_dim for block in vit.blocks):
        return "has an MLP that is not two layers of ratio 4"
    if not isinstance(vit.patch_embed, PatchEmbed) or not vit.patch_embed.flatten or positions is None:
        return "needs a flat patch embedding with a position embedding"
    if vit.cls_token is None:
        return "has no class token, which the classifier of a focal model reads"
    if vit.num_prefix_tokens != config.num_prefix_tokens:
        return f"has {vit.num_prefix_tokens} tokens before the patches, num_prefix_tokens is {config.num_prefix_tokens}"
    if positions not in (0, config.num_prefix_tokens):
        return f"has {positions + config.num_patches} positions for {config.num_patches} patches"
    if vit.global_pool != "token" or vit.attn_pool is not None:
        return f"classifies the pooled patches (global_pool {vit.global_pool!r}), not the class token"
    if not isinstance(vit.fc_norm, nn.Identity):
        return "normalises the class token between its last norm and the classifier, which is not supported"
    return None
