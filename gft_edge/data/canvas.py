"""What scenes are drawn with: textures and photographs for the background; masks of signs, shapes and strokes.

Textures are grey, from a seed, by integer arithmetic: clouds with edges, stripes, bricks, grain and weave. Masks are cut out
at their ink: (height, width) uint8, 255 where ink covers a pixel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gft_edge.data.images import read_image
from gft_edge.data.scan import is_readable_format, looks_like_image
from gft_edge.data.seeded import FRACTION, enlarged
from gft_edge.data.splits import SPLITS, Split, content_key, split_by_hash
from gft_edge.data.typefaces import opened_font
from gft_edge.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

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
    """Detail at all scales, with the edges of a few flat rectangles."""
    levels = _smooth(rng, side, 6)
    for _ in range(6):
        top, bottom = sorted(rng.integers(0, side + 1, 2).tolist())
        left, right = sorted(rng.integers(0, side + 1, 2).tolist())
        levels[top:bottom, left:right] += int(rng.integers(-40, 41))
    return levels


def _smooth(rng: np.random.Generator, side: int, octaves: int) -> Whole:
    """Sums grids of 2, 4, 8, ... cells, each with half the contrast of the one before; levels of about -128 to 128."""
    total: Whole = np.zeros((side, side, 1), dtype=np.int64)
    for octave in range(octaves):
        cells = 2 << octave
        total += enlarged(rng.integers(-128, 128, (cells + 1, cells + 1, 1)), side, side) >> octave
    return total[..., 0] >> FRACTION


def _stripes(rng: np.random.Generator, side: int) -> Whole:
    """Bands in any direction, bent by clouds."""
    return _waves(rng, side, 6, 30) + _smooth(rng, side, 4) // 4


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
    whole: Whole = np.asarray(smeared) // (down * along) + _smooth(rng, side, 4) // 3
    return whole


def _weave(rng: np.random.Generator, side: int) -> Whole:
    """Bands in two directions, the brighter one on top."""
    return np.maximum(_waves(rng, side, 8, 24), _waves(rng, side, 8, 24))


def _waves(rng: np.random.Generator, side: int, shortest: int, longest: int) -> Whole:
    """Triangular waves of 0 to 256 with a period between two limits in pixels, a little bent."""
    period, slope = int(rng.integers(shortest, longest)), int(rng.integers(-256, 257))
    place = np.arange(side, dtype=np.int64) * 256
    across, along = (place[:, None], place[None, :])[:: 1 if rng.random() < 0.5 else -1]
    phase = (across + along * slope // 256) * 2 // period + _smooth(rng, side, 3)
    levels: Whole = np.abs(phase % 512 - 256)
    return levels


_KINDS: tuple[Callable[[np.random.Generator, int], Whole], ...] = (_clouds, _stripes, _bricks, _grain, _weave)


def photographs_in(folder: Path, split: Split) -> tuple[Path, ...]:
    """Returns the photographs of a split in a folder and the folders in it, sorted.

    Copies of one photograph are in the same split, see :func:`gft_edge.data.splits.split_by_hash`.

    Raises:
        DataError: there are fewer than three different ones, so that some split would have none.
    """
    found = [
        path.resolve()
        for path in sorted(folder.rglob("*"))
        if looks_like_image(path.name) and not path.name.startswith(".") and path.is_file() and is_readable_format(path)
    ]
    keys = [content_key(path) for path in found]
    different = len(set(keys))
    if different < len(SPLITS):
        raise DataError(
            f"scenes:{folder}: found {different} different photographs, needs {len(SPLITS)} or more, one for each split"
        )
    parts = split_by_hash([keys])
    return tuple(path for path, key in zip(found, keys) if parts[key] == split)


@functools.lru_cache(maxsize=64)
def backdrop(path: Path, side: int) -> npt.NDArray[np.uint8]:
    """Returns the largest square in the middle of a photograph, (side, side, 3) uint8 RGB, read only; the last 64 stay in memory.

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


Mask = npt.NDArray[np.uint8]

SAMPLE = 100
VISIBLE = 24
"""Of 255. Ink that is too faint to be seen is none: it would make a mark touch patches that show nothing of it."""
FINER = 3
"""Shapes and strokes are drawn so many times larger and reduced, which smooths their edges."""


def glyph(file: str, text: str, area: float, angle: float) -> Mask:
    """Returns a sign in a font, turned by an angle in degrees, as large as a box of ``area`` square pixels allows.

    Args:
        file: font, see :func:`gft_edge.data.typefaces.opened_font`.
        text: one sign.
        area: width times height of the mask is at most this.
        angle: counter-clockwise.
    """
    wide, high = _size_of(file, text)
    cos, sin = math.cos(math.radians(angle)), abs(math.sin(math.radians(angle)))
    points = max(1, round(SAMPLE * math.sqrt(area / ((wide * cos + high * sin) * (wide * sin + high * cos)))))
    while True:
        mask = _turned_glyph(file, text, points, angle)
        if mask.size <= area or points == 1:
            return mask
        points -= 1


@functools.lru_cache(maxsize=1 << 14)
def stored_glyph(file: str, text: str, area: float, angle: float) -> Mask:
    """Returns :func:`glyph`, from memory if it was drawn before; for signs of a few sizes and angles."""
    return glyph(file, text, area, angle)


@functools.lru_cache(maxsize=1024)
def _size_of(file: str, text: str) -> tuple[float, float]:
    """Returns width and height of a sign of ``SAMPLE`` points."""
    left, top, right, bottom = opened_font(file, float(SAMPLE)).getbbox(text)
    return max(1.0, right - left), max(1.0, bottom - top)


def shape(rng: np.random.Generator, side: float) -> Mask:
    """Returns a polygon of 3 to 5 corners, a star, a disc or a cross of about ``side`` pixels; never a ring, which reads as O."""
    canvas, draw = _paper(side)
    middle, radius, turn = canvas.width / 2, side * FINER / 2, rng.uniform(0, 2 * math.pi)
    kind = int(rng.integers(6))

    def corners(count: int, inner: float = 1.0) -> list[tuple[float, float]]:
        steps = [(turn + 2 * math.pi * i / count, radius * (inner if i % 2 else 1.0)) for i in range(count)]
        return [(middle + r * math.cos(a), middle + r * math.sin(a)) for a, r in steps]

    if kind < 3:
        draw.polygon(corners(3 + kind), 255)
    elif kind == 3:
        draw.polygon(corners(10, 0.45), 255)
    elif kind == 4:
        draw.ellipse([middle - 0.8 * radius, middle - 0.8 * radius, middle + 0.8 * radius, middle + 0.8 * radius], 255)
    else:
        for a, b in zip(corners(4)[:2], corners(4)[2:]):
            draw.line([a, b], 255, round(FINER * max(2.0, side / 7)))
    return _reduced(canvas)


def stroke(rng: np.random.Generator, side: float) -> Mask:
    """Returns a straight, bent or waved line of about ``side`` pixels from end to end."""
    canvas, draw = _paper(side)
    middle, half, turn = canvas.width / 2, side * FINER / 2, rng.uniform(0, math.pi)
    bend, waves = rng.uniform(-0.3, 0.3), int(rng.integers(3))
    along = np.linspace(-1, 1, 17)
    across = bend * (1 - along * along) if waves < 2 else 0.5 * bend * np.sin(4 * math.pi * along)
    x = middle + half * (along * math.cos(turn) - across * math.sin(turn))
    y = middle + half * (along * math.sin(turn) + across * math.cos(turn))
    draw.line([(float(a), float(b)) for a, b in zip(x, y)], 255, round(FINER * rng.uniform(1.5, 3.5)), "curve")
    return _reduced(canvas)


FIGURES = 256
"""Different shapes and strokes of one size."""


@functools.lru_cache(maxsize=8 * FIGURES)
def figure(number: int, side: float) -> Mask:
    """Returns the shape (even numbers) or the stroke of a number below :data:`FIGURES`, of about ``side`` pixels or more."""
    rng = np.random.default_rng([number, 1])
    if number % 2:
        return stroke(rng, side * rng.uniform(1.0, 3.5))
    return shape(rng, side * rng.uniform(0.8, 1.3))


def _turned_glyph(file: str, text: str, points: int, angle: float) -> Mask:
    font = opened_font(file, float(points))
    from PIL import Image, ImageDraw  # after the font: opening it raises the error about Pillow

    left, top, right, bottom = font.getbbox(text)
    side = math.ceil(math.hypot(right - left, bottom - top)) + 6
    canvas = Image.new("L", (side, side), 0)
    ImageDraw.Draw(canvas).text(((side - left - right) / 2, (side - top - bottom) / 2), text, 255, font)
    return _ink(canvas.rotate(angle, Image.Resampling.BICUBIC))


def _paper(side: float) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        raise MissingExtraError("Pillow", "report") from None
    canvas = Image.new("L", ((math.ceil(side) + 6) * FINER,) * 2, 0)
    return canvas, ImageDraw.Draw(canvas)


def _reduced(canvas: Image.Image) -> Mask:
    return _ink(canvas.reduce(FINER))


def _ink(canvas: Image.Image) -> Mask:
    """Returns the smallest part with all visible ink, read only; there is some."""
    drawn = np.asarray(canvas)
    mask: Mask = np.where(drawn < VISIBLE, 0, drawn).astype(np.uint8)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    mask.flags.writeable = False
    return mask
