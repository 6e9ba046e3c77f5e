"""Post-training quantization: ranges from calibration images, then quantized layers and attention."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from gft_edge.calibration.observe import Collector, collect, observe
from gft_edge.calibration.ranges import Ranges
from gft_edge.calibration.thresholds import DEFAULT_PERCENTILE, Method
from gft_edge.errors import ConfigError
from gft_edge.quant.attention import PROBS_RANGE, attention_tensors, quantized_attention
from gft_edge.quant.levels import SMALLEST_RANGE
from gft_edge.quant.modules import insert_quantizers, quantized_names
from gft_edge.quant.policy import DEFAULT_POLICY, QuantPolicy

NO_METHOD = "none"
"""In place of how ranges were found, where none are needed."""


@dataclass(frozen=True)
class QuantizedModel:
    """A model with INT8 linears and what was done to get it (plain JSON values)."""

    model: nn.Module
    summary: dict[str, Any]


@dataclass(frozen=True)
class PostTrained:
    """A model quantized without training.

    Attributes:
        full: what was quantized: the model given, or the same with its channels evened out.
        ranges: of its inputs; None where weights alone are quantized.
        quantized: the result.
    """

    full: nn.Module
    ranges: Ranges | None
    quantized: QuantizedModel


def quantize_int8(
    model: nn.Module,
    batches: Iterable[npt.NDArray[np.float32]],
    policy: QuantPolicy = DEFAULT_POLICY,
    method: Method = "max",
    share: float = DEFAULT_PERCENTILE,
) -> QuantizedModel:
    """Calibrates a model at its default token budget and returns a quantized copy.

    Args:
        model: in eval mode, float32; left untouched.
        batches: preprocessed calibration images, (B, 3, H, W) each.
        policy: which linears become INT8.
        method: how ranges are found.
        share: of the values in per cent, for ``"percentile"``.

    Raises:
        DataError, ConfigError: nothing to calibrate on, or nothing to quantize.
    """
    names = observed_names(model, policy)
    if not names:
        return quantize_with(model, {}, policy, NO_METHOD, 0)
    collector = Collector(names, method, share)
    collect(collector, observe(model, collector, batches))
    return quantize_with(model, collector.ranges(), policy, method, collector.images)


def observed_names(model: nn.Module, policy: QuantPolicy) -> list[str]:
    """Names of everything whose range the policy needs: inputs of layers, but for those whose weights alone are
    quantized, and operands of attention.

    Raises:
        ConfigError: nothing to quantize, or an attention that TensorRT would not fuse.
    """
    layers = [name for name in quantized_names(model, policy) if policy.precision_of(name) != "int8-weights"]
    return layers + attention_tensors(model, policy)


def quantize_with(
    model: nn.Module, ranges: Mapping[str, float], policy: QuantPolicy, method: str, images: int
) -> QuantizedModel:
    """A quantized copy of a model from ranges that are known.

    Args:
        model: in eval mode, float32; left untouched.
        ranges: of at least everything in :func:`observed_names`; dead inputs get the smallest usable one.
        policy: which linears become INT8.
        method, images: how and on how many images the ranges were found, for the record.

    Raises:
        ConfigError: a range is missing, or the policy quantizes nothing.
    """
    layers, attention = quantized_names(model, policy), quantized_attention(model, policy)
    names = observed_names(model, policy)
    missing = [name for name in names if name not in ranges]
    if missing:
        hint = "calibrate with --attention" if missing[0] not in layers else "calibrate with this policy"
        raise ConfigError(f"ranges: none for the input of {missing[0]} and {len(missing) - 1} others; {hint}")
    used = {name: max(float(ranges[name]), SMALLEST_RANGE) for name in names}
    used.update({f"{name}.probs": PROBS_RANGE for name in attention})
    quantized = copy.deepcopy(model)
    precisions = {name: policy.precision_of(name) for name in (*layers, *attention)}
    insert_quantizers(quantized, used, precisions)
    summary = {
        "precision": next(iter(precisions.values())) if len(set(precisions.values())) == 1 else "mixed",
        "precisions": precisions,
        "method": method,
        "calibration_images": images,
        "ranges": used,
        "policy": policy.to_json()["rules"],
        "smoothquant": policy.smoothquant,
    }
    return QuantizedModel(quantized.eval(), summary)
