"""Accuracy of a foreign model on labelled images."""

from __future__ import annotations

from collections.abc import Callable

from gft_edge.data.for_model import Note
from gft_edge.data.splits import Split
from gft_edge.errors import ConfigError, DataError
from gft_edge.evaluation import BudgetAccuracy, Evaluation, EvaluationOptions
from gft_edge.export.foreign.images import ForeignImages, images_for
from gft_edge.export.foreign.model import ForeignModel
from gft_edge.export.foreign.opening import facts_of, open_foreign
from gft_edge.progress import Track, silent
from gft_edge.runtime.accuracy import Accuracy, measure_accuracy
from gft_edge.runtime.backends.table import DEFAULT

EVERY_PATCH = "every patch"
"""Stands for the budget in tables."""


def foreign_accuracy(
    model: ForeignModel,
    data: str,
    split: Split | None,
    count: int,
    backend: str = DEFAULT,
    threads: int = 0,
    note: Note = lambda text: None,
    problem: Callable[[str], None] | None = None,
    track: Track = silent,
) -> tuple[Accuracy, ForeignImages]:
    """Measures the accuracy of a foreign model.

    Args:
        model: with its preprocessing.
        data, split, count, note: see :func:`gft_edge.export.foreign.images.images_for`.
        backend, threads: see :func:`gft_edge.export.foreign.opening.open_foreign`.
        problem, track: see :func:`gft_edge.runtime.accuracy.measure_accuracy`.

    Returns:
        the accuracy, and the images it is of.

    Raises:
        ConfigError: the preprocessing is not known.
        DataError: the images have no labels that the model knows, or cannot be read.
    """
    found = images_for(model, data, split, count, note)
    if found.labels is None:
        raise DataError(
            f"data {data}: its classes are not the {model.classes} of {model.path}, and without labels there is no accuracy"
        )
    session = open_foreign(model, facts_of(model), backend, threads)
    forward = (str(model.path), lambda pixels: model.logits(session, pixels))
    (accuracy,) = measure_accuracy([forward], found.images, found.labels, found.preprocess, problem, track)
    return accuracy, found


def evaluate_foreign(model: ForeignModel, options: EvaluationOptions, note: Note, track: Track = silent) -> Evaluation:
    """As :func:`gft_edge.evaluation.evaluate`, of a foreign model.

    Raises:
        ConfigError: no data, budgets, or the preprocessing is not known.
        DataError: see :func:`foreign_accuracy`.
    """
    if options.budgets:
        raise ConfigError(f"--budget is for checkpoints; {model.path} is an ONNX file and computes every patch")
    if options.data is None:
        raise ConfigError(f"{model.path}: an ONNX file does not record the data it was trained on; give --data")
    unreadable: list[str] = []
    found, images = foreign_accuracy(
        model,
        options.data,
        options.split,
        options.images,
        options.backend,
        options.threads,
        note,
        unreadable.append,
        track,
    )
    result = BudgetAccuracy(EVERY_PATCH, facts_of(model).precision, found)
    return Evaluation(
        options.backend,
        images.data,
        images.split,
        (result,),
        tuple(unreadable),
        images.images,
        images.preprocess,
    )
