"""An operating point: which weights run, at which token budget and precision; and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig


@dataclass(frozen=True)
class OperatingPoint:
    """One way to run a checkpoint.

    Attributes:
        checkpoint: folder or name of the weights, as the user gave it.
        config: of the checkpoint; its image size is the resolution.
        budget: patches kept after each stage.
        precision: ``"fp32"``, ``"fp16"``, ``"int8"``, or ``"int8:NAME"`` for a policy that keeps some layers in high precision.
    """

    checkpoint: str
    config: GFTConfig
    budget: TokenBudget
    precision: str


@dataclass(frozen=True)
class Cost:
    """What one image costs at an operating point.

    Attributes:
        ms: latency of one image, milliseconds.
        gmac: billions of multiply-accumulates of one image.
        kind: ``"measured"`` for a prediction from measured latencies, ``"bound"`` for a roofline: a lower bound, no latency.
        mj: energy of one image, millijoules; None where it was not measured.
    """

    ms: float
    gmac: float
    kind: Literal["measured", "bound"]
    mj: float | None = None


CostModel = Callable[[OperatingPoint], Cost]
"""Raises :class:`gft_edge.errors.ConfigError` for a point it has no data for."""
