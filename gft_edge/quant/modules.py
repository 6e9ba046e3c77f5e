"""Layers that quantize both their inputs; exported as QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from gft_edge.errors import ConfigError
from gft_edge.model.layers import Attend, SelfAttention, is_plain
from gft_edge.quant.levels import E4M3_MAX, E4M3_STEP, QMAX, QMIN, SMALLEST_RANGE
from gft_edge.quant.policy import Precision, QuantPolicy, is_attend

ATTENTION_PARTS = ("q", "k", "v", "probs")
"""Operands of an attention's two products: scaled queries, keys, gated values, probabilities."""


class QuantLinear(nn.Linear):
    """A linear layer computing with INT8 values: fake quantization here, real INT8 products in the exported graph.

    Symmetric: scale = range / 127, no zero point, round half to even, clamp to [-128, 127].

    Args:
        linear: shares its weight and bias; the state dict is that of a plain linear layer.
        input_range: largest magnitude of the input.

    Raises:
        ConfigError: the range is not a positive finite number.
    """

    weight_range: Tensor

    def __init__(self, linear: nn.Linear, input_range: float) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        require_range(input_range)
        self.weight, self.bias = linear.weight, linear.bias
        self.input_scale = max(input_range, SMALLEST_RANGE) / QMAX
        self.register_buffer("weight_range", channel_ranges(self.weight), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        x = torch.fake_quantize_per_tensor_affine(x, self.input_scale, 0, QMIN, QMAX)
        # Transposed before it is quantized, so that the INT8 weights feed the product with nothing between.
        weight = torch.fake_quantize_per_channel_affine(
            self.weight.t(),
            self.weight_range / QMAX,
            torch.zeros(self.out_features, dtype=torch.int32, device=x.device),
            1,
            QMIN,
            QMAX,
        )
        y = torch.matmul(x, weight)
        return y if self.bias is None else y + self.bias


class WeightOnlyLinear(nn.Linear):
    """A linear layer with INT8 weights per output channel and activations in high precision.

    Args:
        linear: shares its weight and bias.
    """

    weight_range: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("weight_range", channel_ranges(self.weight), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        zero = torch.zeros(self.out_features, dtype=torch.int32, device=x.device)
        weight = torch.fake_quantize_per_channel_affine(self.weight, self.weight_range / QMAX, zero, 0, QMIN, QMAX)
        return nn.functional.linear(x, weight, self.bias)


class FP8Linear(nn.Linear):
    """A linear layer whose inputs are rounded to FP8 E4M3, per tensor: scale = range / 448, saturating.

    Args:
        linear: shares its weight and bias.
        input_range: largest magnitude of the input.

    Raises:
        ConfigError: the range is not a positive finite number.
    """

    def __init__(self, linear: nn.Linear, input_range: float) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        require_range(input_range)
        self.weight, self.bias = linear.weight, linear.bias
        self.input_scale = max(input_range, SMALLEST_RANGE) / E4M3_MAX
        self.weight_scale = e4m3_scale(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        weight = round_to_e4m3(self.weight, self.weight_scale)
        return nn.functional.linear(round_to_e4m3(x, self.input_scale), weight, self.bias)


class QuantConv2d(nn.Conv2d):
    """A convolution computing with INT8 values: symmetric, weights per output channel, the input per tensor.

    Args:
        conv: shares its weight and bias.
        input_range: largest magnitude of the input.

    Raises:
        ConfigError: the range is not a positive finite number, or the padding is another than zeros of a given width.
    """

    weight_range: Tensor

    def __init__(self, conv: nn.Conv2d, input_range: float) -> None:
        if conv.padding_mode != "zeros" or type(conv) is not nn.Conv2d:
            raise ConfigError(
                f"quantization: a {type(conv).__name__} with {conv.padding_mode} padding has no INT8 form"
            )
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            conv.bias is not None,
        )
        require_range(input_range)
        self.weight, self.bias = conv.weight, conv.bias
        self.input_scale = max(input_range, SMALLEST_RANGE) / QMAX
        self.register_buffer("weight_range", channel_ranges(self.weight), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H', W')."""
        x = torch.fake_quantize_per_tensor_affine(x, self.input_scale, 0, QMIN, QMAX)
        zero = torch.zeros(self.out_channels, dtype=torch.int32, device=x.device)
        weight = torch.fake_quantize_per_channel_affine(self.weight, self.weight_range / QMAX, zero, 0, QMIN, QMAX)
        return self._conv_forward(x, weight, self.bias)


class QuantAttend(nn.Module):
    """:class:`Attend` with the operands of both products quantized, per tensor and symmetric.

    Probabilities lie in [0, 1] by definition, so their scale is fixed: 1/127 in INT8, and 1/448 in E4M3, where 1 becomes the
    largest number and the most exponents are left for small probabilities (NVIDIA/Model-Optimizer PR 1289).

    Args:
        num_heads: heads H, dividing the width.
        ranges: largest magnitudes of ``q`` (scaled by 1 / sqrt(d)), ``k``, ``v`` and ``probs``.
        precision: ``"int8"`` or ``"fp8"``.

    Raises:
        ConfigError: a range is missing or no positive finite number, or another precision.
    """

    def __init__(self, num_heads: int, ranges: Mapping[str, float], precision: Precision) -> None:
        super().__init__()
        if precision not in ("int8", "fp8"):
            raise ConfigError(f"quantization: attention is int8, fp8 or high, found {precision!r}")
        if missing := [part for part in ATTENTION_PARTS if part not in ranges]:
            raise ConfigError(
                f"quantization: attention needs ranges of {', '.join(ATTENTION_PARTS)}; {missing[0]} has none"
            )
        self.num_heads, self.precision = num_heads, precision
        for part in ATTENTION_PARTS:
            require_range(ranges[part])
        largest = E4M3_MAX if precision == "fp8" else QMAX
        self.scales = {part: max(ranges[part], SMALLEST_RANGE) / largest for part in ATTENTION_PARTS}

    def _rounded(self, x: Tensor, part: str) -> Tensor:
        if self.precision == "fp8":
            return round_to_e4m3(x, self.scales[part])
        return torch.fake_quantize_per_tensor_affine(x, self.scales[part], 0, QMIN, QMAX)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (B, R, C) over keys and values (B, T, C): (B, R, C)."""
        q, k, v = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        scores = self._rounded(q * q.shape[-1] ** -0.5, "q") @ self._rounded(k, "k").transpose(2, 3)
        attended = self._rounded(scores.softmax(dim=-1), "probs") @ self._rounded(v, "v")
        return attended.transpose(1, 2).flatten(2)


def round_to_e4m3(x: Tensor, scale: float) -> Tensor:
    """Values as FP8 E4M3 with a scale holds them: four significant bits, magnitudes of at most 448 scale.

    Gradients pass as torch.fake_quantize_* lets them: unchanged where rounding ends within the range, else none.
    """
    rounded: Tensor = _RoundToE4M3.apply(x, scale)
    return rounded


class _RoundToE4M3(torch.autograd.Function):
    """Rounding whose gradient is that of clamping (straight-through estimator; Bengio et al., 2013, arXiv 1308.3432)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        scaled = x / scale
        ctx.save_for_backward(scaled.abs() < E4M3_MAX + E4M3_STEP / 2)
        return scaled.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(x.dtype) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (within,) = ctx.saved_tensors
        return gradients[0] * within, None


def channel_ranges(weight: Tensor) -> Tensor:
    """Largest magnitude of each output channel (along dim 0), (out,)."""
    return weight.detach().abs().flatten(1).amax(dim=1).clamp_min(SMALLEST_RANGE)


def e4m3_scale(weight: Tensor) -> float:
    """Scale at which the largest magnitude is E4M3's."""
    return max(float(weight.detach().abs().max()), SMALLEST_RANGE) / E4M3_MAX


def require_range(input_range: float) -> None:
    """Raises ConfigError unless a range is a positive finite number."""
    if not (math.isfinite(input_range) and input_range > 0):
        raise ConfigError(f"quantization: an input range must be positive and finite, found {input_range}")


LINEARS = (QuantLinear, WeightOnlyLinear, FP8Linear)
QUANTIZED = (*LINEARS, QuantConv2d, QuantAttend)
QUANTIZABLE = (nn.Linear, nn.Conv2d)


def follow_weights(model: nn.Module) -> None:
    """Sets the weights' ranges anew, in place, after the weights were changed."""
    for module in model.modules():
        if isinstance(module, FP8Linear):
            module.weight_scale = e4m3_scale(module.weight)
        elif isinstance(module, (QuantLinear, WeightOnlyLinear, QuantConv2d)):
            module.weight_range.copy_(channel_ranges(module.weight))


def quantized_names(model: nn.Module, policy: QuantPolicy) -> list[str]:
    """Names of the linear layers and convolutions the policy quantizes.

    Raises:
        ConfigError: no layer matches.
    """
    names = [name for name, m in model.named_modules() if isinstance(m, QUANTIZABLE) and policy.is_quantized(name)]
    if not names:
        raise ConfigError(
            "quantization policy: no linear layer or convolution of this model matches a rule that quantizes; "
            "give rules for its layers with --policy"
        )
    return names


def insert_quantizers(
    model: nn.Module, ranges: Mapping[str, float], precisions: Mapping[str, Precision] | None = None
) -> None:
    """Replaces the layers named in ``ranges`` or ``precisions`` by quantizing ones, in place; weights must be loaded.

    Args:
        model: full precision.
        ranges: largest input magnitude per layer, and per operand of an attention (``blocks.0.attn.attend.q``, ...); a
            layer whose weights alone are quantized needs none.
        precisions: per layer and attention; INT8 where none is given.

    Raises:
        ConfigError: a name is no linear layer, convolution or attention of this model, or a range or precision is not usable.
    """
    attentions: dict[str, dict[str, float]] = {}
    for name in {**ranges, **(precisions or {})}:
        if is_attend(name):
            continue
        if (operand := attention_operand(name)) is not None:
            attentions.setdefault(operand[0], {})[operand[1]] = ranges[name]
            continue
        parent_name, _, child = name.rpartition(".")
        try:
            parent = model.get_submodule(parent_name)
        except AttributeError:
            parent = nn.Module()
        layer = getattr(parent, child, None)
        if not isinstance(layer, QUANTIZABLE):
            raise ConfigError(f"quantization: {name} is no linear layer of this model, nor a convolution")
        setattr(parent, child, _quantized(layer, ranges.get(name, math.nan), (precisions or {}).get(name, "int8")))
    for name, parts in attentions.items():
        attention = require_attention(model, name)
        attend = QuantAttend(attention.num_heads, parts, (precisions or {}).get(name, "int8"))
        _set_attend(model, name, attend)


def attention_operand(name: str) -> tuple[str, str] | None:
    """``blocks.0.attn.attend.q`` to ``("blocks.0.attn.attend", "q")``; None for what is no operand of an attention."""
    attend, _, part = name.rpartition(".")
    return (attend, part) if part in ATTENTION_PARTS and is_attend(attend) else None


def find_attention(model: nn.Module, name: str) -> Attention | Attend | None:
    """What computes the products called ``name``: a module of their own or, one level up, timm's attention."""
    parent_name = name.rpartition(".")[0]
    try:
        parent = model.get_submodule(parent_name)
    except AttributeError:
        return None
    if isinstance(parent, Attention):
        return parent if is_plain(parent) else None
    attend = getattr(parent, name.rpartition(".")[2], None)
    return attend if isinstance(attend, Attend) else None


def require_attention(model: nn.Module, name: str) -> Attention | Attend:
    """The attention of that name.

    Raises:
        ConfigError: there is none.
    """
    found = find_attention(model, name)
    if found is None:
        raise ConfigError(f"quantization: {name} is no attention of this model")
    return found


def _set_attend(model: nn.Module, name: str, attend: nn.Module) -> None:
    """Puts a module in the place of an attention's products."""
    parent_name, _, child = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    if isinstance(parent, Attention):
        above, _, own = parent_name.rpartition(".")
        setattr(model.get_submodule(above), own, SelfAttention(parent, attend))
    else:
        setattr(parent, child, attend)


def _quantized(layer: nn.Linear | nn.Conv2d, input_range: float, precision: Precision) -> nn.Module:
    """``input_range`` is NaN, which is refused where one is needed, for a layer that has none."""
    if isinstance(layer, nn.Conv2d):
        if precision != "int8":
            raise ConfigError(f"quantization: convolutions are int8 or high, found {precision!r}")
        return QuantConv2d(layer, input_range)
    linear = layer
    if precision == "int8":
        return QuantLinear(linear, input_range)
    if precision == "int8-weights":
        return WeightOnlyLinear(linear)
    if precision == "fp8":
        return FP8Linear(linear, input_range)
    raise ConfigError(f"quantization: unknown precision {precision!r}")


def without_quantizers(model: nn.Module) -> nn.Module:
    """A copy whose layers compute in full precision with the same weights; ``model`` itself if none is quantized."""
    if not any(isinstance(module, QUANTIZED) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, QuantConv2d):
                conv = copy.copy(child)
                conv.__class__ = nn.Conv2d  # type: ignore[assignment]
                setattr(parent, name, conv)
            elif isinstance(child, LINEARS):
                linear = nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
                linear.weight, linear.bias = child.weight, child.bias
                setattr(parent, name, linear)
            elif isinstance(child, QuantAttend):
                setattr(parent, name, Attend(child.num_heads))
    return model.eval()
