"""Whether the selection of a focal model matters on given images: its accuracy with the patches of other rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gft_edge.budget import TokenBudget
from gft_edge.control_results import (
    Controls,
    Learned,
    SmallerImages,
    budget_controls,
    rule_accuracy,
)
from gft_edge.control_rules import SEEDS, Measured, other_images, require_selection
from gft_edge.data.datasets import held_out_split
from gft_edge.data.for_model import Note, Request, known_data, labelled_images
from gft_edge.data.marks import marks_of
from gft_edge.data.sets import ImageSet
from gft_edge.data.splits import Split
from gft_edge.errors import ConfigError
from gft_edge.manifest import Artifact
from gft_edge.model.macs import count_macs
from gft_edge.progress import Track, silent
from gft_edge.runtime.backends.sessions import ONNXRUNTIME

if TYPE_CHECKING:
    from gft_edge.checkpoint import Checkpoint

TORCH = "torch"


@dataclass(frozen=True)
class ControlOptions:
    """Options of :func:`controls`.

    Attributes:
        data: a name for :func:`~gft_edge.data.datasets.open_images`; None is the data that the model was trained on.
        split: None is test, or val where there are no test images.
        images: number of images at most.
        budgets: token budgets, as texts, of an artefact those of its family; none given: the model's own.
        threads: 0 takes one per core.

    Raises:
        ConfigError: a negative number of threads.
    """

    data: str | None = None
    split: Split | None = None
    images: int = 400
    budgets: tuple[str, ...] = ()
    threads: int = 0

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ConfigError(f"threads must be 0 (one per core) or more, found {self.threads}")


class _Found(NamedTuple):
    """Answers at the budgets, in their order, the number of images for the static places, and networks on smaller images."""

    measured: Measured
    learned: int
    smaller: Sequence[SmallerImages | None]


class _Images(NamedTuple):
    """Images to classify and others for the static places; receivers of problems and progress; the model's name for messages."""

    classified: ImageSet
    others: ImageSet
    problem: Callable[[str], None]
    track: Track
    where: str


class _Subject(NamedTuple):
    """A model at some budgets; ``run`` measures the rules."""

    backend: str
    precision: str
    budgets: Sequence[TokenBudget]
    run: Callable[[_Images], _Found]


def controls(
    model: Checkpoint | Artifact,
    options: ControlOptions | None = None,
    note: Note | None = None,
    track: Track = silent,
) -> Controls:
    """Measures a model with the most important, random, least important, static and central patches, at each budget.

    Images that the model was trained on, and images that cannot be read, are left out. Where the data knows its marks
    (:mod:`gft_edge.data.marks`) an oracle that keeps them is measured too. A checkpoint runs in PyTorch, and as the same weights
    on smaller images besides. Of an artefact the exported graph runs in ONNX Runtime, with other patches entering its
    selections; it needs no PyTorch.

    Args:
        model: an opened checkpoint of a focal model, or an artefact of one.
        options: defaults where None.
        note: receives how the images were found.
        track: shows progress, batch by batch.

    Raises:
        ConfigError: the model has no selection that its logits depend on; a budget that does not fit or drops nothing; no data
            given or recorded.
        ArtifactError: a damaged artefact, or one without a graph of a budget.
        DataError: nothing usable in the data, or the model does not know a class.
        CheckFailed: NaN or infinite logits.
        MissingExtraError: onnx or ONNX Runtime is not installed.
    """
    options = options or ControlOptions()
    is_artifact = isinstance(model, Artifact)
    source = model.manifest if isinstance(model, Artifact) else model.info
    where = f"{'artefact' if is_artifact else 'checkpoint'} {model.path}"
    require_selection(source.model, where)
    subject = _artifact(model, options) if isinstance(model, Artifact) else _checkpoint(model, options)
    data = known_data(options.data, source.data, where)
    split = options.split or held_out_split(data)
    request = Request(data, split, options.images)
    images = labelled_images(request, source.model.image_size, source.labels, model.path, note)
    learned, others = other_images(data, split, source.model.image_size)
    unreadable: list[str] = []
    measured, used, smaller = subject.run(_Images(images, others, unreadable.append, track, where))
    config, full = source.model, source.model.full_budget
    budgets = []
    for budget, rights, recalls, network in zip(subject.budgets, measured.rights, measured.recalls, smaller):
        known = {name: value for name, value in recalls.items() if not np.isnan(value)}
        budgets.append(budget_controls(budget.id, count_macs(config, budget), rights, known, network))
    return Controls(
        subject.backend,
        subject.precision,
        data,
        split,
        measured.images,
        tuple(unreadable),
        SEEDS,
        Learned(data, learned, used),
        marks_of(images) is not None,
        None if measured.full is None else (full.id, count_macs(config, full), rule_accuracy("all", measured.full)),
        tuple(budgets),
    )


def _artifact(artifact: Artifact, options: ControlOptions) -> _Subject:
    from gft_edge.control_artifact import every_patch, learn_places, measure_graphs, members, open_graphs

    found = members(artifact, options.budgets)
    graphs = open_graphs(found, options.threads)
    full = every_patch(artifact, options.threads)

    def run(images: _Images) -> _Found:
        static, used = learn_places(graphs, images.others, artifact.manifest.preprocess, images.track)
        measured = measure_graphs(graphs, full, images.classified, static, images.problem, images.track, images.where)
        return _Found(measured, used, [None] * len(graphs))

    budgets = [member.manifest.budget for member in found]
    return _Subject(ONNXRUNTIME, artifact.manifest.precision, budgets, run)


def _checkpoint(checkpoint: Checkpoint, options: ControlOptions) -> _Subject:
    from gft_edge.control_checkpoint import learn_places, measure_rules, on_smaller_images, require_dropping
    from gft_edge.evaluation import torch_threads

    info, model = checkpoint.info, checkpoint.model
    budgets = [info.model.parse_budget(text) for text in options.budgets or (info.model.budget.id,)]
    budgets = list(dict.fromkeys(budgets))
    for budget in budgets:
        require_dropping(budget, info.model)

    def run(images: _Images) -> _Found:
        with torch_threads(options.threads):
            static, used = learn_places(model, info.model, images.others, info.preprocess, images.track)
            smaller = (
                [None] * len(budgets)
                if info.quantization is not None
                else [on_smaller_images(model, info.model, budget) for budget in budgets]
            )
            measured = measure_rules(
                model,
                info.model,
                budgets,
                images.classified,
                info.preprocess,
                static,
                smaller,
                images.problem,
                images.track,
                images.where,
            )
        return _Found(measured, used, [None if network is None else network[0] for network in smaller])

    precision = "fp32" if info.quantization is None else str(info.quantization["precision"])
    return _Subject(TORCH, precision, budgets, run)
