"""Outliers of activations: the largest magnitude of each quantized layer's input compared with the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gft_edge.calibration.observing.collect import Collector, collect, observe
from gft_edge.calibration.observing.histogram import percentile
from gft_edge.quant.modules import quantized_names
from gft_edge.quant.policy import DEFAULT_POLICY

SHARE = 99.9


def outliers(model: nn.Module, batches: Iterable[npt.NDArray[np.float32]]) -> list[dict[str, Any]]:
    """Returns largest magnitude, 99.9th percentile and their ratio for each layer that the default policy quantizes.

    ``channel_ratio`` is the largest channel's maximum over the median channel's, which SmoothQuant evens out.

    Args:
        model: in eval mode, float32.
        batches: preprocessed images, (B, 3, H, W) each.
    """
    names = quantized_names(model, DEFAULT_POLICY)
    collector = Collector(names, "percentile", SHARE)
    channels: dict[str, torch.Tensor] = {}

    def watch(name: str, x: torch.Tensor) -> None:
        largest = x.detach().abs().flatten(0, -2).amax(dim=0)
        channels[name] = torch.maximum(channels[name], largest) if name in channels else largest

    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: watch(name, inputs[0]))
        for name in names
    ]
    try:
        collect(collector, observe(model, collector, batches))
    finally:
        for handle in handles:
            handle.remove()
    rows = []
    for name, stats in collector.stats.items():
        typical = percentile(stats.magnitudes, stats.largest, SHARE)
        middle = float(channels[name].median())
        rows.append(
            {
                "layer": name,
                "largest": stats.largest,
                "p99.9": typical,
                "ratio": stats.largest / typical if typical else 1.0,
                "channel_ratio": stats.largest / middle if middle else 1.0,
            }
        )
    return rows
