"""Outputs of the built-in checkpoint on this device in each precision, against FP32 on the CPU, on its evaluation images."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gft_edge.benchmarks.experiments.gpu.scale import Place, Scale, reason
from gft_edge.checkpoint import Checkpoint, load_checkpoint
from gft_edge.data.batches import evaluation_batches
from gft_edge.data.datasets import held_out_split
from gft_edge.data.for_model import Request, labelled_images
from gft_edge.model.named_outputs import named_outputs
from gft_edge.stats.agreement import Arrays, Computation, compare


@dataclass(frozen=True)
class Precision:
    """How a model is run.

    Attributes:
        autocast: type of autocast, or None.
        weights: type of weights and images.
        tf32: float32 products and convolutions may use TF32.
    """

    autocast: torch.dtype | None = None
    weights: torch.dtype = torch.float32
    tf32: bool = False


PRECISIONS = {
    "fp32": Precision(),
    "tf32": Precision(tf32=True),
    "fp16": Precision(weights=torch.float16),
    "fp16 autocast": Precision(autocast=torch.float16),
    "bf16": Precision(weights=torch.bfloat16),
    "bf16 autocast": Precision(autocast=torch.bfloat16),
}


def run(scale: Scale, place: Place, until: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Compares every precision with the CPU, for the built-in checkpoint.

    Returns:
        ``rows`` and ``errors`` of :func:`compared`; the checkpoint's hash.
    """
    checkpoint = load_checkpoint("builtin")
    pixels, labels = evaluation_images(checkpoint, scale.images)
    say(f"numerics: {len(pixels)} images")
    return {"checkpoint": checkpoint.sha256, **compared(checkpoint.model, pixels, labels, place, until)}


def compared(
    model: nn.Module, pixels: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], place: Place, until: float
) -> dict[str, Any]:
    """Compares a focal model on a device, in every precision, with FP32 on the CPU.

    Args:
        model: stays as it is.
        pixels: preprocessed, (B, 3, H, W).
        labels: true classes, (B,).
        place: gives the device.
        until: value of ``time.monotonic`` after which no precision is begun.

    Returns:
        ``rows``, one per precision, with the fields of :class:`~gft_edge.stats.agreement.Comparison`, and ``jaccard``,
        that of the kept sets by stage; ``errors`` of precisions that could not run.
    """
    focal: Any = model
    reference = outputs(model, pixels, torch.device("cpu"), Precision())
    rows, errors = [], []
    for name, precision in PRECISIONS.items():
        if time.monotonic() > until:
            errors.append({"name": name, "error": "no time left"})
            continue
        try:
            with _tf32(precision.tf32):
                found = outputs(model, pixels, place.device, precision)
            sides = (
                Computation("torch", "fp32", "cpu fp32"),
                Computation("torch", name, f"{place.device.type} {name}"),
            )
            comparison = compare(sides, reference, found, labels, focal.config.num_patches)
            rows.append({"name": name, **asdict(comparison), "jaccard": [one.jaccard for one in comparison.stages]})
        except Exception as error:
            errors.append({"name": name, "error": reason(error)})
    return {"images": len(pixels), "rows": rows, "errors": errors}


def evaluation_images(checkpoint: Checkpoint, count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Returns preprocessed held-out images (B, 3, H, W) and labels (B,) of the data the checkpoint was trained on."""
    info = checkpoint.info
    request = Request(info.data, held_out_split(info.data), count)
    images = labelled_images(request, info.model.image_size, info.labels)
    batches = list(evaluation_batches(images, info.preprocess))
    return np.concatenate([pixels for pixels, _ in batches]), np.concatenate([labels for _, labels in batches])


@torch.no_grad()
def outputs(model: nn.Module, pixels: npt.NDArray[np.float32], device: torch.device, precision: Precision) -> Arrays:
    """Returns logits, importance and kept patches of all stages, as :func:`named_outputs` names them, in float32.

    Args:
        model: stays as it is; a copy is moved and converted.
        pixels: preprocessed, (B, 3, H, W).
        device: that computes.
        precision: of weights and products.
    """
    moved = copy.deepcopy(model).eval().to(device, precision.weights)
    images = torch.from_numpy(pixels).to(device, precision.weights)
    with torch.autocast(device.type, precision.autocast, enabled=precision.autocast is not None):
        found = moved(images, maps=True)
    stages = [type(maps)(*(_on_cpu(value) for value in maps)) for maps in found.stages]
    return named_outputs(found._replace(logits=_on_cpu(found.logits), stages=stages))


def _on_cpu(value: torch.Tensor) -> torch.Tensor:
    return value.float().cpu() if value.is_floating_point() else value.cpu()


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Allows or forbids TF32 in products and convolutions inside the block."""
    settings: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [one.allow_tf32 for one in settings]
    try:
        for one in settings:
            one.allow_tf32 = allowed
        yield
    finally:
        for one, value in zip(settings, before):
            one.allow_tf32 = value
