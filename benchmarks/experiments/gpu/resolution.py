"""Latency on large images: the focal model that cuts early against the plain ViT at the same size, interleaved."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from gft_edge.benchmarks.experiments.gpu.candidates import FULL, GFT, VIT, Family
from gft_edge.benchmarks.experiments.gpu.inference import measure_batch
from gft_edge.benchmarks.experiments.gpu.scale import Place, Scale


@torch.no_grad()
def run(scale: Scale, place: Place, until: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures the plain ViT, the focal model and the focal model with every patch at each batch size.

    Returns:
        ``image_size``; ``rows``, ``errors`` and ``skipped`` as those of :func:`gft_edge.benchmarks.experiments.gpu.inference.run`.
    """
    family = Family(scale.large, place)
    makers = {VIT: family.plain, GFT: family.gft, FULL: lambda: family.gft(scale.large.full_budget)}
    rows: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    skipped = []
    for number, batch in enumerate(scale.large_batches):
        now = time.monotonic()
        if now > until:
            skipped.append(batch)
            continue
        end = now + (until - now) / (len(scale.large_batches) - number)
        found, failed = measure_batch(family, makers, batch, scale, end)
        rows += found
        errors += failed
        say(f"resolution: {scale.large.image_size} px, batch {batch}, {time.monotonic() - now:.0f} s")
    return {"image_size": scale.large.image_size, "rows": rows, "errors": errors, "skipped": skipped}
