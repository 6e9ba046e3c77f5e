"""What a latency measurement was: its conditions and its raw numbers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from gft_edge.environment import machine
from gft_edge.errors import ConfigError

BOOTSTRAP = 2000


@dataclass(frozen=True)
class BenchProtocol:
    """How things are measured against each other.

    Every round runs each candidate ``runs_per_round`` times; rounds alternate the order (A B, B A, ...), so that drift of
    clocks or of other load falls on all alike.

    Args:
        batch: images per request.
        threads: intra-op threads of the backend; 0 takes one per core.
        warmup_seconds: per candidate, before the first round.
        rounds, runs_per_round: how much is measured.
        seed: of the input images.

    Raises:
        ConfigError: a value is out of range.
    """

    batch: int = 1
    threads: int = 1
    warmup_seconds: float = 0.5
    rounds: int = 40
    runs_per_round: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "rounds", "runs_per_round"):
            if getattr(self, name) < 1:
                raise ConfigError(f"bench: {name} must be at least 1, found {getattr(self, name)}")
        if self.threads < 0 or self.warmup_seconds < 0:
            raise ConfigError("bench: threads and warm-up must not be negative")


@dataclass(frozen=True)
class Latency:
    """One candidate's requests, in milliseconds.

    Attributes:
        rounds_ms: raw samples, one list per round.
        p50_ms, p90_ms, p99_ms, min_ms, mean_ms: over all samples.
        variation: standard deviation of the rounds' medians over their mean.
    """

    rounds_ms: tuple[tuple[float, ...], ...]
    p50_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    mean_ms: float
    variation: float

    @classmethod
    def of(cls, rounds_ms: list[list[float]]) -> Latency:
        """Summarises raw samples."""
        samples = np.concatenate([np.asarray(r) for r in rounds_ms])
        p50, p90, p99 = np.percentile(samples, (50, 90, 99))
        medians = np.array([np.median(r) for r in rounds_ms])
        return cls(
            rounds_ms=tuple(tuple(r) for r in rounds_ms),
            p50_ms=float(p50),
            p90_ms=float(p90),
            p99_ms=float(p99),
            min_ms=float(samples.min()),
            mean_ms=float(samples.mean()),
            variation=float(medians.std() / medians.mean()),
        )


def ratio_interval(baseline: Latency, other: Latency, seed: int = 0) -> tuple[float, float, float]:
    """How many times faster ``other`` is than ``baseline``: median of the rounds' ratios and its 95 % bootstrap interval.

    Each round's ratio is of medians taken moments apart, so slow drift cancels.
    """
    ratios = np.array([np.median(a) / np.median(b) for a, b in zip(baseline.rounds_ms, other.rounds_ms)])
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(ratios, (BOOTSTRAP, len(ratios))), axis=1)
    low, high = np.percentile(medians, (2.5, 97.5))
    return float(np.median(ratios)), float(low), float(high)


def conditions() -> dict[str, Any]:
    """Machine and load while measuring."""
    return {**machine(), "load_average": list(os.getloadavg())}
