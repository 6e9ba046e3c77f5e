"""Image sets for a given model: which data it was trained on, and images with the model's class numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from gft_edge.data.batches import Problem
from gft_edge.data.datasets import is_folder, is_rendered, match_labels, open_images
from gft_edge.data.intact import intact_part
from gft_edge.data.sets import ImageSet
from gft_edge.data.splits import Split
from gft_edge.data.trained import not_trained_on, trained_on
from gft_edge.errors import ConfigError, DataError

EVERYTHING = 1 << 30
"""Images, more than a folder has."""
Note = Callable[[str], None]
"""Receives a line of information for people."""


@dataclass(frozen=True)
class Request:
    """Labelled images that are asked for.

    Attributes:
        data: as for :func:`~gft_edge.data.datasets.open_images`.
        split: which part.
        images: how many at most.
        seed: of rendered images.
    """

    data: str
    split: Split
    images: int
    seed: int = 0


def known_data(data: str | None, trained_on: str, where: object) -> str:
    """Returns the data set that is given, or the one that the model was trained on.

    Args:
        data: what the user gives, or None.
        trained_on: data set that the model records, or an empty text.
        where: name of the model, for messages.

    Raises:
        ConfigError: none is given and the model records none.
        DataError: the folder that the model records does not exist.
    """
    if data is not None:
        return data
    if not trained_on:
        raise ConfigError(f"{where}: does not record the data it was trained on; give --data")
    _, colon, after = trained_on.partition(":")
    needs_folder = bool(colon) or not is_rendered(trained_on)
    root = Path(trained_on if is_folder(trained_on) else after)
    if needs_folder and not root.is_dir():
        raise DataError(f"data {trained_on}: no such folder here; {where} was trained on it, give --data")
    return trained_on


def labelled_images(
    request: Request, size: int, labels: tuple[str, ...], model: Path | None = None, note: Note | None = None
) -> ImageSet:
    """Opens a data set with the model's class numbers, matched by name.

    Args:
        request: which images.
        size: pixels of rendered images.
        labels: classes of the model.
        model: folder of a checkpoint or an artefact; val and test images that it was trained on are left out.
        note: receives how the images were found; without it nothing is passed on.

    Raises:
        DataError: nothing usable is there, or the model does not know a class.
    """
    found = match_labels(
        open_images(request.data, request.split, request.images, size, request.seed), labels, request.data
    )
    if model is not None:
        found = not_trained_on(found, model, request.split, request.data)
    if note is not None:
        forward_notes(found, note)
    return found


def intact_images(
    request: Request, size: int, labels: tuple[str, ...], model: Path, note: Note | None, problem: Problem | None
) -> tuple[ImageSet, tuple[str, ...]]:
    """As :func:`labelled_images`, with damaged images replaced by the next ones of the data; also returns their names.

    Args:
        request, size, labels, model, note: of :func:`labelled_images`.
        problem: receives the reason for each image that is left out; without it no image is tried.

    Raises:
        DataError: see :func:`labelled_images`; or more than a tenth of the images that were tried cannot be read.
    """

    def whole() -> ImageSet:
        return labelled_images(replace(request, images=EVERYTHING), size, labels)

    def usable(path: Path) -> bool:
        return request.split == "train" or not trained_on([path], model)[0]

    found = labelled_images(request, size, labels, model, note)
    return intact_part(found, whole, request.data, problem, usable)


def forward_notes(images: ImageSet, note: Note) -> None:
    """Passes the notes of an image set to a callback."""
    for text in images.notes:
        note(f"data: {text}")


def once(note: Note | None) -> Note:
    """Returns a callback that forwards each text the first time only; without ``note`` it does nothing."""
    forwarded: set[str] = set()

    def forward(text: str) -> None:
        if note is not None and text not in forwarded:
            forwarded.add(text)
            note(text)

    return forward
