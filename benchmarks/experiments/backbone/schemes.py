"""The ways of quantizing that the study compares."""

from __future__ import annotations

from dataclasses import dataclass

from gft_edge.calibration.options import Method
from gft_edge.quant.policy import DEFAULT_POLICY, QuantPolicy, QuantRule, uniform_policy

SMOOTHING = 0.5


@dataclass(frozen=True)
class QuantScheme:
    """A way to quantize.

    Attributes:
        key: short name, also of files.
        title: for people.
        policy: layers, their precision, SmoothQuant or not.
        method: how ranges are computed.
        share: of the values in per cent, for ``"percentile"``.
    """

    key: str
    title: str
    policy: QuantPolicy
    method: Method = "max"
    share: float = 99.99


EVERYTHING = uniform_policy("int8", attention="int8")
"""Policy that needs every range that another policy needs."""
DEFAULT = QuantScheme("int8-max", "INT8, max (default)", DEFAULT_POLICY)


def keeping_high(*patterns: str) -> QuantPolicy:
    """Returns the default policy with some layers in high precision."""
    rules = tuple(QuantRule(pattern, "high", "its input has outliers") for pattern in patterns)
    return QuantPolicy(rules + DEFAULT_POLICY.rules)


def schemes() -> list[QuantScheme]:
    """Returns the schemes that are compared."""
    smoothed = QuantPolicy(DEFAULT_POLICY.rules, SMOOTHING)
    return [
        DEFAULT,
        QuantScheme("int8-percentile", "INT8, percentile 99.99", DEFAULT_POLICY, "percentile"),
        QuantScheme("int8-percentile-99.9", "INT8, percentile 99.9", DEFAULT_POLICY, "percentile", 99.9),
        QuantScheme("int8-entropy", "INT8, entropy", DEFAULT_POLICY, "entropy"),
        QuantScheme("int8-mse", "INT8, MSE", DEFAULT_POLICY, "mse"),
        QuantScheme("int8-smoothquant", f"INT8, SmoothQuant {SMOOTHING}, max", smoothed),
        QuantScheme("int8-smoothquant-mse", f"INT8, SmoothQuant {SMOOTHING}, MSE", smoothed, "mse"),
        QuantScheme("int8-fc2-high", "INT8, fc2 in high precision, max", keeping_high("*.mlp.fc2")),
        QuantScheme("int8-first-mlp-high", "INT8, MLP of the first block high, max", keeping_high("blocks.0.mlp.*")),
        QuantScheme("int8-attention", "INT8 with attention, max", EVERYTHING),
        QuantScheme(
            "int8-attention-smoothquant-mse",
            f"INT8 with attention, SmoothQuant {SMOOTHING}, MSE",
            QuantPolicy(EVERYTHING.rules, SMOOTHING),
            "mse",
        ),
        QuantScheme("int8-weights", "INT8 weights only", uniform_policy("int8-weights")),
        QuantScheme("fp8-max", "FP8 E4M3, max", uniform_policy("fp8")),
        QuantScheme("fp8-attention", "FP8 E4M3 with attention, max", uniform_policy("fp8", attention="fp8")),
    ]
