"""Masks of signs, shapes and strokes, cut out at their ink: (height, width) uint8, 255 where ink covers a pixel."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gft_edge.data.typefaces import opened_font
from gft_edge.errors import MissingExtraError

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

Mask = npt.NDArray[np.uint8]

SAMPLE = 100
_VISIBLE = [level if level >= 24 else 0 for level in range(256)]
"""Ink too faint to be seen is none: it would make a mark touch patches that show nothing of it."""
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


def _turned_glyph(file: str, text: str, points: int, angle: float) -> Mask:
    font = opened_font(file, float(points))
    from PIL import Image, ImageDraw  # after the font: opening it raises the error about Pillow

    left, top, right, bottom = font.getbbox(text)
    side = math.ceil(math.hypot(right - left, bottom - top)) + 6
    canvas = Image.new("L", (side, side), 0)
    ImageDraw.Draw(canvas).text(((side - left - right) / 2, (side - top - bottom) / 2), text, 255, font)
    return _ink(canvas.rotate(angle, Image.Resampling.BICUBIC).point(_VISIBLE))


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
    """Returns the smallest part with all ink; one empty pixel where there is none."""
    mask: Mask = np.asarray(canvas.crop(canvas.getbbox() or (0, 0, 1, 1)))
    return mask
