"""Finds the attentions a policy quantizes, checks that TensorRT can fuse them, and observes their operands."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gft_edge.constants import MAX_FUSED_INT8_TOKENS
from gft_edge.errors import ConfigError
from gft_edge.model.layers import Attend
from gft_edge.quant.modules import QUANTIZABLE, find_attention, makes_logits, require_attention
from gft_edge.quant.policy import ATTEND, DEFAULT_POLICY, LayerPrecision, QuantPolicy, is_attend

MEASURED_PARTS = ("q", "k", "v")
"""Operands whose range must be measured; that of the probabilities is fixed by definition."""
PROBS_RANGE = 1.0
FP8_HEAD_STEP, MAX_FP8_HEAD = 16, 256

Observer = Callable[[str, Tensor], None]
"""Receives the name of an operand and its values."""


def attention_names(model: nn.Module) -> list[str]:
    """Returns the names of all attentions that make the logits and can be quantized, in the order of the modules."""
    candidates = (
        f"{name}.{ATTEND}" if isinstance(module, Attention) else name
        for name, module in model.named_modules()
        if isinstance(module, (Attention, Attend))
    )
    return [name for name in candidates if makes_logits(model, name) and find_attention(model, name) is not None]


def quantized_attention(model: nn.Module, policy: QuantPolicy) -> dict[str, LayerPrecision]:
    """Returns the precision of the attentions the policy quantizes, by name.

    Args:
        model: in eval mode, full precision, with its configuration; run once at its default token budget.
        policy: with rules for attention or not.

    Raises:
        ConfigError: the policy quantizes attention and the model has none that matches, or one that TensorRT does not
            fuse: INT8 over more than 512 tokens, FP8 with a head size other than 16, 32, ... 256.
    """
    chosen = {name: policy.precision_of(name) for name in attention_names(model) if policy.is_quantized(name)}
    if chosen:
        _require_fused(model, chosen)
    elif any(is_attend(rule.pattern) and rule.precision != "high" for rule in policy.rules):
        raise ConfigError("quantization policy: no attention of this model matches the rules that quantize attention")
    return chosen


def unused_patterns(model: nn.Module, policy: QuantPolicy) -> tuple[str, ...]:
    """Returns the patterns of a policy that match no linear layer, convolution or attention of a model.

    Those of the default policy, which is for several kinds of networks, are left out.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, QUANTIZABLE)]
    attentions = attention_names(model)
    known = {rule.pattern for rule in DEFAULT_POLICY.rules}
    own = dict.fromkeys(rule.pattern for rule in policy.rules if rule.pattern not in known)
    return tuple(p for p in own if not fnmatch.filter(attentions if is_attend(p) else layers, p))


def attention_tensors(model: nn.Module, policy: QuantPolicy) -> list[str]:
    """Returns the operands to observe for the attentions the policy quantizes; raises as :func:`quantized_attention`."""
    return [f"{name}.{part}" for name in quantized_attention(model, policy) for part in MEASURED_PARTS]


@torch.no_grad()
def _require_fused(model: nn.Module, chosen: dict[str, LayerPrecision]) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    handles = [watch_operand(model, name, "k", lambda name, k: shapes.update({name: k.shape})) for name in chosen]
    config: Any = model.config
    try:
        model(torch.zeros(1, 3, config.image_size, config.image_size))
    finally:
        for handle in handles:
            handle.remove()
    for name, precision in chosen.items():
        _, tokens, width = shapes[f"{name}.k"]
        head = width // require_attention(model, name).num_heads
        if precision == "int8" and tokens > MAX_FUSED_INT8_TOKENS:
            raise ConfigError(
                f"quantization: {name} attends to {tokens} tokens, class token included; TensorRT fuses INT8 attention up to "
                f"{MAX_FUSED_INT8_TOKENS} (NVIDIA/TensorRT issue 3724) and longer ones are slower than FP16: leave it high, "
                f"use fp8, or keep fewer patches before it"
            )
        if precision == "fp8" and (head % FP8_HEAD_STEP or head > MAX_FP8_HEAD):
            raise ConfigError(
                f"quantization: {name} has heads of {head} channels; TensorRT fuses FP8 attention for multiples of "
                f"{FP8_HEAD_STEP} up to {MAX_FP8_HEAD}: leave it high"
            )


def watch_operand(model: nn.Module, name: str, part: str, observe: Observer) -> RemovableHandle:
    """Registers a hook that passes an operand, (B, T, C), to ``observe`` as ``name.part``; queries scaled by 1 / sqrt(d)."""
    attention = require_attention(model, name)
    index = MEASURED_PARTS.index(part)
    heads = attention.num_heads

    def hand(operand: Tensor) -> None:
        observe(f"{name}.{part}", operand * (operand.shape[-1] // heads) ** -0.5 if part == "q" else operand)

    if isinstance(attention, Attention):  # its products are not a module; they read the projection's output
        return attention.qkv.register_forward_hook(lambda _, __, output: hand(output.chunk(3, dim=-1)[index]))
    return attention.register_forward_pre_hook(lambda _, inputs: hand(inputs[index]))
