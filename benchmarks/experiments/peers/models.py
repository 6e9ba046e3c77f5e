"""The published model written out plainly, and the export of peers to ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import onnxslim
import timm
import torch
from torch import Tensor, nn
from torch.export import Dim

from gft_edge.budget import TokenBudget
from gft_edge.constants import OPSET
from gft_edge.export.onnx.plain_modules import exportable
from gft_edge.export.onnx.rewrite import rewrite


class PlainStage(nn.Module):
    """A stage of the published code, unchanged: it computes the attention matrix and reads it for the importance."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.smooth = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, N, C) to tokens (B, N, C) and importance (B, N)."""
        batch, patches, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, patches, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * self.scale
        tokens = self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, patches, dim))
        gradient = torch.gradient(scores.mean(dim=-1), dim=-1)[0].abs().mean(dim=1)
        smooth = self.smooth(gradient.unsqueeze(1)).squeeze(1)
        standard = (smooth - smooth.mean(1, keepdim=True)) / (smooth.std(1, keepdim=True) + 1e-6)
        return tokens, torch.softmax(standard / 0.1, dim=-1)


class PlainPublishedGFT(nn.Module):
    """The published model, unchanged: eight blocks, then three stages that the logits do not depend on.

    Args:
        budget: patches kept after each stage.
        num_classes: outputs of the classifier.
        backbone: timm name.
        maps: also return importance and kept patches of every stage, so that an exported graph keeps the stages.
        vit: timm model in place of the named one.
        blocks: number of its blocks that run.
    """

    def __init__(
        self,
        budget: TokenBudget,
        num_classes: int = 100,
        backbone: str = "vit_base_patch16_224",
        maps: bool = False,
        vit: Any = None,
        blocks: int = 8,
    ) -> None:
        super().__init__()
        self.budget, self.maps, self.blocks = budget, maps, blocks
        vit = timm.create_model(backbone) if vit is None else vit
        self.base_model = vit
        dim, heads = vit.embed_dim, vit.blocks[0].attn.num_heads
        self.stages = nn.ModuleList(PlainStage(dim, heads) for _ in budget.keep)
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Maps (B, 3, H, W) to logits (B, classes); with maps also importance (B, N_i) and kept (B, K_i) of every stage."""
        vit: Any = self.base_model
        patches = vit.patch_embed(images)
        x = torch.cat((vit.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1) + vit.pos_embed
        for block in vit.blocks[: self.blocks]:
            x = block(x)
        class_token, x = x[:, 0], x[:, 1:]
        maps = []
        for stage, k in zip(self.stages, self.budget.keep):
            x, importance = stage(x)
            kept = importance.topk(k, dim=1).indices
            x = x.gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
            maps += [importance, kept]
        logits = self.classifier(class_token)
        return (logits, *maps) if self.maps else logits


def export_as_is(
    model: nn.Module, side: int, outputs: Sequence[str] = ("logits",), dynamic: bool = False
) -> onnx.ModelProto:
    """Exports a model with ``torch.onnx.export`` alone.

    Args:
        model: takes images (B, 3, side, side).
        side: pixels.
        outputs: names.
        dynamic: any batch; otherwise one image.
    """
    shapes: Any = ({0: Dim("batch", min=1, max=64)},) if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model.eval().requires_grad_(False),
            (torch.zeros(2 if dynamic else 1, 3, side, side),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(outputs),
            dynamic_shapes=shapes,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return program.model_proto


def export_peer(model: nn.Module, side: int) -> onnx.ModelProto:
    """Exports a peer in the same way as an artefact: attention written out, onnxslim, graph rewrites."""
    logging.getLogger("onnxslim").setLevel(logging.ERROR)
    return rewrite(onnxslim.slim(export_as_is(exportable(model), side, dynamic=True)))
