"""Images in batches, in their own order, for evaluation; needs NumPy and, for files, Pillow."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from gft_edge.data.sets import ImageSet
from gft_edge.errors import DataError
from gft_edge.preprocess import PreprocessSpec

BATCH_SIZE = 64
Problem = Callable[[str], None]
"""Receives the reason why an image is left out."""


def indexed_batches(
    images: ImageSet, spec: PreprocessSpec, batch_size: int = BATCH_SIZE, problem: Problem | None = None
) -> Iterator[tuple[list[int], npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """Yields indices, preprocessed images (B, 3, H, W) float32 and labels (B,) of all images that can be read, in order.

    Raises:
        DataError: an image cannot be read, unless a ``problem`` callback is given; the image is then left out.
    """
    for start in range(0, len(images), batch_size):
        indices, pixels, labels = [], [], []
        for index in range(start, min(start + batch_size, len(images))):
            try:
                image, label = images[index]
            except DataError as error:
                if problem is None:
                    raise DataError(f"{error}; remove this file: here every image counts") from None
                problem(str(error))
                continue
            indices.append(index)
            pixels.append(spec.geometry(image))
            labels.append(label)
            del image  # it may be large, and the next one is read before the name is bound again
        if indices:
            yield indices, spec.normalize(np.stack(pixels)), np.array(labels, dtype=np.int64)


def batch_count(images: int, batch_size: int = BATCH_SIZE) -> int:
    """Returns the number of batches of so many images; the last one may be smaller."""
    return -(-images // batch_size)


def evaluation_batches(
    images: ImageSet, spec: PreprocessSpec, batch_size: int = BATCH_SIZE, problem: Problem | None = None
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """Yields all images in order, preprocessed: (B, 3, H, W) float32 and labels (B,).

    Raises:
        DataError: an image cannot be read, unless a ``problem`` callback is given; the image is then left out.
    """
    for _, batch, labels in indexed_batches(images, spec, batch_size, problem):
        yield batch, labels
