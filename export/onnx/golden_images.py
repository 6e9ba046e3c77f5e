"""Chooses the images whose inputs and outputs are stored in an artefact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gft_edge.data.batches import evaluation_batches
from gft_edge.data.datasets import held_out_split, is_folder, open_images, readable, split_names, unlabelled_folder
from gft_edge.data.for_model import Note
from gft_edge.data.seeded import seeded_images
from gft_edge.data.sets import ImageSet, Subset, spread
from gft_edge.data.trained import not_trained_on
from gft_edge.errors import DataError, GFTEdgeError

if TYPE_CHECKING:
    from gft_edge.checkpoint import CheckpointInfo

COUNT = 16


@dataclass(frozen=True)
class GoldenImages:
    """Preprocessed images (B, 3, H, W) and a description of them for the manifest."""

    images: npt.NDArray[np.float32]
    source: str = ""


def choose_golden_images(
    info: CheckpointInfo, data: str | None = None, model: Path | None = None, note: Note | None = None
) -> GoldenImages:
    """Returns at most ``COUNT`` golden images.

    They need no labels, so data of any classes will do. Images of the data that the model was trained on are the most
    telling; images made from a seed replace them where that data cannot be read.

    Args:
        info: of the checkpoint.
        data: data set, or a folder of image files; None is the data that the checkpoint was trained on.
        model: folder of the checkpoint; images that it was trained on are called train images.
        note: receives which images are left out or replaced.

    Raises:
        DataError: ``data`` is given and cannot be used.
    """
    note = note or (lambda text: None)
    if data is not None:
        return _from_data(data, info, model, note)
    problem = "the checkpoint does not record the data it was trained on"
    if info.data:
        try:
            return _from_data(info.data, info, model, note)
        except GFTEdgeError as error:
            problem = str(error)
    note(f"export: golden images are made from a seed ({problem})")
    spec = info.preprocess
    pixels = seeded_images(COUNT, spec.height, spec.width)
    return GoldenImages(spec.normalize(pixels), f"{COUNT} images made from seed 0")


def _from_data(data: str, info: CheckpointInfo, model: Path | None, note: Note) -> GoldenImages:
    loose = unlabelled_folder(Path(data)) if is_folder(data) else None
    if loose is not None:
        images: ImageSet = readable(loose)
        kind = "images"
    else:
        names = split_names(data)
        split = held_out_split(data) if {"test", "val"}.intersection(names) else names[0]
        images = readable(open_images(data, split, COUNT, info.preprocess.height))
        if model is not None:
            try:
                images = not_trained_on(images, model, split, data)
            except DataError:  # all are training images: good enough to compare outputs on, under their true name
                split = "train"
        kind = f"{split} images"
    if len(images) > COUNT:
        images = Subset(images, spread(len(images), COUNT))
    batches = evaluation_batches(images, info.preprocess, problem=lambda text: note(f"left out: {text}"))
    golden = next((batch for batch, _ in batches), None)
    if golden is None:
        raise DataError(f"data {data}: none of its images can be read")
    return GoldenImages(golden, f"{len(golden)} {kind} of {data}")
