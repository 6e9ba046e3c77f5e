"""Images in batches, in their own order, for evaluation; needs NumPy and, for files, Pillow."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from gft_edge.data.sets import ImageSet
from gft_edge.errors import DataError
from gft_edge.preprocess import PreprocessSpec

Problem = Callable[[str], None]
"""Receives what is wrong with an image that is left out."""


def evaluation_batches(
    images: ImageSet, spec: PreprocessSpec, batch_size: int = 64, problem: Problem | None = None
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """All images in order, preprocessed: (B, 3, H, W) float32 and labels (B,).

    Raises:
        DataError: an image cannot be read, unless ``problem`` is there to be told; it is then left out.
    """
    for start in range(0, len(images), batch_size):
        pixels, labels = [], []
        for index in range(start, min(start + batch_size, len(images))):
            try:
                image, label = images[index]
            except DataError as error:
                if problem is None:
                    raise
                problem(str(error))
                continue
            pixels.append(spec.geometry(image))
            labels.append(label)
        if pixels:
            yield spec.normalize(np.stack(pixels)), np.array(labels, dtype=np.int64)
