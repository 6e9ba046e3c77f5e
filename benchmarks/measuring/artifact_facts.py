"""The part of a result that follows from the artefact: its identity, its tokens, and its bound on a device."""

from __future__ import annotations

from typing import Any

from gft_edge.benchmarks.roofline import implausible, roofline
from gft_edge.budget import rows_per_block
from gft_edge.config.model import GFTConfig
from gft_edge.hardware.devices import Device, PeakPrecision
from gft_edge.manifest import MODEL, Artifact


def identity(artifact: Artifact) -> dict[str, Any]:
    """Returns what identifies the measured graph in a result."""
    manifest = artifact.manifest
    return {
        "name": artifact.name,
        "precision": manifest.precision,
        "budget": manifest.budget.id,
        "mean_tokens": mean_tokens(artifact),
        "model_sha256": manifest.files[MODEL].sha256,
        "model": architecture(manifest.model),
    }


def architecture(config: GFTConfig) -> dict[str, Any]:
    """Returns what the latency depends on besides the budget: the configuration without it, as plain JSON values."""
    return {key: value for key, value in config.to_json().items() if key != "budget"}


def mean_tokens(artifact: Artifact) -> float | None:
    """Returns the tokens of which a block computes attention rows, projection and MLP, mean over the blocks; None for a baseline.

    The tokens before the patches count. Blocks that the logits do not need are left out.
    """
    model, budget = artifact.manifest.model, artifact.manifest.budget
    if model.is_baseline:
        return None
    if model.variant == "published":  # its stages choose patches that the logits do not depend on
        return float(model.num_patches + model.num_prefix_tokens)
    rows = rows_per_block(model.stages, budget.keep, model.num_patches, model.depth)
    return sum(rows) / model.depth + model.num_prefix_tokens


def bound_of(artifact: Artifact, device: Device, batch: int, measured_ms: float) -> dict[str, Any]:
    """Returns the roofline of an artefact on a device, and a sentence if a measurement contradicts it.

    An FP32 graph is compared with the device's FP16: its engine may be built in FP16, and a bound must hold for it too.
    """
    precision: PeakPrecision = "int8" if artifact.manifest.precision == "int8" else "fp16"
    bound = roofline(artifact.manifest, device, batch, precision)
    return {"roofline": bound.to_json(), "implausible": implausible(measured_ms, bound)}
