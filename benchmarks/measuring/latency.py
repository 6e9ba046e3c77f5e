"""Latency and throughput of callables, measured interleaved in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gft_edge.benchmarks.measuring.protocol import BenchProtocol, Latency, Warmup
from gft_edge.progress import Track, silent

Candidates = Mapping[str, Callable[[], object]]
"""Requests by name of what makes them."""


def measure(candidates: Candidates, protocol: BenchProtocol, track: Track = silent) -> dict[str, Latency]:
    """Times callables against each other, interleaved.

    Args:
        candidates: by name; each call is one request.
        protocol: how often, in which order.
        track: progress callback.

    Raises:
        DataError: the clock went backwards, or is too coarse for the requests.
    """
    warmups = {name: warm_up(run, protocol) for name, run in candidates.items()}
    rounds: dict[str, list[list[float]]] = {name: [] for name in candidates}
    names = list(candidates)
    for number in track(range(protocol.rounds), "bench", protocol.rounds):
        for name in names if number % 2 == 0 else reversed(names):
            run = candidates[name]
            rounds[name].append([_milliseconds(run) for _ in range(protocol.runs_per_round)])
    return {name: Latency.of(samples, warmups[name]) for name, samples in rounds.items()}


def warm_up(run: Callable[[], object], protocol: BenchProtocol) -> Warmup:
    """Runs until the medians of two successive windows agree, the least time has passed, or the cap is reached."""
    started = time.perf_counter()
    window = protocol.warmup_seconds / 2
    if not window:
        run()
        return Warmup(time.perf_counter() - started, 1, "none")
    medians: list[float] = []
    requests = 0
    while True:
        began = time.perf_counter()
        samples = [_milliseconds(run)]
        while time.perf_counter() - began < window:
            samples.append(_milliseconds(run))
        requests += len(samples)
        medians.append(float(np.median(samples)))
        seconds = time.perf_counter() - started
        if len(medians) > 1 and seconds >= protocol.warmup_seconds:
            if abs(medians[-1] - medians[-2]) <= protocol.warmup_tolerance * medians[-2]:
                return Warmup(seconds, requests, "stable")
            if seconds >= protocol.warmup_cap_seconds:
                return Warmup(seconds, requests, "cap")


def _milliseconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


def measure_throughput(candidates: Candidates, protocol: BenchProtocol) -> dict[str, dict[str, Any]]:
    """Measures images per second with several requests in flight, in interleaved windows.

    Args:
        candidates: by name; each call is one request of ``protocol.batch`` images; several threads may call at a time.
        protocol: how many at a time, how long.
    """
    windows: dict[str, list[dict[str, float]]] = {name: [] for name in candidates}
    names = list(candidates)
    with ThreadPoolExecutor(protocol.in_flight) as pool:
        for number in range(protocol.throughput_windows):
            for name in names if number % 2 == 0 else reversed(names):
                windows[name].append(_window(candidates[name], protocol, pool))
    return {
        name: {
            "in_flight": protocol.in_flight,
            "images_per_s": float(np.median([w["images_per_s"] for w in found])),
            "windows": found,
        }
        for name, found in windows.items()
    }


def _window(run: Callable[[], object], protocol: BenchProtocol, pool: ThreadPoolExecutor) -> dict[str, float]:
    """Measures one window: each thread makes requests until the time is over, and all of them count."""
    started = time.perf_counter()
    end = started + protocol.throughput_seconds

    def requests() -> int:
        count = 0
        while not count or time.perf_counter() < end:
            run()
            count += 1
        return count

    done = sum(f.result() for f in [pool.submit(requests) for _ in range(protocol.in_flight)])
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "requests": done, "images_per_s": done * protocol.batch / seconds}
