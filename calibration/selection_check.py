"""Checks what quantization does to the selection, repairs it, and certifies images: one pass over the images for each model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from gft_edge.calibration.certificates import CertificateReport, Pair, certificate_report, halves
from gft_edge.calibration.images import HeldOut
from gft_edge.calibration.options import Callbacks
from gft_edge.calibration.ptq import PostTrained, QuantizedModel
from gft_edge.calibration.repair import Repair, layer_macs, repaired
from gft_edge.calibration.safety import SelectionSafety, model_outputs, paired_outputs, safety_of
from gft_edge.checkpoint import Checkpoint
from gft_edge.data.batches import batch_count, evaluation_batches
from gft_edge.data.sets import ImageSet
from gft_edge.manifest import LOGITS
from gft_edge.quant.policy import QuantPolicy


@dataclass(frozen=True)
class CheckedImages:
    """Images that a selection is checked on.

    Attributes:
        images: held-out images, or the calibration images.
        data, split: where they come from.
        held_out: whether nothing was fitted to them.
        bounding: images that the noise of the scores is bounded on; None takes one half of ``images``.
    """

    images: ImageSet
    data: str
    split: str
    held_out: bool
    bounding: HeldOut | None


@dataclass(frozen=True)
class SelectionCheck:
    """Comparison of the selection before and after quantization.

    Attributes:
        safety: its figures.
        certificates: bound of the noise, on val images where there are some, and its test.
        data, split: of the images.
        held_out: whether these are held-out images; else they are the calibration images.
        quantized_macs: share of the multiply-accumulates of the linear layers and convolutions that is quantized.
        repair: what was raised; None where nothing had to be or could be.
    """

    safety: SelectionSafety
    certificates: CertificateReport
    data: str
    split: str
    held_out: bool
    quantized_macs: float
    repair: Repair | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            **self.safety.to_json(),
            "data": self.data,
            "split": self.split,
            "held_out": self.held_out,
            "quantized_macs": self.quantized_macs,
            "repair": None if self.repair is None else self.repair.to_json(),
        }


def check_selection(
    checkpoint: Checkpoint,
    policy: QuantPolicy | None,
    start: PostTrained,
    quantized: QuantizedModel,
    checked: CheckedImages,
    callbacks: Callbacks,
) -> tuple[QuantizedModel, SelectionCheck]:
    """Compares the selection with that in full precision, and raises layers where it is not within the limits.

    Args:
        checkpoint: in full precision.
        policy: that is repaired; None repairs nothing.
        start: the quantization that a repair begins with.
        quantized: the model to check.
        checked: images.
        callbacks: progress, unreadable images.

    Returns:
        the model, repaired where it had to be, and its figures.
    """
    paired = _Pairing(checkpoint, callbacks)
    repair = None
    found = paired(quantized.model, checked.images, "check selection")
    safety = safety_of(*found)
    if policy is not None:

        def batches() -> Iterator[npt.NDArray[np.float32]]:
            return paired.batches(checked.images, "check selection", again=True)

        quantized, safety, repair = repaired(start, policy, found[0], safety, batches, callbacks.track)
        if repair is not None:
            found = found[0], model_outputs(quantized.model, batches(), "quantized")
    config = checkpoint.info.model
    words = f"{len(found[0][LOGITS])} {checked.split} images of {checked.data}"
    if checked.bounding is None:
        first, second = halves(found)
        certificates = certificate_report(
            first, second, config.budget, f"one half of {words}", f"the other half of {words}"
        )
    else:
        first = paired(quantized.model, checked.bounding.images, "bound noise of scores")
        bounded = f"{len(first[0][LOGITS])} {checked.bounding.split} images of {checked.bounding.data}"
        certificates = certificate_report(first, found, config.budget, bounded, words)
    macs = layer_macs(checkpoint.model, np.zeros((1, 3, config.image_size, config.image_size), dtype=np.float32))
    share = sum(macs.get(name, 0) for name in quantized.summary["precisions"]) / sum(macs.values())
    check = SelectionCheck(safety, certificates, checked.data, checked.split, checked.held_out, share, repair)
    return quantized, check


@dataclass(frozen=True)
class _Pairing:
    """Runs the model in full precision and another one over the same images."""

    checkpoint: Checkpoint
    callbacks: Callbacks

    def __call__(self, quantized: nn.Module, images: ImageSet, title: str) -> Pair:
        """Returns the outputs of both models on the images that can be read."""
        return paired_outputs(self.checkpoint.model, quantized, self.batches(images, title))

    def batches(self, images: ImageSet, title: str, again: bool = False) -> Iterator[npt.NDArray[np.float32]]:
        """Yields preprocessed batches with progress; ``again`` leaves out problems that a first pass has reported."""
        problem = self.callbacks.problem
        if problem is not None and again:
            problem = _silent
        found = (batch for batch, _ in evaluation_batches(images, self.checkpoint.info.preprocess, problem=problem))
        return iter(self.callbacks.track(found, title, batch_count(len(images))))


def _silent(_: str) -> None:
    """Drops a line."""
