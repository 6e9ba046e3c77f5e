"""Images in batches for training, in an order fixed by a seed, with augmentation."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

from gft_edge.config.recipe import Augment
from gft_edge.data.batches import Problem
from gft_edge.data.sets import ImageSet, decoded_smaller
from gft_edge.errors import DataError, GFTEdgeError
from gft_edge.preprocess import PreprocessSpec

Item = tuple[Tensor, int, str]
"""Image (height, width, 3) uint8, class number, and the problem of the image that it replaces ("" without one)."""
Batch = tuple[Tensor, list[int], list[str]]

NEIGHBOURS = 8


def _augmentation(kind: Augment, size: tuple[int, int]) -> v2.Transform | None:
    """Returns a transform of (3, H, W) uint8 images, or None.

    ``"published"`` and ``"published-food"`` are those of the published GFT (arXiv 2504.09852), applied after the resizing of
    the preprocessing; ``"modern"`` crops the original image at random and is the usual choice for photographs.
    """
    bicubic = v2.InterpolationMode.BICUBIC
    if kind == "light":
        shifted = v2.RandomAffine(degrees=5, translate=(0.05, 0.05), scale=(0.9, 1.1))
        return v2.Compose([v2.ColorJitter(0.2, 0.2, 0.2), v2.RandomApply([shifted], p=0.5)])
    if kind == "published":
        return v2.Compose([v2.RandomHorizontalFlip(), v2.RandomAutocontrast(), v2.RandAugment(2, 9)])
    if kind == "published-food":
        return v2.Compose([v2.RandomHorizontalFlip(), v2.RandomAutocontrast()])
    if kind == "modern":
        crop = v2.RandomResizedCrop(size, scale=(0.35, 1.0), interpolation=bicubic, antialias=True)
        return v2.Compose([crop, v2.RandomHorizontalFlip(), v2.RandAugment(2, 9), v2.RandomErasing(0.25, value=127)])
    return None


class _Prepared(Dataset[Item | GFTEdgeError]):
    """Geometry and augmentation of one item at a time, in a worker; randomness depends only on seed and draw.

    Large JPEG files are decoded at a lower resolution, but at twice that of the network's input or more, which also suffices
    for the smallest crop of an augmentation.

    An image that cannot be read is replaced by its neighbour. Errors are returned, not raised: torch would replace the error
    by the text of the worker's traceback.
    """

    def __init__(self, images: ImageSet, spec: PreprocessSpec, augment: Augment, seed: int) -> None:
        suffices = math.ceil(2 * max(spec.height, spec.width) / spec.crop_ratio)
        self.images, self.spec, self.augment, self.seed = decoded_smaller(images, suffices), spec, augment, seed
        self.transform = _augmentation(augment, (spec.height, spec.width))

    def __getitem__(self, key: tuple[int, int]) -> Item | GFTEdgeError:
        try:
            return self._item(*key)
        except GFTEdgeError as error:
            return error

    def _item(self, draw: int, index: int) -> Item:
        problem = ""
        tried = min(len(self.images), NEIGHBOURS)
        for neighbour in range(tried):
            try:
                pixels, label = self.images[(index + neighbour) % len(self.images)]
            except DataError as error:
                problem = problem or str(error)
                continue
            return self._prepare(pixels, draw), label, problem
        raise DataError(f"{problem}; nor can the {tried - 1} images after it" if tried > 1 else problem)

    def _prepare(self, pixels: npt.NDArray[np.uint8], draw: int) -> Tensor:
        """Converts (H, W, 3) uint8 to (height, width, 3) uint8."""
        if self.augment != "modern":
            pixels = self.spec.geometry(pixels)
        image = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
        if self.transform is None:
            return image
        generator = torch.default_generator  # torch.manual_seed would record a stack trace for a GPU that is not in use
        before = generator.get_state()
        generator.manual_seed(int(np.random.SeedSequence([self.seed, draw]).generate_state(1)[0]))
        try:
            return self.transform(image.permute(2, 0, 1)).permute(1, 2, 0)
        finally:
            generator.set_state(before)


@dataclass(frozen=True)
class BatchOptions:
    """Options of :func:`training_batches`.

    Attributes:
        size: images in a batch.
        seed: for order and augmentation.
        augment: kind of augmentation.
        num_workers: processes that prepare images; 0 uses this process, None :func:`default_workers`.
        device: that computes with the batches.
    """

    size: int
    seed: int = 0
    augment: Augment = "none"
    num_workers: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def default_workers(device: torch.device) -> int:
    """Returns a suitable number of processes that prepare images.

    For a GPU all processors but one; for a CPU, which computes slower than a few processes prepare images, a quarter of them.
    The processes of torchrun share the processors.
    """
    share = _processors() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, share // 4 if device.type == "cpu" else share - 1)


def training_batches(
    images: ImageSet,
    spec: PreprocessSpec,
    numbers: Iterable[int],
    options: BatchOptions,
    problem: Problem | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields batches by number: each epoch is a permutation fixed by seed and epoch, so training can resume at any batch.

    Workers send bytes; the device normalises them. Copies to a GPU do not wait for it.

    Args:
        images: to draw from.
        spec: preprocessing.
        numbers: numbers of the batches.
        options: size, order, augmentation and device.
        problem: receives why an image cannot be read; its neighbour replaces the image. Without it, such an image is an
            error.

    Yields:
        images (B, 3, H, W) float32 normalised, labels (B,) int64, both on the device.

    Raises:
        DataError: an image cannot be read.
    """
    normalize = normalizer(spec, options.device)
    for pixels, labels in byte_batches(images, spec, numbers, options, problem):
        yield normalize(pixels), labels.to(options.device, non_blocking=True)


def byte_batches(
    images: ImageSet,
    spec: PreprocessSpec,
    numbers: Iterable[int],
    options: BatchOptions,
    problem: Problem | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the batches of :func:`training_batches` before normalisation: (B, height, width, 3) uint8 and labels (B,) int64.

    Both are in main memory, pinned if the device is a GPU.

    Args: as for :func:`training_batches`.

    Raises:
        DataError: an image cannot be read.
    """

    def keys() -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for number in numbers:
            batch = []
            for draw in range(number * options.size, (number + 1) * options.size):
                if draw // len(images) != epoch:
                    epoch = draw // len(images)
                    order = np.random.default_rng([options.seed, epoch]).permutation(len(images))
                batch.append((draw, int(order[draw % len(images)])))
            yield batch

    wanted = default_workers(options.device) if options.num_workers is None else options.num_workers
    num_workers = min(wanted, _processors())  # torch warns about more
    pinned = options.device.type == "cuda"
    loader: DataLoader[Item | GFTEdgeError] = DataLoader(
        _Prepared(images, spec, options.augment, options.seed),
        batch_sampler=keys(),
        collate_fn=_collate,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=_one_thread,
        pin_memory=pinned,
    )
    for batch in loader:
        if isinstance(batch, GFTEdgeError):
            raise batch
        pixels, labels, problems = batch
        for text in problems:
            if problem is None:
                raise DataError(text)
            problem(text)
        yield pixels, torch.tensor(labels, pin_memory=pinned)


def _collate(items: list[Item | GFTEdgeError]) -> Batch | GFTEdgeError:
    """Returns (B, height, width, 3) uint8, B labels and the problems; or the first error.

    Labels are numbers, not a tensor: each tensor of a worker is a shared file of its own.
    """
    good = []
    for item in items:
        if isinstance(item, GFTEdgeError):
            return item
        good.append(item)
    pixels = default_collate([image for image, _, _ in good])  # in a worker straight into shared memory
    return pixels, [label for _, label, _ in good], [text for _, _, text in good if text]


def normalizer(spec: PreprocessSpec, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Returns a function from (B, height, width, 3) uint8 in main memory to (B, 3, height, width) float32 on a device.

    Everywhere the result is that of :meth:`gft_edge.preprocess.PreprocessSpec.normalize`, bit for bit.
    """
    if device.type == "cpu":  # where NumPy takes half the time of torch
        return lambda pixels: torch.from_numpy(spec.normalize(pixels.numpy()))
    return functools.partial(normalized_on, device, spec)


def normalized_on(device: torch.device, spec: PreprocessSpec, pixels: Tensor) -> Tensor:
    """Moves bytes to a device and normalises them there, without waiting for it; see :func:`normalizer`."""
    scale, shift = _scale_and_shift(device, spec)
    planes = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)
    if spec.color_order == "bgr":
        planes = planes.flip(1)
    # Two operations: a fused product and sum would round once.
    return planes.to(torch.float32, memory_format=torch.contiguous_format).mul_(scale).add_(shift)


@functools.lru_cache(maxsize=8)
def _scale_and_shift(device: torch.device, spec: PreprocessSpec) -> tuple[Tensor, Tensor]:
    scale, shift = (torch.from_numpy(values).to(device)[:, None, None] for values in spec.scale_and_shift())
    return scale, shift


def _processors() -> int:
    """Returns the number of processors that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(usable(0)) if usable else os.cpu_count() or 1


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
