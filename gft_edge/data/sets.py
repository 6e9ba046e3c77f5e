"""Image sets: labelled images that can be indexed. Files, parts of a set, sets with other class numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gft_edge.data.images import read_image
from gft_edge.data.scan import is_readable_format
from gft_edge.data.splits import Split
from gft_edge.errors import DataError

NO_CLASSES = ("",)
"""Labels of images without classes."""


class ImageSet(Protocol):
    """Labelled images: indexable, each item an (H, W, 3) uint8 RGB array and a class number."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on how the images were found: the rule of the split, what was left out."""

    @property
    def rendered_split(self) -> Split | None:
        """Split that images were rendered for; None for files."""

    def name(self, index: int) -> str:
        """Returns the name of an image: the path of its file, or for example ``typefaces test 12``."""

    def class_numbers(self) -> list[int]:
        """Returns the class number of each image without decoding one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]: ...


@dataclass(frozen=True)
class Files:
    """Image files and their classes.

    Attributes:
        labels: class names.
        samples: path and class number of each image.
        notes: see :class:`ImageSet`.
        at_least: rows and columns that suffice, 0 for all; see :func:`gft_edge.data.images.read_image`.
    """

    labels: tuple[str, ...]
    samples: tuple[tuple[Path, int], ...]
    notes: tuple[str, ...] = ()
    at_least: int = 0

    @property
    def rendered_split(self) -> Split | None:
        """None: the images are files."""
        return None

    def name(self, index: int) -> str:
        """Returns the path of the file."""
        return str(self.samples[index][0])

    def class_numbers(self) -> list[int]:
        """Returns the class number of each image."""
        return [label for _, label in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        """Returns image (H, W, 3) uint8 RGB and class number; raises DataError if the file cannot be decoded."""
        path, label = self.samples[index]
        if not is_readable_format(path):
            raise DataError(f"image {path}: Pillow does not read {path.suffix} here; convert it to JPEG or PNG")
        return read_image(path, self.at_least), label


@dataclass(frozen=True)
class Subset:
    """Some images of a set, in the order given."""

    base: ImageSet
    indices: tuple[int, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names of the whole set."""
        return self.base.labels

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes of the whole set."""
        return self.base.notes

    @property
    def rendered_split(self) -> Split | None:
        """As of the whole set."""
        return self.base.rendered_split

    def name(self, index: int) -> str:
        """Returns the name in the whole set."""
        return self.base.name(self.indices[index])

    def class_numbers(self) -> list[int]:
        """Returns the class number of each image."""
        whole = self.base.class_numbers()
        return [whole[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        return self.base[self.indices[index]]


@dataclass(frozen=True)
class Relabelled:
    """A set whose classes have other numbers.

    Attributes:
        base: the images.
        labels: class names.
        numbers: for each class of ``base``, its number in ``labels``.
        notes: see :class:`ImageSet`.
    """

    base: ImageSet
    labels: tuple[str, ...]
    numbers: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def rendered_split(self) -> Split | None:
        """As of the set below."""
        return self.base.rendered_split

    def name(self, index: int) -> str:
        """Returns the name in the base set."""
        return self.base.name(index)

    def class_numbers(self) -> list[int]:
        """Returns the class number of each image."""
        return [self.numbers[label] for label in self.base.class_numbers()]

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        pixels, label = self.base[index]
        return pixels, self.numbers[label]


class Kept:
    """A set whose images stay in memory once read, those read first up to a limit; for a set that is read again and again.

    Args:
        base: the images.
        max_bytes: of the pixels that are kept.
    """

    rendered_split: Split | None

    def __init__(self, base: ImageSet, max_bytes: int) -> None:
        self.base, self.labels, self.notes, self.rendered_split = base, base.labels, base.notes, base.rendered_split
        self._room = max_bytes
        self._items: dict[int, tuple[npt.NDArray[np.uint8], int]] = {}

    def name(self, index: int) -> str:
        """Returns the name in the base set."""
        return self.base.name(index)

    def class_numbers(self) -> list[int]:
        """Returns the class number of each image."""
        return self.base.class_numbers()

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        found = self._items.get(index)
        if found is None:
            found = self.base[index]
            if found[0].nbytes <= self._room:
                self._room -= found[0].nbytes
                self._items[index] = found
        return found


def readable(images: ImageSet) -> ImageSet:
    """Returns the images without files of formats that Pillow does not read here."""
    if isinstance(images, Files):
        samples = tuple(sample for sample in images.samples if is_readable_format(sample[0]))
        if images.samples and not samples:
            raise DataError(
                f"image {images.samples[0][0]}: Pillow reads none of these images here; convert them to JPEG"
            )
        return dataclasses.replace(images, samples=samples)
    if isinstance(images, Subset) and isinstance(images.base, Files):
        samples = images.base.samples
        return Subset(images.base, tuple(i for i in images.indices if is_readable_format(samples[i][0])))
    return images


def decoded_smaller(images: ImageSet, at_least: int) -> ImageSet:
    """Returns the images with JPEG files decoded no larger than needed, see :func:`gft_edge.data.images.read_image`."""
    if isinstance(images, Files):
        return dataclasses.replace(images, at_least=at_least)
    if isinstance(images, (Subset, Relabelled)):
        return dataclasses.replace(images, base=decoded_smaller(images.base, at_least))
    return images


def spread(total: int, count: int) -> tuple[int, ...]:
    """Returns ``count`` indices below ``total``, evenly spaced from the first to the last."""
    return tuple(int(i) for i in np.linspace(0, total - 1, count).round())
