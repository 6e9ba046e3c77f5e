"""Which parts of a model are quantized, and why: ordered rules, as data."""

from __future__ import annotations

import fnmatch
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from gft_edge.errors import ConfigError

Precision = Literal["int8", "high"]


@dataclass(frozen=True)
class QuantRule:
    """Module names that match ``pattern`` (shell style) get ``precision``; ``reason`` is printed to users."""

    pattern: str
    precision: Precision
    reason: str

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ConfigError(f"quantization policy: precision of {self.pattern!r} must be 'int8' or 'high'")


@dataclass(frozen=True)
class QuantPolicy:
    """The first rule that matches a linear layer's name decides; what no rule matches stays high precision.

    Quantized means: INT8, symmetric, weights per output channel, activations per tensor, bias in high precision.
    Everything that is not a linear layer (patch embedding, LayerNorm, softmax, GELU, residual adds, the importance
    path) stays high precision always: quantizing those is what makes INT8 Vision Transformers collapse.
    """

    rules: tuple[QuantRule, ...]

    def rule_for(self, name: str) -> QuantRule | None:
        """The rule that decides on a module of that name."""
        return next((rule for rule in self.rules if fnmatch.fnmatchcase(name, rule.pattern)), None)

    def is_quantized(self, name: str) -> bool:
        """Whether the module of that name becomes INT8."""
        rule = self.rule_for(name)
        return rule is not None and rule.precision == "int8"

    def to_json(self) -> list[dict[str, str]]:
        """The rules as plain JSON values."""
        return [asdict(rule) for rule in self.rules]

    @classmethod
    def from_json(cls, data: list[dict[str, Any]]) -> QuantPolicy:
        """The inverse of :meth:`to_json`."""
        try:
            return cls(tuple(QuantRule(**rule) for rule in data))
        except TypeError as error:
            raise ConfigError(f"quantization policy: {error}") from None


DEFAULT_POLICY = QuantPolicy(
    (
        QuantRule("head", "high", "the classifier is one small product; its error goes straight into the logits"),
        QuantRule("*.attn.q", "int8", "query projection of a stage or the last block"),
        QuantRule("*.attn.kv", "int8", "key and value projection of a stage or the last block"),
        QuantRule("*.attn.qkv", "int8", "query, key and value projection"),
        QuantRule("*.attn.proj", "int8", "output projection of the attention"),
        QuantRule("*.mlp.fc1", "int8", "first layer of the MLP, half of its work"),
        QuantRule("*.mlp.fc2", "int8", "second layer of the MLP, half of its work"),
    )
)
"""Both inputs of the qkv, proj, fc1 and fc2 linears; one such graph serves ONNX Runtime and TensorRT 10 and 11."""
