"""Speed of calibration relative to plain inference of the same images, per method. Needs no data.

python -m gft_edge.benchmarks.experiments.calibration_speed runs/bench/calibration.json [--page benchmarks/CALIBRATION.md]

A run of 256 images is 16 batches, and ranges at 16, 32, ... 256 images for the curve of convergence. Batches and ranges are timed
one by one, interleaved with plain inference, and added up per round.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gft_edge.benchmarks.experiments.markdown import render, table, verdict
from gft_edge.benchmarks.measuring.latency import measure
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, Latency, conditions, ratio_interval
from gft_edge.calibration.calibrate import BATCH
from gft_edge.calibration.observing.collect import GROWTH, Collector, observing
from gft_edge.calibration.options import METHODS, CalibrationOptions, Method
from gft_edge.config.model import preset
from gft_edge.errors import exit_code
from gft_edge.files import require_writable, write_json, writing
from gft_edge.model.build import build_model
from gft_edge.quant.modules import quantized_names
from gft_edge.quant.policy import DEFAULT_POLICY

PRESETS = ("gft_scenes", "gft_small")
TARGET = 0.9
INFERENCE, MAX, HISTOGRAM = "inference", "statistics: max", "statistics: histogram"
"""Names of what is timed per batch: nothing else than the model, the largest magnitudes, and histograms too."""


def candidates(model: nn.Module, size: int) -> dict[str, Callable[[], object]]:
    """Returns calls for one batch, plain and with statistics of every quantized input, and for the ranges by each method."""
    images = torch.randn(BATCH, 3, size, size)
    names = quantized_names(model, DEFAULT_POLICY)
    largest, histogram = Collector(names, "max"), Collector(names, "entropy")

    def observe(collector: Collector) -> None:
        with observing(model, collector):
            model(images)
        collector.flush()
        collector.images += BATCH

    observe(histogram)
    calls: dict[str, Callable[[], object]] = {
        INFERENCE: lambda: model(images),
        MAX: functools.partial(observe, largest),
        HISTOGRAM: functools.partial(observe, histogram),
    }
    for method in METHODS:
        collector = Collector(names, method)
        collector.stats, collector.images = histogram.stats, BATCH
        calls[method] = collector.ranges
    return calls


def whole_run(latencies: Mapping[str, Latency], method: Method | None, images: int) -> Latency:
    """Returns the time of a run over some images, per round; without a method that of plain inference."""
    batches = images // BATCH
    name = INFERENCE if method is None else MAX if method == "max" else HISTOGRAM
    rounds = [batches * np.median(one) for one in latencies[name].rounds_ms]
    if method is not None:
        curve = 1 + int(np.log2(batches) / np.log2(GROWTH))
        rounds = [ms + curve * np.median(one) for ms, one in zip(rounds, latencies[method].rounds_ms)]
    return Latency.of([[ms] for ms in rounds])


@torch.no_grad()
def run(threads: int, rounds: int = 10, presets: tuple[str, ...] = PRESETS) -> dict[str, Any]:
    """Returns the throughput of calibration over that of inference, per preset and method, with its 95 % interval."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    results, images = {}, CalibrationOptions().images
    for name in presets:
        torch.manual_seed(0)
        config = preset(name)
        calls = candidates(build_model(config).eval(), config.image_size)
        latencies = measure(calls, BenchProtocol(rounds=rounds, runs_per_round=1, warmup_seconds=0.5))
        plain = whole_run(latencies, None, images)
        found: dict[str, Any] = {"inference_images_per_second": 1e3 * BATCH / latencies[INFERENCE].p50_ms}
        found["ranges_ms"] = {method: latencies[method].p50_ms for method in METHODS}
        for method in METHODS:
            found[method] = ratio_interval(plain, whole_run(latencies, method, images))
        results[name] = found
    torch.set_num_threads(before)
    return {"machine": conditions(), "threads": threads, "batch": BATCH, "images": images, "ratios": results}


def page(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns the page of results."""
    rows = []
    for one in runs:
        for name, found in one["ratios"].items():
            for method in METHODS:
                ratio, low, high = found[method]
                speed, ranges = f"{found['inference_images_per_second']:.0f}", f"{found['ranges_ms'][method]:.1f}"
                interval = f"{low:.2f} to {high:.2f}"
                rows.append(
                    [name, one["threads"], speed, method, ranges, f"{ratio:.2f}x", interval, verdict(ratio >= TARGET)]
                )
    header = ("model", "threads", "inference, images/s", "method", "ranges, ms", "ratio", "95 % interval", "")
    return render(
        Path(__file__).with_name("calibration.md.j2"),
        table=table(header, rows),
        images=runs[0]["images"],
        batch=BATCH,
        target=TARGET,
        machine=runs[0]["machine"]["cpu"]["model"],
        load=", ".join(f"{one['machine']['load_average'][0]:.1f}" for one in runs),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes the JSON file and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FILE", help="figures as JSON")
    parser.add_argument("--page", type=Path, metavar="FILE", help="Markdown page")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of interleaved measurements")
    args = parser.parse_args(arguments)
    out = args.out
    require_writable(out)
    data = [run(threads, args.rounds) for threads in (1, 2)]
    print(json.dumps([{key: one[key] for key in ("threads", "ratios")} for one in data], indent=2))
    write_json(out, {"runs": data})
    if args.page is not None:
        with writing(args.page):
            args.page.write_text(page(data), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
