"""Modules in the form the exported graph has them: the same arithmetic, fewer and plainer operators.

Quantized linears become QuantizeLinear, DequantizeLinear and one MatMul: symmetric INT8 with explicit zero zero-points, INT8
weights and no quantized bias, the one form that ONNX Runtime runs as INT8 products and that TensorRT accepts. Attention
becomes MatMul, Softmax, MatMul with the scale on the queries and no other reader of scores or probabilities, the form
that TensorRT fuses.
"""

from __future__ import annotations

import copy

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from gft_edge.calibration.modules import QMAX, QMIN, QuantLinear
from gft_edge.model.layers import Attend

_QDQ_OPSET = 13  # per-channel scales exist since then; the meaning has not changed


class QDQLinear(nn.Module):
    """A :class:`QuantLinear` with its weights folded to INT8 of shape (in, out)."""

    weight_int8: Tensor
    weight_scale: Tensor
    weight_zero: Tensor
    input_scale: Tensor
    input_zero: Tensor

    def __init__(self, layer: QuantLinear) -> None:
        super().__init__()
        weight_scale = layer.weight_range / QMAX
        weight = torch.round(layer.weight.detach() / weight_scale[:, None]).clamp(QMIN, QMAX)
        self.register_buffer("weight_int8", weight.to(torch.int8).t().contiguous())
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("weight_zero", torch.zeros(len(weight_scale), dtype=torch.int8))
        self.register_buffer("input_scale", torch.tensor(layer.input_scale))
        self.register_buffer("input_zero", torch.zeros((), dtype=torch.int8))
        self.weight, self.bias = layer.weight, layer.bias  # the importance path reads the float weights

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        quantized = torch.onnx.ops.symbolic(
            "QuantizeLinear",
            (x, self.input_scale, self.input_zero),
            dtype=torch.int8,
            shape=x.shape,
            version=_QDQ_OPSET,
        )
        x = torch.onnx.ops.symbolic(
            "DequantizeLinear",
            (quantized, self.input_scale, self.input_zero),
            dtype=torch.float32,
            shape=x.shape,
            version=_QDQ_OPSET,
        )
        weight = torch.onnx.ops.symbolic(
            "DequantizeLinear",
            (self.weight_int8, self.weight_scale, self.weight_zero),
            {"axis": 1},
            dtype=torch.float32,
            shape=self.weight_int8.shape,
            version=_QDQ_OPSET,
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


def exportable(model: nn.Module) -> nn.Module:
    """A copy of a model in eval mode whose modules have the form of this file."""
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
                setattr(parent, name, QDQLinear(child))
    return model
