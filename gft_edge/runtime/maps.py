"""Converts map outputs (dense, or compact: values of kept patches and their positions) to maps on the image grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.manifest import DeploymentManifest
from gft_edge.stats.grid import mask_of, scatter


def stage_positions(
    outputs: Mapping[str, npt.NDArray[Any]], manifest: DeploymentManifest
) -> list[npt.NDArray[np.integer[Any]]]:
    """Returns the positions on the original grid of the patches that enter each stage, (B, N_i) each."""
    batch = len(outputs["logits"])
    everything = np.broadcast_to(np.arange(manifest.model.num_patches), (batch, manifest.model.num_patches))
    return [everything, *(outputs[f"kept_{i}"] for i in range(len(manifest.budget.keep) - 1))]


def importance_maps(
    outputs: Mapping[str, npt.NDArray[Any]], manifest: DeploymentManifest
) -> list[npt.NDArray[np.float32]]:
    """Returns the importance on the grid, zero for patches dropped before the stage: one (B, rows, cols) per stage."""
    if manifest.maps == "dense":
        return list(np.moveaxis(outputs["gala_maps"], 1, 0))
    positions = stage_positions(outputs, manifest)
    return [
        scatter(outputs[f"importance_{stage}"].astype(np.float32), entering, manifest.model.grid)
        for stage, entering in enumerate(positions)
    ]


def kept_masks(kept: Sequence[npt.NDArray[np.integer[Any]]], grid: tuple[int, int]) -> list[npt.NDArray[np.bool_]]:
    """Returns where the patches kept by each stage lie: one (B, rows, cols) per stage."""
    return [mask_of(positions, grid) for positions in kept]
