"""Accuracy at equal cost: a model that prunes large images, and the plain network trained for small ones, on the same images."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.benchmarks.experiments.resolution.curriculum import recorded_images
from gft_edge.benchmarks.experiments.resolution.plain_training import PlainOptions, smaller_spec, train_plain
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import Checkpoint, CheckpointInfo, load_checkpoint, read_info, resolve_checkpoint
from gft_edge.control_checkpoint import require_dropping
from gft_edge.control_rules import require_selection
from gft_edge.data.batches import batch_count, evaluation_batches
from gft_edge.data.datasets import held_out_split
from gft_edge.data.for_model import Request, known_data, labelled_images
from gft_edge.data.sets import ImageSet
from gft_edge.errors import ConfigError
from gft_edge.evaluation import torch_threads
from gft_edge.model.adapt import smaller_model
from gft_edge.model.build import logits_function
from gft_edge.model.macs import count_macs
from gft_edge.preprocess import PreprocessSpec
from gft_edge.progress import Track, silent
from gft_edge.runtime.accuracy import Forward
from gft_edge.runtime.finite import require_finite
from gft_edge.stats.metrics import wilson_interval
from gft_edge.stats.paired import paired_top1
from gft_edge.train.log import LOG

Classes = npt.NDArray[np.int64]
PRUNED, FULL, PLAIN, UNTRAINED = "pruned", "every patch", "smaller image, trained for it", "smaller image, untrained"


@dataclass(frozen=True)
class AccuracyOptions:
    """What is compared.

    Attributes:
        budget: of the pruned model, as text; None is the checkpoint's own.
        start: checkpoint that the plain network starts from; None is the compared one.
        size: pixels of the plain network's images; None is the size of the nearest cost.
        data: name of the images; None is what the checkpoint was trained on.
        images: test images at most.
        threads: of torch.
    """

    budget: str | None = None
    start: str | None = None
    size: int | None = None
    data: str | None = None
    images: int = 3200
    threads: int = 1


@dataclass(frozen=True)
class _Arm:
    """One network and the images it reads."""

    name: str
    forward: Forward
    spec: PreprocessSpec
    macs: int


def compare(
    name: str,
    out: Path,
    options: AccuracyOptions,
    training: PlainOptions,
    track: Track = silent,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains the plain network, or continues its training, and evaluates both on the same test images.

    Args:
        name: folder of a focal checkpoint, or ``"builtin"``.
        out: folder; the plain network goes into ``plain-SIZE`` in it.
        options: what is compared.
        training: of the plain network.
        track: shows progress.
        report: receives lines of text.

    Returns:
        plain JSON values: ``rows`` with cost and accuracy of each network, ``paired`` with the exact McNemar test and the interval
        of the difference from the pruned model, ``images_seen`` and ``validation`` of the training.

    Raises:
        ConfigError: the checkpoint does not select, is quantized, no smaller image exists, or the training does not fit.
    """
    checkpoint = load_checkpoint(name)
    info, where = checkpoint.info, f"checkpoint {checkpoint.path}"
    require_selection(info.model, where)
    if info.quantization is not None:
        raise ConfigError(
            f"{where}: is quantized, the plain network would not be; give the checkpoint it was made from"
        )
    budget = info.model.parse_budget(options.budget or info.model.budget.id)
    require_dropping(budget, info.model)
    data = known_data(options.data, info.data, where)
    split = held_out_split(data)
    images = labelled_images(Request(data, split, options.images), info.model.image_size, info.labels, checkpoint.path)
    size = options.size or _equal_size(checkpoint, budget)
    folder = out / f"plain-{size}"
    start = resolve_checkpoint(options.start or name)
    trained = train_plain(start, size, data, folder, training, track, report)
    arms = _arms(checkpoint, budget, load_checkpoint(folder), size)
    with torch_threads(options.threads):
        truth, answers = _answers(arms, images, track)
    reference = answers[PRUNED]
    rows = [
        {
            "name": arm.name,
            "image_size": arm.spec.height,
            "macs": arm.macs,
            "right": (right := int((answers[arm.name] == truth).sum())),
            "top1": right / len(truth),
            "interval": list(wilson_interval(right, len(truth))),
        }
        for arm in arms
    ]
    paired = {other: asdict(paired_top1(answers[other], reference, truth)) for other in answers if other != PRUNED}
    for found in paired.values():
        del found["worst_class"]
    return {
        "checkpoint": {"path": str(name), "sha256": checkpoint.sha256, "model": info.model.to_json()},
        "start": {"path": str(start), "is_checkpoint": start == checkpoint.path},
        "budget": budget.id,
        "data": data,
        "split": split,
        "images": len(truth),
        "rows": rows,
        "paired": paired,
        "images_seen": {PRUNED: _seen(info), "start": _seen(read_info(start)), PLAIN: _seen(trained)},
        "training": asdict(training),
        "curriculum": trained.provenance["recipe"]["data"]["curriculum"],
        "validation": validation(folder),
    }


def validation(folder: Path) -> list[dict[str, float]]:
    """Returns step and validation accuracy of a training, from its log: they tell whether it has levelled off."""
    lines = (folder / LOG).read_text(encoding="utf-8").splitlines()
    return [{name: row[name] for name in ("step", "loss", "val_top1")} for row in map(json.loads, lines)]


def _equal_size(checkpoint: Checkpoint, budget: TokenBudget) -> int:
    """Returns the pixels of the image at which the plain network costs what the pruned one does."""
    config = checkpoint.info.model
    found = smaller_model(checkpoint.model, config, count_macs(config, budget))
    if found is None:
        raise ConfigError(f"checkpoint {checkpoint.path}: there is no smaller image of at least two patches")
    return found[0].image_size


def _arms(checkpoint: Checkpoint, budget: TokenBudget, plain: Checkpoint, size: int) -> list[_Arm]:
    config, spec = checkpoint.info.model, checkpoint.info.preprocess
    small = plain.info.model
    untrained = smaller_model(checkpoint.model, config, count_macs(small))
    assert untrained is not None  # the plain network is one
    return [
        _Arm(PRUNED, logits_function(checkpoint.model, budget), spec, count_macs(config, budget)),
        _Arm(PLAIN, logits_function(plain.model), smaller_spec(spec, size), count_macs(small)),
        _Arm(UNTRAINED, logits_function(untrained[1]), smaller_spec(spec, size), count_macs(untrained[0])),
        _Arm(FULL, logits_function(checkpoint.model, config.full_budget), spec, count_macs(config, config.full_budget)),
    ]


def _answers(arms: list[_Arm], images: ImageSet, track: Track) -> tuple[Classes, dict[str, Classes]]:
    """Returns true classes (images,), and those that each network answers."""
    truth: list[Classes] = []
    found: dict[str, list[Classes]] = {arm.name: [] for arm in arms}
    for arm in arms:
        batches = evaluation_batches(images, arm.spec)
        for pixels, labels in track(batches, arm.name, batch_count(len(images))):
            logits = arm.forward(pixels)
            require_finite(logits, arm.name)
            found[arm.name].append(logits.argmax(axis=1))
            if arm is arms[0]:
                truth.append(labels)
    return np.concatenate(truth), {name: np.concatenate(parts) for name, parts in found.items()}


def _seen(info: CheckpointInfo) -> dict[str, int] | None:
    return recorded_images(info.provenance, info.metrics)
