"""Checks that what is timed computes what it stands for, in FP32: against the plain ViT, and against an independent slow form."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from gft_edge.benchmarks.experiments.gpu.candidates import Family
from gft_edge.benchmarks.experiments.gpu.scale import Place, reason
from gft_edge.benchmarks.experiments.gpu.timing import relative_difference
from gft_edge.config.model import GFTConfig

IMAGES = 4


@torch.no_grad()
def exactness(config: GFTConfig, place: Place) -> dict[str, float | str]:
    """Returns relative differences of logits in FP32 without TF32 in matrix products.

    Returns:
        ``every patch``: the focal model at the full budget against timm's ViT; ``pruned``: at its own budget against
        :func:`slow_logits`; an error's text in place of a figure that could not be had.
    """
    found: dict[str, float | str] = {}
    try:
        family = Family(config, Place(place.device, torch.float32))
        images = family.images(IMAGES)
        found["every patch"] = relative_difference(family.gft(config.full_budget)(images), family.vit(images))
        found["pruned"] = relative_difference(family.gft()(images), slow_logits(family.vit, images, config))
    except Exception as error:
        found["error"] = reason(error)
    return found


def slow_logits(vit: VisionTransformer, images: Tensor, config: GFTConfig) -> Tensor:
    """Returns logits with selection by column mean written out with whole attention matrices, image by image.

    Args:
        vit: network whose blocks are used.
        images: (B, 3, H, W).
        config: stages and budget.
    """
    keep = dict(zip(config.stages, config.budget.keep))
    logits = []
    for image in images:
        x = vit.patch_embed(image[None])
        x = torch.cat((vit.cls_token, x), dim=1) + vit.pos_embed
        for number, block in enumerate(vit.blocks, start=1):
            x = _selecting(block, x, keep[number]) if number in keep else block(x)
        logits.append(vit.head(vit.norm(x)[:, 0]))
    return torch.cat(logits)


def _selecting(block: Block, x: Tensor, k: int) -> Tensor:
    """One image: attention of every token, then the class token and the k patches of highest column mean. (1, T, C)."""
    heads, tokens = block.attn.num_heads, x.shape[1]
    q, key, v = block.attn.qkv(block.norm1(x))[0].view(tokens, 3, heads, -1).permute(1, 2, 0, 3).unbind(0)
    scores = q @ key.transpose(1, 2) * q.shape[-1] ** -0.5  # (H, T, T)
    received = scores[:, 1:, 1:].mean(dim=(0, 1))
    rows = torch.cat((received.new_zeros(1, dtype=torch.long), 1 + received.topk(k).indices.sort().values))
    attended = block.attn.proj((scores.softmax(dim=-1) @ v).transpose(0, 1).flatten(1))
    x = (x[0] + attended)[rows][None]
    return x + block.mlp(block.norm2(x))
