"""Post-training quantization: ranges from calibration images, then quantized layers and attention."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from gft_edge.calibration.observing.collect import Collector, collect, observe
from gft_edge.calibration.options import DEFAULT_PERCENTILE, Method
from gft_edge.calibration.ranges import Ranges
from gft_edge.calibration.smoothquant import smooth
from gft_edge.errors import ConfigError
from gft_edge.quant.attention import PROBS_RANGE, attention_tensors, quantized_attention
from gft_edge.quant.levels import SMALLEST_RANGE
from gft_edge.quant.modules import insert_quantizers, quantized_names
from gft_edge.quant.policy import DEFAULT_POLICY, QuantPolicy

NO_METHOD = "none"
"""Recorded as the method where no ranges are needed."""

Batches = Callable[[], Iterable[npt.NDArray[np.float32]]]


@dataclass(frozen=True)
class QuantizedModel:
    """A model with quantized layers and the record of its quantization (plain JSON values)."""

    model: nn.Module
    summary: dict[str, Any]


@dataclass(frozen=True)
class PostTrained:
    """A model quantized without training.

    Attributes:
        full: the full-precision model that was quantized: the one given, or the same with its channels evened out.
        ranges: of its inputs; None where weights alone are quantized.
        quantized: the result.
    """

    full: nn.Module
    ranges: Ranges | None
    quantized: QuantizedModel


def post_train(
    model: nn.Module, policy: QuantPolicy, batches: Batches, find_ranges: Callable[[nn.Module, list[str]], Ranges]
) -> PostTrained:
    """Evens out channels if the policy asks for it, finds ranges if it needs any, and quantizes.

    Args:
        model: in eval mode, float32; left untouched.
        policy: precision of each layer, and the strength of SmoothQuant.
        batches: returns preprocessed calibration images, (B, 3, H, W) each, for SmoothQuant.
        find_ranges: returns the ranges of the named inputs of a model.

    Raises:
        DataError, ConfigError: no calibration images, or nothing to quantize.
    """
    if policy.smoothquant is not None:
        model = smooth(model, batches(), policy)
    names = observed_names(model, policy)
    if not names:
        return PostTrained(model, None, quantize_with(model, {}, policy, NO_METHOD, 0))
    ranges = find_ranges(model, names)
    return PostTrained(model, ranges, quantize_with(model, ranges.values, policy, ranges.method, ranges.images))


def quantize_int8(
    model: nn.Module,
    batches: Sequence[npt.NDArray[np.float32]],
    policy: QuantPolicy = DEFAULT_POLICY,
    method: Method = "max",
    percentile: float = DEFAULT_PERCENTILE,
) -> QuantizedModel:
    """Calls :func:`post_train` for a model and images in memory.

    Args:
        model: in eval mode, float32; left untouched.
        batches: preprocessed calibration images, (B, 3, H, W) each.
        policy: precision of each layer.
        method: how ranges are found.
        percentile: share of the values in per cent, for ``"percentile"``.

    Raises:
        DataError, ConfigError: as :func:`post_train`.
    """

    def find_ranges(model: nn.Module, names: list[str]) -> Ranges:
        collector = Collector(names, method, percentile)
        collect(collector, observe(model, collector, batches))
        return Ranges.of(collector, "module inputs", "", None, None)

    return post_train(model, policy, lambda: batches, find_ranges).quantized


def observed_names(model: nn.Module, policy: QuantPolicy) -> list[str]:
    """Names all inputs whose range the policy needs: of layers, unless their weights alone are quantized, and of attention.

    Raises:
        ConfigError: nothing to quantize, or an attention that TensorRT would not fuse.
    """
    layers = [name for name in quantized_names(model, policy) if policy.precision_of(name) != "int8-weights"]
    return layers + attention_tensors(model, policy)


def quantize_with(
    model: nn.Module, ranges: Mapping[str, float], policy: QuantPolicy, method: str, images: int
) -> QuantizedModel:
    """Returns a quantized copy of a model from known ranges.

    Args:
        model: in eval mode, float32; left untouched.
        ranges: of at least everything in :func:`observed_names`; dead inputs get the smallest usable one.
        policy: precision of each layer.
        method, images: how and on how many images the ranges were found, for the record.

    Raises:
        ConfigError: a range is missing, or the policy quantizes nothing.
    """
    layers, attention = quantized_names(model, policy), quantized_attention(model, policy)
    names = observed_names(model, policy)
    missing = [name for name in names if name not in ranges]
    if missing:
        hint = "calibrate with --attention" if missing[0] not in layers else "calibrate with this policy"
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise ConfigError(f"ranges: none for the input of {missing[0]}{others}; {hint}")
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
