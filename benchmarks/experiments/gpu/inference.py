"""Latency of inference: every candidate as a CUDA graph over static images, interleaved, at several batch sizes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from gft_edge.benchmarks.experiments.gpu.candidates import VIT, Candidate, Family, Makers
from gft_edge.benchmarks.experiments.gpu.exact import exactness
from gft_edge.benchmarks.experiments.gpu.scale import Place, Scale, reason
from gft_edge.benchmarks.experiments.gpu.timing import Replay, interleaved, relative_difference
from gft_edge.benchmarks.measuring.protocol import Latency, ratio_interval


@torch.no_grad()
def run(scale: Scale, place: Place, until: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures all candidates at every batch size; the time left is divided among the sizes.

    Returns:
        ``rows``, one per batch and candidate, with latency, ratio to the plain ViT and the check of the graph;
        ``errors`` of candidates that could not run; ``skipped`` batch sizes; ``exact``, see :func:`exactness`.
    """
    family = Family(scale.config, place)
    rows: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    skipped = []
    for number, batch in enumerate(scale.batches):
        now = time.monotonic()
        if now > until:
            skipped.append(batch)
            continue
        end = now + (until - now) / (len(scale.batches) - number)
        makers = {**family.main(), **family.variants(), **(family.merging() if batch == scale.merging_batch else {})}
        found, failed = measure_batch(family, makers, batch, scale, end)
        rows += found
        errors += failed
        say(f"inference: batch {batch}, {len(found)} candidates, {time.monotonic() - now:.0f} s")
    return {
        "rows": rows,
        "errors": errors,
        "skipped": skipped,
        "exact": exactness(scale.config, place),
    }


def measure_batch(
    family: Family, makers: Makers, batch: int, scale: Scale, until: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Captures, checks and times candidates at one batch size.

    Returns:
        a row per candidate that ran, and an error per candidate that did not.
    """
    place = family.place
    images = family.images(batch)
    replays: dict[str, Replay] = {}
    rows: dict[str, dict[str, Any]] = {}
    errors = []
    for name, make in makers.items():
        try:
            candidate = make()
            replay = Replay(functools.partial(candidate, images), place)
            rows[name] = {"name": name, "batch": batch, "macs": candidate.macs, **checked(replay, candidate, images)}
            replays[name] = replay
        except Exception as error:
            errors.append({"name": name, "batch": batch, "error": reason(error)})
    if replays:
        latencies = interleaved(replays, scale.rounds, scale.least_ms, place, until)
        for name, latency in latencies.items():
            rows[name].update(figures(latency, batch), **against(latencies.get(VIT), latency))
    return list(rows.values()), errors


def checked(replay: Replay, candidate: Candidate, images: torch.Tensor) -> dict[str, Any]:
    """Compares one request with the eager network on images that the capture has not seen.

    Returns:
        ``difference`` of the logits, relative, and ``finite``.
    """
    images.normal_()
    replay.output.fill_(float("nan"))  # an output that is not written must not pass
    found = replay().clone()
    return {"difference": relative_difference(found, candidate(images)), "finite": bool(found.isfinite().all())}


def figures(latency: Latency, batch: int) -> dict[str, Any]:
    """Returns the figures of a latency for the record."""
    return {**{k: v for k, v in asdict(latency).items() if k != "warmup"}, "images_per_s": 1e3 * batch / latency.p50_ms}


def against(baseline: Latency | None, latency: Latency) -> dict[str, Any]:
    """Returns how many times faster than the plain ViT a candidate is, with the interval; nothing without the ViT."""
    return {} if baseline is None else {"over_vit": list(ratio_interval(baseline, latency))}
