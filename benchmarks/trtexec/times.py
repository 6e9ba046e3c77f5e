"""Times of single queries as trtexec's --exportTimes writes them: checks, and figures by its own rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gft_edge.benchmarks.measuring.protocol import Latency
from gft_edge.errors import ArtifactError

ROUND = 10
"""Queries per round of the raw samples; the default of trtexec's --avgRuns."""
LONGEST_MS = 1e12
"""Largest accepted time, 30 years: sums and ratios of such times stay finite."""


def percentile(samples: Sequence[float], percent: float) -> float:
    """Returns trtexec's percentile: the element at max(n - 1 - int((1 - p / 100) n), 0) of the sorted samples.

    In 32-bit floats like there (sampleReporting.cpp, findPercentile): of 100 queries p90 is the 90th, p99 the 100th.
    """
    ordered = sorted(samples)
    excluded = int((np.float32(1) - np.float32(percent) / np.float32(100)) * np.float32(len(ordered)))
    return ordered[max(len(ordered) - 1 - excluded, 0)]


TIMES = ("startComputeMs", "endComputeMs", "h2dMs", "computeMs", "d2hMs", "latencyMs")


def parse_times(data: object, where: str = "times") -> list[dict[str, float]]:
    """Checks the content of --exportTimes: one object per query.

    Raises:
        ArtifactError: something else, a run without queries, or a clock that goes backwards.
    """
    if not isinstance(data, list) or not all(isinstance(query, dict) for query in data):
        raise ArtifactError(f"{where}: expected the list of objects that --exportTimes writes")
    if not data:
        raise ArtifactError(f"{where}: a run of zero length: it has no query")
    queries, before = [], -math.inf
    for number, query in enumerate(data, start=1):
        values = {}
        for name, value in query.items():
            number_like = isinstance(value, int | float) and not isinstance(value, bool)
            if not number_like or not abs(value) <= LONGEST_MS:  # excludes NaN
                raise ArtifactError(f"{where}: query {number}: {name} {str(value)[:40]!r} is not a time in ms")
            values[str(name)] = float(value)
        missing = [name for name in TIMES if name not in values]
        if missing:
            raise ArtifactError(f"{where}: query {number} has no {missing[0]}")
        start = values.get("startH2dMs", values["startComputeMs"])  # the order trtexec sorts by
        negative = min(values[name] for name in ("h2dMs", "computeMs", "d2hMs", "latencyMs")) < 0
        if negative or values["endComputeMs"] < values["startComputeMs"] or start < before:
            raise ArtifactError(f"{where}: query {number}: the clock goes backwards; run trtexec again")
        before = start
        queries.append(values)
    if not any(query["latencyMs"] for query in queries):
        raise ArtifactError(f"{where}: a run of zero length: every query took 0 ms")
    return queries


def latency_of(queries: Sequence[Mapping[str, float]]) -> Latency:
    """Returns figures of exported times by trtexec's own rules, with raw samples in rounds of ten successive queries."""
    samples = [query["latencyMs"] for query in queries]
    rounds = [samples[i : i + ROUND] for i in range(0, len(samples), ROUND)]
    figures = Latency.of(rounds)
    p90, p95, p99 = (percentile(samples, p) for p in (90, 95, 99))
    return Latency(
        **{**figures.__dict__, "p90_ms": p90, "p95_ms": p95, "p99_ms": p99, "p50_ms": float(np.median(samples))}
    )
