"""The accuracy loop: right and wrong answers of models on labelled images, by class and by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gft_edge.data.batches import batch_count, indexed_batches
from gft_edge.errors import DataError
from gft_edge.preprocess import PreprocessSpec
from gft_edge.progress import Track, silent
from gft_edge.runtime.finite import require_finite
from gft_edge.stats.metrics import softmax, wilson_interval

if TYPE_CHECKING:
    from gft_edge.data.sets import ImageSet

Forward = Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]
"""Computes logits (B, classes) of preprocessed images (B, 3, H, W) float32."""

TOP5_CLASSES = 6
"""With fewer classes, all answers or all but one are among the five best."""
CONFUSION_CLASSES = 200
"""With more classes the JSON form has no confusion matrix."""
WRONG_KEPT = 24


@dataclass(frozen=True)
class Wrong:
    """An image that the model classifies wrongly.

    Attributes:
        index: in the image set.
        image: its name.
        truth, predicted: class numbers.
        probability: of the predicted class.
    """

    index: int
    image: str
    truth: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of one model on labelled images.

    Attributes:
        labels: class names.
        confusion: images by true class (row) and predicted class (column), (C, C) int64.
        top5_right: images whose class is among the five most probable.
        wrong: the wrong predictions of the highest probability, at most ``WRONG_KEPT``, the highest first.
    """

    labels: tuple[str, ...]
    confusion: npt.NDArray[np.int64]
    top5_right: int
    wrong: tuple[Wrong, ...]

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def right(self) -> int:
        """Number of images whose most probable class is the true one."""
        return int(np.trace(self.confusion))

    @property
    def top1(self) -> float:
        """Share of right answers."""
        return self.right / self.count

    @property
    def top5(self) -> float | None:
        """Share of images whose class is among the five most probable; None below six classes."""
        return self.top5_right / self.count if len(self.labels) >= TOP5_CLASSES else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of :attr:`top1`."""
        return wilson_interval(self.right, self.count)

    def per_class(self) -> list[tuple[str, int, int]]:
        """Returns label, number of right answers and number of images of every class, in the order of the labels."""
        right, count = np.diagonal(self.confusion), self.confusion.sum(axis=1)
        return [(label, int(r), int(c)) for label, r, c in zip(self.labels, right, count)]

    def confused(self, at_most: int) -> list[tuple[str, str, int]]:
        """Returns true class, predicted class and number of images of the most frequent mistakes, in that order."""
        mistakes = self.confusion - np.diag(np.diagonal(self.confusion))
        order = np.argsort(-mistakes, axis=None, kind="stable")[:at_most]
        rows, cols = np.unravel_index(order, mistakes.shape)
        found = ((self.labels[row], self.labels[col], int(mistakes[row, col])) for row, col in zip(rows, cols))
        return [mistake for mistake in found if mistake[2]]

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; ``picture`` of wrong predictions is empty."""
        data = {
            "right": self.right,
            "top1": self.top1,
            "interval": list(self.interval),
            "top5": self.top5,
            "per_class": [{"label": label, "right": right, "count": count} for label, right, count in self.per_class()],
            "wrong_total": self.count - self.right,
            "wrong": [
                {
                    "image": wrong.image,
                    "truth": self.labels[wrong.truth],
                    "predicted": self.labels[wrong.predicted],
                    "probability": wrong.probability,
                    "picture": "",
                }
                for wrong in self.wrong
            ],
        }
        if len(self.labels) <= CONFUSION_CLASSES:
            data["confusion"] = self.confusion.tolist()
        return data


class _Answers:
    """Collects the answers of one model, batch by batch."""

    def __init__(self, where: str, labels: tuple[str, ...]) -> None:
        self.where, self.labels = where, labels
        self.confusion = np.zeros((len(labels), len(labels)), np.int64)
        self.top5_right = 0
        self.wrong: list[Wrong] = []

    def add(
        self,
        logits: npt.NDArray[Any],
        truth: npt.NDArray[np.int64],
        indices: Sequence[int],
        names: Callable[[int], str],
    ) -> None:
        """Counts logits (B, classes) of images with these indices and true classes (B,)."""
        require_finite(logits, self.where)
        predicted = logits.argmax(axis=1)
        np.add.at(self.confusion, (truth, predicted), 1)
        own = np.take_along_axis(logits, truth[:, None], axis=1)
        # Of equal logits the first class comes first, as in argmax.
        earlier = np.arange(logits.shape[1]) < truth[:, None]
        better = (logits > own) | ((logits == own) & earlier)
        self.top5_right += int((better.sum(axis=1) < 5).sum())
        probability = softmax(logits)
        for row in np.flatnonzero(predicted != truth):
            best = int(predicted[row])
            index = indices[int(row)]
            self.wrong.append(Wrong(index, names(index), int(truth[row]), best, float(probability[row, best])))
        self.wrong = sorted(self.wrong, key=lambda wrong: (-wrong.probability, wrong.index))[:WRONG_KEPT]

    def result(self) -> Accuracy:
        """Returns the accuracy on all images that were added."""
        return Accuracy(self.labels, self.confusion, self.top5_right, tuple(self.wrong))


def measure_accuracy(
    models: Sequence[tuple[str, Forward]],
    images: ImageSet,
    labels: Sequence[str],
    spec: PreprocessSpec,
    problem: Callable[[str], None] | None = None,
    track: Track = silent,
) -> tuple[Accuracy, ...]:
    """Measures several models on the same images; each image is read once.

    Args:
        models: a name for messages and a function each.
        images: with the class numbers of ``labels``.
        labels: class names of the models.
        spec: preprocessing.
        problem: receives why an image cannot be read; the image is then left out. Without it, such an image is an error.
        track: shows progress, batch by batch.

    Returns:
        One result per model.

    Raises:
        DataError: an image cannot be read, or none of them.
        CheckFailed: logits that are NaN or infinite.
    """
    answers = [_Answers(name, tuple(labels)) for name, _ in models]
    seen = 0
    batches = indexed_batches(images, spec, problem=problem)
    for indices, pixels, truth in track(batches, "evaluate", batch_count(len(images))):
        seen += len(indices)
        for (_, forward), collected in zip(models, answers):
            collected.add(forward(pixels), truth, indices, images.name)
    if not seen:
        raise DataError("none of the images can be read")
    return tuple(collected.result() for collected in answers)
