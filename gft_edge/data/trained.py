"""Records the images that a model was trained on and recognises them by their content, independent of their paths."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gft_edge.data.sets import Files, ImageSet, Relabelled, Subset
from gft_edge.data.splits import Split, content_key
from gft_edge.errors import ArtifactError, DataError
from gft_edge.files import replacing

TRAINED = "train_images.npz"
"""File of a checkpoint or an artefact: ``keys`` (N,) uint64, the first 8 bytes of each image's
:func:`~gft_edge.data.splits.content_key`, sorted. The file is missing if no image was a file."""

Keys = npt.NDArray[np.uint64]


def samples_of(images: ImageSet) -> list[tuple[Path, int]] | None:
    """Returns file and class number of each image; None if images are no files."""
    if isinstance(images, Files):
        return list(images.samples)
    if isinstance(images, Subset):
        below = samples_of(images.base)
        return None if below is None else [below[index] for index in images.indices]
    if isinstance(images, Relabelled):
        below = samples_of(images.base)
        return None if below is None else [(path, images.numbers[label]) for path, label in below]
    return None


def paths_of(images: ImageSet) -> list[Path] | None:
    """Returns the file of each image; None if images are no files."""
    samples = samples_of(images)
    return None if samples is None else [path for path, _ in samples]


def write_trained(folder: Path, images: ImageSet | None, *earlier: Path) -> None:
    """Writes the keys of training images and of earlier ones; writes no file if there are none.

    Args:
        folder: of the checkpoint or artefact.
        images: its training images, None for no further ones.
        earlier: folders of the checkpoints that it is derived from.
    """
    paths = None if images is None else paths_of(images)
    keys = np.unique(np.concatenate([_keys(paths or ()), *(read_trained(each) for each in earlier)]))
    if len(keys):
        with replacing(folder / TRAINED) as temporary, temporary.open("wb") as file:
            np.savez(file, keys=keys)


def read_trained(folder: Path) -> Keys:
    """Reads the known keys of the images that a checkpoint or an artefact was trained on.

    Raises:
        ArtifactError: the file is damaged.
    """
    file = folder / TRAINED
    if not file.is_file():
        return np.empty(0, np.uint64)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            keys = arrays["keys"]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{file}: damaged ({error}); remove it to continue without it") from None
    if keys.dtype != np.uint64 or keys.ndim != 1:
        raise ArtifactError(f"{file}: damaged (keys of {keys.dtype}); remove it to continue without it")
    return keys


def not_trained_on(images: ImageSet, folder: Path, split: Split, where: str) -> ImageSet:
    """Returns the images without those that the model was trained on; a note has their number.

    Returns images of train unchanged.

    Args:
        images: of ``split``.
        folder: of the checkpoint or artefact.
        split: part of the data.
        where: name of the data, for messages.

    Raises:
        DataError: nothing is left.
    """
    samples = None if split == "train" else samples_of(images)
    if not samples:
        return images
    is_known = trained_on([path for path, _ in samples], folder)
    if not is_known.any():
        return images
    if is_known.all():
        raise DataError(f"data {where}: the model was trained on all {len(images)} {split} images; give other data")
    note = f"left out: {is_known.sum()} {split} images of {where} that the model was trained on"
    kept = tuple(sample for sample, trained in zip(samples, is_known) if not trained)
    return Files(images.labels, kept, (*images.notes, note))


def trained_on(paths: Sequence[Path], folder: Path) -> npt.NDArray[np.bool_]:
    """Returns for each file whether the model in a folder was trained on it, (files,)."""
    known = read_trained(folder)
    return np.isin(_keys(paths), known) if len(known) else np.zeros(len(paths), np.bool_)


def _keys(paths: Sequence[Path]) -> Keys:
    return np.array([int.from_bytes(content_key(path)[:8], "big") for path in paths], np.uint64)
