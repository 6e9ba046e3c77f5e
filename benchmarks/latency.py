"""Latency of artefacts, measured interleaved in one process."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from gft_edge.benchmarks.protocol import BenchProtocol, Latency, conditions, ratio_interval
from gft_edge.errors import ConfigError
from gft_edge.manifest import MODEL, Artifact
from gft_edge.progress import Track, silent
from gft_edge.runtime.sessions import open_session


def measure(
    candidates: Mapping[str, Callable[[], object]], protocol: BenchProtocol, track: Track = silent
) -> dict[str, Latency]:
    """Times callables against each other.

    Args:
        candidates: by name; each call is one request.
        protocol: how often, in which order.
        track: progress display.
    """
    for run in candidates.values():
        end = time.perf_counter() + protocol.warmup_seconds
        run()
        while time.perf_counter() < end:
            run()
    rounds: dict[str, list[list[float]]] = {name: [] for name in candidates}
    names = list(candidates)
    for number in track(range(protocol.rounds), "bench", protocol.rounds):
        for name in names if number % 2 == 0 else reversed(names):
            run = candidates[name]
            samples = []
            for _ in range(protocol.runs_per_round):
                started = time.perf_counter()
                run()
                samples.append((time.perf_counter() - started) * 1e3)
            rounds[name].append(samples)
    return {name: Latency.of(samples) for name, samples in rounds.items()}


def bench_artifacts(
    artifacts: Sequence[Artifact], protocol: BenchProtocol, backend: str = "onnxruntime", track: Track = silent
) -> dict[str, Any]:
    """Latency of one request (inference alone, preprocessed input in memory) of each artefact.

    Returns:
        plain JSON values: protocol, machine, and per artefact its identity, figures, raw samples and the speed-up over
        the first artefact with a 95 % interval.

    Raises:
        ConfigError: two artefacts of the same folder name.
    """
    if len({a.name for a in artifacts}) != len(artifacts):
        raise ConfigError("bench: artefacts must have different folder names, which label the results")
    rng = np.random.default_rng(protocol.seed)
    candidates: dict[str, Callable[[], object]] = {}
    options: dict[str, Mapping[str, Any]] = {}
    for artifact in artifacts:
        session = open_session(artifact, backend, protocol.threads)
        side = artifact.manifest.model.image_size
        images = rng.standard_normal((protocol.batch, 3, side, side), dtype=np.float32)
        candidates[artifact.name] = functools.partial(session, images)
        options[artifact.name] = session.options
    where = conditions()
    figures = measure(candidates, protocol, track)
    first = figures[artifacts[0].name]
    results = []
    for artifact in artifacts:
        latency = figures[artifact.name]
        speedup, low, high = ratio_interval(first, latency, protocol.seed)
        results.append(
            {
                "name": artifact.name,
                "precision": artifact.manifest.precision,
                "budget": artifact.manifest.budget.id,
                "model_sha256": artifact.manifest.files[MODEL].sha256,
                "options": dict(options[artifact.name]),
                "speedup": speedup,
                "speedup_interval": [low, high],
                **asdict(latency),
            }
        )
    return {
        "backend": backend,
        "baseline": artifacts[0].name,
        "protocol": vars(protocol),
        "machine": where,
        "results": results,
    }
