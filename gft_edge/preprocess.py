"""Preprocessing, defined once and executed in numpy: what training, calibration and the board all see.

The resampling reproduces Pillow's 8-bit filters bit for bit (separable, antialiased, 22-bit fixed point), so pixels do
not depend on which library happens to be installed on the device.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gft_edge.errors import ConfigError, DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Interpolation = Literal["bilinear", "bicubic"]
UInt8Image = npt.NDArray[np.uint8]

_PRECISION_BITS = 22  # Pillow: 32 bits, less 8 for the pixel and 2 for the overshoot of negative lobes


def _bilinear(x: float) -> float:
    x = abs(x)
    return 1.0 - x if x < 1.0 else 0.0


def _bicubic(x: float) -> float:
    a = -0.5
    x = abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0


_FILTERS: dict[str, tuple[Callable[[float], float], float]] = {"bilinear": (_bilinear, 1.0), "bicubic": (_bicubic, 2.0)}


@functools.lru_cache(maxsize=64)
def _coefficients(size_in: int, size_out: int, interpolation: str) -> npt.NDArray[np.int64]:
    """Fixed-point weights of one axis, (size_out, size_in)."""
    kernel, support = _FILTERS[interpolation]
    scale = size_in / size_out
    filter_scale = max(scale, 1.0)
    support *= filter_scale
    weights = np.zeros((size_out, size_in), dtype=np.int64)
    for out in range(size_out):
        center = (out + 0.5) * scale
        first = max(int(center - support + 0.5), 0)
        last = min(int(center + support + 0.5), size_in)
        row = [kernel((x - center + 0.5) * (1.0 / filter_scale)) for x in range(first, last)]
        total = 0.0
        for value in row:
            total += value
        for x, value in zip(range(first, last), row):
            fixed = value / total * (1 << _PRECISION_BITS)
            weights[out, x] = math.trunc(fixed + 0.5 if fixed >= 0 else fixed - 0.5)
    return weights


def _resample(image: UInt8Image, size_out: int, axis: int, interpolation: str) -> UInt8Image:
    if image.shape[axis] == size_out:
        return image
    weights = _coefficients(image.shape[axis], size_out, interpolation)
    # float64 holds these integer products and sums exactly (below 2**53) and uses BLAS, which int64 does not.
    moved = np.moveaxis(image, axis, 0).astype(np.float64)
    total = np.tensordot(weights.astype(np.float64), moved, axes=(1, 0)).astype(np.int64)
    total = (total + (1 << (_PRECISION_BITS - 1))) >> _PRECISION_BITS
    return np.moveaxis(np.clip(total, 0, 255).astype(np.uint8), 0, axis)


def resize(image: UInt8Image, height: int, width: int, interpolation: Interpolation = "bicubic") -> UInt8Image:
    """Resamples an (H, W, 3) uint8 image to (height, width, 3): the columns first, then the rows, each rounded to uint8.

    Bit-identical to ``PIL.Image.resize`` of Pillow up to 12. Pillow 13 begins with the rows when the height shrinks much
    more than the width (python-pillow/Pillow#9549), and then differs by a level here and there; this order is fixed.
    """
    return _resample(_resample(image, width, 1, interpolation), height, 0, interpolation)


@dataclass(frozen=True)
class PreprocessSpec:
    """From an RGB image of any size to the network's input.

    Args:
        height, width: size of the network's input in pixels.
        resize: ``"stretch"`` resizes straight to (height, width), as the published code does; ``"crop"`` resizes the
            shorter side to ``height / crop_ratio`` and cuts the centre.
        crop_ratio: share of the resized image the centre crop keeps; 1.0 and unused with ``"stretch"``.
        interpolation: ``"bicubic"`` or ``"bilinear"``, antialiased.
        mean, std: per channel, in units of 1/255 of the pixel value.
        color_order: ``"rgb"`` or ``"bgr"`` of the network's input.
        layout: ``"nchw"``.

    Raises:
        ConfigError: a value is out of range.
    """

    height: int
    width: int
    resize: Literal["stretch", "crop"] = "stretch"
    crop_ratio: float = 1.0
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    color_order: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["nchw"] = "nchw"

    def __post_init__(self) -> None:
        problems = []
        try:  # 1 and 1.0 are the same value and must give the same id
            for name in ("mean", "std"):
                object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
            object.__setattr__(self, "crop_ratio", float(self.crop_ratio))
        except (TypeError, ValueError):
            raise ConfigError("preprocessing: mean, std and crop_ratio must be numbers") from None
        if any(not isinstance(side, int) or isinstance(side, bool) or side < 1 for side in (self.height, self.width)):
            problems.append(f"size must be positive, found {self.height} x {self.width}")
        if self.resize not in ("stretch", "crop"):
            problems.append(f"resize must be 'stretch' or 'crop', found {self.resize!r}")
        if not 0 < self.crop_ratio <= 1:
            problems.append(f"crop_ratio must be above 0 and at most 1, found {self.crop_ratio}")
        if self.interpolation not in _FILTERS:
            problems.append(f"interpolation must be one of {', '.join(_FILTERS)}, found {self.interpolation!r}")
        finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or not all(s > 0 for s in self.std):
            problems.append("mean and std need three values each, finite and std above 0")
        if self.color_order not in ("rgb", "bgr"):
            problems.append(f"color_order must be 'rgb' or 'bgr', found {self.color_order!r}")
        if self.layout != "nchw":
            problems.append(f"layout must be 'nchw', found {self.layout!r}")
        if problems:
            raise ConfigError("preprocessing: " + "; ".join(problems))

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of the sha256 of the canonical JSON; travels with everything the pixels touch."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """The specification as plain JSON values."""
        data = asdict(self)
        return {**data, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PreprocessSpec:
        """The inverse of :meth:`to_json`."""
        try:
            return cls(**data)
        except TypeError as error:
            raise ConfigError(f"preprocessing: {error}") from None

    def geometry(self, image: UInt8Image) -> UInt8Image:
        """Resizes and crops an RGB image (H, W, 3) uint8 to (height, width, 3) uint8.

        Raises:
            DataError: the array is no (H, W, 3) uint8 image.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise DataError(f"image: expected an (H, W, 3) uint8 RGB array, found {image.shape} {image.dtype}")
        if self.resize == "stretch":
            return resize(image, self.height, self.width, self.interpolation)
        rows, cols = image.shape[:2]
        factor = max(self.height / self.crop_ratio / rows, self.width / self.crop_ratio / cols)
        rows, cols = max(round(rows * factor), self.height), max(round(cols * factor), self.width)
        image = resize(image, rows, cols, self.interpolation)
        top, left = (rows - self.height) // 2, (cols - self.width) // 2
        return image[top : top + self.height, left : left + self.width]

    def scale_and_shift(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """What normalisation multiplies pixels by and then adds, per channel of the network's input, (3,) each."""
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        return (1.0 / (255.0 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def normalize(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(..., height, width, 3) uint8 RGB to (..., 3, height, width) float32 normalised."""
        if self.color_order == "bgr":
            images = images[..., ::-1]
        scale, shift = self.scale_and_shift()
        return np.ascontiguousarray(np.moveaxis(images.astype(np.float32) * scale + shift, -1, -3))

    def pixels(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """The inverse of :meth:`normalize`, exact for what came from uint8: (..., 3, height, width) to (..., height, width, 3)."""
        levels = np.moveaxis(images, -3, -1) * (255.0 * np.asarray(self.std)) + 255.0 * np.asarray(self.mean)
        levels = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(levels[..., ::-1] if self.color_order == "bgr" else levels)

    def __call__(self, image: UInt8Image) -> npt.NDArray[np.float32]:
        """One RGB image (H, W, 3) uint8 to (3, height, width) float32, ready for the network."""
        return self.normalize(self.geometry(image))
