"""Images from a seed, for use without a data set: detail at all scales, with edges, all different."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FRACTION = 12
"""Fractional bits of the integer arithmetic."""


def seeded_images(count: int, height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Returns images of the same bytes on every machine, as (count, height, width, 3) uint8 RGB.

    As in photographs, an octave of detail has about half the contrast of the next coarser one, and the three colours are
    similar. A few flat rectangles add edges. All arithmetic is in integers, and all randomness is the raw output of PCG64,
    which NumPy keeps fixed across versions; so nothing depends on rounding or on a mathematics library.

    Args:
        count: number of images.
        height, width: in pixels.
        seed: different seeds give different images.
    """
    return np.stack([_image(np.random.PCG64([seed, number]), height, width) for number in range(count)])


def _image(bits: np.random.PCG64, height: int, width: int) -> npt.NDArray[np.uint8]:
    octaves = range(1, max(2, min(height, width).bit_length() - 1))
    total = np.zeros((height, width, 3), np.int64)
    for octave in octaves:
        cells = 1 << octave
        grey = _draw(bits, (cells + 1, cells + 1, 1)) * 3
        colour = _draw(bits, (cells + 1, cells + 1, 3))
        total += enlarged(grey + colour, height, width) >> octave
    for _ in range(6):
        top, bottom = sorted(int(v) % (height + 1) for v in bits.random_raw(2))
        left, right = sorted(int(v) % (width + 1) for v in bits.random_raw(2))
        total[top:bottom, left:right] += _draw(bits, (1, 1, 3)) << (FRACTION - 1)
    low, high = int(total.min()), int(total.max())
    return ((total - low) * 255 // max(1, high - low)).astype(np.uint8)


def _draw(bits: np.random.PCG64, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Draws integers from -128 to 127."""
    count = int(np.prod(shape))
    return (np.asarray(bits.random_raw(count)) >> np.uint64(56)).astype(np.int64).reshape(shape) - 128


def enlarged(grid: npt.NDArray[np.int64], height: int, width: int) -> npt.NDArray[np.int64]:
    """Interpolates bilinearly (n + 1, n + 1, C) values between -512 and 511 to (height, width, C), times 2**FRACTION."""
    one = 1 << (FRACTION // 2)

    def along(size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        place = np.arange(size, dtype=np.int64) * (grid.shape[0] - 1) * one // size
        return place // one, place % one

    (row, down), (column, right) = along(height), along(width)
    down, right = down[:, None, None], right[None, :, None]
    upper, lower = grid[row], grid[row + 1]
    rows: npt.NDArray[np.int64] = upper * (one - down) + lower * down
    return rows[:, column] * (one - right) + rows[:, column + 1] * right
