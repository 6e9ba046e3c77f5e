"""Classifies image files one batch after another; a file that cannot be read does not stop the others."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.data.images import read_image
from gft_edge.errors import DataError
from gft_edge.files import replacing
from gft_edge.runtime.classifier import Classifier, Prediction, grouped


@dataclass(frozen=True)
class ClassifiedFile:
    """What became of one file.

    Attributes:
        path: of the file.
        prediction: None where the file cannot be read.
        problem: why not; else empty.
        seen: the image as the network sees it, (height, width, 3) uint8, if it was asked for.
    """

    path: Path
    prediction: Prediction | None = None
    problem: str = ""
    seen: npt.NDArray[np.uint8] | None = None


def classify_files(classifier: Classifier, paths: Iterable[Path], keep_seen: bool = False) -> Iterator[ClassifiedFile]:
    """One result per file, in order. At any time one decoded file and one batch of preprocessed images are in memory.

    Args:
        classifier: an opened artefact; batches are as large as it takes.
        paths: of image files.
        keep_seen: whether results hold the image as the network sees it.

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
            outputs = classifier.session(np.concatenate(list(prepared.values())))
            predictions = dict(zip(prepared, classifier.decode(outputs)))
        for number, path in enumerate(group):
            yield ClassifiedFile(path, predictions.get(number), problems.get(number, ""), seen.get(number))


def row_of(classifier: Classifier, done: ClassifiedFile, top: int, drawn: str = "") -> dict[str, Any]:
    """A classified file as plain JSON values: image, label, probability, the ``top`` best classes, file of its map."""
    assert done.prediction is not None
    best = classifier.top(done.prediction, top)
    return {
        "image": str(done.path),
        "label": done.prediction.label,
        "probability": done.prediction.probability,
        "top": [{"label": label, "probability": probability} for label, probability in best],
        "map": drawn,
    }


def write_csv(path: Path, rows: Sequence[dict[str, Any]], unreadable: Sequence[dict[str, str]]) -> None:
    """Writes one line per image: its best classes side by side, unreadable images with their problem at the end.

    Args:
        path: written whole or not at all.
        rows: of :func:`row_of`, at least one.
        unreadable: image and problem of each.
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
    """A text that UTF-8 can hold: lone surrogates, as in file names that are no UTF-8, become U+FFFD."""
    return "".join("\ufffd" if 0xD800 <= ord(character) <= 0xDFFF else character for character in text)
