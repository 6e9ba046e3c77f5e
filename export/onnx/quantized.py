"""Quantized layers in the form the exported graph has them: QuantizeLinear, DequantizeLinear and one product.

Symmetric with explicit zero zero-points, weights stored in 8 bits and no quantized bias: the only form that ONNX Runtime runs as
INT8 products and that TensorRT accepts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gft_edge.quant.levels import E4M3_MAX, QMAX, QMIN
from gft_edge.quant.modules import QuantAttend, QuantConv2d, QuantLinear, TensorQuantizer

_OPSET = 13  # per-channel scales exist since then; the meaning has not changed
_LOW_OPSET = 19  # scales may be half precision, and values FP8, since then


def _opset(scale: Tensor, zero: Tensor) -> int:
    return _OPSET if scale.dtype == torch.float32 and zero.dtype == torch.int8 else _LOW_OPSET


def quantize(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Emits QuantizeLinear, per tensor, to the type of ``zero``."""
    return torch.onnx.ops.symbolic(
        "QuantizeLinear", (x, scale, zero), dtype=zero.dtype, shape=x.shape, version=_opset(scale, zero)
    )


def dequantize(x: Tensor, scale: Tensor, zero: Tensor, axis: int | None = None) -> Tensor:
    """Emits DequantizeLinear, per tensor or along an axis, to the type of ``scale``."""
    return torch.onnx.ops.symbolic(
        "DequantizeLinear",
        (x, scale, zero),
        {} if axis is None else {"axis": axis},
        dtype=scale.dtype,
        shape=x.shape,
        version=_opset(scale, zero),
    )


def _rounded(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return dequantize(quantize(x, scale, zero), scale, zero)


class QDQLayer(nn.Module):
    """A quantized linear layer or convolution: 8-bit weights, with the input quantized too unless it is in high precision.

    The weights of a linear layer are stored as (in, out).

    Args:
        layer: the layer to convert.
        dtype: of scales, bias and results; scales are rounded to it before the weights are, and stay normal numbers.
    """

    weight_stored: Tensor
    weight_scale: Tensor
    weight_zero: Tensor
    input_scale: Tensor | None
    input_zero: Tensor

    def __init__(self, layer: QuantLinear | QuantConv2d, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        weight, fp8 = layer.weight.detach(), layer.precision == "fp8"
        smallest = torch.finfo(dtype).tiny
        scale = torch.as_tensor(layer.weight_quantizer.scale).clamp_min(smallest).to(dtype)
        per_row = scale.float().reshape(-1, *[1] * (weight.ndim - 1)) if scale.ndim else scale.float()
        stored = torch.float8_e4m3fn if fp8 else torch.int8
        values = weight / per_row
        values = values.clamp(-E4M3_MAX, E4M3_MAX) if fp8 else torch.round(values).clamp(QMIN, QMAX)
        self.register_buffer("weight_stored", values.to(stored))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero", torch.zeros(scale.shape, dtype=stored))
        quantizer = layer.input_quantizer
        known = None if quantizer is None else torch.tensor(max(quantizer.scale, smallest), dtype=dtype)
        self.register_buffer("input_scale", known)
        self.register_buffer("input_zero", torch.zeros((), dtype=stored))
        self.bias = layer.bias
        self.conv: dict[str, Any] | None = None
        if isinstance(layer, QuantConv2d):
            self.conv = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
        else:
            self.weight_stored = self.weight_stored.t().contiguous()
            self.weight = layer.weight  # the importance path reads the float weights

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out), or (B, in, H, W) to (B, out, H', W')."""
        if self.conv is not None:
            weight = self._weight(axis=0)
            return F.conv2d(self._input(x), weight, self.bias, **self.conv)
        y = torch.matmul(self._input(x), self._weight(axis=1))
        return y if self.bias is None else y + self.bias

    def _input(self, x: Tensor) -> Tensor:
        return x if self.input_scale is None else _rounded(x, self.input_scale, self.input_zero)

    def _weight(self, axis: int) -> Tensor:
        return dequantize(
            self.weight_stored, self.weight_scale, self.weight_zero, axis if self.weight_scale.ndim else None
        )


class QDQAttend(nn.Module):
    """Attention with all four operands of its two products quantized, and nothing between DequantizeLinear and product.

    The scale of the scores and the transposition of the keys come before QuantizeLinear: the form that TensorRT fuses
    (NVIDIA/Model-Optimizer PR 1289).

    Args:
        layer: the attention to convert.
        dtype: of scales and results.
    """

    zero: Tensor

    def __init__(self, layer: QuantAttend, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.num_heads = layer.num_heads
        smallest = torch.finfo(dtype).tiny
        for part, quantizer in layer.quantizers.items():
            assert isinstance(quantizer, TensorQuantizer)
            self.register_buffer(f"{part}_scale", torch.tensor(max(quantizer.scale, smallest), dtype=dtype))
        stored = torch.float8_e4m3fn if layer.precision == "fp8" else torch.int8
        self.register_buffer("zero", torch.zeros((), dtype=stored))

    def _rounded(self, x: Tensor, part: str) -> Tensor:
        return _rounded(x, getattr(self, f"{part}_scale"), self.zero)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends with queries (B, R, C) over keys and values (B, T, C): (B, R, C)."""
        q, k, v = (t.unflatten(2, (self.num_heads, -1)) for t in (q, k, v))
        q = self._rounded(q.transpose(1, 2) * q.shape[-1] ** -0.5, "q")
        scores = q @ self._rounded(k.permute(0, 2, 3, 1), "k")
        probs = self._rounded(scores.softmax(dim=-1), "probs")
        return (probs @ self._rounded(v.transpose(1, 2), "v")).transpose(1, 2).flatten(2)


def folded_layer(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Returns the exported form of a quantized layer or attention."""
    if isinstance(layer, QuantAttend):
        return QDQAttend(layer, dtype)
    assert isinstance(layer, (QuantLinear, QuantConv2d))
    return QDQLayer(layer, dtype)
