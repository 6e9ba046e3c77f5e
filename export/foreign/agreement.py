"""Compares a quantized foreign graph with the float file that it was made from, on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.calibration.images import HeldOut
from gft_edge.calibration.options import Callbacks
from gft_edge.data.batches import batch_count, evaluation_batches
from gft_edge.data.datasets import match_labels
from gft_edge.data.sets import NO_CLASSES
from gft_edge.errors import DataError
from gft_edge.export.foreign.model import ForeignModel
from gft_edge.export.foreign.preprocessing import ClassNames
from gft_edge.runtime.backends.sessions import ONNXRUNTIME
from gft_edge.stats.agreement import Comparison, Computation, compare
from gft_edge.stats.metrics import wilson_interval

BATCH = 16


@dataclass(frozen=True)
class Agreement:
    """The quantized graph against the float one on the same images.

    Attributes:
        comparison: logits and, where the classes are known, accuracies.
        data, split: of the images.
        held_out: whether these are held-out images; else they calibrated.
        at_chance: the float graph may be right no more often than by guessing, and is far from always right.
    """

    comparison: Comparison
    data: str
    split: str
    held_out: bool
    at_chance: bool

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        c = self.comparison
        return {
            "images": c.images,
            "data": self.data,
            "split": self.split,
            "held_out": self.held_out,
            "logit_sqnr_db": c.logit_sqnr_db,
            "top1_agreement": c.top1_agreement,
            "top1_float": c.top1_reference,
            "top1_quantized": c.top1_candidate,
            "top1_difference": None if c.top1 is None else c.top1.difference,
            "top1_interval": None if c.top1 is None else list(c.top1.interval),
            "at_chance": self.at_chance,
        }

    def describe(self) -> str:
        """Returns lines for people."""
        c = self.comparison
        sqnr = "equal bits" if c.logit_sqnr_db is None else f"{c.logit_sqnr_db:.1f} dB"
        kind = "held out" if self.held_out else "the calibration images"
        lines = [
            f"logits {sqnr}, top-1 agreement {c.top1_agreement:.1%} with the float file",
            f"  on {c.images} {self.split} images of {self.data}, {kind}",
        ]
        if c.top1 is not None:
            low, high = (100 * value for value in c.top1.interval)
            lines.append(
                f"  top-1 {c.top1_reference:.2%} float, {c.top1_candidate:.2%} quantized, difference "
                f"{100 * c.top1.difference:+.2f} points ({low:+.2f} to {high:+.2f})"
            )
        if self.at_chance:
            lines.append(
                "  the float file is right no more often than by guessing: wrong preprocessing, or classes in another order "
                "(--normalisation, --mean, --std, --resize, --labels); its ranges are then not those of your images"
            )
        return "\n".join(lines)


def measure_agreement(
    source: ForeignModel,
    quantized: ForeignModel,
    found: HeldOut,
    held_out: bool,
    names: ClassNames,
    callbacks: Callbacks,
) -> Agreement:
    """Runs both graphs in ONNX Runtime.

    Args:
        source: the float file.
        quantized: with its preprocessing and quantization.
        found: the images.
        held_out: whether these did not calibrate.
        names: of the classes.
        callbacks: progress, and images that cannot be read.

    Raises:
        DataError: no image can be read, or its classes are not those of the model.
    """
    images, spec, quantization = found.images, quantized.preprocess, quantized.quantization
    assert spec is not None
    assert quantization is not None
    labelled = names.known and images.labels != NO_CLASSES
    if labelled:
        images = match_labels(images, names.names, found.data)
    sides: tuple[list[npt.NDArray[np.float32]], ...] = ([], [])
    labels = []
    pairs = [(model, model.session(), side) for model, side in zip((source, quantized), sides)]
    batches = evaluation_batches(images, spec, BATCH, callbacks.problem)
    for batch, numbers in callbacks.track(batches, "compare", batch_count(len(images), BATCH)):
        labels.append(numbers)
        for model, session, side in pairs:
            side.append(model.logits(session, batch))
    if not labels:
        raise DataError(f"data {found.data}: no image to compare on can be read")
    logits = [{"logits": np.concatenate(side)} for side in sides]
    computations = (Computation.of(ONNXRUNTIME, "fp32"), Computation.of(ONNXRUNTIME, quantization.precision))
    truth = np.concatenate(labels) if labelled else None
    compared = compare(computations, logits[0], logits[1], truth, 0, names.names)
    at_chance = False
    if compared.top1_reference is not None:
        low, high = wilson_interval(round(compared.top1_reference * compared.images), compared.images)
        chance = 1 / source.classes
        at_chance = low <= chance and high < (1 + chance) / 2  # a few images do not tell
    return Agreement(compared, found.data, found.split, held_out, at_chance)
