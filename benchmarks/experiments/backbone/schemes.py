"""The ways of quantizing that the study compares."""

from __future__ import annotations

from dataclasses import dataclass

from gft_edge.calibration.options import Method
from gft_edge.config.model import GFTConfig
from gft_edge.quant.exact_selection import with_exact_selection
from gft_edge.quant.policy import (
    DEFAULT_POLICY,
    DEFAULT_SMOOTHING,
    QuantPolicy,
    QuantRule,
    uniform_policy,
)


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
SMOOTHED = QuantPolicy(DEFAULT_POLICY.rules, DEFAULT_SMOOTHING)
DEFAULT_KEY = "default"


def keeping_high(*patterns: str) -> QuantPolicy:
    """Returns the smoothed policy with some layers in high precision."""
    rules = tuple(QuantRule(pattern, "high", "its input has outliers") for pattern in patterns)
    return QuantPolicy(rules + SMOOTHED.rules, SMOOTHED.smoothquant)


def main_schemes(default: QuantPolicy, config: GFTConfig) -> list[QuantScheme]:
    """Returns the schemes that are compared on all images.

    Args:
        default: policy that ``quantize`` wrote for the model: the smoothed one and the layers that it raised.
        config: of the model.
    """
    exact = with_exact_selection(SMOOTHED, config)
    return [
        QuantScheme(DEFAULT_KEY, "INT8, default of quantize", default, "mse"),
        QuantScheme("int8-smoothquant-mse", "the same, no layer raised (--selection as-is)", SMOOTHED, "mse"),
        QuantScheme("int8-exact", "exact scores (--selection exact)", exact, "mse"),
    ]


def other_schemes() -> list[QuantScheme]:
    """Returns the schemes that are compared on fewer images."""
    return [
        QuantScheme("int8-max", "INT8, max, no SmoothQuant", DEFAULT_POLICY),
        QuantScheme("fp8-max", "FP8 E4M3, max", uniform_policy("fp8")),
        QuantScheme("int8-weights", "INT8 weights only", uniform_policy("int8-weights")),
        QuantScheme("int8-mse", "INT8, MSE, no SmoothQuant", DEFAULT_POLICY, "mse"),
        QuantScheme(
            "int8-two-blocks-high", "SmoothQuant, MSE, first two blocks high", keeping_high("blocks.[01].*"), "mse"
        ),
        QuantScheme("int8-fc2-high", "SmoothQuant, MSE, every fc2 high", keeping_high("*.mlp.fc2"), "mse"),
        QuantScheme(
            "int8-attention",
            "SmoothQuant, MSE, attention in INT8 too",
            QuantPolicy(EVERYTHING.rules, DEFAULT_SMOOTHING),
            "mse",
        ),
        QuantScheme("int8-smoothquant", "SmoothQuant, max", SMOOTHED),
        QuantScheme("int8-percentile", "INT8, percentile 99.99, no SmoothQuant", DEFAULT_POLICY, "percentile"),
    ]
