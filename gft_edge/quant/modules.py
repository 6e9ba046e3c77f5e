"""Layers and attentions with quantizers at their inputs; exported as QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from gft_edge.errors import ConfigError
from gft_edge.model.layers import Attend, SelfAttention, is_plain
from gft_edge.model.published import PublishedGFT
from gft_edge.quant.levels import E4M3_MAX, E4M3_STEP, QMAX, QMIN, SMALLEST_RANGE
from gft_edge.quant.policy import LayerPrecision, QuantPolicy, is_attend

ATTENTION_PARTS = ("q", "k", "v", "probs")
"""Operands of an attention's two products: scaled queries, keys, values, probabilities."""


class Quantizer(nn.Module):
    """Rounds a tensor to 8 bits and back; part of a quantized layer."""


class TensorQuantizer(Quantizer):
    """Rounds a tensor to 8 bits and back with one scale: symmetric INT8 or FP8 E4M3.

    INT8: scale = range / 127, no zero point, round half to even, clamp to [-128, 127]. E4M3: scale = range / 448, saturating.

    Args:
        largest: largest magnitude of the tensor.
        precision: ``"int8"`` or ``"fp8"``.

    Raises:
        ConfigError: the range is not a positive finite number.
    """

    scale: float

    def __init__(self, largest: float, precision: Literal["int8", "fp8"]) -> None:
        super().__init__()
        if not (math.isfinite(largest) and largest > 0):
            raise ConfigError(f"quantization: an input range must be positive and finite, found {largest}")
        self.precision = precision
        self.scale = max(largest, SMALLEST_RANGE) / (E4M3_MAX if precision == "fp8" else QMAX)

    def forward(self, x: Tensor) -> Tensor:
        """Rounds a tensor of any shape."""
        if self.precision == "fp8":
            return round_to_e4m3(x, self.scale)
        return torch.fake_quantize_per_tensor_affine(x, self.scale, 0, QMIN, QMAX)

    def follow(self, weight: Tensor) -> None:
        """Sets the scale of an FP8 quantizer from the weights."""
        self.scale = _largest(weight) / E4M3_MAX


class ChannelQuantizer(Quantizer):
    """Rounds weights to INT8 and back, symmetric, with one scale per output channel (dim 0).

    Args:
        weight: sets the ranges; they are not part of the state dict.
    """

    ranges: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("ranges", channel_ranges(weight), persistent=False)

    @property
    def scale(self) -> Tensor:
        """Scale of each channel, (out,)."""
        return self.ranges / QMAX

    def forward(self, weight: Tensor) -> Tensor:
        """Rounds weights whose channels are along dim 0."""
        zero = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_channel_affine(weight, self.scale, zero, 0, QMIN, QMAX)

    def follow(self, weight: Tensor) -> None:
        """Sets the ranges from the weights, in place."""
        self.ranges.copy_(channel_ranges(weight))


def _quantizers(
    weight: Tensor, precision: LayerPrecision, largest: float
) -> tuple[TensorQuantizer | None, TensorQuantizer | ChannelQuantizer]:
    """Returns the quantizers of a layer's input, None for one in high precision, and of its weights."""
    if precision == "fp8":
        return TensorQuantizer(largest, "fp8"), TensorQuantizer(_largest(weight), "fp8")
    if precision == "int8":
        return TensorQuantizer(largest, "int8"), ChannelQuantizer(weight)
    if precision == "int8-weights":
        return None, ChannelQuantizer(weight)
    raise ConfigError(f"quantization: unknown precision {precision!r}")


class QuantLinear(nn.Linear):
    """A linear layer that computes with quantized values: rounded here, real 8-bit products in the exported graph.

    Args:
        linear: shares its weight and bias; the state dict is that of a plain linear layer.
        precision: ``"int8"`` (weights per output channel, input per tensor), ``"int8-weights"`` (input in high precision) or
            ``"fp8"`` (both per tensor).
        input_range: largest magnitude of the input, where that is quantized.

    Raises:
        ConfigError: the range is not a positive finite number, or an unknown precision.
    """

    weight_quantizer: TensorQuantizer | ChannelQuantizer

    def __init__(self, linear: nn.Linear, precision: LayerPrecision, input_range: float = math.nan) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.weight, self.bias, self.precision = linear.weight, linear.bias, precision
        self.input_quantizer, self.weight_quantizer = _quantizers(linear.weight, precision, input_range)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out)."""
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        y = nn.functional.linear(x, self.weight_quantizer(self.weight))
        return y if self.bias is None else y + self.bias  # separate, as in the exported graph


def _sizes(conv: nn.Conv2d) -> tuple[Any, ...]:
    """Returns the arguments that construct a convolution of the same form."""
    has_bias = conv.bias is not None
    sizes = (
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
    )
    return (*sizes, has_bias)


class QuantConv2d(nn.Conv2d):
    """A convolution that computes with INT8 values: symmetric, weights per output channel, the input per tensor.

    Args:
        conv: shares its weight and bias.
        input_range: largest magnitude of the input.

    Raises:
        ConfigError: the range is not a positive finite number, or the padding is not zeros of a given width.
    """

    precision: LayerPrecision = "int8"
    weight_quantizer: TensorQuantizer | ChannelQuantizer

    def __init__(self, conv: nn.Conv2d, input_range: float) -> None:
        if conv.padding_mode != "zeros" or type(conv) is not nn.Conv2d:
            raise ConfigError(
                f"quantization: a {type(conv).__name__} with {conv.padding_mode} padding has no INT8 form"
            )
        super().__init__(*_sizes(conv))
        self.weight, self.bias = conv.weight, conv.bias
        self.input_quantizer, self.weight_quantizer = _quantizers(conv.weight, "int8", input_range)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in, H, W) to (B, out, H', W')."""
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        return self._conv_forward(x, self.weight_quantizer(self.weight), self.bias)


class QuantAttend(nn.Module):
    """:class:`Attend` with the operands of both products quantized, per tensor and symmetric.

    Probabilities lie in [0, 1] by definition, so their scale is fixed: 1/127 in INT8, and 1/448 in E4M3, where 1 becomes the
    largest number and the most exponents are left for small probabilities (NVIDIA/Model-Optimizer PR 1289).

    Args:
        num_heads: heads H, dividing the width.
        ranges: largest magnitudes of ``q`` (scaled by 1 / sqrt(d)), ``k``, ``v`` and ``probs``.
        precision: ``"int8"`` or ``"fp8"``.

    Raises:
        ConfigError: a range is missing or not a positive finite number, or the precision is neither.
    """

    def __init__(self, num_heads: int, ranges: Mapping[str, float], precision: LayerPrecision) -> None:
        super().__init__()
        if precision not in ("int8", "fp8"):
            raise ConfigError(f"quantization: attention is int8, fp8 or high, found {precision!r}")
        if missing := [part for part in ATTENTION_PARTS if part not in ranges]:
            raise ConfigError(
                f"quantization: attention needs ranges of {', '.join(ATTENTION_PARTS)}; {missing[0]} has none"
            )
        self.num_heads, self.precision = num_heads, precision
        self.quantizers = nn.ModuleDict({part: TensorQuantizer(ranges[part], precision) for part in ATTENTION_PARTS})

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends with queries (B, R, C) over keys and values (B, T, C): (B, R, C)."""
        q, k, v = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        rounded = self.quantizers
        scores = rounded["q"](q * q.shape[-1] ** -0.5) @ rounded["k"](k).transpose(2, 3)
        attended = rounded["probs"](scores.softmax(dim=-1)) @ rounded["v"](v)
        return attended.transpose(1, 2).flatten(2)


def round_to_e4m3(x: Tensor, scale: float) -> Tensor:
    """Rounds values to FP8 E4M3 with a scale: four significant bits, magnitudes of at most 448 scale.

    Gradients pass as in torch.fake_quantize_*: unchanged where the rounded value is within the range, else zero.
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
    """Returns the largest magnitude of each output channel (along dim 0), (out,)."""
    return weight.detach().abs().flatten(1).amax(dim=1).clamp_min(SMALLEST_RANGE)


def _largest(weight: Tensor) -> float:
    return max(float(weight.detach().abs().max()), SMALLEST_RANGE)


QUANTIZED = (QuantLinear, QuantConv2d, QuantAttend)
QUANTIZABLE = (nn.Linear, nn.Conv2d)


def follow_weights(model: nn.Module) -> None:
    """Updates the scales of all quantized weights, in place, after the weights changed."""
    for module in model.modules():
        if isinstance(module, (QuantLinear, QuantConv2d)):
            module.weight_quantizer.follow(module.weight)


def makes_logits(model: nn.Module, name: str) -> bool:
    """Returns whether the logits depend on a module; the published variant has some that never run, so they have no ranges."""
    return not isinstance(model, PublishedGFT) or model.makes_logits(name)


def quantized_names(model: nn.Module, policy: QuantPolicy) -> list[str]:
    """Returns the names of the linear layers and convolutions the policy quantizes, among those that :func:`makes_logits` names.

    Raises:
        ConfigError: no layer matches.
    """
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, QUANTIZABLE) and policy.is_quantized(name) and makes_logits(model, name)
    ]
    if not names:
        raise ConfigError(
            "quantization policy: no linear layer or convolution of this model matches a rule that quantizes; "
            "give rules for its layers with --policy"
        )
    return names


def insert_quantizers(
    model: nn.Module, ranges: Mapping[str, float], precisions: Mapping[str, LayerPrecision] | None = None
) -> None:
    """Replaces the layers named in ``ranges`` or ``precisions`` by quantizing ones, in place; weights must be loaded.

    Args:
        model: full precision.
        ranges: largest input magnitude per layer, and per operand of an attention (``blocks.0.attn.attend.q``, ...); a
            layer with only its weights quantized needs none.
        precisions: per layer and attention; INT8 by default.

    Raises:
        ConfigError: a name is not a linear layer, convolution or attention of this model, or a range or precision is unusable.
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
            raise ConfigError(f"quantization: {name} is not a linear layer or convolution of this model")
        setattr(parent, child, _quantized(layer, ranges.get(name, math.nan), (precisions or {}).get(name, "int8")))
    for name, parts in attentions.items():
        attention = require_attention(model, name)
        attend = QuantAttend(attention.num_heads, parts, (precisions or {}).get(name, "int8"))
        _set_attend(model, name, attend)


def attention_operand(name: str) -> tuple[str, str] | None:
    """Splits ``blocks.0.attn.attend.q`` into ``("blocks.0.attn.attend", "q")``; None for a name that is not an operand."""
    attend, _, part = name.rpartition(".")
    return (attend, part) if part in ATTENTION_PARTS and is_attend(attend) else None


def find_attention(model: nn.Module, name: str) -> Attention | Attend | None:
    """Returns the module that computes the products ``name``: a separate one or, one level up, timm's attention."""
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
    """Returns the attention of that name.

    Raises:
        ConfigError: the model has none.
    """
    found = find_attention(model, name)
    if found is None:
        raise ConfigError(f"quantization: {name} is not an attention of this model")
    return found


def _set_attend(model: nn.Module, name: str, attend: nn.Module) -> None:
    """Replaces the module of an attention's products."""
    parent_name, _, child = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    if isinstance(parent, Attention):
        above, _, own = parent_name.rpartition(".")
        setattr(model.get_submodule(above), own, SelfAttention(parent, attend))
    else:
        setattr(parent, child, attend)


def _quantized(layer: nn.Linear | nn.Conv2d, input_range: float, precision: LayerPrecision) -> nn.Module:
    """Returns the quantized form of a layer; ``input_range`` is NaN for a layer that has none."""
    if isinstance(layer, nn.Conv2d):
        if precision != "int8":
            raise ConfigError(f"quantization: convolutions are int8 or high, found {precision!r}")
        return QuantConv2d(layer, input_range)
    return QuantLinear(layer, precision, input_range)


def without_quantizers(model: nn.Module) -> nn.Module:
    """Returns a copy whose layers compute in full precision with the same weights; ``model`` itself if none is quantized."""
    if not any(isinstance(module, QUANTIZED) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, QuantConv2d):
                conv = nn.Conv2d(*_sizes(child))
                conv.weight, conv.bias = child.weight, child.bias
                setattr(parent, name, conv)
            elif isinstance(child, QuantLinear):
                linear = nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
                linear.weight, linear.bias = child.weight, child.bias
                setattr(parent, name, linear)
            elif isinstance(child, QuantAttend):
                setattr(parent, name, Attend(child.num_heads))
    return model.eval()
