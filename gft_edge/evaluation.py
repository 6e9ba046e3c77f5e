"""Accuracy of a checkpoint at several token budgets, or of an artefact, on labelled images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gft_edge.data.datasets import held_out_split
from gft_edge.data.for_model import Note, Request, known_data, labelled_images
from gft_edge.data.sets import ImageSet
from gft_edge.data.splits import Split
from gft_edge.errors import ConfigError
from gft_edge.manifest import Artifact
from gft_edge.preprocess import PreprocessSpec
from gft_edge.progress import Track, silent
from gft_edge.runtime.accuracy import Accuracy, Forward, measure_accuracy
from gft_edge.runtime.backends.sessions import open_session
from gft_edge.runtime.backends.table import DEFAULT

if TYPE_CHECKING:
    from gft_edge.checkpoint import Checkpoint, CheckpointInfo
    from gft_edge.manifest import DeploymentManifest


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of :func:`evaluate`.

    Attributes:
        data: a name for :func:`~gft_edge.data.datasets.open_images`; None is the data that the model was trained on.
        split: None is test, or val where there are no test images.
        images: number of images at most.
        budgets: token budgets of a checkpoint, as texts; none given: all patches, and the checkpoint's own budget.
        backend: of an artefact, see :data:`gft_edge.runtime.backends.table.BACKENDS`.
        threads: 0 takes one per core.

    Raises:
        ConfigError: a negative number of threads.
    """

    data: str | None = None
    split: Split | None = None
    images: int = 1600
    budgets: tuple[str, ...] = ()
    backend: str = DEFAULT
    threads: int = 0

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ConfigError(f"threads must be 0 (one per core) or more, found {self.threads}")


@dataclass(frozen=True)
class BudgetAccuracy:
    """Accuracy at one token budget.

    Attributes:
        budget: its id.
        precision: of the linear layers.
        accuracy: measured figures.
    """

    budget: str
    precision: str
    accuracy: Accuracy


@dataclass(frozen=True)
class Evaluation:
    """Result of :func:`evaluate`.

    Attributes:
        backend: ``"torch"`` for a checkpoint.
        data, split: of the images.
        results: one per budget, on the same images.
        unreadable: one message for each image that was left out.
        images: the image set, with the images that are unreadable.
        preprocess: preprocessing of the model.
    """

    backend: str
    data: str
    split: Split
    results: tuple[BudgetAccuracy, ...]
    unreadable: tuple[str, ...]
    images: ImageSet
    preprocess: PreprocessSpec

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        first = self.results[0].accuracy
        return {
            "backend": self.backend,
            "data": self.data,
            "split": self.split,
            "images": first.count,
            "unreadable_images": len(self.unreadable),
            "labels": list(first.labels),
            "results": [
                {"budget": result.budget, "precision": result.precision, **result.accuracy.to_json()}
                for result in self.results
            ],
        }


@dataclass(frozen=True)
class _Subject:
    """A checkpoint or an artefact as functions, one per budget.

    Attributes:
        name: kind and path, for messages.
        path: its folder.
        source: the properties that checkpoints and artefacts share.
        backend: for the record.
        precision: of the linear layers.
        forwards: each with the id of its budget.
    """

    name: str
    path: Path
    source: CheckpointInfo | DeploymentManifest
    backend: str
    precision: str
    forwards: list[tuple[str, Forward]]


def evaluate(
    model: Checkpoint | Artifact,
    options: EvaluationOptions | None = None,
    note: Note | None = None,
    track: Track = silent,
) -> Evaluation:
    """Measures the accuracy of a checkpoint in PyTorch, at each budget, or of an artefact in its backend.

    Images that the model was trained on, and images that cannot be read, are left out.

    Args:
        model: an opened checkpoint or artefact.
        options: defaults where None.
        note: receives how the images were found.
        track: shows progress, batch by batch.

    Raises:
        ConfigError: a budget that does not fit, or budgets for an artefact; unknown backend; no data given or recorded.
        DataError: nothing usable in the data, or the model does not know a class.
        ArtifactError: a damaged artefact.
        CheckFailed: NaN or infinite logits.
        MissingExtraError: the backend is not installed.
    """
    options = options or EvaluationOptions()
    if isinstance(model, Artifact):
        return _evaluate(_artifact_subject(model, options), options, note, track)
    with torch_threads(options.threads):
        return _evaluate(_checkpoint_subject(model, options), options, note, track)


def _evaluate(subject: _Subject, options: EvaluationOptions, note: Note | None, track: Track) -> Evaluation:
    source = subject.source
    data = known_data(options.data, source.data, subject.name)
    split = options.split or held_out_split(data)
    request = Request(data, split, options.images)
    images = labelled_images(request, source.model.image_size, source.labels, subject.path, note)
    unreadable: list[str] = []
    named = [(f"{subject.name} at {budget}", forward) for budget, forward in subject.forwards]
    found = measure_accuracy(named, images, source.labels, source.preprocess, unreadable.append, track)
    results = [
        BudgetAccuracy(budget, subject.precision, accuracy) for (budget, _), accuracy in zip(subject.forwards, found)
    ]
    return Evaluation(subject.backend, data, split, tuple(results), tuple(unreadable), images, source.preprocess)


def _artifact_subject(artifact: Artifact, options: EvaluationOptions) -> _Subject:
    if options.budgets:
        raise ConfigError("--budget is for checkpoints; an artefact's budget is compiled into its graph")
    manifest = artifact.manifest
    session = open_session(artifact, options.backend, options.threads)
    return _Subject(
        f"artefact {artifact.path}",
        artifact.path,
        manifest,
        options.backend,
        manifest.precision,
        [(manifest.budget.id, lambda pixels: session(pixels)["logits"])],
    )


def _checkpoint_subject(checkpoint: Checkpoint, options: EvaluationOptions) -> _Subject:
    from gft_edge.model.build import logits_function

    info = checkpoint.info
    config = info.model
    budgets = [config.parse_budget(text) for text in options.budgets or ("full", config.budget.id)]
    return _Subject(
        f"checkpoint {checkpoint.path}",
        checkpoint.path,
        info,
        "torch",
        "fp32" if info.quantization is None else str(info.quantization["precision"]),
        [(budget.id, logits_function(checkpoint.model, budget)) for budget in budgets],
    )


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Runs PyTorch with a number of threads inside the block; 0 leaves the number alone."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
