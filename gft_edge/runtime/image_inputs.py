"""Images as users have them: paths, folders, Pillow images, arrays and batches of arrays. Needs Pillow for files alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

    # For type checkers only: the edge runtime may lack Pillow.
    ImageLike = npt.NDArray[np.uint8] | Image.Image | str | Path


def each_image(images: Any) -> Iterable[Any]:
    """Returns the images one by one.

    Args:
        images: one image, or several: a batch (B, H, W, 3), any iterable of images, or a folder, whose image files at any depth are
            sorted by path.

    Raises:
        DataError: a value that is no image and cannot be iterated over.
    """
    if isinstance(images, (str, Path)) and Path(images).is_dir():
        from gft_edge.data.images import image_files

        return image_files([Path(images)])
    is_array = isinstance(images, np.ndarray) and images.ndim < 4
    if isinstance(images, (str, Path)) or is_array or _is_pillow(images):
        return [images]
    if isinstance(images, bytes) or not isinstance(images, Iterable):
        raise DataError(f"{EXPECTED}, or several of them, found {_kind(images)}")
    return images


EXPECTED = "expected an (H, W, 3) uint8 RGB array, a Pillow image or a path"


def rgb(image: Any, where: str) -> npt.NDArray[np.uint8]:
    """Converts one image of any accepted kind to (H, W, 3) uint8 RGB.

    Args:
        image: an array is returned as it is: preprocessing refuses other shapes and types. Pillow images and files are converted
            by the rules of :func:`gft_edge.data.images.read_image`.
        where: which image, for messages.

    Raises:
        DataError: a value that is no image, or a file that cannot be read.
        MissingExtraError: a file, but Pillow is not installed.
    """
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, (str, Path)):
        from gft_edge.data.images import read_image

        return read_image(image)
    if _is_pillow(image):
        from gft_edge.data.images import rgb_pixels

        return rgb_pixels(image, where)
    raise DataError(f"{where}: {EXPECTED}, found {_kind(image)}")


def _is_pillow(image: Any) -> bool:
    """Returns whether it is a Pillow image, without importing Pillow, which the edge runtime may lack."""
    return any(f"{kind.__module__}.{kind.__qualname__}" == "PIL.Image.Image" for kind in type(image).__mro__)


def _kind(value: Any) -> str:
    return (
        "None" if value is None else f"one {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")
    )
