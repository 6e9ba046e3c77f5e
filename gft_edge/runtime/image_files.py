"""Classifies image files one batch after another; a file that cannot be read does not stop the others."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.data.images import read_image
from gft_edge.errors import DataError, OutputError
from gft_edge.files import replacing
from gft_edge.progress import Track, silent
from gft_edge.runtime.classifier import Classifier, Prediction, grouped


@dataclass(frozen=True)
class ClassifiedFile:
    """Result for one file.

    Attributes:
        path: of the file.
        prediction: None where the file cannot be read.
        problem: why it cannot be read; else empty.
        seen: the network's input, (height, width, 3) uint8, where requested.
    """

    path: Path
    prediction: Prediction | None = None
    problem: str = ""
    seen: npt.NDArray[np.uint8] | None = None


def classify_files(classifier: Classifier, paths: Iterable[Path], keep_seen: bool = False) -> Iterator[ClassifiedFile]:
    """Yields one result per file, in order; holds one decoded file and one batch of preprocessed images in memory.

    Args:
        classifier: an opened artefact; batches are as large as it takes.
        paths: of image files.
        keep_seen: results hold the network's input.

    Raises:
        CheckFailed: logits that are NaN or infinite.
        MissingExtraError: Pillow is not installed.
    """
    spec = classifier.artifact.manifest.preprocess
    for group in grouped(paths, classifier.artifact.manifest.batch[2]):
        prepared: dict[int, npt.NDArray[Any]] = {}
        seen: dict[int, npt.NDArray[np.uint8]] = {}
        problems: dict[int, str] = {}
        for number, path in enumerate(group):
            try:
                image = read_image(path)
            except DataError as error:
                problems[number] = str(error)
                continue
            prepared[number] = classifier.prepare([image])
            if keep_seen:
                seen[number] = spec.geometry(image)
            del image  # it may be large, and the next one is read before the name is bound again
        predictions: dict[int, Prediction] = {}
        if prepared:
            predictions = dict(zip(prepared, classifier.infer(np.concatenate(list(prepared.values())))))
        for number, path in enumerate(group):
            yield ClassifiedFile(path, predictions.get(number), problems.get(number, ""), seen.get(number))


Draw = Callable[[int, ClassifiedFile], str]
"""Draws the map of the file of a number, and returns the path of the drawing."""


@dataclass
class FilePredictions:
    """Predictions of image files as plain JSON values.

    Attributes:
        rows: of each classified file: image, label, probability, the most probable classes, file of its map.
        unreadable: of each other file: image and problem.
        not_drawn: why maps could not be written; the first such map ends the drawing.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[dict[str, str]] = field(default_factory=list)
    not_drawn: OutputError | None = None

    def require_any(self) -> None:
        """Raises DataError if no file was classified."""
        if self.rows:
            return
        if len(self.unreadable) == 1:
            raise DataError(self.unreadable[0]["problem"])
        raise DataError(f"none of the {len(self.unreadable)} images can be read")


def predict_files(
    classifier: Classifier, paths: Sequence[Path], top: int = 1, draw: Draw | None = None, track: Track = silent
) -> FilePredictions:
    """Classifies image files and draws their maps.

    Args:
        classifier: an opened artefact.
        paths: of image files.
        top: number of most probable classes in a row.
        draw: draws the map of one file; None draws none.
        track: shows progress, file by file.

    Raises:
        CheckFailed: logits that are NaN or infinite.
        MissingExtraError: Pillow is not installed.
    """
    found = FilePredictions()
    files = classify_files(classifier, paths, keep_seen=draw is not None)
    for number, done in enumerate(track(files, "predict", len(paths))):
        if done.prediction is None:
            found.unreadable.append({"image": str(done.path), "problem": done.problem})
            continue
        drawn = ""
        if draw is not None and found.not_drawn is None:
            try:
                drawn = draw(number, done)
            except OutputError as error:  # the predictions are known all the same
                found.not_drawn = error
        best = done.prediction.top(top)
        found.rows.append(
            {
                "image": str(done.path),
                "label": done.prediction.label,
                "probability": done.prediction.probability,
                "top": [{"label": label, "probability": probability} for label, probability in best],
                "map": drawn,
            }
        )
    return found


def write_csv(path: Path, rows: Sequence[dict[str, Any]], unreadable: Sequence[dict[str, str]]) -> None:
    """Writes one line per image: its best classes side by side, unreadable images with their problem at the end.

    Args:
        path: written whole or not at all.
        rows, unreadable: see :class:`FilePredictions`; at least one row.
    """
    ranks = range(2, len(rows[0]["top"]) + 1)
    more = [name for rank in ranks for name in (f"label_{rank}", f"probability_{rank}")]
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "probability", *more, "map", "problem"])
        for row in rows:
            best = [value for entry in row["top"] for value in (_utf8(entry["label"]), entry["probability"])]
            writer.writerow([_utf8(row["image"]), *best, _utf8(row["map"]), ""])
        for entry in unreadable:
            writer.writerow([_utf8(entry["image"]), *[""] * (2 + len(more)), "", _utf8(entry["problem"])])


def _utf8(text: str) -> str:
    """Returns a text that UTF-8 can encode: lone surrogates, as in file names that are no UTF-8, become U+FFFD."""
    return "".join("\ufffd" if 0xD800 <= ord(character) <= 0xDFFF else character for character in text)
