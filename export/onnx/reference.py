"""Outputs of PyTorch that a graph is compared with, and those of the golden images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import Checkpoint
from gft_edge.model.named_outputs import named_outputs
from gft_edge.quant.modules import without_quantizers
from gft_edge.runtime.finite import require_finite
from gft_edge.runtime.golden import QUANTIZED_LOGITS


@torch.no_grad()
def reference_outputs(
    model: nn.Module, images: npt.NDArray[np.float32], budget: TokenBudget
) -> dict[str, npt.NDArray[Any]]:
    """Returns logits, ``importance_i``, ``scores_i`` and ``kept_i`` of PyTorch for preprocessed images (B, 3, H, W)."""
    return named_outputs(model(torch.from_numpy(images), budget, maps=True))


def golden_arrays(
    checkpoint: Checkpoint, images: npt.NDArray[np.float32], budget: TokenBudget
) -> dict[str, npt.NDArray[Any]]:
    """Returns images with the outputs of the FP32 model and, for a quantized checkpoint, logits and kept patches of the
    quantized one.

    The bytes do not depend on the number of threads.

    Raises:
        CheckFailed: logits are NaN or infinite, so no artefact can be compared with them.
    """
    with _one_thread():
        arrays = {"images": images, **reference_outputs(without_quantizers(checkpoint.model), images, budget)}
        require_finite(arrays["logits"], f"golden images at {budget.id}")
        if checkpoint.info.quantization is not None:
            quantized = reference_outputs(checkpoint.model, images, budget)
            arrays[QUANTIZED_LOGITS] = quantized["logits"]
            arrays |= {f"quantized_{name}": value for name, value in quantized.items() if name.startswith("kept_")}
            require_finite(arrays[QUANTIZED_LOGITS], f"golden images at {budget.id}, quantized")
    return arrays


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Runs a block on one thread: several threads split sums into other parts, which rounds the last bits differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
