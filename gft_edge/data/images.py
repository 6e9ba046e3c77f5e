"""Reads and writes image files through Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from gft_edge.errors import DataError, MissingExtraError


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Decodes a file to (H, W, 3) uint8 RGB, EXIF orientation applied, transparency laid on white.

    Raises:
        DataError: no such file, or not an image.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise MissingExtraError("Pillow", "report") from None
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            if image.mode.startswith("I"):  # 16 bits per pixel; convert() would clip it to white
                grey = (np.asarray(image).astype(np.int64).clip(0, 65535) + 128) // 257
                return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise DataError(f"image {path}: no such file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"image {path}: cannot be decoded as an image ({error})") from None
