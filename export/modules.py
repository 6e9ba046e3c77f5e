"""Modules in the form the exported graph has them: the same arithmetic, fewer and plainer operators.

Quantized linears become QuantizeLinear, DequantizeLinear and one MatMul: symmetric INT8 with explicit zero zero-points, INT8
weights and no quantized bias, the one form that ONNX Runtime runs as INT8 products and that TensorRT accepts. Attention
becomes MatMul, Softmax, MatMul with the scale on the queries and no other reader of scores or probabilities, the form
that TensorRT fuses.
"""

from __future__ import annotations

import copy
import itertools

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gft_edge.calibration.modules import QMAX, QMIN, QuantLinear
from gft_edge.model.layers import Attend

_QDQ_OPSET = 13  # per-channel scales exist since then; the meaning has not changed
_LOW_QDQ_OPSET = 19  # scales may be half precision since then


class QDQLinear(nn.Module):
    """A :class:`QuantLinear` with its weights folded to INT8 of shape (in, out).

    Args:
        layer: what to fold.
        dtype: of scales, bias and results; scales are rounded to it before the weights are, and stay normal numbers.
    """

    weight_int8: Tensor
    weight_scale: Tensor
    weight_zero: Tensor
    input_scale: Tensor
    input_zero: Tensor

    def __init__(self, layer: QuantLinear, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        smallest = torch.finfo(dtype).tiny
        weight_scale = (layer.weight_range / QMAX).clamp_min(smallest).to(dtype)
        weight = torch.round(layer.weight.detach() / weight_scale.float()[:, None]).clamp(QMIN, QMAX)
        self.register_buffer("weight_int8", weight.to(torch.int8).t().contiguous())
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("weight_zero", torch.zeros(len(weight_scale), dtype=torch.int8))
        self.register_buffer("input_scale", torch.tensor(max(layer.input_scale, smallest), dtype=dtype))
        self.register_buffer("input_zero", torch.zeros((), dtype=torch.int8))
        self.weight, self.bias = layer.weight, layer.bias  # the importance path reads the float weights

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        dtype = self.input_scale.dtype
        opset = _QDQ_OPSET if dtype == torch.float32 else _LOW_QDQ_OPSET
        quantized = torch.onnx.ops.symbolic(
            "QuantizeLinear",
            (x, self.input_scale, self.input_zero),
            dtype=torch.int8,
            shape=x.shape,
            version=opset,
        )
        x = torch.onnx.ops.symbolic(
            "DequantizeLinear",
            (quantized, self.input_scale, self.input_zero),
            dtype=dtype,
            shape=x.shape,
            version=opset,
        )
        weight = torch.onnx.ops.symbolic(
            "DequantizeLinear",
            (self.weight_int8, self.weight_scale, self.weight_zero),
            {"axis": 1},
            dtype=dtype,
            shape=self.weight_int8.shape,
            version=opset,
        )
        y = torch.matmul(x, weight)
        return y if self.bias is None else y + self.bias


class PlainAttend(nn.Module):
    """:class:`Attend` as two products and a softmax; the scale stands right at the product, which takes it in."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (B, R, C) over keys and values (B, T, C): (B, R, C)."""
        q, k, v = (t.unflatten(2, (self.num_heads, -1)) for t in (q, k, v))
        scores = (q.transpose(1, 2) * q.shape[-1] ** -0.5) @ k.permute(0, 2, 3, 1)
        return (scores.softmax(dim=-1) @ v.transpose(1, 2)).transpose(1, 2).flatten(2)


class PlainAttention(nn.Module):
    """timm's self-attention on :class:`PlainAttend`."""

    def __init__(self, layer: Attention) -> None:
        super().__init__()
        self.qkv, self.attend, self.proj = layer.qkv, PlainAttend(layer.num_heads), layer.proj

    def forward(self, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """(B, T, C) to (B, T, C); never masked."""
        q, k, v = self.qkv(x).chunk(3, dim=2)
        return self.proj(self.attend(q, k, v))


def _is_plain(layer: Attention) -> bool:
    """Whether nothing is done to queries, keys or the result but what :class:`PlainAttention` does."""
    extras = (layer.q_norm, layer.k_norm, layer.norm)
    return layer.gate is None and all(isinstance(extra, nn.Identity) for extra in extras)


def exportable(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of a model in eval mode whose modules have the form of this file.

    Args:
        model: quantized or not.
        dtype: of everything that is not quantized; images must come in it. The importance is computed in float32 always.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Attention) and _is_plain(child):
                setattr(parent, name, PlainAttention(child))
            elif isinstance(child, Attend):
                setattr(parent, name, PlainAttend(child.num_heads))
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, QuantLinear):
                setattr(parent, name, QDQLinear(child, dtype))
    _fold_norms(model)
    return model.to(dtype)


def _fold_norms(model: nn.Module) -> None:
    """Batch norms right after a convolution go into its weights, in float32: the ONNX exporter, which would do it too,
    leaves float32 weights in a bfloat16 graph."""
    for chain in (module for module in model.modules() if isinstance(module, nn.Sequential)):
        for (name, conv), (after, norm) in itertools.pairwise(list(chain.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(chain, name, fuse_conv_bn_eval(conv, norm))
                setattr(chain, after, nn.Identity())
