"""Compares another program's preprocessing with the specification and names the difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gft_edge.data.images import read_image
from gft_edge.errors import DataError
from gft_edge.export.verify.places import Place
from gft_edge.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec
from gft_edge.resample import Interpolation
from gft_edge.stats.metrics import sqnr_db
from gft_edge.storage.filekinds import describe_file

UInt8Image = npt.NDArray[np.uint8]
LEVEL = 1.5
"""Levels of 255 that resamplers may differ by, because each library rounds in its own order."""
EXPLAINED_DB = 30.0
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True)
class PixelReport:
    """Difference of another preprocessing from the specification.

    Attributes:
        images: compared.
        largest_levels: largest difference, in levels of 255; None when values are not finite.
        sqnr_db: of all values; None when bit-identical.
        place: the step that differs; None when none does.
    """

    images: int
    largest_levels: float | None
    sqnr_db: float | None
    place: Place | None

    @property
    def passed(self) -> bool:
        """True when no step differs."""
        return self.place is None

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain JSON values."""
        return {**asdict(self), "passed": self.passed}


def compare_pixel_files(folder: Path, spec: PreprocessSpec) -> PixelReport:
    """Compares each NAME.npy of a folder with what the specification makes of the image of that name beside it.

    Raises:
        DataError: no such folder, no tensors in it, a tensor without its image, or a file that cannot be read.
    """
    if not folder.is_dir():
        problem = f"is {describe_file(folder)}" if folder.is_file() else "no such folder"
        raise DataError(f"pixels {folder}: {problem}; give a folder of images and tensors")
    images, tensors, names = [], [], []
    files = {(path.stem, path.suffix.lower()): path for path in folder.iterdir() if path.is_file()}
    for file in sorted(path for (_, suffix), path in files.items() if suffix == ".npy"):
        image = next((files[file.stem, s] for s in IMAGE_SUFFIXES if (file.stem, s) in files), None)
        if image is None:
            raise DataError(f"pixels {file}: no image of that name beside it ({', '.join(IMAGE_SUFFIXES)})")
        tensors.append(_read_tensor(file))
        images.append(read_image(image))
        names.append(file.name)
    if not images:
        raise DataError(
            f"pixels {folder}: holds no .npy file; put the tensor that the other program made of NAME.png beside it, as NAME.npy"
        )
    return compare_pixels(images, tensors, spec, names)


def _read_tensor(file: Path) -> npt.NDArray[Any]:
    try:
        # np.load would accept other formats too; a header may claim any size, so the file is mapped.
        tensor: npt.NDArray[Any] = np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # NumPy parses headers as Python and raises whatever they lead it to
        raise DataError(f"pixels {file}: cannot be read as an array of numpy ({error})") from None
    return tensor


def compare_pixels(
    images: Sequence[UInt8Image],
    tensors: Sequence[npt.NDArray[Any]],
    spec: PreprocessSpec,
    names: Sequence[str] = (),
) -> PixelReport:
    """Compares tensors that another program made of images with those that the specification gives.

    Args:
        images: RGB, (H, W, 3) uint8 of any size.
        tensors: numbers, (3, height, width), one for each image.
        spec: that they should follow.
        names: of the tensors, for messages; their numbers by default.

    Raises:
        DataError: no images, or a tensor of another shape or type.
    """
    if not images:
        raise DataError("pixels: no images to compare")
    names = names or [f"tensor {number}" for number in range(len(tensors))]
    for name, tensor in zip(names, tensors):
        _require_layout(name, tensor, (3, spec.height, spec.width))
    found = np.stack([np.asarray(tensor, dtype=np.float64) for tensor in tensors])
    expected = np.stack([spec(image) for image in images])
    broken = [int((~np.isfinite(tensor)).sum()) for tensor in found]
    if any(broken):
        worst = int(np.argmax(broken))
        text = f"preprocess: {broken[worst]} of {found[worst].size} values of {names[worst]} are not finite"
        return PixelReport(len(images), None, None, Place("preprocess", "values", text))
    sqnr = sqnr_db(expected, found)
    largest = float((np.abs(expected - found) * 255 * np.asarray(spec.std)[:, None, None]).max())
    place = None
    if largest > LEVEL:
        place = _unfilled(names, found, expected) or _explained(images, found, spec, sqnr)
    return PixelReport(len(images), largest, None if math.isinf(sqnr) else sqnr, place)


def _require_layout(name: str, tensor: npt.NDArray[Any], shape: tuple[int, int, int]) -> None:
    """Refuses a tensor of another shape or type; the message names the common layout that it has."""
    if tensor.dtype.kind not in "fiu":
        raise DataError(f"pixels: {name} holds values of type {tensor.dtype}, expected numbers")
    if tensor.shape == shape:
        return
    hint = ""
    if tensor.shape == (*shape[1:], 3):
        hint = ": its channels are last, they must be first"
    elif tensor.shape == (1, *shape):
        hint = ": it has a batch axis; give the tensor of one image"
    elif tensor.shape == (3, shape[2], shape[1]):
        hint = ": rows and columns are swapped"
    elif tensor.size == math.prod(shape):
        hint = ": it has as many values, so only its shape is wrong"
    raise DataError(f"pixels: {name} has shape {tensor.shape}, the network takes {shape}{hint}")


def _unfilled(names: Sequence[str], found: npt.NDArray[np.float64], expected: npt.NDArray[np.floating]) -> Place | None:
    """Returns the place of a buffer that was not filled, filled in part, or written for several images; None for others."""
    for number, (name, tensor, right) in enumerate(zip(names, found, expected)):
        flat = [channel for channel in range(3) if np.ptp(tensor[channel]) == 0 < np.ptp(right[channel])]
        text = ""
        if flat:
            value = tensor[flat[0], 0, 0]
            what = name if len(flat) == 3 and np.ptp(tensor) == 0 else f"channel {flat[0]} of {name}"
            text = f"{what} is {'all zeros' if value == 0 else f'{value:g} throughout'}: the buffer was never filled"
        else:
            for lines, axes in (("rows", (0, 2)), ("columns", (0, 1))):
                empty = np.flatnonzero((tensor == 0).all(axis=axes) & (right != 0).any(axis=axes))
                if len(empty) > 1:
                    found_empty = f"{len(empty)} {lines} of {name} are all zeros, the first is {empty[0]}"
                    text = text or f"{found_empty}: the buffer was filled in part"
        same = [other for other in range(number) if np.array_equal(found[other], tensor)]
        if not text and same and not np.array_equal(expected[same[0]], right):
            text = f"{name} is the same as {names[same[0]]}, though the images differ: one buffer was written for both"
        if text:
            return Place("preprocess", "values", f"preprocess: {text}")
    return None


def _explained(
    images: Sequence[UInt8Image], found: npt.NDArray[np.float64], spec: PreprocessSpec, sqnr: float
) -> Place:
    """Returns the step that differs, by the nearest explanation."""
    name, best, text = max(_explanations(images, found, spec), key=lambda found: found[1])
    if best < EXPLAINED_DB or best < sqnr + 3:
        name, text = "unknown", f"no known difference explains it (nearest: {text}, {best:.1f} dB)"
    return Place("preprocess", name, f"preprocess: {text}", sqnr_db=best)


def _explanations(
    images: Sequence[UInt8Image], found: npt.NDArray[np.float64], spec: PreprocessSpec
) -> Iterator[tuple[str, float, str]]:
    """Yields field of the specification, SQNR and description of each possible difference."""
    for name, text, made in _variants(spec):
        try:
            value = np.stack([made(image) for image in images])
        except (ValueError, RuntimeError):
            continue
        yield name, sqnr_db(value, found), text
    fitted = _affine(images, found, spec)
    if fitted is None:
        return
    yield fitted
    swapped = _affine([image[..., ::-1] for image in images], found, spec)
    if swapped is not None:
        yield f"color_order, {swapped[0]}", swapped[1], f"the channels are swapped, and {swapped[2]}"


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
    """Returns a resizer that reads the nearest pixels only, whatever the scale, as OpenCV and much hand-written code do."""

    def made(image: UInt8Image) -> npt.NDArray[np.float32]:
        if spec.resize != "stretch":
            raise ValueError("tried for stretched images only")
        small = image.astype(np.float64)
        for axis, size in enumerate((spec.height, spec.width)):
            small = np.moveaxis(sampled(np.moveaxis(small, axis, 0), size, mode), 0, axis)
        return spec.normalize(np.clip(np.round(small), 0, 255).astype(np.uint8))

    return made


def sampled(values: npt.NDArray[np.float64], size: int, mode: str) -> npt.NDArray[np.float64]:
    """Samples the first axis at ``size`` places, each from its nearest one, two or four values: (N, ...) to (size, ...)."""
    count = len(values)
    if mode == "nearest":
        return values[np.arange(size) * count // size]
    places = (np.arange(size) + 0.5) * count / size - 0.5
    if mode == "bilinear":
        places = np.maximum(places, 0)
    first = np.floor(places).astype(np.int64)
    near = (places - first).reshape(-1, *[1] * (values.ndim - 1))
    cubic = {offset: _cubic(np.abs(near - offset)) for offset in (-1, 0, 1, 2)}
    weights = {0: 1 - near, 1: near} if mode == "bilinear" else cubic
    return np.asarray(sum(w * values[np.clip(first + offset, 0, count - 1)] for offset, w in weights.items()))


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Computes Keys' kernel with the -0.75 of OpenCV and PyTorch."""
    near = (1.25 * x - 2.25) * x * x + 1
    far = ((-0.75 * x + 3.75) * x - 6) * x + 3
    return np.where(x <= 1, near, far)


def _affine(
    images: Sequence[UInt8Image], found: npt.NDArray[np.float64], spec: PreprocessSpec
) -> tuple[str, float, str] | None:
    """Returns the mean and std that turn the right pixels into the tensors, by least squares per channel.

    None if a channel has one value throughout, which determines neither.
    """
    neutral = replace(spec, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pixels = np.stack([neutral(image) for image in images]).astype(np.float64)
    if any(np.ptp(values[:, channel]) == 0 for values in (pixels, found) for channel in range(3)):
        return None
    fitted, means, stds = np.empty_like(pixels), [], []
    for channel in range(3):
        slope, shift = np.polyfit(pixels[:, channel].ravel(), found[:, channel].ravel(), 1)
        fitted[:, channel] = slope * pixels[:, channel] + shift
        means.append(-shift / slope if slope else math.nan)
        stds.append(1 / slope if slope else math.nan)
    rounded = [np.round(values, 4).tolist() for values in (means, stds)]
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
    text = f"normalised with mean {rounded[0]} and std {rounded[1]}{hint}"
    return name, sqnr_db(fitted, found), f"{text}; the specification has {list(spec.mean)} and {list(spec.std)}"
