"""Grey textures from a seed, by integer arithmetic: clouds with edges, stripes, bricks, grain and weave."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gft_edge.data.seeded import seeded_images

Grey = npt.NDArray[np.uint8]
Whole = npt.NDArray[np.int64]

PER_KIND = 12
"""Textures of each kind; crops, mirrors and colours make many backgrounds of one texture."""


def texture_count() -> int:
    """Returns how many textures there are for one seed."""
    return len(_KINDS) * PER_KIND


@functools.lru_cache(maxsize=256)
def texture(seed: int, part: int, number: int, side: int) -> Grey:
    """Returns a texture that uses all grey levels, (side, side) uint8, read only.

    The last 256 textures stay in memory: one takes milliseconds to make.

    Args:
        seed: any number.
        part: number of the split, so that no two splits share a texture.
        number: 0 to :func:`texture_count` - 1; the kinds take turns.
        side: in pixels.
    """
    rng = np.random.default_rng([seed, part, number])
    levels = _KINDS[number % len(_KINDS)](rng, side)
    low, high = int(levels.min()), int(levels.max())
    grey = ((levels - low) * 255 // max(1, high - low)).astype(np.uint8)
    grey.flags.writeable = False
    return grey


@functools.lru_cache(maxsize=16)
def noise(seed: int, side: int) -> npt.NDArray[np.int16]:
    """Returns noise with a bell-shaped distribution of mean 0 and deviation 16, (side, side) int16, read only."""
    drawn = np.random.default_rng([seed, side]).integers(-14, 15, (4, side, side), dtype=np.int16)
    summed: npt.NDArray[np.int16] = drawn.sum(axis=0, dtype=np.int16)
    summed.flags.writeable = False
    return summed


def _clouds(rng: np.random.Generator, side: int) -> Whole:
    return seeded_images(1, side, side, int(rng.integers(1 << 31)))[0, ..., 0].astype(np.int64)


def _stripes(rng: np.random.Generator, side: int) -> Whole:
    """Bands in any direction, bent by clouds."""
    return _waves(rng, side, 6, 30) + _clouds(rng, side) // 4


def _bricks(rng: np.random.Generator, side: int) -> Whole:
    """Flat cells, every second row shifted by half a cell."""
    high, wide = (int(v) for v in rng.integers(6, 26, 2))
    row = np.arange(side) // high
    column = (np.arange(side)[None, :] + row[:, None] % 2 * (wide // 2)) // wide
    levels: Whole = rng.integers(0, 256, (side // high + 1, side // wide + 2))[row[:, None], column]
    return levels


def _grain(rng: np.random.Generator, side: int) -> Whole:
    """Fine noise, smeared along rows, columns or both."""
    levels: Whole = rng.integers(0, 256, (side + 8, side + 8))
    down, along = ((1, 8), (8, 1), (2, 2), (4, 4))[int(rng.integers(4))]
    smeared = sum(levels[i : side + i, j : side + j] for i in range(down) for j in range(along))
    whole: Whole = np.asarray(smeared) // (down * along) + _clouds(rng, side) // 3
    return whole


def _weave(rng: np.random.Generator, side: int) -> Whole:
    """Bands in two directions, the brighter one on top."""
    return np.maximum(_waves(rng, side, 8, 24), _waves(rng, side, 8, 24))


def _waves(rng: np.random.Generator, side: int, shortest: int, longest: int) -> Whole:
    """Triangular waves of 0 to 256 with a period between two limits in pixels, a little bent."""
    period, slope = int(rng.integers(shortest, longest)), int(rng.integers(-256, 257))
    place = np.arange(side, dtype=np.int64) * 256
    across, along = (place[:, None], place[None, :])[:: 1 if rng.random() < 0.5 else -1]
    phase = (across + along * slope // 256) * 2 // period + _clouds(rng, side)
    levels: Whole = np.abs(phase % 512 - 256)
    return levels


_KINDS: tuple[Callable[[np.random.Generator, int], Whole], ...] = (_clouds, _stripes, _bricks, _grain, _weave)
