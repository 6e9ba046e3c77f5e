"""Images for a foreign model: of a data set, with class numbers where the classes are known, or made from a seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from gft_edge.data.batches import Problem
from gft_edge.data.datasets import held_out_split, is_folder, open_images, readable, unlabelled_folder
from gft_edge.data.for_model import EVERYTHING, Note, Request, forward_notes, labelled_images
from gft_edge.data.intact import intact_part, source_in_words
from gft_edge.data.seeded import seeded_images
from gft_edge.data.sets import NO_CLASSES, ImageSet, Subset, spread
from gft_edge.data.splits import Split
from gft_edge.errors import ConfigError
from gft_edge.export.foreign.model import ForeignModel
from gft_edge.export.foreign.opening import Model, open_model
from gft_edge.preprocess import PreprocessSpec

RANDOM_IMAGES = 16


@dataclass(frozen=True)
class ForeignImages:
    """Images of a data set for a foreign model.

    Attributes:
        images: with the model's class numbers if ``labels`` is not None.
        labels: of the classes; None where the images have none that the model knows.
        preprocess: of the pixels.
        source: in words, for reports.
        data, split: of the images.
        unreadable: names of images that were tried and left out.
    """

    images: ImageSet
    labels: tuple[str, ...] | None
    preprocess: PreprocessSpec
    source: str
    data: str
    split: Split
    unreadable: tuple[str, ...] = ()


def opened(paths: Sequence[str | Path]) -> tuple[Model, ...]:
    """Opens models; a float file among them gets the preprocessing that a quantized one made from it records.

    Raises:
        ArtifactError: see :func:`gft_edge.export.foreign.opening.open_model`.
    """
    models = [open_model(path) for path in paths]
    foreign = [model for model in models if isinstance(model, ForeignModel)]
    return tuple(with_knowledge(model, foreign) if isinstance(model, ForeignModel) else model for model in models)


def with_knowledge(model: ForeignModel, others: Iterable[ForeignModel]) -> ForeignModel:
    """Returns a model with the preprocessing and labels that a quantized model made from its file records."""
    for other in others:
        made_from = other.quantization.source_sha256 if other.quantization else None
        if model.preprocess is None and made_from == model.sha256:
            return dataclasses.replace(model, preprocess=other.preprocess, labels=other.labels)
    return model


def require_preprocess(model: ForeignModel) -> PreprocessSpec:
    """Returns the preprocessing of a model.

    Raises:
        ConfigError: it is not known.
    """
    if model.preprocess is None:
        raise ConfigError(
            f"--data: the preprocessing of {model.path} is not known, a plain ONNX file does not record it; quantize asks for it "
            "and keeps it in the folder that it writes: give that folder (bench takes it beside the file)"
        )
    return model.preprocess


def images_for(
    model: ForeignModel, data: str, split: Split | None, count: int, note: Note, problem: Problem | None = None
) -> ForeignImages:
    """Opens images of a data set.

    Classes are matched by name where the model's are known; else the data's, in order of their names, are taken for the model's if
    there are as many, as image folders are usually trained on.

    Args:
        model: with its preprocessing.
        data: as for :func:`gft_edge.data.datasets.open_images`, or a folder of image files without classes.
        split: None is test, or val where there are no test images.
        count: how many at most.
        note: receives how the images were found and which classes were assumed.
        problem: receives images that cannot be read; the next ones of the data take their places, see
            :mod:`gft_edge.data.intact`. Without it no image is tried.

    Raises:
        ConfigError: the preprocessing is not known.
        DataError: nothing usable is there, a class that the model does not know, or more than a tenth of the images that were
            tried cannot be read.
    """
    spec = require_preprocess(model)
    loose = unlabelled_folder(Path(data)) if is_folder(data) else None
    if loose is not None:
        whole = readable(loose)
        wanted = whole if len(whole) <= count else Subset(whole, spread(len(whole), count))
        found, unreadable = intact_part(wanted, lambda: whole, data, problem)
        source = source_in_words(f"{len(found)} images of {data}", unreadable)
        return ForeignImages(found, None, spec, source, data, split or "test", unreadable)
    part = split or held_out_split(data)

    def opened_up_to(images: int, note: Note | None) -> ImageSet:
        if is_named(model.labels):
            return labelled_images(Request(data, part, images), spec.height, model.labels, None, note)
        some = open_images(data, part, images, spec.height)
        if note is not None:
            forward_notes(some, note)
        return some

    found = opened_up_to(count, note)
    labels = model.labels if is_named(model.labels) else found.labels
    found, unreadable = intact_part(found, lambda: opened_up_to(EVERYTHING, None), data, problem)
    source = source_in_words(f"{len(found)} {part} images of {data}", unreadable)
    if len(labels) != model.classes or labels == NO_CLASSES:
        note(f"data: {model.path} has {model.classes} classes and {data} {len(labels)}: its labels are not used")
        return ForeignImages(found, None, spec, source, data, part, unreadable)
    if not is_named(model.labels):
        note(f"data: the classes of {data} in order of their names are taken for those of {model.path}")
    return ForeignImages(found, labels, spec, source, data, part, unreadable)


def is_named(labels: tuple[str, ...] | None) -> TypeGuard[tuple[str, ...]]:
    """Returns whether labels are names, and not the numbers that quantize writes where it knows none."""
    return labels is not None and labels != tuple(f"class_{number}" for number in range(len(labels)))


def random_images(model: ForeignModel) -> npt.NDArray[np.float32]:
    """Returns smooth preprocessed images (``RANDOM_IMAGES``, 3, H, W) made from seed 0."""
    rows, cols = model.size
    spec = model.preprocess or PreprocessSpec(rows, cols)
    return spec.normalize(seeded_images(RANDOM_IMAGES, rows, cols))
