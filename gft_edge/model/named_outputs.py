"""Outputs of a model as NumPy arrays under the names and types that they have in an exported graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.model.gft import GFTOutput


def named_outputs(output: GFTOutput) -> dict[str, npt.NDArray[Any]]:
    """Returns ``logits`` (B, classes) and for each stage ``importance_i`` and ``scores_i`` (B, N_i) and ``kept_i`` (B, k_i) int32.

    Args:
        output: detached from any graph of gradients.
    """
    arrays: dict[str, npt.NDArray[Any]] = {"logits": output.logits.numpy()}
    for stage, maps in enumerate(output.stages):
        arrays[f"importance_{stage}"] = maps.importance.numpy()
        arrays[f"kept_{stage}"] = maps.kept.numpy().astype(np.int32)
        arrays[f"scores_{stage}"] = maps.scores.numpy()
    return arrays
