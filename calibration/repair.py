"""Repair of a quantized model whose selection or logits changed too much: raises the layers that disturb them most.

Each quantized layer is measured alone: the noise that it adds to the scores of the last selecting stage and to the logits. The
layers with the most noise per multiply-accumulate go back to high precision, as few as suffice. A model within the limits costs
nothing but the comparison that found this.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gft_edge.calibration.ptq import PostTrained, QuantizedModel, quantize_with
from gft_edge.calibration.safety import SelectionSafety, model_outputs, safety_of
from gft_edge.progress import Track, silent
from gft_edge.quant.modules import QUANTIZABLE, quantized_names
from gft_edge.quant.policy import QuantPolicy, QuantRule
from gft_edge.stats.agreement import Arrays

LEAST_JACCARD, LEAST_SQNR_DB = 0.95, 24.0
"""Limits of the last stage's kept sets and of the logits."""
PROBE_IMAGES = 32
"""Images on which layers are measured alone: noise needs fewer than kept sets do."""
MOST_RAISED = 0.5
"""Largest share of the multiply-accumulates of the quantized layers that a repair raises."""

Batches = Callable[[], Iterable[npt.NDArray[np.float32]]]


@dataclass(frozen=True)
class Raised:
    """A layer that went back to high precision.

    Attributes:
        name: of the layer.
        score_noise, logit_noise: its share of the noise that all quantized layers make, each alone.
        macs: its share of the multiply-accumulates of the linear layers and convolutions.
    """

    name: str
    score_noise: float
    logit_noise: float
    macs: float

    @property
    def reason(self) -> str:
        """Returns the words of its rule."""
        return (
            f"raised: {self.score_noise:.1%} of the noise of the last stage's scores and {self.logit_noise:.1%} of that of the "
            f"logits for {self.macs:.1%} of the work"
        )


@dataclass(frozen=True)
class Repair:
    """What a repair did.

    Attributes:
        raised: in the order of noise per multiply-accumulate.
        before: comparison with full precision without it.
        holds: whether the limits hold afterwards.
    """

    raised: tuple[Raised, ...]
    before: SelectionSafety
    holds: bool

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "limits": {"jaccard": LEAST_JACCARD, "logit_sqnr_db": LEAST_SQNR_DB},
            "raised": [asdict(layer) for layer in self.raised],
            "before": self.before.to_json(),
            "holds": self.holds,
        }

    def describe(self) -> str:
        """Returns a few lines for people."""
        work, old = sum(layer.macs for layer in self.raised), self.before
        kept = f"kept sets {old.stages[-1].jaccard:.3f} (at least {LEAST_JACCARD:.2f}), " if old.stages else ""
        sqnr = math.inf if old.logit_sqnr_db is None else old.logit_sqnr_db
        lines = [
            f"raised {len(self.raised)} layers, {work:.1%} of the work, to high precision; without: {kept}"
            f"logits {sqnr:.1f} dB (at least {LEAST_SQNR_DB:.0f})"
        ]
        if not self.holds:
            lines.append(
                f"  the limits do not hold with {MOST_RAISED:.0%} of the quantized work raised; --selection exact keeps every patch"
            )
        return "\n".join(lines)


def within_limits(found: SelectionSafety, surely: bool = False) -> bool:
    """Returns whether the last stage's kept sets and the logits are within the limits.

    Args:
        found: comparison with full precision.
        surely: for the kept sets by the lower end of their interval, not by their mean.
    """
    if found.logit_sqnr_db is not None and found.logit_sqnr_db < LEAST_SQNR_DB:
        return False
    if not found.stages:
        return True
    last = found.stages[-1]
    return (last.jaccard_interval[0] if surely else last.jaccard) >= LEAST_JACCARD


@torch.no_grad()
def layer_macs(model: nn.Module, images: npt.NDArray[np.float32]) -> dict[str, int]:
    """Returns the multiply-accumulates of each linear layer and convolution for one image, as the model runs it."""
    found: dict[str, int] = {}

    def count(name: str, layer: nn.Module, output: torch.Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        found[name] = found.get(name, 0) + output.numel() // (len(images) * len(weight)) * weight.numel()

    handles = [
        module.register_forward_hook(lambda layer, _, output, name=name: count(name, layer, output))
        for name, module in model.named_modules()
        if isinstance(module, QUANTIZABLE)
    ]
    try:
        model(torch.from_numpy(images))
    finally:
        for handle in handles:
            handle.remove()
    return found


def repaired(
    start: PostTrained,
    policy: QuantPolicy,
    reference: Arrays,
    before: SelectionSafety,
    batches: Batches,
    track: Track = silent,
) -> tuple[QuantizedModel, SelectionSafety, Repair | None]:
    """Returns the quantized model, repaired where it is not within the limits, and its comparison with full precision.

    Args:
        start: the model quantized by the policy; left untouched.
        policy: of ``start``.
        reference: outputs of the full-precision model on all images.
        before: comparison of ``start`` with full precision on these images.
        batches: returns these images, preprocessed, (B, 3, H, W) each.
        track: progress display.

    Returns:
        model, comparison, and what was raised; None where nothing had to be.
    """
    if within_limits(before):
        return start.quantized, before, None

    def compared(model: nn.Module) -> SelectionSafety:
        return safety_of(reference, model_outputs(model, batches(), "quantized"))

    layers = _alone(start, quantized_names(start.full, policy), _first(batches(), PROBE_IMAGES), track)
    order = _by_benefit(layers, before)
    low, high = 0, _most(order, sum(layer.macs for layer in layers))  # layers raised: too few, enough
    if high == 0:
        return start.quantized, before, Repair((), before, False)
    model = copy.deepcopy(start.quantized.model)
    tried: dict[int, SelectionSafety] = {}

    def enough(count: int) -> bool:
        for number, layer in enumerate(order):
            _swap(model, layer.name, start.full if number < count else start.quantized.model)
        tried[count] = compared(model)
        return within_limits(tried[count], surely=True)

    if enough(high):
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
    raised = tuple(order[:high])
    rules = tuple(QuantRule(layer.name, "high", layer.reason) for layer in raised)
    full, old = start.full, start.quantized.summary
    ranges: Mapping[str, float] = {} if start.ranges is None else start.ranges.values
    final = QuantPolicy(rules + policy.rules, policy.smoothquant)
    quantized = quantize_with(full, ranges, final, old["method"], old["calibration_images"])
    return quantized, tried[high], Repair(raised, before, within_limits(tried[high]))


def _first(batches: Iterable[npt.NDArray[np.float32]], count: int) -> list[npt.NDArray[np.float32]]:
    """Returns the first images, in batches."""
    found: list[npt.NDArray[np.float32]] = []
    for images in batches:
        found.append(images[: count - sum(map(len, found))])
        if sum(map(len, found)) >= count:
            break
    return found


def _alone(
    start: PostTrained, names: Sequence[str], images: Sequence[npt.NDArray[np.float32]], track: Track
) -> list[Raised]:
    """Returns the noise that each quantized layer makes alone, and its work."""
    model, macs = copy.deepcopy(start.full), layer_macs(start.full, images[0][:1])
    reference = model_outputs(model, images, "in full precision")
    scores, logits = [], []
    for name in track(names, "repair: single layers", len(names)):
        _swap(model, name, start.quantized.model)
        found = safety_of(reference, model_outputs(model, images, "quantized"))
        _swap(model, name, start.full)
        scores.append(found.stages[-1].noise_std ** 2 if found.stages else 0.0)
        logits.append(0.0 if found.logit_sqnr_db is None else 10 ** (-found.logit_sqnr_db / 10))
    score_sum, logit_sum, work = sum(scores) or 1.0, sum(logits) or 1.0, sum(macs.values())
    return [
        Raised(name, score / score_sum, logit / logit_sum, macs[name] / work)
        for name, score, logit in zip(names, scores, logits)
    ]


def _by_benefit(layers: Sequence[Raised], before: SelectionSafety) -> list[Raised]:
    """Returns the layers that add to what is over its limit, those of most noise per multiply-accumulate first."""
    by_scores = bool(before.stages) and before.stages[-1].jaccard_interval[0] < LEAST_JACCARD
    by_logits = before.logit_sqnr_db is not None and before.logit_sqnr_db < LEAST_SQNR_DB

    def benefit(layer: Raised) -> float:
        return (by_scores * layer.score_noise + by_logits * layer.logit_noise) / layer.macs

    return sorted((layer for layer in layers if benefit(layer) > 0), key=benefit, reverse=True)


def _most(order: Sequence[Raised], work: float) -> int:
    """Returns how many of the layers, in their order, a repair may raise: at least one, and not all that are quantized."""
    sums = np.cumsum([layer.macs for layer in order])
    within = int((sums <= MOST_RAISED * work).sum())
    return min(max(within, 1), len(order)) if len(order) and sums[0] < work else 0


def _swap(model: nn.Module, name: str, source: nn.Module) -> None:
    """Replaces a layer by that of another model, shared."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, source.get_submodule(name))
