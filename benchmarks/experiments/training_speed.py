"""Speed of a training step of gft_base, relative to plain ViT-B and the published code, and of its importance. Needs no data.

python -m gft_edge.benchmarks.experiments.training_speed runs/bench/training.json
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gft_edge.benchmarks.experiments.peers.models import PlainPublishedGFT
from gft_edge.benchmarks.measuring.latency import measure
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, Latency, conditions, ratio_interval
from gft_edge.config.model import preset
from gft_edge.errors import exit_code
from gft_edge.files import require_writable, write_json
from gft_edge.model import gala
from gft_edge.model.backbone import timm_vit
from gft_edge.model.build import build_model
from gft_edge.train.optim import step_in_backward

BATCH = 8
PATCHES = (196, 784, 3136)
WIDTH, HEADS = 768, 12
PUBLISHED, VIT, USUAL = "published, plain", "vit_base", "gft_base"
LEAN, LEAN_BF16 = "gft_base, lean", "gft_base, lean, bf16"
NAMES = (PUBLISHED, VIT, USUAL, LEAN, LEAN_BF16)
"""Lean: activations are recomputed, and each weight is updated as its gradient arrives (``train.recompute``,
``train.step_in_backward``), which gives the same weights."""


def training_step(name: str) -> Callable[[], object]:
    """Returns a step: forward, backward and AdamW on eight 224 x 224 images, 100 classes, 147-98-49 patches kept."""
    torch.manual_seed(0)
    config = preset("gft_base", num_classes=100)
    models: dict[str, Callable[[], nn.Module]] = {
        PUBLISHED: lambda: PlainPublishedGFT(config.budget),
        VIT: lambda: timm_vit(config, False, 0.0, num_classes=config.num_classes),
    }
    model: Any = models.get(name, lambda: build_model(config))().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    lean, bf16 = name in (LEAN, LEAN_BF16), name == LEAN_BF16
    if lean:
        model.set_grad_checkpointing()
        step_in_backward(optimizer)
    images, labels = torch.randn(BATCH, 3, 224, 224), torch.randint(100, (BATCH,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        if not lean:
            optimizer.step()

    return step


def peak_memory(name: str) -> dict[str, int]:
    """Measures the largest resident bytes of a process with two training steps, and those before the model exists."""
    code = (
        "import sys; from gft_edge.benchmarks.experiments.training_speed import training_step; import resource\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "libraries = peak(); step = training_step(sys.argv[1]); step(); step()\n"
        "print(libraries, peak())"
    )
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True)
    libraries, peak = (int(number) for number in done.stdout.split())
    return {"libraries": libraries, "peak": peak}


def importance_calls(patches: int) -> dict[str, Callable[[], object]]:
    """Returns calls for the scores of one image by the mean key and by the attention matrix, from the same tokens."""
    torch.manual_seed(0)
    x = torch.randn(1, patches, WIDTH)
    q_weight, k_weight = torch.randn(2, WIDTH, WIDTH).mul_(0.02).unbind(0)

    def by_matrix() -> torch.Tensor:
        q, k = (F.linear(x, w).unflatten(2, (HEADS, -1)).transpose(1, 2) for w in (q_weight, k_weight))
        return (q @ k.transpose(2, 3) * (WIDTH // HEADS) ** -0.5).mean(dim=3)

    return {
        f"mean key, {patches}": lambda: gala.mean_scores(x, q_weight, k_weight, HEADS),
        f"matrix, {patches}": by_matrix,
    }


def summary(latency: Latency) -> dict[str, float]:
    """Returns the figures without raw samples."""
    return {name: getattr(latency, name) for name in ("p50_ms", "p90_ms", "min_ms", "variation")}


def run(rounds: int = 4) -> dict[str, Any]:
    """Returns all measurements as plain JSON values."""
    where = conditions()
    memory = {name: peak_memory(name) for name in NAMES}
    steps = measure(
        {name: training_step(name) for name in NAMES},
        BenchProtocol(rounds=rounds, runs_per_round=1, warmup_seconds=0.1),
    )
    gc.collect()
    speedups = {
        over: {name: ratio_interval(steps[over], steps[name]) for name in NAMES if name != over}
        for over in (VIT, PUBLISHED)
    }
    calls = {name: call for patches in PATCHES for name, call in importance_calls(patches).items()}
    with torch.no_grad():
        importance = measure(calls, BenchProtocol(rounds=15, runs_per_round=3, warmup_seconds=0.2))
    medians = [importance[f"mean key, {patches}"].p50_ms for patches in PATCHES]
    exponent = float(np.polyfit(np.log(PATCHES), np.log(medians), 1)[0])
    return {
        "machine": where,
        "threads": torch.get_num_threads(),
        "training_step": {name: summary(latency) for name, latency in steps.items()},
        "training_speedup_over": speedups,
        "memory_bytes": memory,
        "memory_ratio": {name: memory[name]["peak"] / memory[VIT]["peak"] for name in NAMES},
        "importance": {name: summary(latency) for name, latency in importance.items()},
        "importance_exponent": exponent,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes the JSON file and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FILE", help="figures as JSON")
    out = parser.parse_args(arguments).out
    require_writable(out)
    data = run()
    print(json.dumps({name: data[name] for name in data if name != "machine"}, indent=2))
    write_json(out, data)
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
