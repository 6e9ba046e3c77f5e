"""Requests as CUDA graphs, timed by events, interleaved round by round; on a CPU plain calls and the host's clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from gft_edge.benchmarks.experiments.gpu.scale import Place
from gft_edge.benchmarks.measuring.protocol import Latency

Call = Callable[[], Any]
"""One request; returns its output."""

WARMUP_CALLS = 3
WARMUP_SECONDS = 0.1
LEAST_ROUNDS = 3
"""Rounds that are measured even when the time is over, so that there is a median."""


class Replay:
    """A request that is captured in a CUDA graph; on a CPU the request itself.

    Attributes:
        output: tensor of the last call; of a graph always the same memory.
    """

    def __init__(self, call: Call, place: Place) -> None:
        self._call, self._graph = call, None
        if place.is_gpu:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # lazy initialisations of libraries must not be captured
                for _ in range(WARMUP_CALLS):
                    call()
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self.output = call()
        else:
            self.output = call()

    def __call__(self) -> Any:
        """Makes one request and returns its output."""
        if self._graph is None:
            self.output = self._call()
        else:
            self._graph.replay()
        return self.output


def milliseconds(call: Call, repeats: int, place: Place) -> float:
    """Returns the mean time of one of ``repeats`` calls back to back."""
    if place.is_gpu:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return 1e3 * (time.perf_counter() - began) / repeats


def interleaved(
    calls: Mapping[str, Call], rounds: int, least_ms: float, place: Place, until: float = math.inf
) -> dict[str, Latency]:
    """Times calls against each other: every round measures each once, and rounds alternate the order.

    Args:
        calls: by name.
        rounds: at most.
        least_ms: a measurement repeats its call until it takes at least this long.
        place: decides the clock.
        until: value of ``time.monotonic`` after which no further round begins, once there are a few.

    Returns:
        One sample per round and name, the mean of one measurement.
    """
    repeats = {name: _repeats(call, least_ms, place) for name, call in calls.items()}
    samples: dict[str, list[list[float]]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.monotonic() > until:
            break
        for name in names if number % 2 == 0 else reversed(names):
            samples[name].append([milliseconds(calls[name], repeats[name], place)])
    return {name: Latency.of(rounds_ms) for name, rounds_ms in samples.items()}


def _repeats(call: Call, least_ms: float, place: Place) -> int:
    """Warms a call up and returns how often it must be repeated to take ``least_ms``."""
    end = time.perf_counter() + WARMUP_SECONDS
    one = milliseconds(call, 1, place)
    while place.is_gpu and time.perf_counter() < end:
        one = milliseconds(call, WARMUP_CALLS, place)
    return max(math.ceil(least_ms / max(one, 1e-3)), 1)


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the largest difference over the largest magnitude that is expected; NaN if a value is."""
    wide, reference = found.double(), expected.double()
    return float((wide - reference).abs().max() / reference.abs().max().clamp_min(1e-12))
