"""What enters a graph and what leaves it, the same for every kind of input and output: normalised images in, logits out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.manifest import LOGITS, PROBABILITIES, DeploymentManifest
from gft_edge.stats.metrics import softmax

LEAST = float(np.finfo(np.float32).tiny)
"""Smallest probability that has a logarithm here; float32 holds smaller ones with fewer digits, or as zero."""


def to_graph_input(images: npt.NDArray[Any], manifest: DeploymentManifest) -> npt.NDArray[Any]:
    """Converts preprocessed images, or pixels, to the input of an artefact's graph.

    Args:
        images: (B, 3, H, W) float32 normalised, whose values determine the pixels exactly; or RGB pixels (B, H, W, 3) uint8 for a
            graph that normalises.
        manifest: of the artefact.

    Returns:
        (B, 3, H, W) float32 for ``float``, (B, H, W, 3) uint8 for ``uint8``, (B, 3, H, W) float32 of 0 to 255 for ``float255``.
    """
    kind = manifest.input_kind
    if kind == "float":
        return images
    pixels = images if images.dtype == np.uint8 else manifest.preprocess.pixels(images)
    if kind == "uint8":
        return pixels
    return np.moveaxis(pixels, -1, 1).astype(np.float32, order="C")


def with_logits(outputs: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Adds ``logits`` to the outputs of a graph that gives probabilities: their logarithms, whose softmax they are.

    The logits of the model differ from these by one number per image, which no prediction depends on.
    """
    if PROBABILITIES in outputs and LOGITS not in outputs:
        outputs[LOGITS] = log_probabilities(outputs[PROBABILITIES])
    return outputs


def as_log_probabilities(outputs: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Replaces the logits of a model without a softmax by the logarithms of their softmax; those that are not finite give NaN."""
    if PROBABILITIES in outputs:
        return outputs
    logits = outputs[LOGITS]
    broken = ~np.isfinite(logits).all(axis=1, keepdims=True)
    found = log_probabilities(softmax(np.where(broken, 0, logits)))
    return {**outputs, LOGITS: np.where(broken, np.float32(np.nan), found)}


def log_probabilities(probabilities: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Returns the natural logarithms of probabilities (B, classes); those below ``LEAST`` count as ``LEAST``, NaN stays."""
    return np.log(np.maximum(probabilities, LEAST)).astype(np.float32)
