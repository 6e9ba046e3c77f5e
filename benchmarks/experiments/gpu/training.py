"""Training steps with bfloat16 autocast: forward, backward and a fused AdamW step, interleaved; time and peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gft_edge.benchmarks.experiments.gpu.candidates import EVIT, FULL, GFT, VIT, Candidate, Family
from gft_edge.benchmarks.experiments.gpu.inference import against, figures
from gft_edge.benchmarks.experiments.gpu.scale import Place, Scale, reason
from gft_edge.benchmarks.experiments.gpu.timing import WARMUP_CALLS, interleaved

NAMES = (VIT, GFT, FULL, EVIT)
LEAST_MS = 50.0


def run(scale: Scale, place: Place, until: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures a training step of each candidate, eager and not captured.

    Returns:
        ``rows`` with latency, ratio to the plain ViT and ``peak_gb``: weights, gradients, optimiser and activations of one
        candidate (None on a CPU); ``errors``.
    """
    steps: dict[str, Callable[[], object]] = {}
    rows: dict[str, dict[str, Any]] = {}
    errors = []
    for name in NAMES:
        try:
            before = torch.cuda.memory_allocated() if place.is_gpu else 0
            step = training_step(name, scale, place)
            rows[name] = {"name": name, "batch": scale.training_batch, "peak_gb": _peak_gb(step, before, place)}
            steps[name] = step
            say(f"training: {name} is ready")
        except Exception as error:
            errors.append({"name": name, "error": reason(error)})
        if time.monotonic() > until:
            break
    latencies = interleaved(steps, scale.rounds, LEAST_MS if place.is_gpu else 0.0, place, until) if steps else {}
    for name, latency in latencies.items():
        rows[name].update(figures(latency, scale.training_batch), **against(latencies.get(VIT), latency))
    return {"rows": list(rows.values()), "errors": errors}


def training_step(name: str, scale: Scale, place: Place) -> Callable[[], object]:
    """Returns a step of one candidate on fixed random images and labels; it has weights and an optimiser of its own."""
    family = Family(scale.config, Place(place.device, torch.float32))
    config = family.config
    candidates: dict[str, Callable[[], Candidate]] = {
        **family.main(),
        FULL: lambda: family.gft(config.full_budget),
    }
    candidate = candidates[name]()
    model: nn.Module = candidate.model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    images = family.images(scale.training_batch)
    labels = torch.randint(config.num_classes, (scale.training_batch,), device=place.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(place.device.type, torch.bfloat16):
            logits = candidate(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def _peak_gb(step: Callable[[], object], before: int, place: Place) -> float | None:
    """Returns the most memory that a step holds beyond ``before`` bytes, after steps that create the optimiser's state."""
    for _ in range(WARMUP_CALLS):
        step()
    if not place.is_gpu:
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e9
