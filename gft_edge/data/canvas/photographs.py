"""Photographs as backgrounds: which belong to a split, and one of them cut to a square."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gft_edge.data.images import read_image
from gft_edge.data.scan import is_readable_format, looks_like_image
from gft_edge.data.splits import SPLITS, Split, content_key, split_by_hash
from gft_edge.errors import DataError


def photographs_in(folder: Path) -> tuple[Path, ...]:
    """Returns the images of a folder and the folders in it, sorted.

    Raises:
        DataError: there are fewer than three different ones, so that some split would have none.
    """
    found = tuple(
        path.resolve()
        for path in sorted(folder.rglob("*"))
        if looks_like_image(path.name) and not path.name.startswith(".") and path.is_file() and is_readable_format(path)
    )
    different = len({content_key(path) for path in found})
    if different < len(SPLITS):
        raise DataError(
            f"scenes:{folder}: found {different} different photographs, needs {len(SPLITS)} or more, one for each split"
        )
    return found


@functools.lru_cache(maxsize=16)
def photographs_of(paths: tuple[Path, ...], split: Split) -> tuple[Path, ...]:
    """Returns the photographs of a split; copies of one photograph are in the same split, see :func:`split_by_hash`."""
    keys = [content_key(path) for path in paths]
    parts = split_by_hash([keys])
    return tuple(path for path, key in zip(paths, keys) if parts[key] == split)


@functools.lru_cache(maxsize=256)
def backdrop(path: Path, side: int) -> npt.NDArray[np.uint8]:
    """Returns the largest square in the middle of a photograph, (side, side, 3) uint8 RGB, read only; the last 256 stay in memory.

    Raises:
        DataError: the file cannot be decoded.
    """
    from PIL import Image

    pixels = read_image(path, side)
    short = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - short) // 2, (pixels.shape[1] - short) // 2
    square = Image.fromarray(np.ascontiguousarray(pixels[top : top + short, left : left + short]))
    small = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC))
    small.flags.writeable = False
    return small
