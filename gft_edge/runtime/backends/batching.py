"""Runs a model of a limited batch size on any number of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import DataError

Run = Callable[[npt.NDArray[Any]], Sequence[npt.NDArray[Any]]]


def run_in_batches(run: Run, images: npt.NDArray[Any], smallest: int, largest: int) -> list[npt.NDArray[Any]]:
    """Returns the outputs of all images, each with its first axis over the images.

    Args:
        run: takes ``smallest`` to ``largest`` images and returns one array per output.
        images: any number but none; a last batch that is too small is padded with copies of its last image.

    Raises:
        DataError: there are no images.
    """
    if not len(images):
        raise DataError(f"input {images.shape} {images.dtype} holds no images")
    parts = []
    for start in range(0, len(images), largest):
        batch = images[start : start + largest]
        outputs = run(_padded(batch, smallest))
        parts.append([value[: len(batch)] for value in outputs])
    return parts[0] if len(parts) == 1 else [np.concatenate(values) for values in zip(*parts)]


def _padded(images: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    missing = size - len(images)
    return images if missing <= 0 else np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
