"""Quantization policies: ordered rules, as data, that say which parts of a model are quantized and why."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gft_edge.config.reader import load_dataclass, read_table
from gft_edge.errors import ConfigError

LayerPrecision = Literal["int8", "int8-weights", "fp8", "high"]
"""INT8 (both inputs), INT8 weights with activations in high precision, FP8 E4M3 (both inputs), or high precision."""
AttentionPrecision = Literal["int8", "fp8", "high"]

ATTEND = "attend"
"""Last part of the name of an attention's products: ``blocks.0.attn.attend``."""


def is_attend(name: str) -> bool:
    """Returns True for a name, or the pattern of a rule, of an attention's products."""
    return name.rpartition(".")[2].endswith(ATTEND)


@dataclass(frozen=True)
class QuantRule:
    """Module names that match ``pattern`` (shell style) get ``precision``; ``reason`` is printed to users."""

    pattern: str
    precision: LayerPrecision
    reason: str

    def __post_init__(self) -> None:
        if self.precision not in get_args(LayerPrecision):
            choices = ", ".join(get_args(LayerPrecision))
            raise ConfigError(f"rule {self.pattern!r}: precision must be one of {choices}, found {self.precision!r}")
        if not (isinstance(self.pattern, str) and isinstance(self.reason, str) and self.reason.strip()):
            raise ConfigError(f"rule {self.pattern!r}: needs a pattern and a reason in words")
        if f"{ATTEND}." in self.pattern:
            raise ConfigError(
                f"rule {self.pattern!r}: names a part of an attention; TensorRT fuses both products, so both are quantized "
                f"or neither: the pattern must end in '{ATTEND}'"
            )
        if self.precision == "int8-weights" and is_attend(self.pattern):
            raise ConfigError(f"rule {self.pattern!r}: an attention has no weights; it is int8, fp8 or high")


@dataclass(frozen=True)
class QuantPolicy:
    """Rules for linear layers and convolutions: the first one that matches a name decides; without a match it stays high precision.

    INT8 is symmetric, with weights per output channel, activations per tensor and the bias in high precision; FP8 is
    E4M3, both per tensor. The two products of an attention go by its name, ``blocks.0.attn.attend``, which only patterns
    that end in ``attend`` match: queries, keys, probabilities and values are quantized per tensor, all or none.
    Everything else (patch embedding, LayerNorm, the softmax itself, GELU, residual adds, what ranks patches, the maps) stays high
    precision always: quantizing those is what makes INT8 Vision Transformers collapse.

    Args:
        rules: in order.
        smoothquant: strength alpha of SmoothQuant before quantization, 0 to 1; None leaves it out.
    """

    rules: tuple[QuantRule, ...]
    smoothquant: float | None = None

    def __post_init__(self) -> None:
        alpha = self.smoothquant
        if alpha is not None and (
            isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1
        ):
            raise ConfigError(f"smoothquant must be from 0 to 1, found {alpha!r}")

    def rule_for(self, name: str) -> QuantRule | None:
        """Returns the rule that decides on a module of that name."""
        rules = (rule for rule in self.rules if is_attend(rule.pattern)) if is_attend(name) else self.rules
        return next((rule for rule in rules if fnmatch.fnmatchcase(name, rule.pattern)), None)

    def precision_of(self, name: str) -> LayerPrecision:
        """Returns the precision of the module of that name."""
        rule = self.rule_for(name)
        return "high" if rule is None else rule.precision

    def is_quantized(self, name: str) -> bool:
        """Returns True when the module of that name is quantized."""
        return self.precision_of(name) != "high"

    def to_json(self) -> dict[str, Any]:
        """Returns the policy as plain JSON values."""
        return {"rules": [asdict(rule) for rule in self.rules], "smoothquant": self.smoothquant}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QuantPolicy:
        """Reads what :meth:`to_json` returns.

        Raises:
            ConfigError: every unknown key, missing key and unusable value in one message.
        """
        return load_dataclass(cls, data, "quantization policy")


def read_policy(path: Path) -> QuantPolicy:
    """Reads a policy from TOML (an array of tables ``[[rules]]``) or JSON.

    Raises:
        ConfigError: the file cannot be read or is not a policy.
    """
    return load_dataclass(QuantPolicy, read_table(path, "quantization policy"), f"quantization policy {path}")


def uniform_policy(
    precision: LayerPrecision, smoothquant: float | None = None, attention: AttentionPrecision = "high"
) -> QuantPolicy:
    """Returns the default policy with other precisions for its INT8 layers and its attention."""
    rules = [QuantRule(r.pattern, precision if r.precision == "int8" else r.precision, r.reason) for r in _RULES]
    if attention != "high":
        reason = f"both products of the attention in {attention.upper()}, asked for"
        rules = [QuantRule(r.pattern, attention, reason) if is_attend(r.pattern) else r for r in rules]
    return QuantPolicy(tuple(rules), smoothquant)


_RULES = (
    QuantRule("head", "high", "the classifier is one small product; its error goes straight into the logits"),
    QuantRule("*.attn.qkv", "int8", "query, key and value projection"),
    QuantRule("*.attn.proj", "int8", "output projection of the attention"),
    QuantRule("*.mlp.fc1", "int8", "first layer of the MLP, half of its work"),
    QuantRule("*.mlp.fc2", "int8", "second layer of the MLP, half of its work"),
    QuantRule(
        "*.attn.attend", "high", "softmax and its two products; FP16 attention is fused by every TensorRT, any length"
    ),
    QuantRule("network.conv1", "high", "first convolution of a ResNet; three channels in, little work"),
    QuantRule("network.conv_stem", "high", "first convolution of a network; three channels in, little work"),
    QuantRule("network.*conv*", "int8", "convolution of a network without attention"),
    QuantRule("network.*downsample.0", "int8", "convolution beside a residual block"),
)
DEFAULT_SMOOTHING = 0.5
"""Strength of SmoothQuant that ``quantize`` uses for INT8 layers."""
DEFAULT_POLICY = QuantPolicy(_RULES)
"""Both inputs of the qkv, proj, fc1 and fc2 linears and of the convolutions of ResNets; one such graph serves ONNX Runtime
and TensorRT 10 and 11."""
