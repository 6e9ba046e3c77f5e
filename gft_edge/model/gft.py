"""The focal GFT: a Vision Transformer whose stages score patches by GALA, drop some, and matter to the logits.

Shape suffixes: B images, P patches of the whole image, N patches entering a stage, K patches kept, C width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gft_edge.budget import PREFIX_TOKENS, TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ConfigError
from gft_edge.model import gala
from gft_edge.model.backbone import timm_vit
from gft_edge.model.layers import ClassRowBlock, ConvStem, RowAttention
from gft_edge.model.selection import gather_tokens, select_patches, token_indices

EMA_MOMENTUM = 0.9
EMA_MIX = 0.5


class StageMaps(NamedTuple):
    """Importance and kept patches of one stage.

    Attributes:
        importance: of the stage's input patches, (B, N), rows summing to 1.
        kept: positions kept, on the original grid, (B, K) int64, raster order.
    """

    importance: Tensor
    kept: Tensor


class GFTOutput(NamedTuple):
    """Logits (B, classes) and one :class:`StageMaps` per stage."""

    logits: Tensor
    stages: list[StageMaps]


Choice = Callable[[Tensor, int], Tensor]
"""Maps scores (B, N) and k to the indices of the patches that stay (B, k), in raster order."""


class FocalStage(nn.Module):
    """GALA, PPS and an attention layer in one: score, select, then attend for the kept tokens only.

    The importance does not depend on the attention output, so kept patches are chosen first and queries, attention rows
    and the output projection are computed for them alone; keys and values come from every token. The class token is
    never pruned and attends with them. Differentiable gate: the values of each patch are scaled by 2 sigmoid(score),
    one on average, so the loss teaches the score path and the smoothing kernel which patches to listen to.

    In training a moving average of the scores per position (over the batch of all processes, hence of any batch size)
    steadies which patches are kept; the gate and evaluation do not use it.
    """

    ema: Tensor
    ema_seen: Tensor

    def __init__(self, dim: int, num_heads: int, num_patches: int, num_prefix_tokens: int = PREFIX_TOKENS) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = RowAttention(dim, num_heads, qkv_bias=False)
        self.smooth = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        nn.init.ones_(self.smooth.weight)
        self.register_buffer("ema", torch.zeros(num_patches))
        self.register_buffer("ema_seen", torch.zeros(num_patches, dtype=torch.bool))

    def scores(self, z: Tensor) -> Tensor:
        """Returns the standardised scores of normalised patch tokens, (B, N, C) to (B, N), float32 even under autocast."""
        if torch.is_autocast_enabled(z.device.type):
            with torch.autocast(z.device.type, enabled=False):
                return self.scores(z.float())
        k_weight = self.attn.kv.weight[: z.shape[-1]]
        m = gala.mean_scores(z, self.attn.q.weight, k_weight, self.attn.num_heads)
        return gala.standardized_scores(m, self.smooth.weight)

    @torch.no_grad()
    def _steadied(self, scores: Tensor, positions: Tensor | None) -> Tensor:
        """Returns half the scores plus half their moving average per position; updates the average. (B, N) to (B, N)."""
        if positions is None:
            positions = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
        flat = positions.reshape(-1)
        total = torch.zeros_like(self.ema).scatter_add_(0, flat, scores.reshape(-1))
        count = torch.zeros_like(self.ema).scatter_add_(0, flat, torch.ones_like(scores).reshape(-1))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
            dist.all_reduce(count)
        mean = total / count.clamp_min(1)
        average = torch.where(self.ema_seen, EMA_MOMENTUM * self.ema + (1 - EMA_MOMENTUM) * mean, mean)
        self.ema.copy_(torch.where(count > 0, average, self.ema))
        self.ema_seen.logical_or_(count > 0)
        return EMA_MIX * scores + (1 - EMA_MIX) * self.ema[positions]

    def forward(
        self, x: Tensor, k: int, positions: Tensor | None, class_row_only: bool, choose: Choice = select_patches
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scores the patches, selects k of them and attends for these.

        Args:
            x: class token and patches, (B, 1 + N, C).
            k: patches to keep, 2 to N.
            positions: of the patches on the original grid, (B, N); None when all are there. Needed in training only.
            class_row_only: compute the class token alone, since nothing reads the patches afterwards.
            choose: selects the patches from their scores.

        Returns:
            tokens (B, 1 + K, C), or (B, 1, C) with ``class_row_only``; the scores used for ranking (B, N); the kept
            indices into the N inputs (B, K), or None when all are kept.
        """
        z = self.norm(x)
        prefix = self.num_prefix_tokens
        scores = self.scores(z[:, prefix:])
        ranking = self._steadied(scores, positions) if self.training else scores
        kept = choose(ranking, k) if k < scores.shape[1] else None
        gate = F.pad(2 * torch.sigmoid(scores), (prefix, 0), value=1.0)
        if class_row_only:
            rows, z_rows = x[:, :1], z[:, :1]
        elif kept is None:
            rows, z_rows = x, z
        else:
            tokens = token_indices(kept, prefix)
            rows, z_rows = gather_tokens(x, tokens), gather_tokens(z, tokens)
        return rows + self.attn(z_rows, z, gate), ranking, kept


class FocalGFT(nn.Module):
    """The project's own variant: the selected patches matter, and one set of weights serves every token budget.

    Args:
        config: variant ``"focal"``.
        pretrained: load timm's pretrained weights for the backbone (needs network or cache).
        drop_path: stochastic depth of the last block, in training.

    Raises:
        ConfigError: the timm model is not a supported Vision Transformer (class token, learned position embedding, no
            register tokens, no norm before the blocks).
    """

    def __init__(self, config: GFTConfig, pretrained: bool = False, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.num_prefix_tokens = config.num_prefix_tokens
        vit = _backbone(config, pretrained, drop_path)
        conv_stem = config.stem == "conv"
        self.patch_embed = ConvStem(config.patch_size, config.embed_dim) if conv_stem else vit.patch_embed
        self.cls_token = vit.cls_token
        self.pos_embed = vit.pos_embed
        blocks = list(vit.blocks)
        if config.stages[-1] < config.depth:
            blocks[-1] = ClassRowBlock(blocks[-1])
        self.blocks = nn.ModuleList(blocks)
        stages = [
            FocalStage(config.embed_dim, config.num_heads, config.num_patches, config.num_prefix_tokens)
            for _ in config.stages
        ]
        self.stages = nn.ModuleList(stages)
        self.norm = vit.norm
        self.head = nn.Linear(config.embed_dim, config.num_classes)
        for stage in stages:
            for linear in (stage.attn.q, stage.attn.kv, stage.attn.proj):
                nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(stage.attn.proj.bias)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.recompute = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the blocks in the backward pass instead of keeping their activations."""
        self.recompute = enable

    def no_weight_decay(self) -> set[str]:
        """Returns the names of weights of two or more dimensions that do not decay."""
        return {"pos_embed", "cls_token", *(f"stages.{index}.smooth.weight" for index in range(len(self.stages)))}

    def layer_of(self, name: str) -> int:
        """Returns the layer of a parameter; see :func:`layer_number`."""
        return layer_number(name, "stages", self.config)

    def embed(self, images: Tensor) -> Tensor:
        """Returns class token and patches with positions: (B, 3, H, W) to (B, 1 + P, C)."""
        patches = self.patch_embed(images)
        tokens = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        return tokens + self.pos_embed

    def forward(
        self,
        images: Tensor,
        budget: TokenBudget | None = None,
        maps: bool = False,
        choose: Choice = select_patches,
    ) -> Tensor | GFTOutput:
        """Classifies images.

        Args:
            images: normalised, (B, 3, H, W).
            budget: patches kept after each stage; the configuration's own by default.
            maps: also return importance and kept patches of every stage.
            choose: selects the patches from their scores; another rule is for controls and studies.

        Returns:
            logits (B, classes), or :class:`GFTOutput` with ``maps``.
        """
        x, trace = self._run_blocks(images, budget, maps, choose)
        logits = self.forward_head(x)
        return GFTOutput(logits, trace) if maps else logits

    def forward_features(
        self, images: Tensor, budget: TokenBudget | None = None, choose: Choice = select_patches
    ) -> Tensor:
        """Returns the tokens after the last block, class token first, (B, T, C); :meth:`forward_head` reads them.

        They are not normalised: the final norm is computed for the class token alone. T is 1 when the last block computes
        only the class token.
        """
        return self._run_blocks(images, budget, False, choose)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Returns the logits (B, classes) of tokens (B, T, C); with ``pre_logits`` the classifier's input, (B, C)."""
        features = self.norm(x[:, 0])
        return features if pre_logits else self.head(features)

    def _run_blocks(
        self, images: Tensor, budget: TokenBudget | None, maps: bool, choose: Choice
    ) -> tuple[Tensor, list[StageMaps]]:
        budget = budget or self.config.budget
        check_budget(budget, self.config)
        x = self.embed(images)
        positions: Tensor | None = None
        trace: list[StageMaps] = []
        stage_after = dict(zip(self.config.stages, range(len(self.stages))))
        for number, block in enumerate(self.blocks, start=1):
            x = run_block(block, x, self.recompute and self.training)
            if number not in stage_after:
                continue
            index = stage_after[number]
            x, ranking, kept = self.stages[index](
                x, budget.keep[index], positions, class_row_only=number == self.config.depth, choose=choose
            )
            if maps or self.training:
                positions = _compose(positions, kept)
            if maps:
                trace.append(StageMaps(gala.importance(ranking), _all_if_none(positions, ranking)))
        return x, trace


def layer_number(name: str, stages: str, config: GFTConfig) -> int:
    """Returns 0 for the embedding, n for block n and the stage after it, depth + 1 for norm and classifier.

    Args:
        name: of a parameter.
        stages: name of the model's list of stages.
        config: of the model.
    """
    parts = name.split(".")
    if parts[0] == "blocks":
        return int(parts[1]) + 1
    if parts[0] == stages:
        return config.stages[int(parts[1])]
    return 0 if parts[0] in ("patch_embed", "pos_embed", "cls_token") else config.depth + 1


def run_block(block: nn.Module, x: Tensor, recompute: bool) -> Tensor:
    """Runs one block; keeps its activations for the backward pass or recomputes them there."""
    return checkpoint(block, x, use_reentrant=False) if recompute else block(x)


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
    vit = timm_vit(config, pretrained, drop_path, num_classes=0)
    if not all(type(block) is Block for block in vit.blocks):
        raise ConfigError(f"backbone {config.backbone!r} has blocks that are not timm's Block")
    if not isinstance(vit.patch_embed, PatchEmbed) or not vit.patch_embed.flatten or vit.pos_embed is None:
        raise ConfigError(f"backbone {config.backbone!r} needs a flat patch embedding with a position embedding")
    prefix = config.num_prefix_tokens
    if (
        vit.num_prefix_tokens != prefix
        or vit.cls_token is None
        or vit.pos_embed.shape[1] != config.num_patches + prefix
    ):
        raise ConfigError(
            f"backbone {config.backbone!r} needs one class token with a position embedding and no register tokens; "
            f"it has {vit.num_prefix_tokens} prefix tokens"
        )
    if not isinstance(vit.norm_pre, nn.Identity):
        raise ConfigError(f"backbone {config.backbone!r} has a norm before its blocks, which is not supported")
    return vit
