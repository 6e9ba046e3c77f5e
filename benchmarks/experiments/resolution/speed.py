"""Speed on ONNX Runtime (CPU, FP32): the pruned model at 448 pixels, the plain ViT at 448 and at 224, interleaved."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from gft_edge.benchmarks.experiments.peers.models import export_peer
from gft_edge.benchmarks.experiments.peers.timed_models import graph_of
from gft_edge.benchmarks.experiments.resolution.plain_training import every_patch
from gft_edge.benchmarks.measuring.latency import measure
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, conditions, ratio_interval
from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig, preset
from gft_edge.errors import ConfigError
from gft_edge.model.backbone import timm_vit
from gft_edge.model.build import build_model
from gft_edge.model.macs import count_macs
from gft_edge.progress import Track, silent
from gft_edge.runtime.backends.sessions import onnxruntime_session

GFT, LARGE, SMALL = "GFT", "plain ViT", "plain ViT, half the side"
MOST_BATCH = 8
"""Of the exported graphs."""


@dataclass(frozen=True)
class SpeedOptions:
    """What is timed.

    Attributes:
        name: preset of the focal model.
        batches: images per request, one measurement each.
        threads: of ONNX Runtime.
        rounds, runs, warmup_seconds: of the protocol.

    Raises:
        ConfigError: no batch, or one that the graphs do not take.
    """

    name: str = "gft_base_448"
    batches: tuple[int, ...] = (1, 4)
    threads: int = 1
    rounds: int = 10
    runs: int = 1
    warmup_seconds: float = 0.5

    def __post_init__(self) -> None:
        if not self.batches or not all(1 <= batch <= MOST_BATCH for batch in self.batches):
            raise ConfigError(f"batches must be 1 to {MOST_BATCH} images, found {list(self.batches)}")


def quick_config() -> GFTConfig:
    """Returns a model of two narrow blocks on images of 64 pixels: shows that everything runs; its times mean nothing."""
    budget = TokenBudget((8, 4, 2), 16)
    return preset("gft_tiny_448", image_size=64, embed_dim=48, depth=3, stages=(1, 2, 3), budget=budget)


def compare(
    options: SpeedOptions,
    config: GFTConfig | None = None,
    track: Track = silent,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Exports and times the three networks, with random weights.

    Args:
        options: what is timed.
        config: of the focal model, in place of the preset.
        track: shows progress.
        report: receives lines of text.

    Returns:
        plain JSON values: ``rows``, one per batch and network, with latency and how many times faster than the plain ViT at the
        same size it is, with a 95 % interval.

    Raises:
        ConfigError: the preset is unknown or does not select.
    """
    title = "a tiny model" if config else options.name
    config = config or preset(options.name)
    if config.variant != "focal":
        raise ConfigError(f"preset {options.name}: has no stages; give one that selects, for example gft_base_448")
    before = conditions()
    calls: dict[str, Callable[..., object]] = {}
    sizes = {GFT: config.image_size, LARGE: config.image_size, SMALL: config.image_size // 2}
    macs = {GFT: count_macs(config)}
    for name, size in sizes.items():
        report(f"exporting {name}, {size} px")
        torch.manual_seed(0)
        if name == GFT:
            graph = graph_of(build_model(config).eval())
        else:
            plain = every_patch(config, size)
            macs[name] = count_macs(plain)
            graph = export_peer(timm_vit(plain, False, 0.0, num_classes=config.num_classes).eval(), size)
        calls[name] = onnxruntime_session(graph.SerializeToString(), False, options.threads, huge_pages=True)
        del graph
        gc.collect()
    rows = []
    for batch in options.batches:
        protocol = BenchProtocol(batch, options.threads, options.warmup_seconds, options.rounds, options.runs)
        pixels = np.random.default_rng(protocol.seed)
        requests = {
            name: functools.partial(call, pixels.standard_normal((batch, 3, size, size), dtype=np.float32))
            for (name, call), size in zip(calls.items(), sizes.values())
        }
        report(f"timing batches of {batch}")
        found = measure(requests, protocol, track)
        rows += [
            {
                "name": name,
                "image_size": sizes[name],
                "batch": batch,
                "macs": macs[name],
                **asdict(latency),
                "verdict": latency.verdict,
                "faster": list(ratio_interval(found[LARGE], latency)),
            }
            for name, latency in found.items()
        ]
    return {
        "machine": {**before, "load_average_after": conditions()["load_average"]},
        "preset": title,
        "model": config.to_json(),
        "options": asdict(options),
        "rows": rows,
    }
