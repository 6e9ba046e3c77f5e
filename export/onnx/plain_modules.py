"""Modules in their exported form: the same arithmetic, fewer and plainer operators.

Quantized layers become those of quantized.py. Attention becomes MatMul, Softmax, MatMul with the scale on the queries and no
other reader of scores or probabilities, the form that TensorRT fuses.
"""

from __future__ import annotations

import copy
import itertools

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gft_edge.export.onnx.quantized import folded_layer
from gft_edge.model.focal_block import FocalBlock
from gft_edge.model.gft import FocalGFT
from gft_edge.model.layers import Attend, SelfAttention, is_plain
from gft_edge.model.scores import SCORES
from gft_edge.quant.modules import QUANTIZED


class PlainAttend(nn.Module):
    """:class:`Attend` as two products and a softmax; the scale is next to the product, so that TensorRT fuses it."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends with queries (B, R, C) over keys and values (B, T, C): (B, R, C)."""
        q, k, v = (t.unflatten(2, (self.num_heads, -1)) for t in (q, k, v))
        scores = (q.transpose(1, 2) * q.shape[-1] ** -0.5) @ k.permute(0, 2, 3, 1)
        return (scores.softmax(dim=-1) @ v.transpose(1, 2)).transpose(1, 2).flatten(2)


class OneMatrixBlock(FocalBlock):
    """A block of quantized layers whose scores take one constant matrix in place of the weights of queries and of keys.

    Args:
        block: with a score that sums over the heads; shares its layers.
    """

    matrix: Tensor
    offset: Tensor | None

    def __init__(self, block: FocalBlock) -> None:
        super().__init__(block, block.score, block.num_prefix_tokens)
        self.attn, qkv = block.attn, block.attn.qkv
        with torch.no_grad():
            matrix, offset = SCORES[self.score].matrix(qkv.weight, qkv.bias)
        self.register_buffer("matrix", matrix.to(qkv.weight.dtype))
        self.register_buffer("offset", None if offset is None else offset.to(qkv.weight.dtype))

    def _scores(self, z: Tensor, q: Tensor, key: Tensor) -> Tensor:
        """Returns the scores (B, N) of normalised tokens (B, T, C)."""
        return SCORES[self.score].by_matrix(z, self.matrix, self.offset, self.num_prefix_tokens)


def exportable(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Returns a copy of a model in eval mode with its modules in exported form.

    Args:
        model: quantized or not.
        dtype: of everything that is not quantized and of the images; the model's own by default. The importance is
            computed in float32 at least.
    """
    shared = {id(p): nn.Parameter(p.data, requires_grad=False) for p in model.parameters()}  # on the same memory
    model = copy.deepcopy(model, shared).eval()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Attention) and is_plain(child):
                setattr(parent, name, SelfAttention(child, PlainAttend(child.num_heads)))
            elif isinstance(child, Attend):
                setattr(parent, name, PlainAttend(child.num_heads))
    if isinstance(model, FocalGFT) and not SCORES[model.config.score].by_head:
        for number in model.config.stages:
            block = model.blocks[number - 1]
            if isinstance(block, FocalBlock) and isinstance(block.attn.qkv, QUANTIZED):
                model.blocks[number - 1] = OneMatrixBlock(block)
    _fold_norms(model)
    scales = dtype or torch.float32
    folded = [
        (parent, name, folded_layer(child, scales))
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, QUANTIZED)
    ]
    if dtype is not None:
        model.to(dtype)  # before the folded layers are inserted: it would convert their FP8 weights
    for parent, name, layer in folded:
        setattr(parent, name, layer)
    return model


def _fold_norms(model: nn.Module) -> None:
    """Folds batch norms into the convolution before them, in float32: the ONNX exporter, which folds them too, leaves float32
    weights in a bfloat16 graph."""
    for chain in (module for module in model.modules() if isinstance(module, nn.Sequential)):
        for (name, conv), (after, norm) in itertools.pairwise(list(chain.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(chain, name, fuse_conv_bn_eval(conv, norm))
                setattr(chain, after, nn.Identity())
