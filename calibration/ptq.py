"""Post-training quantization: ranges from calibration images, then INT8 linears."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gft_edge.calibration.modules import SMALLEST_RANGE, insert_quantizers, quantized_names
from gft_edge.calibration.policy import DEFAULT_POLICY, QuantPolicy
from gft_edge.errors import DataError


@dataclass(frozen=True)
class QuantizedModel:
    """A model with INT8 linears and what was done to get it (plain JSON values)."""

    model: nn.Module
    summary: dict[str, Any]


@torch.no_grad()
def input_ranges(
    model: nn.Module, names: list[str], batches: Iterable[npt.NDArray[np.float32]]
) -> tuple[dict[str, float], int]:
    """Largest magnitude at the input of each named module over all batches, and the number of images.

    Raises:
        DataError: no images, or an activation that is not finite.
    """
    found = dict.fromkeys(names, 0.0)

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[name] = float(np.maximum(found[name], inputs[0].abs().amax().item()))  # unlike max, keeps NaN

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    count = 0
    try:
        for images in batches:
            model(torch.from_numpy(images))
            count += len(images)
    finally:
        for handle in handles:
            handle.remove()
    if count == 0:
        raise DataError("calibration: no images")
    for name, value in found.items():
        if not np.isfinite(value):
            raise DataError(f"calibration: input of {name} is not finite; the checkpoint or an image is damaged")
    return found, count


def quantize_int8(
    model: nn.Module, batches: Iterable[npt.NDArray[np.float32]], policy: QuantPolicy = DEFAULT_POLICY
) -> QuantizedModel:
    """Calibrates a model at its default token budget and returns a quantized copy.

    Args:
        model: in eval mode, float32; left untouched.
        batches: preprocessed calibration images, (B, 3, H, W) each.
        policy: which linears become INT8.

    Raises:
        DataError, ConfigError: nothing to calibrate on, or nothing to quantize.
    """
    names = quantized_names(model, policy)
    found, count = input_ranges(model, names, batches)
    ranges = {name: max(value, SMALLEST_RANGE) for name, value in found.items()}
    quantized = copy.deepcopy(model)
    insert_quantizers(quantized, ranges)
    summary = {
        "precision": "int8",
        "method": "max",
        "calibration_images": count,
        "ranges": ranges,
        "policy": policy.to_json(),
    }
    return QuantizedModel(quantized.eval(), summary)
