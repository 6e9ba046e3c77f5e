"""What a GPU would launch in one training step of ViT-B and ``gft_base`` in BF16, counted without a GPU, and dispatch times.

python -m gft_edge.benchmarks.experiments.training_launches runs/bench/launches.json

Counts: forward, backward and optimiser run on fake tensors, which have shapes and no data; every ATen call that computes
counts, those of the autograd engine included. The model takes its branches for GPUs. The autocast is that of the CPU, since the
engine needs a driver for tensors on a GPU; in these networks both cast the same operands. A call can launch several kernels (a
fused optimiser one per some hundred blocks of weights), so the counts are a lower bound.

Times: steps of twelve narrow blocks on one thread, where arithmetic is negligible, interleaved. They show what Python, autograd
and the dispatcher cost beside the launches.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from gft_edge.benchmarks.experiments.gpu.kernels import Computing
from gft_edge.benchmarks.experiments.training_steps import PlainViT, Step, focal, train_step, usual_step
from gft_edge.benchmarks.measuring.latency import measure
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, conditions, ratio_interval
from gft_edge.budget import TokenBudget
from gft_edge.cli.console import table
from gft_edge.config.model import GFTConfig, preset
from gft_edge.errors import exit_code
from gft_edge.files import require_writable, write_json

BATCH = 64
TRAIN, USUAL = "gft-edge train", "usual loop"
VIT, GFT, FULL = "ViT", "GFT", "GFT, every patch"
NETWORKS: Mapping[str, Callable[[GFTConfig], nn.Module]] = {
    VIT: PlainViT,
    GFT: focal,
    FULL: lambda config: focal(config, pruned=False),
}
STEPS: Mapping[str, Callable[[nn.Module, Tensor, Tensor], Step]] = {
    TRAIN: lambda model, images, labels: train_step(model, images, labels, watched=False),
    USUAL: lambda model, images, labels: usual_step(model, model, images, labels),
}


def counted(name: str, config: GFTConfig, make: Callable[[nn.Module, Tensor, Tensor], Step]) -> dict[str, int]:
    """Returns the calls by name of one training step, the most frequent first.

    Args:
        name: of :data:`NETWORKS`.
        config: of the focal model.
        make: returns the step of a model, images and labels.
    """
    with torch.device("meta"):
        model = NETWORKS[name](config).train()
    size = config.image_size
    with FakeTensorMode(), _branches_of_gpus():
        for module in model.modules():
            for key, weight in module._parameters.items():
                if weight is not None:
                    module._parameters[key] = nn.Parameter(torch.empty(weight.shape))
        step = make(model, torch.randn(BATCH, 3, size, size), torch.zeros(BATCH, dtype=torch.int64))
        step()  # creates the optimiser's state
        with Computing() as launches:
            step()
    return dict(launches.count.most_common())


@contextlib.contextmanager
def _branches_of_gpus() -> Iterator[None]:
    """Makes fake tensors say that they are on a GPU, for the branches of the model alone."""
    fake: Any = FakeTensor
    fake.is_cuda = property(lambda tensor: True)
    try:
        yield
    finally:
        del fake.is_cuda


def narrow() -> GFTConfig:
    """Returns a model of twelve blocks and so few channels and patches that arithmetic costs nothing."""
    return preset(
        "gft_tiny", image_size=64, embed_dim=24, num_heads=3, budget=TokenBudget((12, 8, 4), 16), num_classes=10
    )


def dispatch_times(config: GFTConfig, rounds: int) -> dict[str, dict[str, Any]]:
    """Returns the time of each step on one thread, and how many times faster than the plain ViT's of the same kind it is."""
    images, labels = torch.randn(2, 3, config.image_size, config.image_size), torch.zeros(2, dtype=torch.int64)
    calls = {
        (kind, name): STEPS[kind](make(config).train(), images, labels)
        for kind in STEPS
        for name, make in NETWORKS.items()
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        protocol = BenchProtocol(rounds=rounds, runs_per_round=3, warmup_seconds=0.1)
        latencies = measure({_row(*key): call for key, call in calls.items()}, protocol)
    finally:
        torch.set_num_threads(threads)
    return {
        _row(kind, name): {
            "p50_ms": latencies[_row(kind, name)].p50_ms,
            "over_vit": list(ratio_interval(latencies[_row(kind, VIT)], latencies[_row(kind, name)])),
        }
        for kind, name in calls
    }


def _row(kind: str, name: str) -> str:
    return f"{name}: {kind}"


def run(config: GFTConfig, rounds: int) -> dict[str, Any]:
    """Returns counts of a configuration and dispatch times as plain JSON values."""
    launches = {_row(kind, name): counted(name, config, STEPS[kind]) for kind in STEPS for name in NETWORKS}
    times = dispatch_times(narrow(), rounds)
    rows = [{"name": name, "launches": sum(found.values()), **times[name]} for name, found in launches.items()]
    return {
        "machine": conditions(),
        "model": config.to_json(),
        "batch": BATCH,
        "narrow": dataclasses.asdict(narrow().budget),
        "rows": rows,
        "launches": launches,
    }


def text(data: Mapping[str, Any]) -> str:
    """Returns the table of a run, and what the pruned model launches beyond the plain ViT."""
    rows = (
        (row["name"], str(row["launches"]), f"{row['p50_ms']:.2f}", f"{row['over_vit'][0]:.3f}") for row in data["rows"]
    )
    launches = data["launches"]
    beyond = collections.Counter(launches[_row(TRAIN, GFT)])
    beyond.subtract(launches[_row(TRAIN, VIT)])
    changes = ", ".join(f"{count:+d} {name}" for name, count in beyond.most_common() if count)
    header = ("step", "launches", "dispatch ms", "times faster than ViT")
    return f"{table(header, rows)}\n\nGFT beyond ViT in gft-edge train: {changes}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Counts, measures, writes the JSON file and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FILE", help="figures as JSON")
    parser.add_argument("--rounds", type=int, default=20, help="interleaved measurements of each step (%(default)s)")
    args = parser.parse_args(arguments)
    require_writable(args.out)
    data = run(preset("gft_base"), args.rounds)
    write_json(args.out, data)
    print(text(data))
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
