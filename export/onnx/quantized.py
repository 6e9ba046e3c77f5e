"""Quantized layers in the form the exported graph has them: QuantizeLinear, DequantizeLinear and one product.

Symmetric with explicit zero zero-points, weights stored in 8 bits and no quantized bias: the one form that ONNX Runtime runs as
INT8 products and that TensorRT accepts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gft_edge.quant.levels import E4M3_MAX, QMAX, QMIN
from gft_edge.quant.modules import FP8Linear, QuantAttend, QuantConv2d, QuantLinear, WeightOnlyLinear

_OPSET = 13  # per-channel scales exist since then; the meaning has not changed
_LOW_OPSET = 19  # scales may be half precision, and values FP8, since then


def _opset(scale: Tensor, zero: Tensor) -> int:
    return _OPSET if scale.dtype == torch.float32 and zero.dtype == torch.int8 else _LOW_OPSET


def quantize(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """QuantizeLinear, per tensor, to the type of ``zero``."""
    return torch.onnx.ops.symbolic(
        "QuantizeLinear", (x, scale, zero), dtype=zero.dtype, shape=x.shape, version=_opset(scale, zero)
    )


def dequantize(x: Tensor, scale: Tensor, zero: Tensor, axis: int | None = None) -> Tensor:
    """DequantizeLinear, per tensor or along an axis, to the type of ``scale``."""
    return torch.onnx.ops.symbolic(
        "DequantizeLinear",
        (x, scale, zero),
        {} if axis is None else {"axis": axis},
        dtype=scale.dtype,
        shape=x.shape,
        version=_opset(scale, zero),
    )


class QDQLayer(nn.Module):
    """What all have in common: 8-bit weights with their scales, and the scale of the input if that is quantized too.

    Args:
        weight: float32.
        weight_scale: per output channel (along dim 0 of ``weight``), or one for all.
        input_scale: None leaves the input in high precision.
        fp8: E4M3 in place of INT8.
        dtype: of scales and results; scales are rounded to it before the weights are, and stay normal numbers.
    """

    weight_stored: Tensor
    weight_scale: Tensor
    weight_zero: Tensor
    input_scale: Tensor | None
    input_zero: Tensor

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, input_scale: float | None, fp8: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        smallest = torch.finfo(dtype).tiny
        scale = weight_scale.clamp_min(smallest).to(dtype)
        per_row = scale.float().reshape(-1, *[1] * (weight.ndim - 1)) if scale.ndim else scale.float()
        stored = torch.float8_e4m3fn if fp8 else torch.int8
        values = weight.detach() / per_row
        values = values.clamp(-E4M3_MAX, E4M3_MAX) if fp8 else torch.round(values).clamp(QMIN, QMAX)
        self.register_buffer("weight_stored", values.to(stored))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero", torch.zeros(scale.shape, dtype=stored))
        known = None if input_scale is None else torch.tensor(max(input_scale, smallest), dtype=dtype)
        self.register_buffer("input_scale", known)
        self.register_buffer("input_zero", torch.zeros((), dtype=stored))

    def rounded(self, x: Tensor) -> Tensor:
        """The input as 8 bits hold it, where it is quantized."""
        if self.input_scale is None:
            return x
        return dequantize(quantize(x, self.input_scale, self.input_zero), self.input_scale, self.input_zero)


class QDQLinear(QDQLayer):
    """A quantized linear layer, its weights stored as (in, out).

    Args:
        layer: what to fold.
        dtype: of scales, bias and results.
    """

    def __init__(self, layer: QuantLinear | WeightOnlyLinear | FP8Linear, dtype: torch.dtype = torch.float32) -> None:
        scale = torch.tensor(layer.weight_scale) if isinstance(layer, FP8Linear) else layer.weight_range / QMAX
        input_scale = None if isinstance(layer, WeightOnlyLinear) else layer.input_scale
        super().__init__(layer.weight, scale, input_scale, isinstance(layer, FP8Linear), dtype)
        self.weight_stored = self.weight_stored.t().contiguous()
        self.weight, self.bias = layer.weight, layer.bias  # the importance path reads the float weights

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        axis = 1 if self.weight_scale.ndim else None
        y = torch.matmul(
            self.rounded(x), dequantize(self.weight_stored, self.weight_scale, self.weight_zero, axis=axis)
        )
        return y if self.bias is None else y + self.bias


class QDQConv2d(QDQLayer):
    """A quantized convolution.

    Args:
        layer: what to fold.
        dtype: of scales, bias and results.
    """

    def __init__(self, layer: QuantConv2d, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(layer.weight, layer.weight_range / QMAX, layer.input_scale, False, dtype)
        self.bias = layer.bias
        self.stride, self.padding, self.dilation, self.groups = (
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H', W')."""
        weight = dequantize(self.weight_stored, self.weight_scale, self.weight_zero, axis=0)
        return F.conv2d(self.rounded(x), weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class QDQAttend(nn.Module):
    """Attention with all four operands of its two products quantized, and nothing between DequantizeLinear and product.

    The scale of the scores and the transposition of the keys stand before QuantizeLinear: the form that TensorRT fuses
    (NVIDIA/Model-Optimizer PR 1289).

    Args:
        layer: what to fold.
        dtype: of scales and results.
    """

    zero: Tensor

    def __init__(self, layer: QuantAttend, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.num_heads = layer.num_heads
        smallest = torch.finfo(dtype).tiny
        for part, scale in layer.scales.items():
            self.register_buffer(f"{part}_scale", torch.tensor(max(scale, smallest), dtype=dtype))
        stored = torch.float8_e4m3fn if layer.precision == "fp8" else torch.int8
        self.register_buffer("zero", torch.zeros((), dtype=stored))

    def _rounded(self, x: Tensor, part: str) -> Tensor:
        scale: Tensor = getattr(self, f"{part}_scale")
        return dequantize(quantize(x, scale, self.zero), scale, self.zero)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (B, R, C) over keys and values (B, T, C): (B, R, C)."""
        q, k, v = (t.unflatten(2, (self.num_heads, -1)) for t in (q, k, v))
        q = self._rounded(q.transpose(1, 2) * q.shape[-1] ** -0.5, "q")
        scores = q @ self._rounded(k.permute(0, 2, 3, 1), "k")
        probs = self._rounded(scores.softmax(dim=-1), "probs")
        return (probs @ self._rounded(v.transpose(1, 2), "v")).transpose(1, 2).flatten(2)


def folded_layer(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The exported form of a quantized layer or attention."""
    if isinstance(layer, QuantConv2d):
        return QDQConv2d(layer, dtype)
    if isinstance(layer, QuantAttend):
        return QDQAttend(layer, dtype)
    assert isinstance(layer, (QuantLinear, WeightOnlyLinear, FP8Linear))
    return QDQLinear(layer, dtype)
