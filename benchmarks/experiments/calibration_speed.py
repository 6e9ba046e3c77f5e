"""Speed of calibration relative to plain inference of the same batches, per method. Needs no data.

python -m gft_edge.benchmarks.experiments.calibration_speed runs/bench/calibration.json
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from gft_edge.benchmarks.measuring.latency import measure
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, conditions, ratio_interval
from gft_edge.calibration.observe import Collector, observing
from gft_edge.calibration.options import METHODS
from gft_edge.config.model import preset
from gft_edge.errors import exit_code
from gft_edge.files import require_writable, write_json
from gft_edge.model.build import build_model
from gft_edge.quant.modules import quantized_names
from gft_edge.quant.policy import DEFAULT_POLICY

BATCH = 16
PRESETS = ("gft_typeface", "gft_small")


def candidates(name: str) -> dict[str, Callable[[], object]]:
    """Returns calls for one batch of plain inference, and of one with statistics of every quantized input, per method."""
    torch.manual_seed(0)
    config = preset(name)
    model = build_model(config).eval()
    images = torch.randn(BATCH, 3, config.image_size, config.image_size)
    collectors = {method: Collector(quantized_names(model, DEFAULT_POLICY), method) for method in METHODS}

    def calibrate(collector: Collector) -> None:
        with observing(model, collector):
            model(images)
            collector.end_batch(BATCH)

    calls: dict[str, Callable[[], object]] = {"inference": lambda: model(images)}
    for method in ("max", "entropy"):  # percentile and mse collect the same as entropy
        calls[method] = functools.partial(calibrate, collectors[method])
    return calls


@torch.no_grad()
def run(threads: int, rounds: int = 10, presets: tuple[str, ...] = PRESETS) -> dict[str, Any]:
    """Returns the throughput of calibration over that of inference, per preset and method, with its 95 % interval."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    results = {}
    for name in presets:
        latencies = measure(candidates(name), BenchProtocol(rounds=rounds, runs_per_round=1, warmup_seconds=0.5))
        results[name] = {
            "inference_images_per_second": 1e3 * BATCH / latencies["inference"].p50_ms,
            **{
                method: ratio_interval(latencies["inference"], latency)
                for method, latency in latencies.items()
                if method != "inference"
            },
        }
    torch.set_num_threads(before)
    return {"machine": conditions(), "threads": threads, "batch": BATCH, "ratios": results}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes the JSON file and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FILE", help="figures as JSON")
    out = parser.parse_args(arguments).out
    require_writable(out)
    data = [run(threads) for threads in (1, 2)]
    print(json.dumps([{key: one[key] for key in ("threads", "ratios")} for one in data], indent=2))
    write_json(out, {"runs": data})
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
