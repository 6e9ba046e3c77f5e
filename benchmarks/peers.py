"""What the project is measured against, written out plainly."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from gft_edge.budget import TokenBudget


class PlainStage(nn.Module):
    """A stage of the published code as it stands there: the attention matrix is made, and read for the importance."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.smooth = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, C) to tokens (B, N, C) and importance (B, N)."""
        batch, patches, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, patches, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * self.scale
        tokens = self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, patches, dim))
        gradient = torch.gradient(scores.mean(dim=-1), dim=-1)[0].abs().mean(dim=1)
        smooth = self.smooth(gradient.unsqueeze(1)).squeeze(1)
        standard = (smooth - smooth.mean(1, keepdim=True)) / (smooth.std(1, keepdim=True) + 1e-6)
        return tokens, torch.softmax(standard / 0.1, dim=-1)


class PlainPublishedGFT(nn.Module):
    """The published model run as it stands: eight blocks, then three stages that the logits do not read."""

    def __init__(self, budget: TokenBudget, num_classes: int = 100, backbone: str = "vit_base_patch16_224") -> None:
        super().__init__()
        self.budget = budget
        self.base_model = timm.create_model(backbone)
        dim, heads = self.base_model.embed_dim, self.base_model.blocks[0].attn.num_heads
        self.stages = nn.ModuleList(PlainStage(dim, heads) for _ in budget.keep)
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, classes)."""
        vit = self.base_model
        patches = vit.patch_embed(images)
        x = torch.cat((vit.cls_token.expand(len(patches), -1, -1), patches), dim=1) + vit.pos_embed
        for block in vit.blocks[:8]:
            x = block(x)
        class_token, x = x[:, 0], x[:, 1:]
        for stage, k in zip(self.stages, self.budget.keep):
            x, importance = stage(x)
            kept = importance.topk(k, dim=1).indices
            x = x.gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        return self.classifier(class_token)
