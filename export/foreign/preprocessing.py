"""Preprocessing and class names of a foreign file, which records neither: what the user says, else named defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gft_edge.data.datasets import is_folder, open_images, unlabelled_folder
from gft_edge.data.sets import NO_CLASSES
from gft_edge.data.splits import Split
from gft_edge.errors import ConfigError
from gft_edge.labels import read_labels
from gft_edge.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec

Triple = tuple[float, float, float]
NORMALISATIONS: dict[str, tuple[Triple, Triple]] = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and std by name: of ImageNet (torchvision, DeiT, DINOv2), of Google's ViTs (Hugging Face, timm's augreg), of CLIP, none."""
CROP_RATIO = 0.875
POOL = 1024


@dataclass(frozen=True)
class Pixels:
    """What is known about the preprocessing of a foreign file; None takes the default.

    Args:
        normalisation: a name of :data:`NORMALISATIONS`.
        mean, std: in its place, three numbers each.
        resize: ``"stretch"``, ``"crop"`` or ``"crop:RATIO"``, see :class:`~gft_edge.preprocess.PreprocessSpec`.
        interpolation: of resizing.
        color_order: of the graph's input.

    Raises:
        ConfigError: an unknown name, mean without std, or a crop that is no number.
    """

    normalisation: str | None = None
    mean: Triple | None = None
    std: Triple | None = None
    resize: str | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    color_order: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        if self.normalisation is not None and self.normalisation not in NORMALISATIONS:
            raise ConfigError(
                f"preprocessing: normalisation must be one of {', '.join(NORMALISATIONS)}, found {self.normalisation!r}"
            )
        if (self.mean is None) != (self.std is None) or (self.mean is not None and self.normalisation is not None):
            raise ConfigError("preprocessing: give mean and std together, or the name of a normalisation")
        self._crop()

    def _crop(self) -> tuple[Literal["stretch", "crop"], float]:
        kind, _, ratio = (self.resize or "crop").partition(":")
        try:
            if kind == "stretch" and not ratio:
                return "stretch", 1.0
            if kind == "crop":
                return "crop", float(ratio) if ratio else CROP_RATIO
        except ValueError:
            pass
        raise ConfigError(
            f"preprocessing: resize must be stretch, crop or crop:RATIO such as crop:0.9, found {self.resize!r}"
        )

    def spec(self, height: int, width: int) -> PreprocessSpec:
        """Returns the preprocessing for a graph of this image size."""
        mean, std = (
            (self.mean, self.std) if self.mean and self.std else NORMALISATIONS[self.normalisation or "imagenet"]
        )
        resize, ratio = self._crop()
        interpolation: Any = self.interpolation or "bicubic"
        return PreprocessSpec(height, width, resize, ratio, interpolation, mean, std, self.color_order)

    @property
    def assumed(self) -> tuple[str, ...]:
        """Parts that the user did not say, in words."""
        parts = []
        if self.mean is None and self.normalisation is None:
            parts.append("mean and std of ImageNet")
        if self.resize is None:
            parts.append(f"centre crop of {CROP_RATIO:g}")
        if self.interpolation is None:
            parts.append("bicubic")
        return tuple(parts)

    def origin(self) -> str:
        """Returns a sentence on where the preprocessing is from."""
        if not self.assumed:
            return "preprocessing: as given"
        return f"preprocessing: {', '.join(self.assumed)} assumed, the file does not record it"


@dataclass(frozen=True)
class ClassNames:
    """Names of a graph's classes.

    Attributes:
        names: one for each output.
        known: whether the outputs are known to be these classes; else accuracy cannot be measured.
        origin: a sentence on where they are from.
    """

    names: tuple[str, ...]
    known: bool
    origin: str


def data_labels(data: str, split: Split, size: int) -> tuple[str, ...]:
    """Returns the classes of a data set; those of images without classes are :data:`~gft_edge.data.sets.NO_CLASSES`."""
    if is_folder(data) and unlabelled_folder(Path(data)) is not None:
        return NO_CLASSES
    return open_images(data, split, POOL, size).labels


def class_names(file: Path | None, found: Sequence[str], classes: int, data: str) -> ClassNames:
    """Returns the names of a graph's classes: from a file, else the data's where their number fits.

    Raises:
        ConfigError: the file cannot be used.
    """
    if file is not None:
        return ClassNames(read_labels(file, classes), True, f"classes: from {file.name}")
    if len(found) == classes and tuple(found) != NO_CLASSES:
        return ClassNames(
            tuple(found), True, f"classes: the {classes} of {data}, assumed to be in the order of the outputs"
        )
    names = tuple(f"class_{number}" for number in range(classes))
    why = "its images have no classes" if tuple(found) == NO_CLASSES else f"it has {len(found)} classes"
    return ClassNames(
        names,
        False,
        f"classes: {classes} without names, accuracy is not measured; {data}: {why} (--labels FILE names them)",
    )
