"""The variant of the published code (arXiv 2504.09852): loads its checkpoints and reproduces its outputs.

**Its logits do not depend on the token budget.** They are a linear layer on the class token after block 8, and the class
token never meets the stages: GALA and PPS cannot change them, get no gradient from the loss and keep their initial
values. Exported without maps, the stages and the blocks after them are gone. The stages see patch tokens only, with no
norm, residual or MLP, and keep patches in descending order of importance. For a model whose selection matters, use
:class:`gft_edge.model.gft.FocalGFT`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gft_edge.budget import PREFIX_TOKENS, TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.constants import TEMPERATURE
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.model import gala
from gft_edge.model.backbone import timm_vit
from gft_edge.model.foreign.weights_file import looks_like
from gft_edge.model.gft import GFTOutput, StageMaps, check_budget, layer_number, run_block
from gft_edge.model.layers import Attend
from gft_edge.model.selection import gather_tokens

STALE = "ema_grad"
EMA_MOMENTUM = 0.9
EMA_MIX = 0.5


class PublishedStage(nn.Module):
    """Attention over patch tokens, and their importance. Parameters carry the published names.

    The moving average of training is kept per place in the batch and restarts when the batch's shape changes, as
    published; it mixes unrelated images, is not used in eval mode and is not saved.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attend: nn.Module = Attend(num_heads)
        self.proj = nn.Linear(dim, dim)
        self.smooth = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        nn.init.ones_(self.smooth.weight)
        self._average: Tensor | None = None

    def importance(self, x: Tensor) -> Tensor:
        """Returns the importance, (B, N, C) to (B, N), rows summing to 1; in training mixed with the moving average."""
        q_weight, k_weight, _ = self.qkv.weight.chunk(3)
        scores = gala.standardized_scores(gala.mean_scores(x, q_weight, k_weight, self.num_heads), self.smooth.weight)
        if self.training:
            now = scores.detach()
            if self._average is None or self._average.shape != now.shape:
                self._average = now
            else:
                self._average = EMA_MOMENTUM * self._average + (1 - EMA_MOMENTUM) * now
            scores = EMA_MIX * scores + (1 - EMA_MIX) * self._average
        return gala.importance(scores)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Returns the output tokens of all inputs (B, N, C), or of those at ``kept`` (B, K) only: (B, K, C)."""
        q, k, v = self.qkv(x).chunk(3, dim=2)
        if kept is not None:
            q = gather_tokens(q, kept)
        return self.proj(self.attend(q, k, v))


class PublishedGFT(nn.Module):
    """The published model; its state dict has the published names. **Its logits do not depend on the budget.**

    It has all blocks, the norm and the head of the backbone because published checkpoints have them; those after the
    stages never run.

    Args:
        config: variant ``"published"``.
        pretrained: load timm's pretrained weights for the backbone (needs network or cache).
        drop_path: stochastic depth of the last block, in training.

    Raises:
        ConfigError: the backbone is not a timm Vision Transformer with a class token.
    """

    def __init__(self, config: GFTConfig, pretrained: bool = False, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.num_prefix_tokens = config.num_prefix_tokens
        vit = timm_vit(config, pretrained, drop_path)
        if vit.num_prefix_tokens != config.num_prefix_tokens or vit.cls_token is None:
            raise ConfigError(f"backbone {config.backbone!r} needs one class token and no register tokens")
        self.base_model = vit
        self.hierarchical_blocks = nn.ModuleList(
            PublishedStage(config.embed_dim, config.num_heads) for _ in config.stages
        )
        self.classifier = nn.Linear(config.embed_dim, config.num_classes)
        self.recompute = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the blocks in the backward pass instead of keeping their activations."""
        self.recompute = enable

    def makes_logits(self, name: str) -> bool:
        """Returns whether the logits depend on a module: not on the stages, the blocks after them, and the backbone's end."""
        parts = name.split(".")
        if parts[:2] == ["base_model", "blocks"] and len(parts) > 2:
            return int(parts[2]) < self.config.stages[0]
        return parts[0] != "hierarchical_blocks" and parts[:2] not in (["base_model", "norm"], ["base_model", "head"])

    def no_weight_decay(self) -> set[str]:
        """Returns the names of weights of two or more dimensions that do not decay."""
        smoothing = (f"hierarchical_blocks.{index}.smooth.weight" for index in range(len(self.hierarchical_blocks)))
        return {"base_model.pos_embed", "base_model.cls_token", *smoothing}

    def layer_of(self, name: str) -> int:
        """Returns the layer of a parameter; see :func:`gft_edge.model.gft.layer_number`."""
        return layer_number(name.removeprefix("base_model."), "hierarchical_blocks", self.config)

    def forward(self, images: Tensor, budget: TokenBudget | None = None, maps: bool = False) -> Tensor | GFTOutput:
        """Classifies images.

        Args:
            images: normalised, (B, 3, H, W).
            budget: patches kept after each stage; changes the maps, never the logits.
            maps: also return importance and kept patches of every stage, most important first.

        Returns:
            logits (B, classes), or :class:`GFTOutput` with ``maps``.
        """
        budget = budget or self.config.budget
        check_budget(budget, self.config)
        x = self.forward_features(images)
        logits = self.forward_head(x)
        if not maps and not self.training:
            return logits
        trace = self._stages(x[:, self.num_prefix_tokens :], budget)
        return GFTOutput(logits, trace) if maps else logits

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the tokens after the last block before the stages, class token first, (B, 1 + P, C)."""
        vit = self.base_model
        patches = vit.patch_embed(images)
        tokens = torch.cat((vit.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        x = vit.pos_drop(tokens + vit.pos_embed)
        for block in vit.blocks[: self.config.stages[0]]:
            x = run_block(block, x, self.recompute and self.training)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Returns the logits (B, classes) of tokens (B, T, C); with ``pre_logits`` the classifier's input, (B, C)."""
        return x[:, 0] if pre_logits else self.classifier(x[:, 0])

    def _stages(self, x: Tensor, budget: TokenBudget) -> list[StageMaps]:
        """Returns importance and kept positions on the original grid of patch tokens (B, P, C)."""
        positions: Tensor | None = None
        trace = []
        for stage, k in zip(self.hierarchical_blocks, budget.keep):
            assert isinstance(stage, PublishedStage)
            importance = stage.importance(x)
            kept = importance.topk(k, dim=1).indices
            positions = kept if positions is None else positions.gather(1, kept)
            scores = importance.clamp_min(torch.finfo(importance.dtype).tiny).log() * TEMPERATURE
            trace.append(StageMaps(importance, positions, scores))
            x = stage(x, kept)
        return trace


ANCHOR = "base_model.pos_embed"
"""A tensor that every published state dict has; any text before its name is a prefix."""


def published_state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of a published state dict without the stale ``ema_grad`` buffers of trained models.

    Args:
        weights: as :func:`gft_edge.model.foreign.weights_file.read_weights_file` gives them for ``ANCHOR``.

    Raises:
        ArtifactError: it is not one; names the model it looks like, if that is a known one.
    """
    needed = (ANCHOR, "hierarchical_blocks.0.qkv.weight", "classifier.weight")
    missing = [name for name in needed if name not in weights]
    if missing:
        other = looks_like(weights)
        names = "base_model.*, hierarchical_blocks.*, classifier.*"
        hint = f"it looks like {other}" if other else f"its tensors are {', '.join(sorted(weights)[:3])} ..."
        raise ArtifactError(
            f"not a state dict of the published GFT: missing {missing[:3]}; {hint}; this verb reads only checkpoints of the "
            f"published GFT code ({names})"
        )
    return {name: tensor for name, tensor in weights.items() if not name.endswith(f".{STALE}")}


def published_config(weights: Mapping[str, Tensor]) -> GFTConfig:
    """Returns the configuration that fits published weights; 64 channels per head, budget 75, 50, 25 per cent.

    Raises:
        ArtifactError: the sizes fit no such model.
    """
    try:
        patches = weights[ANCHOR].shape[1] - PREFIX_TOKENS
        dim, _, patch_size, _ = weights["base_model.patch_embed.proj.weight"].shape
        depth = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("base_model.blocks."))
        stages = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("hierarchical_blocks."))
        side = round(patches**0.5)
        return GFTConfig(
            backbone="vit_base_patch16_224",
            image_size=side * patch_size,
            patch_size=patch_size,
            num_classes=weights["classifier.weight"].shape[0],
            embed_dim=dim,
            depth=depth,
            num_heads=dim // 64,
            stages=(min(8, depth),) * stages,
            budget=TokenBudget.from_ratios((0.75, 0.5, 0.25)[:stages], patches),
            variant="published",
        )
    except (KeyError, ValueError, IndexError) as error:
        raise ArtifactError(f"published weights: the sizes fit no GFT ({error})") from None
