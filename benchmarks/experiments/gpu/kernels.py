"""How many kernels one forward pass launches, and which: on a GPU by the profiler, on a CPU the operators that compute."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from gft_edge.benchmarks.experiments.gpu.candidates import Candidate, Family
from gft_edge.benchmarks.experiments.gpu.scale import Place, Scale, reason

BATCH = 8
NAMED = 60
"""Kernels that are listed by name for each candidate, the most expensive first."""


@torch.no_grad()
def run(scale: Scale, place: Place, until: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Counts the kernels of every candidate of a forward pass of eight images.

    Returns:
        ``rows`` with the number of kernels, those beyond the plain ViT's, their total time in microseconds (0 on a CPU)
        and the list by name; ``errors``.
    """
    family = Family(scale.config, place)
    images = family.images(min(BATCH, max(scale.batches)))
    rows: list[dict[str, Any]] = []
    errors = []
    for name, make in {**family.main(), **family.variants()}.items():
        if time.monotonic() > until:
            errors.append({"name": name, "error": "no time left"})
            continue
        try:
            found = launched(make(), images, place)
        except Exception as error:
            errors.append({"name": name, "error": reason(error)})
            continue
        total = sum(count for count, _ in found.values())
        listed = sorted(found.items(), key=lambda item: (-item[1][1], -item[1][0], item[0]))[:NAMED]
        rows.append(
            {
                "name": name,
                "kernels": total,
                "beyond_vit": total - rows[0]["kernels"] if rows else 0,
                "microseconds": sum(us for _, us in found.values()),
                "by_name": [{"kernel": kernel[:120], "count": count, "us": us} for kernel, (count, us) in listed],
            }
        )
    say("kernels: " + ", ".join(f"{row['name']} {row['kernels']}" for row in rows[:2]))
    return {"images": len(images), "rows": rows, "errors": errors}


FREE = ("prim.", "profiler.", "aten.empty", "aten.new_empty", "aten._unsafe_view", "aten.detach", "aten.alias")
"""Operators that launch nothing, besides views."""


def launched(candidate: Candidate, images: torch.Tensor, place: Place) -> dict[str, tuple[int, float]]:
    """Returns count and total microseconds of each kernel of one forward pass."""
    candidate(images)
    if not place.is_gpu:
        with Computing() as mode:
            candidate(images)
        return {name: (count, 0.0) for name, count in mode.count.items()}
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        candidate(images)
        torch.cuda.synchronize()
    found: dict[str, tuple[int, float]] = {}
    for event in recorded.events():
        if event.device_type.name == "CUDA":
            count, us = found.get(event.name, (0, 0.0))
            found[event.name] = (count + 1, us + float(event.device_time))
    return found


class Computing(TorchDispatchMode):
    """Counts the calls that compute something: views and new memory cost no kernel.

    Attributes:
        count: calls by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if not func.is_view and not name.startswith(FREE):
            self.count[name.removeprefix("aten.")] += 1
        return func(*args, **(kwargs or {}))
