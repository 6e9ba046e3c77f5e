"""Opens a data set by name or path, and feeds it to torch in an order fixed by a seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from gft_edge.data.images import read_image
from gft_edge.data.typefaces import Typefaces
from gft_edge.errors import DataError
from gft_edge.preprocess import PreprocessSpec

Split = Literal["train", "val", "test"]
Augment = Literal["none", "light"]


class ImageSet(Protocol):
    """Labelled images: indexable, each item an (H, W, 3) uint8 RGB array and a class number."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]: ...


class FolderImages:
    """One sub-folder per class, as torchvision's ImageFolder reads it; prefers ROOT/split where it exists.

    Raises:
        DataError: no such folder, or no class folders with images in it.
    """

    def __init__(self, root: Path, split: Split) -> None:
        names = {"train": ("train",), "val": ("val", "valid"), "test": ("test", "val", "valid")}[split]
        folder = next((root / name for name in names if (root / name).is_dir()), root)
        others = [name for name in ("train", "val", "valid", "test") if (root / name).is_dir()]
        if folder == root and others:
            raise DataError(f"data {root}: has {', '.join(others)} but nothing for {split!r}")
        if not folder.is_dir():
            raise DataError(f"data {root}: no such folder; give 'typefaces' or a folder with one sub-folder per class")
        try:
            self._folder = ImageFolder(str(folder))
        except FileNotFoundError as error:
            raise DataError(f"data {folder}: expected one sub-folder of images per class ({error})") from None

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, the sub-folders' in alphabetical order."""
        return tuple(self._folder.classes)

    def __len__(self) -> int:
        return len(self._folder.samples)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        path, label = self._folder.samples[index]
        return read_image(Path(path)), label


def open_images(name: str, split: Split, num_images: int, size: int, seed: int = 0) -> ImageSet:
    """``"typefaces"`` or the path of an image folder.

    Args:
        name: data set name or path.
        split: which part; a folder without sub-folders named after splits gives all its images.
        num_images: how many (an image folder gives at most what it has, evenly spread over its list).
        size: pixels of rendered images.
        seed: of rendered images.

    Raises:
        DataError: nothing usable at that path.
    """
    if name == "typefaces":
        return Typefaces(split, num_images, size, seed)
    folder = FolderImages(Path(name), split)
    return folder if len(folder) <= num_images else Subset(folder, _spread(len(folder), num_images))


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


def _spread(total: int, count: int) -> tuple[int, ...]:
    return tuple(int(i) for i in np.linspace(0, total - 1, count).round())


class _Prepared(Dataset[tuple[Tensor, int]]):
    """Geometry and augmentation, item by item, in a worker; randomness depends on seed and step alone."""

    def __init__(self, images: ImageSet, spec: PreprocessSpec, augment: Augment, seed: int) -> None:
        self.images, self.spec, self.augment, self.seed = images, spec, augment, seed
        self._light = v2.Compose(
            [
                v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
                v2.RandomApply([v2.RandomAffine(degrees=5, translate=(0.05, 0.05), scale=(0.9, 1.1))], p=0.5),
            ]
        )

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        draw, index = key
        pixels, label = self.images[index]
        image = torch.from_numpy(np.ascontiguousarray(self.spec.geometry(pixels)))
        if self.augment == "light":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(np.random.SeedSequence([self.seed, draw]).generate_state(1)[0]))
                image = self._light(image.permute(2, 0, 1)).permute(1, 2, 0)
        return image, label


def training_batches(
    images: ImageSet,
    spec: PreprocessSpec,
    batch_size: int,
    steps: Iterable[int],
    seed: int,
    augment: Augment = "none",
    num_workers: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches number ``steps``: each epoch is a permutation fixed by seed and epoch, so any step can be resumed at.

    Yields:
        images (B, 3, H, W) float32 normalised, labels (B,) int64.
    """

    def keys() -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in steps:
            batch = []
            for draw in range(step * batch_size, (step + 1) * batch_size):
                if draw // len(images) != epoch:
                    epoch = draw // len(images)
                    order = np.random.default_rng([seed, epoch]).permutation(len(images))
                batch.append((draw, int(order[draw % len(images)])))
            yield batch

    loader = DataLoader(
        _Prepared(images, spec, augment, seed),
        batch_sampler=keys(),
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=_one_thread,
    )
    try:
        for pixels, labels in loader:
            yield _normalized(pixels, spec), labels
    except DataError as error:  # a worker's traceback precedes its message
        raise DataError(str(error).strip().splitlines()[-1].removeprefix("gft_edge.errors.DataError: ")) from None


def evaluation_batches(
    images: ImageSet, spec: PreprocessSpec, batch_size: int = 64
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """All images in order, preprocessed: (B, 3, H, W) float32 and labels (B,)."""
    for start in range(0, len(images), batch_size):
        items = [images[i] for i in range(start, min(start + batch_size, len(images)))]
        pixels = np.stack([spec.geometry(image) for image, _ in items])
        yield spec.normalize(pixels), np.array([label for _, label in items], dtype=np.int64)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _normalized(pixels: Tensor, spec: PreprocessSpec) -> Tensor:
    return torch.from_numpy(spec.normalize(pixels.numpy()))


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
