"""Pillow's 8-bit resampling bit for bit (separable, antialiased, 22-bit fixed point), in numpy.

Each axis is a few narrow matrix products: neighbouring outputs read neighbouring inputs, so a block of outputs needs a
short range of inputs. The float64 products are exact: weights are multiples of 2**-22 and pixels are whole numbers, so every
partial sum fits into 53 bits and is the same in any order, on any BLAS.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Interpolation = Literal["bilinear", "bicubic"]
UInt8Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

_PRECISION_BITS = 22  # Pillow: 32 bits, less 8 for the pixel and 2 for the overshoot of negative lobes
_BLOCK = 8  # outputs of one product: fewer cost more calls, more multiply more zeros
_STRIP_BYTES = 1 << 20  # of float64 pixels that the first axis processes at a time: they stay in cache


def _bilinear(x: Floats) -> Floats:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: Floats) -> Floats:
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


FILTERS: dict[str, tuple[Callable[[Floats], Floats], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
}
"""Kernel and support by name."""


@dataclass(frozen=True)
class _Block:
    """Neighbouring outputs of one axis, the inputs that they read, and the weights (inputs, outputs)."""

    outputs: slice
    inputs: slice
    weights: Floats


@functools.lru_cache(maxsize=64)
def _blocks(size_in: int, size_out: int, start: int, stop: int, interpolation: str) -> tuple[_Block, ...]:
    """Returns the blocks of outputs ``start`` to ``stop`` of an axis resampled from ``size_in`` to ``size_out``.

    Outputs are counted from ``start``. Every operation is Pillow's, in the same order: the last bit of a weight depends on it.
    """
    kernel, support = FILTERS[interpolation]
    scale = size_in / size_out
    filter_scale = max(scale, 1.0)
    support *= filter_scale
    center = (np.arange(start, stop)[:, None] + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    last = np.minimum((center + support + 0.5).astype(np.int64), size_in)
    taps = first + np.arange((last - first).max())
    values = np.where(taps < last, kernel((taps - center + 0.5) * (1.0 / filter_scale)), 0.0)
    total = np.add.accumulate(values, axis=1)[:, -1:]  # one by one: np.sum adds in pairs
    fixed = values / total * (1 << _PRECISION_BITS)
    weights = np.trunc(np.where(fixed >= 0, fixed + 0.5, fixed - 0.5)) / (1 << _PRECISION_BITS)
    blocks = []
    for begin in range(0, stop - start, _BLOCK):
        outputs = slice(begin, min(begin + _BLOCK, stop - start))
        inputs = slice(int(first[outputs].min()), int(last[outputs].max()))
        row, column = np.nonzero(weights[outputs])
        block = np.zeros((inputs.stop - inputs.start, outputs.stop - outputs.start))
        block[taps[outputs][row, column] - inputs.start, row] = weights[outputs][row, column]
        blocks.append(_Block(outputs, inputs, block))
    return tuple(blocks)


def _rounded(levels: Floats) -> None:
    """Rounds half up, as a shift of integers does, and clips to 0 ... 255; in place."""
    levels += 0.5
    np.clip(levels, 0.0, 255.0, out=levels)
    np.floor(levels, out=levels)


def _columns(image: UInt8Image, size_out: int, span: slice, interpolation: str) -> Floats:
    """Resamples (H, W, 3) pixels to the ``span`` of ``size_out`` columns, (H, 3, columns)."""
    height, width, channels = image.shape
    if width == size_out:
        return image[:, span].transpose(0, 2, 1).astype(np.float64, order="C")
    blocks = _blocks(width, size_out, span.start, span.stop, interpolation)
    result = np.empty((height, channels, span.stop - span.start))
    strip = np.empty((min(height, max(16, _STRIP_BYTES // (8 * channels * width))), channels, width))
    for top in range(0, height, len(strip)):
        part = result[top : top + len(strip)]
        pixels = strip[: len(part)]
        np.copyto(pixels, image[top : top + len(strip)].transpose(0, 2, 1))
        pixels, part = pixels.reshape(-1, width), part.reshape(-1, part.shape[2])
        for block in blocks:
            np.matmul(pixels[:, block.inputs], block.weights, out=part[:, block.outputs])
        _rounded(part)
    return result


def _rows(levels: Floats, blocks: tuple[_Block, ...], first: int) -> Floats:
    """Resamples (H, 3, W) whole levels, whose row 0 is row ``first`` of the image, to (rows, 3, W)."""
    result = np.empty((blocks[-1].outputs.stop, *levels.shape[1:]))
    source, target = levels.reshape(len(levels), -1), result.reshape(len(result), -1)
    for block in blocks:
        part = target[block.outputs]
        np.matmul(block.weights.T, source[block.inputs.start - first : block.inputs.stop - first], out=part)
        _rounded(part)
    return result


def resampled_planes(
    image: UInt8Image, height: int, width: int, rows: slice, columns: slice, interpolation: Interpolation
) -> npt.NDArray[Any]:
    """Computes a part of a resized image without the rest.

    Args:
        image: (H, W, 3).
        height, width: of the resized image.
        rows, columns: the part.
        interpolation: kernel.

    Returns:
        (3, rows, columns): whole numbers 0 ... 255, float64 where something was resampled, else the image's own.
    """
    if image.shape[:2] == (height, width):
        return image[rows, columns].transpose(2, 0, 1)
    if image.shape[0] == height:
        return _columns(image[rows], width, columns, interpolation).transpose(1, 0, 2)
    blocks = _blocks(image.shape[0], height, rows.start, rows.stop, interpolation)
    first, last = blocks[0].inputs.start, blocks[-1].inputs.stop
    return _rows(_columns(image[first:last], width, columns, interpolation), blocks, first).transpose(1, 0, 2)


def interleaved(planes: npt.NDArray[Any]) -> UInt8Image:
    """Converts (3, H, W) whole numbers 0 ... 255 to an (H, W, 3) image; returns a view of planes that are one already."""
    image = planes.transpose(1, 2, 0)
    if image.dtype == np.uint8 and image.flags.c_contiguous:
        return image
    levels = planes.astype(np.uint8, order="K", copy=False)
    result = np.empty(image.shape, np.uint8)
    for channel, plane in enumerate(levels):  # one by one: numpy is slow where the innermost axis is short
        result[..., channel] = plane
    return result


def resize(image: UInt8Image, height: int, width: int, interpolation: Interpolation = "bicubic") -> UInt8Image:
    """Resamples an (H, W, 3) uint8 image to (height, width, 3): first the columns, then the rows, each rounded to uint8.

    Bit-identical to ``PIL.Image.resize`` of Pillow up to 12. Pillow 13 starts with the rows if the height shrinks much
    more than the width (python-pillow/Pillow#9549), and then differs by a level in places; here the order is fixed.
    """
    return interleaved(resampled_planes(image, height, width, slice(0, height), slice(0, width), interpolation))
