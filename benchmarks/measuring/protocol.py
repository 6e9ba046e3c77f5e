"""A latency measurement: its protocol, its conditions and its raw numbers."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import gft_edge
from gft_edge.errors import ConfigError, DataError
from gft_edge.hardware.environment import machine, versions
from gft_edge.hardware.linux import read_clocks

BOOTSTRAP = 2000
UNSTABLE = 0.025
"""Variation above which a figure counts as unstable; trtexec's own limit since TensorRT 11."""

ONE_ROUND = "one round"
"""Verdict of a figure without spread."""


@dataclass(frozen=True)
class BenchProtocol:
    """Protocol of a measurement that compares candidates.

    Every round runs each candidate ``runs_per_round`` times; rounds alternate the order (A B, B A, ...), so that drift of
    clocks or other load affects all equally.

    Args:
        batch: images per request.
        threads: intra-op threads of the backend; 0 takes one per core.
        warmup_seconds: least time of warm-up per candidate, before the first round. It continues in windows of half of
            this until the medians of two successive windows agree within ``warmup_tolerance``.
        rounds, runs_per_round: number of measurements.
        seed: of the input images.
        warmup_tolerance: relative difference of two windows' medians that counts as agreement.
        warmup_cap_seconds: when warm-up ends if the windows never agree.
        in_flight: requests at a time while throughput is measured.
        throughput_seconds, throughput_windows: length and number of the windows of throughput per candidate.
        source_size: rows and columns of the picture before preprocessing.
        processes: fresh processes per candidate for cold start and memory.
        energy_seconds: of requests back to back per candidate, if power can be measured.

    Raises:
        ConfigError: a value is out of range.
    """

    batch: int = 1
    threads: int = 1
    warmup_seconds: float = 0.5
    rounds: int = 40
    runs_per_round: int = 5
    seed: int = 0
    warmup_tolerance: float = 0.02
    warmup_cap_seconds: float = 5.0
    in_flight: int = 2
    throughput_seconds: float = 0.5
    throughput_windows: int = 3
    source_size: tuple[int, int] = (480, 640)
    processes: int = 3
    energy_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("batch", "rounds", "runs_per_round", "in_flight", "throughput_windows", "processes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.threads < 0 or not self.warmup_seconds >= 0:
            raise ConfigError("threads and warm-up must not be negative")
        for name in ("warmup_seconds", "warmup_tolerance", "warmup_cap_seconds", "throughput_seconds"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"{name} must be finite and not negative, found {getattr(self, name)}")
        if len(self.source_size) != 2 or min(self.source_size) < 1:
            raise ConfigError(f"source_size must be rows and columns of at least 1, found {self.source_size}")


@dataclass(frozen=True)
class Warmup:
    """The course of a warm-up.

    Attributes:
        seconds, requests: its length.
        ended: ``"stable"`` if two windows agreed, ``"cap"`` if time ran out before, ``"none"`` if there was no warm-up.
    """

    seconds: float
    requests: int
    ended: Literal["stable", "cap", "none"]


@dataclass(frozen=True)
class Latency:
    """Latency of one candidate's requests, in milliseconds.

    Attributes:
        rounds_ms: raw samples, one list per round.
        p50_ms, p90_ms, p95_ms, p99_ms, min_ms, mean_ms: over all samples.
        variation: standard deviation of the rounds' medians over their mean; the verdict rests on it, since ratios of
            medians are reported.
        sample_variation: standard deviation of all samples over their mean, outliers of single requests included.
        warmup: course of the warm-up.
    """

    rounds_ms: tuple[tuple[float, ...], ...]
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    mean_ms: float
    variation: float
    sample_variation: float
    warmup: Warmup | None = None

    @property
    def verdict(self) -> str:
        """``"stable"``, or ``"unstable"`` if the variation is above 2.5 per cent."""
        return "unstable" if self.variation > UNSTABLE else "stable"

    @classmethod
    def of(cls, rounds_ms: Sequence[Sequence[float]], warmup: Warmup | None = None) -> Latency:
        """Summarises raw samples.

        Raises:
            DataError: no sample, a negative one (the clock went backwards), or none above zero.
        """
        if not rounds_ms or not all(len(r) for r in rounds_ms):
            raise DataError("a run of zero length: there is no sample to summarise")
        samples = np.concatenate([np.asarray(r, dtype=np.float64) for r in rounds_ms])
        if not np.isfinite(samples).all() or samples.min() < 0:
            raise DataError(f"a request took {samples.min():g} ms: the clock went backwards; measure again")
        medians = np.array([np.median(r) for r in rounds_ms])
        if not medians.min() > 0:
            raise DataError("requests of zero length: the clock is too coarse for them; use a larger batch")
        p50, p90, p95, p99 = np.percentile(samples, (50, 90, 95, 99))
        return cls(
            rounds_ms=tuple(tuple(float(ms) for ms in r) for r in rounds_ms),
            p50_ms=float(p50),
            p90_ms=float(p90),
            p95_ms=float(p95),
            p99_ms=float(p99),
            min_ms=float(samples.min()),
            mean_ms=float(samples.mean()),
            variation=float(medians.std() / medians.mean()),
            sample_variation=float(samples.std() / samples.mean()),
            warmup=warmup,
        )


def ratio_interval(baseline: Latency, other: Latency, seed: int = 0) -> tuple[float, float, float]:
    """Returns the speed-up of ``other`` over ``baseline``: median of the rounds' ratios and its 95 % bootstrap interval.

    Each round's ratio is of medians measured moments apart, so slow drift cancels.
    """
    ratios = np.array([np.median(a) / np.median(b) for a, b in zip(baseline.rounds_ms, other.rounds_ms)])
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(ratios, (BOOTSTRAP, len(ratios))), axis=1)
    low, high = np.percentile(medians, (2.5, 97.5))
    return float(np.median(ratios)), float(low), float(high)


def conditions(root: Path = Path("/")) -> dict[str, Any]:
    """Returns machine, clocks, temperatures and load while measuring; versions and commit of this package."""
    return {
        **machine(),
        "load_average": list(os.getloadavg()),
        "clocks": read_clocks(root),
        "versions": versions(),
        "commit": commit(),
    }


def commit(folder: Path = Path(gft_edge.__file__).parent) -> str | None:
    """Returns the Git commit of this package's source, ``-dirty`` with changes; None if it was installed as a copy."""

    def git(*command: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # a copy in site-packages may lie inside another repository
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
