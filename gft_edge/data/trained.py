"""The images that a model was trained on, known again by their content, wherever their files lie."""

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
:func:`~gft_edge.data.splits.content_key`, sorted. There is none where no image was a file."""

Keys = npt.NDArray[np.uint64]


def samples_of(images: ImageSet) -> list[tuple[Path, int]] | None:
    """File and class number of each image; None where images are no files."""
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
    """The file of each image; None where images are no files."""
    samples = samples_of(images)
    return None if samples is None else [path for path, _ in samples]


def write_trained(folder: Path, images: ImageSet | None, *earlier: Path) -> None:
    """Writes the keys of training images and of those that were trained on before; nothing where there are none.

    Args:
        folder: of the checkpoint or artefact.
        images: that it is trained on, None for no further ones.
        earlier: folders of the checkpoints it comes from.
    """
    paths = None if images is None else paths_of(images)
    keys = np.unique(np.concatenate([_keys(paths or ()), *(read_trained(each) for each in earlier)]))
    if len(keys):
        with replacing(folder / TRAINED) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, keys=keys)


def read_trained(folder: Path) -> Keys:
    """Keys of the images that a checkpoint or an artefact was trained on, as far as they are known.

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
        raise ArtifactError(f"{file}: damaged ({error}); remove it to go on without it") from None
    if keys.dtype != np.uint64 or keys.ndim != 1:
        raise ArtifactError(f"{file}: damaged (keys of {keys.dtype}); remove it to go on without it")
    return keys


def not_trained_on(images: ImageSet, folder: Path, split: Split, where: str) -> ImageSet:
    """The images without those that the model was trained on, and how many these were among the notes.

    Training images are given back as they are.

    Args:
        images: of ``split``.
        folder: of the checkpoint or artefact.
        split: what the images are called.
        where: name of the data, for messages.

    Raises:
        DataError: nothing is left.
    """
    samples = None if split == "train" else samples_of(images)
    known = read_trained(folder)
    if not samples or not len(known):
        return images
    is_known = np.isin(_keys([path for path, _ in samples]), known)
    if not is_known.any():
        return images
    if is_known.all():
        raise DataError(f"data {where}: the model was trained on all {len(images)} {split} images; give other data")
    note = f"left out: {is_known.sum()} {split} images of {where} that the model was trained on"
    kept = tuple(sample for sample, trained in zip(samples, is_known) if not trained)
    return Files(images.labels, kept, (*images.notes, note))


def _keys(paths: Sequence[Path]) -> Keys:
    return np.array([int.from_bytes(content_key(path)[:8], "big") for path in paths], np.uint64)
