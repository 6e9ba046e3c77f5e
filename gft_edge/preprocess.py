"""The only definition of preprocessing, executed in numpy by training, calibration and the board.

The resampling (:mod:`gft_edge.resample`) reproduces Pillow's 8-bit filters bit for bit, so pixels do not depend on which
library is installed on the device.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gft_edge.config.reader import load_dataclass
from gft_edge.errors import ConfigError, DataError
from gft_edge.resample import FILTERS, Interpolation, UInt8Image, interleaved, resampled_planes

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PreprocessSpec:
    """Preprocessing from an RGB image of any size to the network's input.

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
        try:  # 1 and 1.0 must give the same id
            for name in ("mean", "std"):
                object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
            object.__setattr__(self, "crop_ratio", float(self.crop_ratio))
        except (TypeError, ValueError, OverflowError):
            raise ConfigError("preprocessing: mean, std and crop_ratio must be numbers") from None
        if any(not isinstance(side, int) or isinstance(side, bool) or side < 1 for side in (self.height, self.width)):
            problems.append(f"size must be positive, found {self.height} x {self.width}")
        if self.resize not in ("stretch", "crop"):
            problems.append(f"resize must be 'stretch' or 'crop', found {self.resize!r}")
        if not 0 < self.crop_ratio <= 1:
            problems.append(f"crop_ratio must be above 0 and at most 1, found {self.crop_ratio}")
        if self.interpolation not in FILTERS:
            problems.append(f"interpolation must be one of {', '.join(FILTERS)}, found {self.interpolation!r}")
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
        """Twelve hexadecimal digits of the sha256 of the canonical JSON; recorded in every file that depends on the pixels."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """Returns the specification as plain JSON values."""
        data = asdict(self)
        return {**data, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PreprocessSpec:
        """Reads what :meth:`to_json` returns.

        Raises:
            ConfigError: unknown keys, missing keys and wrong types, all in one message.
        """
        return load_dataclass(cls, data, "preprocessing")

    def geometry(self, image: UInt8Image) -> UInt8Image:
        """Resizes and crops an RGB image (H, W, 3) uint8 to (height, width, 3) uint8.

        Raises:
            DataError: the array is no (H, W, 3) uint8 image.
        """
        return interleaved(self._planes(image))

    def resized(self, image: UInt8Image) -> tuple[int, int]:
        """Returns the rows and columns of the resized image, before the centre is cut out."""
        if self.resize == "stretch":
            return self.height, self.width
        rows, cols = image.shape[:2]
        factor = max(self.height / self.crop_ratio / rows, self.width / self.crop_ratio / cols)
        return max(round(rows * factor), self.height), max(round(cols * factor), self.width)

    def _planes(self, image: UInt8Image) -> npt.NDArray[Any]:
        """:meth:`geometry` by channel: (3, height, width) whole numbers."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise DataError(f"image: expected an (H, W, 3) uint8 RGB array, found {image.shape} {image.dtype}")
        rows, cols = self.resized(image)
        top, left = (rows - self.height) // 2, (cols - self.width) // 2
        kept = slice(top, top + self.height), slice(left, left + self.width)
        return resampled_planes(image, rows, cols, *kept, self.interpolation)

    def scale_and_shift(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Returns the factors and offsets of normalisation, per channel of the network's input, (3,) each."""
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        return (1.0 / (255.0 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def normalize(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Normalises (..., height, width, 3) uint8 RGB to (..., 3, height, width) float32."""
        return self._normalized(np.moveaxis(images, -1, -3))

    def _normalized(
        self, planes: npt.NDArray[Any], out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Normalises (..., 3, height, width) whole numbers to float32; their products are exact before rounding, in any type."""
        scale, shift = (values[:, None, None] for values in self.scale_and_shift())
        result = np.empty(planes.shape, np.float32) if out is None else out
        np.multiply(
            planes[..., ::-1, :, :] if self.color_order == "bgr" else planes, scale, out=result, casting="same_kind"
        )
        result += shift
        return result

    def pixels(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Inverts :meth:`normalize`, exactly for values from uint8: (..., 3, height, width) to (..., height, width, 3)."""
        scale, shift = (255.0 * np.asarray(values)[:, None, None] for values in (self.std, self.mean))
        levels = images * scale
        levels += shift
        np.clip(np.rint(levels, out=levels), 0, 255, out=levels)
        planes = levels[..., ::-1, :, :] if self.color_order == "bgr" else levels
        return np.moveaxis(planes, -3, -1).astype(np.uint8, order="C")

    def __call__(self, image: UInt8Image) -> npt.NDArray[np.float32]:
        """Converts one RGB image (H, W, 3) uint8 to the network's input, (3, height, width) float32."""
        return self._normalized(self._planes(image))

    def batch(self, images: Sequence[UInt8Image]) -> npt.NDArray[np.float32]:
        """Converts RGB images of any sizes to (B, 3, height, width) float32, without a copy of the result.

        Raises:
            DataError: one of them is no (H, W, 3) uint8 image.
        """
        result = np.empty((len(images), 3, self.height, self.width), np.float32)
        for image, out in zip(images, result):
            self._normalized(self._planes(image), out)
        return result
