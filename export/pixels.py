"""Another program's preprocessing held against the specification, and what it does otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from gft_edge.errors import DataError
from gft_edge.export.places import Place
from gft_edge.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec
from gft_edge.resample import Interpolation
from gft_edge.train.metrics import sqnr_db

UInt8Image = npt.NDArray[np.uint8]
LEVEL = 1.5
"""Levels of 255 that a resampler may differ by: rounding, which every library does in its own order."""
EXPLAINED_DB = 30.0


@dataclass(frozen=True)
class PixelReport:
    """How far another preprocessing is from the specification.

    Attributes:
        images: compared.
        largest_levels: largest difference, in levels of 255; None when values are not finite.
        sqnr_db: of all values; None when bit-identical.
        place: what is done otherwise; None when nothing is.
    """

    images: int
    largest_levels: float | None
    sqnr_db: float | None
    place: Place | None


def compare_pixels(
    images: Sequence[UInt8Image], tensors: Sequence[npt.NDArray[np.floating]], spec: PreprocessSpec
) -> PixelReport:
    """Compares tensors that another program made of images with what the specification makes of them.

    Args:
        images: RGB, (H, W, 3) uint8 of any size.
        tensors: float, (3, height, width), one for each image.
        spec: that they should follow.

    Raises:
        DataError: no images, or a tensor of another shape.
    """
    if not images:
        raise DataError("pixels: no images to compare")
    for number, tensor in enumerate(tensors):
        if tensor.shape != (3, spec.height, spec.width):
            raise DataError(
                f"pixels: tensor {number} has shape {tensor.shape}, the network takes (3, {spec.height}, {spec.width})"
            )
    found = np.stack([np.asarray(tensor, dtype=np.float64) for tensor in tensors])
    expected = np.stack([spec(image) for image in images])
    if not np.isfinite(found).all():
        return PixelReport(len(images), None, None, Place("preprocess", "values", "preprocess: values are not finite"))
    sqnr = sqnr_db(expected, found)
    largest = float((np.abs(expected - found) * 255 * np.asarray(spec.std)[:, None, None]).max())
    place = None
    if largest > LEVEL:
        name, best, text = max(_explanations(images, found, spec), key=lambda found: found[1])
        if best < EXPLAINED_DB or best < sqnr + 3:
            name, text = "unknown", f"nothing tried explains it (nearest: {text}, {best:.1f} dB)"
        place = Place("preprocess", name, f"preprocess: {text}", sqnr_db=best)
    return PixelReport(len(images), largest, None if math.isinf(sqnr) else sqnr, place)


def _explanations(
    images: Sequence[UInt8Image], found: npt.NDArray[np.float64], spec: PreprocessSpec
) -> Iterator[tuple[str, float, str]]:
    """Field of the specification, SQNR, and words for each thing that may be done otherwise."""
    for name, text, made in _variants(spec):
        try:
            value = np.stack([made(image) for image in images])
        except (ValueError, RuntimeError):
            continue
        yield name, sqnr_db(value, found), text
    yield _affine(images, found, spec)


def _variants(spec: PreprocessSpec) -> Iterator[tuple[str, str, Callable[[UInt8Image], npt.NDArray[np.float32]]]]:
    other_color: Literal["rgb", "bgr"] = "rgb" if spec.color_order == "bgr" else "bgr"
    yield (
        "color_order",
        f"the channels are {other_color} instead of {spec.color_order}",
        replace(spec, color_order=other_color),
    )
    other: Interpolation = "bilinear" if spec.interpolation == "bicubic" else "bicubic"
    yield "interpolation", f"resized by {other} instead of {spec.interpolation}", replace(spec, interpolation=other)
    for ratio in (0.875, 0.9, 1.0):
        if (spec.resize, spec.crop_ratio) != ("crop", ratio):
            text = f"the centre of a resized image is cut out (crop_ratio {ratio}) instead of {spec.resize}"
            yield "resize", text, replace(spec, resize="crop", crop_ratio=ratio)
    if spec.resize != "stretch":
        yield "resize", "stretched instead of cropped", replace(spec, resize="stretch", crop_ratio=1.0)
    for mode in ("bilinear", "bicubic", "nearest"):
        yield "antialias", f"resized by {mode} without antialiasing", _aliased(spec, mode)
    yield "layout", "rows and columns are swapped", lambda image: spec(image).transpose(0, 2, 1)
    yield "layout", "turned upside down", lambda image: spec(image)[:, ::-1]
    yield "layout", "mirrored", lambda image: spec(image)[:, :, ::-1]


def _aliased(spec: PreprocessSpec, mode: str) -> Callable[[UInt8Image], npt.NDArray[np.float32]]:
    """Resizing that reads the nearest pixels only, whatever the scale, as OpenCV's and many hand-written ones do."""

    def made(image: UInt8Image) -> npt.NDArray[np.float32]:
        if spec.resize != "stretch":
            raise ValueError("tried for stretched images only")
        pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0)[None])).float()
        align = {} if mode == "nearest" else {"align_corners": False}
        small = F.interpolate(pixels, (spec.height, spec.width), mode=mode, **align)
        rounded = small.round().clamp(0, 255)[0].numpy().astype(np.uint8)
        return spec.normalize(np.moveaxis(rounded, 0, -1))

    return made


def _affine(
    images: Sequence[UInt8Image], found: npt.NDArray[np.float64], spec: PreprocessSpec
) -> tuple[str, float, str]:
    """The mean and std that turn the right pixels into what was found: least squares per channel."""
    neutral = replace(spec, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pixels = np.stack([neutral(image) for image in images]).astype(np.float64)
    fitted, means, stds = np.empty_like(pixels), [], []
    for channel in range(3):
        slope, shift = np.polyfit(pixels[:, channel].ravel(), found[:, channel].ravel(), 1)
        fitted[:, channel] = slope * pixels[:, channel] + shift
        means.append(-shift / slope if slope else math.nan)
        stds.append(1 / slope if slope else math.nan)
    said = [np.round(values, 4).tolist() for values in (means, stds)]
    hint = ""
    if np.allclose(means, 0, atol=2e-3) and np.allclose(stds, 1, atol=2e-3):
        hint = ", which is no normalisation at all"
    elif np.allclose(means, 0, atol=2e-3) and np.allclose(stds, 1 / 255, atol=1e-5):
        hint = ", which are pixels of 0 to 255"
    elif np.allclose(means, IMAGENET_MEAN, atol=2e-3) and np.allclose(stds, IMAGENET_STD, atol=2e-3):
        hint = ", which are ImageNet's"
    name = "std" if np.allclose(means, spec.mean, atol=2e-3) else "mean"
    if name == "mean" and not np.allclose(stds, spec.std, atol=2e-3):
        name = "mean and std"
    text = f"normalised with mean {said[0]} and std {said[1]}{hint}"
    return name, sqnr_db(fitted, found), f"{text}; the specification has {list(spec.mean)} and {list(spec.std)}"
