"""Images for a foreign model: of a data set, with class numbers where the classes are known, or made from a seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from gft_edge.data.datasets import held_out_split, is_folder, open_images, readable, unlabelled_folder
from gft_edge.data.for_model import Note, Request, forward_notes, labelled_images
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
    """

    images: ImageSet
    labels: tuple[str, ...] | None
    preprocess: PreprocessSpec
    source: str
    data: str
    split: Split


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


def images_for(model: ForeignModel, data: str, split: Split | None, count: int, note: Note) -> ForeignImages:
    """Opens images of a data set.

    Classes are matched by name where the model's are known; else the data's, in order of their names, are taken for the model's if
    there are as many, as image folders are usually trained on.

    Args:
        model: with its preprocessing.
        data: as for :func:`gft_edge.data.datasets.open_images`, or a folder of image files without classes.
        split: None is test, or val where there are no test images.
        count: how many at most.
        note: receives how the images were found and which classes were assumed.

    Raises:
        ConfigError: the preprocessing is not known.
        DataError: nothing usable is there, or a class that the model does not know.
    """
    spec = require_preprocess(model)
    loose = unlabelled_folder(Path(data)) if is_folder(data) else None
    if loose is not None:
        found: ImageSet = readable(loose)
        found = found if len(found) <= count else Subset(found, spread(len(found), count))
        return ForeignImages(found, None, spec, f"{len(found)} images of {data}", data, split or "test")
    part = split or held_out_split(data)
    request = Request(data, part, count)
    if is_named(model.labels):
        found, labels = labelled_images(request, spec.height, model.labels, None, note), model.labels
    else:
        found = open_images(data, part, count, spec.height)
        forward_notes(found, note)
        labels = found.labels
    source = f"{len(found)} {part} images of {data}"
    if len(labels) != model.classes or labels == NO_CLASSES:
        note(f"data: {model.path} has {model.classes} classes and {data} {len(labels)}: its labels are not used")
        return ForeignImages(found, None, spec, source, data, part)
    if not is_named(model.labels):
        note(f"data: the classes of {data} in order of their names are taken for those of {model.path}")
    return ForeignImages(found, labels, spec, source, data, part)


def is_named(labels: tuple[str, ...] | None) -> TypeGuard[tuple[str, ...]]:
    """Returns whether labels are names, and not the numbers that quantize writes where it knows none."""
    return labels is not None and labels != tuple(f"class_{number}" for number in range(len(labels)))


def random_images(model: ForeignModel) -> npt.NDArray[np.float32]:
    """Returns smooth preprocessed images (``RANDOM_IMAGES``, 3, H, W) made from seed 0."""
    rows, cols = model.size
    spec = model.preprocess or PreprocessSpec(rows, cols)
    return spec.normalize(seeded_images(RANDOM_IMAGES, rows, cols))
