"""Targets of the suite's figures: each with the measured value, its interval and whether it is met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gft_edge.benchmarks.experiments.calibration_speed import TARGET as CALIBRATION
from gft_edge.benchmarks.measuring.protocol import Latency, ratio_interval
from gft_edge.calibration.options import METHODS

Timings = Mapping[int, Mapping[str, Latency]]
"""Latencies by number of threads and candidate."""


@dataclass(frozen=True)
class Ratio:
    """A ratio of two latencies and its target.

    Attributes:
        what: description.
        over: model whose time is divided.
        under: model by whose time.
        low: smallest ratio that meets the target; by number of threads where it depends on them; None for information only.
        high: largest ratio that meets the target, if there is one.
    """

    what: str
    over: str
    under: str
    low: float | Mapping[int, float] | None
    high: float | None = None

    def least(self, threads: int) -> float | None:
        """Returns the smallest ratio that meets the target at a number of threads, None where there is no target."""
        return self.low.get(threads) if isinstance(self.low, Mapping) else self.low


RATIOS = (
    Ratio("GFT INT8 against ViT FP32", "ViT FP32", "GFT INT8", {1: 6.2, 2: 5.0}),
    Ratio("GFT against ViT, FP32", "ViT FP32", "GFT FP32", None),
    Ratio("GFT against ToMe with the same tokens, FP32", "ToMe FP32", "GFT FP32", 1.1),
    Ratio("GFT against EViT with the same patches, FP32", "EViT FP32", "GFT FP32", 1.08),
    Ratio("GFT against ToMe at equal MACs, FP32", "ToMe FP32, equal MACs", "GFT FP32", None),
    Ratio("GFT against EViT at equal MACs, FP32", "EViT FP32, equal MACs", "GFT FP32", None),
    Ratio("products alone over end to end, FP32", "products of GFT FP32", "GFT FP32", 0.85),
    Ratio("products alone over end to end, INT8", "products of GFT INT8", "GFT INT8", 0.75),
    Ratio("published against as it is, maps on, FP32", "published, as it is, maps", "published, maps", 1.1),
    Ratio("published against its blocks alone, maps off, FP32", "ViT of as many blocks", "published", 0.99, 1.01),
)


def latency_targets(timings: Timings) -> list[dict[str, Any]]:
    """Returns the ratios of latencies, each with its interval; met if the ratio itself is within the limits."""
    rows = []
    for threads, found in timings.items():
        for one in RATIOS:
            ratio, *interval = ratio_interval(found[one.over], found[one.under])
            low = one.least(threads)
            target = "" if low is None else f">= {low:g}x" if one.high is None else f"{low:g} to {one.high:g}x"
            rows.append(
                {
                    "what": f"{one.what}, {threads} thread{'s' if threads > 1 else ''}",
                    "target": target,
                    "value": f"{ratio:.3g}x",
                    "interval": f"{interval[0]:.3g} to {interval[1]:.3g}",
                    "met": None if low is None else ratio >= low and (one.high is None or ratio <= one.high),
                    "candidate": one.under,
                    "threads": threads,
                }
            )
    return rows


INT8_GAINS = {"gft_tiny": 1.8, "gft_small": 2.3, "GFT": 2.8}
"""Smallest speed-up of INT8 over FP32 of the same model at one thread that meets the target."""


def int8_gains(timings: Timings) -> list[dict[str, Any]]:
    """Returns INT8 against FP32 of the same GFT at its own budget; a target at one thread, for information at more."""
    rows = []
    for threads, found in timings.items():
        for name, least in INT8_GAINS.items():
            if f"{name} INT8" not in found:
                continue
            ratio, low, high = ratio_interval(found[f"{name} FP32"], found[f"{name} INT8"])
            rows.append(
                {
                    "what": f"{name} INT8 against its FP32, {threads} thread{'s' if threads > 1 else ''}",
                    "target": f">= {least:g}x" if threads == 1 else "",
                    "value": f"{ratio:.3g}x",
                    "interval": f"{low:.3g} to {high:.3g}",
                    "met": ratio >= least if threads == 1 else None,
                    "candidate": f"{name} INT8",
                    "threads": threads,
                }
            )
    return rows


def cost_targets(costs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns importance, start-up, export and calibration, compared with their limits."""
    rows = []

    def row(what: str, target: str, value: str, met: bool, interval: str = "") -> None:
        rows.append({"what": what, "target": target, "value": value, "interval": interval, "met": met})

    importance, largest = costs["importance"], costs["importance"]["rows"][-1]
    ratio, low, high = largest["time_ratio"]
    at = f"importance at {largest['patches']} tokens against the attention matrix"
    row(f"{at}, time", ">= 100x", f"{ratio:.0f}x", ratio >= 100, f"{low:.0f} to {high:.0f}")
    row(f"{at}, memory", ">= 100x", f"{largest['memory_ratio']:.0f}x", largest["memory_ratio"] >= 100)
    sizes = ", ".join(str(r["patches"]) for r in importance["rows"])
    exponent = importance["exponent"]
    row(f"importance, exponent of time over {sizes} tokens", "<= 1.1", f"{exponent:.2f}", exponent <= 1.1)
    for name, limit in (("import gft_edge", 50), ("gft-edge --help", 150), ("load and first prediction", 500)):
        samples = costs["start_up"][name]
        median = float(np.median(samples))
        row(name, f"<= {limit} ms", f"{median:.0f} ms", median <= limit, f"{min(samples):.0f} to {max(samples):.0f}")
    export = costs["export"]
    row("export and verify, time", "<= 60 s", f"{export['seconds']:.0f} s", export["seconds"] <= 60)
    gigabytes = export["peak_bytes"] / 1e9
    row("export and verify, peak memory", "<= 4 GB", f"{gigabytes:.1f} GB", gigabytes <= 4)
    for name, found in costs["calibration"]["ratios"].items():
        for method in METHODS:
            ratio, low, high = found[method]
            what = f"calibration ({method}) against plain inference, {name}, images per second"
            row(what, f">= {CALIBRATION}x", f"{ratio:.2f}x", ratio >= CALIBRATION, f"{low:.2f} to {high:.2f}")
    return rows
