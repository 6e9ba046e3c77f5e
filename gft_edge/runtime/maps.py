"""From map outputs (dense, or compact: values of kept patches and their positions) to maps on the image grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.manifest import DeploymentManifest


def stage_positions(
    outputs: Mapping[str, npt.NDArray[Any]], manifest: DeploymentManifest
) -> list[npt.NDArray[np.integer[Any]]]:
    """Positions on the original grid of the patches entering each stage, (B, N_i) each."""
    batch = len(outputs["logits"])
    everything = np.broadcast_to(np.arange(manifest.model.num_patches), (batch, manifest.model.num_patches))
    return [everything, *(outputs[f"kept_{i}"] for i in range(len(manifest.budget.keep) - 1))]


def importance_maps(
    outputs: Mapping[str, npt.NDArray[Any]], manifest: DeploymentManifest
) -> list[npt.NDArray[np.float32]]:
    """Importance on the grid, zero where a patch was dropped before the stage: one (B, rows, cols) per stage."""
    if manifest.maps == "dense":
        return list(np.moveaxis(outputs["gala_maps"], 1, 0))
    positions = stage_positions(outputs, manifest)
    return [
        scatter(outputs[f"importance_{stage}"], where, manifest.model.grid) for stage, where in enumerate(positions)
    ]


def kept_masks(kept: Sequence[npt.NDArray[np.integer[Any]]], grid: tuple[int, int]) -> list[npt.NDArray[np.bool_]]:
    """Where the patches kept by each stage lie: one (B, rows, cols) per stage."""
    return [scatter(np.ones(k.shape, dtype=np.float32), k, grid) > 0 for k in kept]


def scatter(
    values: npt.NDArray[np.floating[Any]], positions: npt.NDArray[np.integer[Any]], grid: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Values (B, k) at positions (B, k) of an empty grid: (B, rows, cols)."""
    rows, cols = grid
    flat = np.zeros((len(values), rows * cols), dtype=np.float32)
    np.put_along_axis(flat, positions.astype(np.int64), values.astype(np.float32), axis=1)
    return flat.reshape(-1, rows, cols)
