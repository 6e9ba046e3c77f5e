"""Marks: the part of an image that decides its class, for data sets that know it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from gft_edge.data.sets import ImageSet, Kept, Relabelled, Subset
from gft_edge.preprocess import PreprocessSpec

Mask = npt.NDArray[np.bool_]
HALF = 128
"""Of 255: pixels of a resized mask that count as marked."""


@runtime_checkable
class Marked(Protocol):
    """What an image set has besides :class:`~gft_edge.data.sets.ImageSet` if it knows its marks."""

    def marks(self, index: int) -> Mask:
        """Returns which pixels of an image belong to its mark, (H, W), of the size that the set returns the image in."""


def marks_of(images: ImageSet) -> Callable[[int], Mask] | None:
    """Returns the marks of an image set, by the index of the image; None for a set that does not know them."""
    if isinstance(images, Subset):
        whole, indices = marks_of(images.base), images.indices
        return None if whole is None else lambda index: whole(indices[index])
    if isinstance(images, (Relabelled, Kept)):
        return marks_of(images.base)
    return images.marks if isinstance(images, Marked) else None


def marked_patches(mask: Mask, spec: PreprocessSpec, grid: tuple[int, int]) -> Mask:
    """Returns which patches hold a part of the mark after preprocessing, (H, W) to (P,).

    Args:
        mask: of the pixels of an image.
        spec: resizes and crops the mask as it does the image.
        grid: rows and columns of patches; they divide the size of the network's input.
    """
    pixels = np.repeat(mask.astype(np.uint8)[..., None] * np.uint8(255), 3, axis=2)
    seen = spec.geometry(pixels)[..., 0] >= HALF
    rows, cols = grid
    cells = seen.reshape(rows, seen.shape[0] // rows, cols, seen.shape[1] // cols)
    patches: Mask = cells.any(axis=(1, 3)).reshape(-1)
    return patches
