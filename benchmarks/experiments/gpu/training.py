"""Training steps in bfloat16, interleaved: that of ``gft-edge train``, the usual loop, and this loop as a CUDA graph; memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gft_edge.benchmarks.experiments.gpu.candidates import EVIT, FULL, GFT, VIT, Family
from gft_edge.benchmarks.experiments.gpu.inference import against, figures
from gft_edge.benchmarks.experiments.gpu.scale import Place, Scale, reason
from gft_edge.benchmarks.experiments.gpu.timing import WARMUP_CALLS, Replay, interleaved
from gft_edge.benchmarks.experiments.training_steps import PlainViT, focal, train_step, usual_step

USUAL, CAPTURED = "usual loop", "captured"
NAMES = (
    VIT,
    GFT,
    FULL,
    *(f"{name}, {kind}" for kind in (USUAL, CAPTURED) for name in (VIT, GFT)),
    f"{EVIT}, {USUAL}",
)
"""The step of ``gft-edge train``; a loop of autocast, cross-entropy and fused AdamW; the same as one CUDA graph."""
LEAST_MS = 50.0


def run(scale: Scale, place: Place, until: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures a training step of each candidate.

    Returns:
        ``rows`` with latency, ratio to the plain ViT in the step of ``gft-edge train``, and ``peak_gb``: weights, gradients,
        optimiser and activations of one candidate (None on a CPU and for a graph, which keeps its memory); ``errors``.
    """
    steps: dict[str, Callable[[], object]] = {}
    rows: dict[str, dict[str, Any]] = {}
    errors = []
    for name in NAMES:
        try:
            before = torch.cuda.memory_allocated() if place.is_gpu else 0
            step = training_step(name, scale, place)
            peak = None if name.endswith(CAPTURED) else _peak_gb(step, before, place)
            rows[name] = {"name": name, "batch": scale.training_batch, "peak_gb": peak}
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
    """Returns a step of one of :data:`NAMES` on fixed random images and labels; it has weights and an optimiser of its own."""
    network, _, kind = name.rpartition(", ") if name.endswith((USUAL, CAPTURED)) else (name, "", "")
    config = scale.config
    family = Family(config, Place(place.device, torch.float32))
    images = family.images(scale.training_batch)
    labels = torch.randint(config.num_classes, (scale.training_batch,), device=place.device)
    if network == EVIT:
        candidate = family.main()[EVIT]()
        weights = candidate.model.train().requires_grad_(True)
        return usual_step(candidate, weights, images, labels)
    with place.device:
        model: nn.Module = PlainViT(config) if network == VIT else focal(config, pruned=network == GFT)
    model.train()
    if not kind:
        return train_step(model, images, labels)
    step = usual_step(model, model, images, labels)
    return Replay(step, place) if kind == CAPTURED else step


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
