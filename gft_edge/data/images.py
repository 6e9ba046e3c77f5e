"""Reads image files with Pillow: the result is correct RGB pixels or a DataError, for any content."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gft_edge.data.scan import looks_like_image, scan
from gft_edge.errors import ConfigError, DataError, MissingExtraError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 100_000_000
PILLOW_MAX_PIXELS = 178_956_970
"""Limit of Pillow itself."""
MAX_PIXELS_VARIABLE = "GFT_EDGE_MAX_PIXELS"

_BLOCK = 1 << 20  # pixels converted at a time, so that no copy of a large image is made
_RUNS_PROGRAMS = ("EPS", "WMF")  # Pillow hands them to Ghostscript or the operating system
_GREY_LEVELS = {"L;2": 85, "L;4": 17}  # Pillow spreads these pixels over 0 to 255, but not the transparent grey

Pixels = npt.NDArray[np.uint8]


class _Refused(Exception):
    """Raised for an image that Pillow decodes but whose values have no certain meaning."""


def read_image(path: str | Path, at_least: int = 0) -> Pixels:
    """Decodes a file to (H, W, 3) uint8 RGB; applies the EXIF orientation and puts transparency on white.

    Reads the first image of an animation or a file of several pages. Scales grey images of 9 to 16 bits to 8 bits by their full
    range; takes the upper 8 of 16-bit colours, as Pillow does. Floating-point images must lie between 0 (black) and 1 (white).
    Refuses 32-bit integers, which have no certain range. Ignores colour profiles.

    Memory: about 7 bytes per pixel, 11 where Pillow's decoder needs a buffer of its own; see :func:`max_pixels`.

    Args:
        path: of the file.
        at_least: 0, or the rows and columns that suffice: a JPEG file is then decoded at a half, quarter or eighth of its size
            as long as neither side becomes smaller than this. Several times faster for photographs; not the same pixels as
            decoding everything and resizing.

    Raises:
        DataError: no such file, too large, or not decodable as an image.
        ConfigError: the limit of pixels is not a usable number.
        MissingExtraError: Pillow is not installed.
    """
    pillow, limit, path = _pillow(), max_pixels(), Path(path)
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # reading a pipe would block
            raise _Refused("not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pillow.open(path) as file:
                return _pixels(file, limit, at_least)
    except FileNotFoundError:
        raise DataError(f"image {path}: no such file") from None
    except Exception as error:  # decoders raise many classes for damaged files
        raise DataError(f"image {path}: cannot be decoded as an image ({_reason(error, path)})") from None


def rgb_pixels(image: Image.Image, where: str) -> Pixels:
    """Converts a Pillow image to (H, W, 3) uint8 RGB by the rules of :func:`read_image`.

    Args:
        image: opened or made with Pillow; it is loaded, but not modified.
        where: names it in messages.

    Raises:
        DataError: too large, closed, damaged, or of values without a certain meaning.
        ConfigError: the limit of pixels is not a usable number.
    """
    limit = max_pixels()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _pixels(image, limit)
    except Exception as error:  # as above
        raise DataError(f"{where}: cannot be decoded as an image ({_reason(error)})") from None


def max_pixels() -> int:
    """Returns the limit of pixels of an image: 100 million, or the environment variable GFT_EDGE_MAX_PIXELS.

    Raises:
        ConfigError: the variable is no whole number from 1 to the limit of Pillow.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE, "")
    if not text.strip():
        return MAX_PIXELS
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= PILLOW_MAX_PIXELS:
        raise ConfigError(
            f"{MAX_PIXELS_VARIABLE}: expected a whole number of pixels from 1 to {PILLOW_MAX_PIXELS}, found {text[:40]!r}"
        )
    return value


def image_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yields files as given, and all files named like images below folders, sorted by path, see :func:`~gft_edge.data.scan.scan`.

    Yields a folder without such files itself: reading it then raises an error that names it.

    Raises:
        DataError: a folder cannot be read.
    """
    for path in paths:
        found = sorted(scan(path).top.below()) if path.is_dir() else []
        yield from found or [path]


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "report", "which reads image files") from None
    return Image


def _reason(error: Exception, path: Path | None = None) -> str:
    """Returns one short line for any exception, without the path that Pillow repeats."""
    if type(error).__name__ == "UnidentifiedImageError":
        if path is not None and looks_like_image(path.name):
            return (
                f"Pillow does not recognise the content of this {path.suffix.lower()} file; convert it to PNG or JPEG"
            )
        return "Pillow recognises no image format in it"
    if isinstance(error, IsADirectoryError):
        return "is a folder without image files"
    text = " ".join((error.strerror if isinstance(error, OSError) and error.strerror else str(error)).split())
    text = text or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def _pixels(image: Image.Image, limit: int, at_least: int = 0) -> Pixels:
    """Loads an image and converts it block by block, straight into the array that is returned."""
    _require_size(image, limit)
    if at_least:
        image.draft(None, (at_least, at_least))  # only JPEG has it
    if image.format in _RUNS_PROGRAMS:
        raise _Refused(f"{image.format} files are not read; convert it to PNG or JPEG")
    raw = _raw_mode(image)
    image.load()
    _require_size(image, limit)  # formats with several sizes choose one while loading
    to_rgb = _conversion(image, raw)
    width, height = image.size
    orientation = _orientation(image)
    pixels = np.empty((width, height, 3) if orientation >= 5 else (height, width, 3), np.uint8)
    stored = _STORED[orientation](pixels)
    cols = min(width, _BLOCK)
    rows = max(_BLOCK // width, 1)
    for top in range(0, height, rows):
        for left in range(0, width, cols):
            box = (left, top, min(left + cols, width), min(top + rows, height))
            block = image if box == (0, 0, width, height) else image.crop(box)
            stored[box[1] : box[3], box[0] : box[2]] = to_rgb(block)
    return pixels


_STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}
"""From an upright array to a view of it in the order in which the file stores its pixels, by EXIF orientation."""


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 without one, or if any part of the EXIF data is malformed."""
    try:
        exif = image.getexif()
        value = exif.get(0x0112, 1)
        if value not in _STORED or value == 1:
            return 1
        exif.tobytes()  # fails for values that do not fit their tags; such a record is not trusted
        return int(value)
    except Exception:  # damaged EXIF data does not make the pixels unusable
        return 1


def _require_size(image: Image.Image, limit: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise _Refused(f"has {width} x {height} pixels")
    if width * height > limit:
        raise _Refused(
            f"{width} x {height} is more than {limit} pixels; set {MAX_PIXELS_VARIABLE} to allow more, at about 7 bytes of "
            "memory per pixel"
        )


def _raw_mode(image: Image.Image) -> str:
    """Returns Pillow's name of the pixel format in the file; empty where Pillow has none."""
    tile = getattr(image, "tile", None)
    if not tile or len(tile[0]) < 4:
        return ""
    arguments = tile[0][3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _conversion(image: Image.Image, raw: str) -> Callable[[Image.Image], Pixels]:
    """Returns a function that converts a block of this image to (rows, cols, 3) uint8."""
    mode, key = image.mode, image.info.get("transparency")
    # Pillow before 11 gives I for 16 bits.
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        white, inverted = _grey_range(image)
        return lambda block: _from_grey16(block, white, inverted, key)
    if mode == "I":
        raise _Refused("32-bit or signed integers, whose range is unknown; store 8 or 16 unsigned bits")
    if mode == "F":
        if _tags(image).get(262) == 0:  # PhotometricInterpretation
            raise _Refused("floating-point values where white is 0 and black is unknown; store 8 or 16 bits")
        return _from_float
    if key is not None and raw == "RGB;16B":
        raise _Refused("16-bit colours with a transparent one, which Pillow reads with 8 bits; store an alpha channel")
    if isinstance(key, int) and raw in _GREY_LEVELS:
        key *= _GREY_LEVELS[raw]
    if isinstance(key, int) and mode == "1":
        key = 255 if key else 0
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or key is not None:
        return lambda block: _on_white(block, key)
    if mode == "RGB":  # convert would copy
        return np.asarray
    return lambda block: np.asarray(block.convert("RGB"))


def _grey_range(image: Image.Image) -> tuple[int, bool]:
    """Returns the largest value, and whether it is black and 0 white: TIFF records both and Pillow does not apply them."""
    tags = _tags(image)
    bits = tags.get(258, (16,))  # BitsPerSample
    first = bits[0] if isinstance(bits, tuple) and bits else bits
    if not isinstance(first, int) or not 1 <= first <= 16:
        raise _Refused(f"{first!r} bits per sample")
    return 2**first - 1, tags.get(262) == 0  # PhotometricInterpretation: white is zero


def _tags(image: Image.Image) -> Any:
    """Returns the tags of a TIFF file by number, as Pillow read them; empty for other files."""
    return getattr(image, "tag_v2", None) or {}


def _from_grey16(block: Image.Image, white: int, inverted: bool, key: object) -> Pixels:
    values = np.asarray(block).astype(np.uint32)
    levels = (np.minimum(values, white) * 255 + white // 2) // white
    grey = (255 - levels if inverted else levels).astype(np.uint8)
    if isinstance(key, int):
        grey[values == key] = 255
    return np.repeat(grey[..., None], 3, axis=2)


def _from_float(block: Image.Image) -> Pixels:
    values = np.asarray(block, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # also where one of them is NaN
        raise _Refused(
            f"floating-point values from {low:g} to {high:g}, expected 0 (black) to 1 (white); store 8 or 16 bits"
        )
    return np.repeat(np.rint(values * 255).astype(np.uint8)[..., None], 3, axis=2)


def _on_white(block: Image.Image, key: object) -> Pixels:
    image = _pillow()
    if key is not None and key != block.info.get("transparency"):
        block = block.copy()
        block.info["transparency"] = key
    if block.mode == "La":
        block = block.convert("LA")
    block = block.convert("RGBA")
    return np.asarray(image.alpha_composite(image.new("RGBA", block.size, "white"), block).convert("RGB"))
