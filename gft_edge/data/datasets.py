"""Data sets by name: the built-in typefaces, published benchmarks in their own layouts on disk, and image folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torchvision.datasets import FGVCAircraft, Food101, ImageFolder

from gft_edge.data.images import read_image
from gft_edge.data.typefaces import Split, Typefaces, font_folder_faces
from gft_edge.errors import DataError

FOOD_VAL_SHARE, FOOD_SEED = 0.2, 42  # as published: 80/20 of the training images


class ImageSet(Protocol):
    """Labelled images: indexable, each item an (H, W, 3) uint8 RGB array and a class number."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]: ...

    def name(self, index: int) -> str:
        """Names an image: the path of its file, or for example "typefaces test 12"."""
        ...


@dataclass(frozen=True)
class Files:
    """Image files and their classes.

    Attributes:
        labels: class names.
        samples: path and class number of each image.
    """

    labels: tuple[str, ...]
    samples: tuple[tuple[Path, int], ...]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        """Image (H, W, 3) uint8 RGB and its class; DataError when the file cannot be decoded."""
        path, label = self.samples[index]
        return read_image(path), label

    def name(self, index: int) -> str:
        """Path of an image."""
        return str(self.samples[index][0])


def open_images(name: str, split: Split, num_images: int, size: int, seed: int = 0) -> ImageSet:
    """A data set by name.

    Args:
        name: ``"typefaces"``; ``"typefaces:FOLDER"`` of .ttf and .otf files, one class each; ``"fgvc-aircraft:ROOT"``,
            ``"food101:ROOT"``, ``"coco:ROOT"`` in the layouts they are distributed in; else the path of an image folder
            with one sub-folder per class, below ``train``, ``val`` and ``test`` where there are such.
        split: which part; a folder without sub-folders named after splits gives all its images.
        num_images: how many (files on disk give at most what they have, evenly spread over their list).
        size: pixels of rendered images.
        seed: of rendered images.

    Raises:
        DataError: nothing usable there.
    """
    kind, colon, root = name.partition(":")
    if kind == "typefaces":
        return Typefaces(split, num_images, size, seed, font_folder_faces(Path(root)) if colon else None)
    known = colon and kind in _BENCHMARKS
    files = _benchmark(kind, Path(root), split) if known else image_folder(Path(name), split)
    return files if len(files) <= num_images else Subset(files, spread(len(files), num_images))


def image_folder(root: Path, split: Split) -> Files:
    """One sub-folder per class, as torchvision's ImageFolder reads it; prefers ROOT/split where it exists.

    Raises:
        DataError: no such folder, no class folders with images in it, or other splits only.
    """
    names = {"train": ("train",), "val": ("val", "valid"), "test": ("test", "val", "valid")}[split]
    folder = next((root / name for name in names if (root / name).is_dir()), root)
    others = [name for name in ("train", "val", "valid", "test") if (root / name).is_dir()]
    if folder == root and others:
        raise DataError(f"data {root}: has {', '.join(others)} but nothing for {split!r}")
    if not folder.is_dir():
        raise DataError(f"data {root}: no such folder; give 'typefaces' or a folder with one sub-folder per class")
    try:
        found = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise DataError(f"data {folder}: expected one sub-folder of images per class ({error})") from None
    return Files(tuple(found.classes), tuple((Path(path), label) for path, label in found.samples))


def fgvc_aircraft(root: Path, split: Split) -> Files:
    """FGVC-Aircraft, 100 variants: ROOT/fgvc-aircraft-2013b/data, with its own train, val and test."""
    return _files(FGVCAircraft(str(root), split=split, annotation_level="variant"))


def food101(root: Path, split: Split) -> Files:
    """Food-101: ROOT/food-101; val is 20 % of the training images drawn with seed 42, as published."""
    files = _files(Food101(str(root), split="test" if split == "test" else "train"))
    if split == "test":
        return files
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(FOOD_SEED)).tolist()
    num_train = len(files) - int(FOOD_VAL_SHARE * len(files))
    chosen = sorted(order[:num_train] if split == "train" else order[num_train:])
    return Files(files.labels, tuple(files.samples[index] for index in chosen))


def coco_single_label(root: Path, split: Split) -> Files:
    """COCO 2017 as classification: an image's class is the category of its first annotation; images without are dropped.

    ROOT/annotations/instances_{train,val}2017.json and ROOT/{train,val}2017; val and test are both val2017.
    """
    part = "train2017" if split == "train" else "val2017"
    data = json.loads((root / "annotations" / f"instances_{part}.json").read_text(encoding="utf-8"))
    categories = sorted(data["categories"], key=lambda category: category["id"])
    number = {category["id"]: index for index, category in enumerate(categories)}
    first: dict[int, int] = {}
    for annotation in data["annotations"]:
        first.setdefault(annotation["image_id"], number[annotation["category_id"]])
    samples = [
        (root / part / image["file_name"], first[image["id"]]) for image in data["images"] if image["id"] in first
    ]
    return Files(tuple(category["name"] for category in categories), tuple(samples))


_BENCHMARKS: dict[str, Callable[[Path, Split], Files]] = {
    "fgvc-aircraft": fgvc_aircraft,
    "food101": food101,
    "coco": coco_single_label,
}


def _benchmark(kind: str, root: Path, split: Split) -> Files:
    try:
        files = _BENCHMARKS[kind](root, split)
    except (RuntimeError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        layout = " ".join((_BENCHMARKS[kind].__doc__ or "").split())
        raise DataError(f"data {kind}:{root}: not found or damaged ({error!r}); expected {layout}") from None
    if not files.samples:
        raise DataError(f"data {kind}:{root}: no images for {split!r}")
    return files


def _files(dataset: Any) -> Files:
    """Paths and classes of a torchvision data set, read through its own loader hook."""
    dataset.loader = lambda path: path
    return Files(
        tuple(dataset.classes),
        tuple((Path(path), label) for path, label in map(dataset.__getitem__, range(len(dataset)))),
    )


@dataclass(frozen=True)
class Subset:
    """Some images of a set, in the order given."""

    base: ImageSet
    indices: tuple[int, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names of the whole set."""
        return self.base.labels

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        return self.base[self.indices[index]]

    def name(self, index: int) -> str:
        """What the whole set names the image."""
        return self.base.name(self.indices[index])


def spread(total: int, count: int) -> tuple[int, ...]:
    """``count`` indices below ``total``, evenly from the first to the last."""
    return tuple(int(i) for i in np.linspace(0, total - 1, count).round())


def require_labels(images: Sequence[str] | ImageSet, labels: Sequence[str], where: str) -> None:
    """Refuses data whose classes are not the model's.

    Raises:
        DataError: naming the first difference.
    """
    found = images.labels if not isinstance(images, Sequence) else tuple(images)
    if tuple(found) != tuple(labels):
        extra = sorted(set(found) ^ set(labels))[:3] or ["order differs"]
        raise DataError(
            f"data {where}: its {len(found)} classes are not the model's {len(labels)} (first differences: {extra})"
        )
