"""Calibration sets: which images ranges are found on, chosen the same way every time, and not those of the evaluation."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from gft_edge.data.batches import evaluation_batches
from gft_edge.data.datasets import held_out_split, is_folder, match_labels, open_images, split_names, unlabelled_folder
from gft_edge.data.sets import NO_CLASSES, Files, ImageSet, Relabelled, Subset, readable, spread
from gft_edge.data.splits import Split, file_size
from gft_edge.data.trained import not_trained_on, paths_of
from gft_edge.data.typefaces import Typefaces
from gft_edge.errors import ArtifactError, ConfigError, DataError
from gft_edge.files import canonical_json, sha256
from gft_edge.preprocess import PreprocessSpec

if TYPE_CHECKING:
    from torch import nn

SCHEMA = 1
POOL_FACTOR = 4
RENDERED_COMPARED = 256
"""Images of an endless evaluation split that are compared with."""
EVERYTHING = 1 << 30

Choice = Literal["random", "balanced", "coverage"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
Features = Callable[[ImageSet], npt.NDArray[np.floating[Any]]]
"""(M, C) features of M images."""


@dataclass(frozen=True)
class Disjointness:
    """What calibration images were compared with.

    Attributes:
        data, split: the evaluation images.
        compared: how many of them.
        overlap: how many are also calibration images.
    """

    data: str
    split: str
    compared: int
    overlap: int


@dataclass(frozen=True)
class CalibrationSet:
    """The card of a calibration set.

    Args:
        data, split: where the images are from.
        choice: how they were chosen out of the pool: ``"random"``, ``"balanced"`` or ``"coverage"``.
        seed: of the choice.
        pool: how many there were to choose from.
        hashed: what the hashes are of, ``"file bytes"`` or ``"decoded pixels"`` (of images that are no files).
        hashes: sha256 of each image, in the order they are run.
        class_counts: images per class.
        preprocess: id of the preprocessing.
        evaluation: the comparison with the evaluation images; None when no such images are known.
    """

    data: str
    split: str
    choice: Choice
    seed: int
    pool: int
    hashed: str
    hashes: tuple[str, ...]
    class_counts: Mapping[str, int]
    preprocess: str
    evaluation: Disjointness | None = None

    @property
    def id(self) -> str:
        """The sha256 of the card as canonical JSON; goes into everything that is made with the images."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON values."""
        data = {**asdict(self), "hashes": list(self.hashes), "class_counts": dict(self.class_counts)}
        return {"schema": SCHEMA, "images": len(self.hashes), **data}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "calibration card") -> CalibrationSet:
        """The inverse of :meth:`to_json`.

        Raises:
            ArtifactError: another schema, a missing or malformed entry.
        """
        if data.get("schema") != SCHEMA:
            raise ArtifactError(f"{where}: schema {data.get('schema')!r}, this version reads {SCHEMA}")
        try:
            fields = {key: value for key, value in data.items() if key not in ("schema", "images", "id")}
            evaluation = fields.pop("evaluation")
            fields["hashes"] = tuple(fields["hashes"])
            if len(fields["hashes"]) != data["images"]:
                raise ArtifactError(f"{where}: {len(fields['hashes'])} hashes of {data['images']} images")
            card = cls(**fields, evaluation=evaluation and Disjointness(**evaluation))
            if data.get("id", card.id) != card.id:
                raise ArtifactError(f"{where}: was changed since it was written (its id differs)")
            return card
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{where}: incomplete or malformed ({error!r})") from None

    def describe(self) -> str:
        """One line for people."""
        line = (
            f"{len(self.hashes)} {self.split} images of {self.data}, {self.choice}, seed {self.seed}, chosen from {self.pool} "
            f"({POOL_FACTOR} for each, where there are as many)"
        )
        if self.evaluation is None:
            return f"{line}; not compared with evaluation images, none are known (name them with --against)"
        e = self.evaluation
        return f"{line}; {e.overlap} of them among {e.compared} {e.split} images of {e.data}"


def choose_images(
    data: str,
    split: Split,
    count: int,
    spec: PreprocessSpec,
    labels: Sequence[str],
    choice: Choice = "balanced",
    seed: int = 0,
    against: str | None = None,
    features: Features | None = None,
    force: bool = False,
) -> tuple[CalibrationSet, ImageSet]:
    """Chooses calibration images and compares them with those of the evaluation.

    Args:
        data: as for :func:`~gft_edge.data.datasets.open_images`, or a folder of image files without classes.
        split: which part of it.
        count: how many images.
        spec: the model's preprocessing.
        labels: the model's classes, which those of the data must be where it has some.
        choice: ``"balanced"`` over the classes, ``"random"``, or ``"coverage"`` (see :func:`cover`).
        seed: of random and balanced choices.
        against: evaluation data, whose test images (val where it has no test images) are compared with; ``data`` itself by
            default.
        features: of images, for ``"coverage"``.
        force: go on although images overlap.

    Returns:
        the card, and the images in the order of its hashes.

    Raises:
        DataError: fewer images than asked for, other classes, an unreadable image, or images of the evaluation.
    """
    pool = _open_pool(data, split, POOL_FACTOR * count, spec.height)
    if pool.labels != NO_CLASSES:
        pool = match_labels(pool, labels, data)
    if len(pool) < count:
        raise DataError(f"data {data}: {len(pool)} images, {count} asked for; lower --images")
    classes = class_numbers(pool)
    if choice == "coverage":
        if features is None:
            raise ConfigError("calibration: a choice by coverage needs the model's features; use a checkpoint")
        indices = cover(features(pool), count)
    elif choice in CHOICES:
        indices = _drawn(classes, count, seed, balanced=choice == "balanced")
    else:
        raise ConfigError(f"calibration: choice must be one of {', '.join(CHOICES)}, found {choice!r}")
    chosen = Subset(pool, indices)
    counts = Counter(pool.labels[classes[index]] for index in indices)
    hashed, hashes = hash_images(chosen)
    evaluation = _compare(set(hashes), hashed, data, against, spec.height)
    if evaluation is not None and evaluation.overlap and not force:
        raise DataError(
            f"data {data}: {evaluation.overlap} calibration images are also among the {evaluation.split} images of "
            f"{evaluation.data}; choose another --split, or --force"
        )
    card = CalibrationSet(
        data, split, choice, seed, len(pool), hashed, hashes, dict(sorted(counts.items())), spec.id, evaluation
    )
    return card, chosen


def _open_pool(data: str, split: Split, count: int, size: int) -> ImageSet:
    """A data set's images (rendered ones up to ``count``), or the image files of a folder without classes."""
    loose = unlabelled_folder(Path(data)) if is_folder(data) else None
    if loose is not None:
        return readable(loose)
    rendered = data.partition(":")[0] == "typefaces"
    return readable(open_images(data, split, count if rendered else EVERYTHING, size))


def class_numbers(images: ImageSet) -> list[int]:
    """Class of each image, without decoding any where that can be known."""
    if isinstance(images, Files):
        return [label for _, label in images.samples]
    if isinstance(images, Subset):
        below = class_numbers(images.base)
        return [below[index] for index in images.indices]
    if isinstance(images, Relabelled):
        return [images.numbers[label] for label in class_numbers(images.base)]
    if isinstance(images, Typefaces):
        return [index % len(images.labels) for index in range(len(images))]
    return [images[index][1] for index in range(len(images))]


def _drawn(classes: Sequence[int], count: int, seed: int, balanced: bool) -> tuple[int, ...]:
    """Indices drawn at random; balanced: the classes take turns until each has given what it has."""
    order = np.random.default_rng(seed).permutation(len(classes))
    if balanced:
        turn: Counter[int] = Counter()
        turns = []
        for index in order:
            turns.append(turn[classes[index]])
            turn[classes[index]] += 1
        order = order[np.argsort(turns, kind="stable")]
    return tuple(int(index) for index in order[:count])


def cover(features: npt.NDArray[np.floating[Any]], count: int) -> tuple[int, ...]:
    """Greedy k-centre: begins nearest to the mean, then always takes what is farthest from all taken so far.

    At most twice the radius of the best possible choice (Gonzalez, 1985). Among equals the first is taken.

    Args:
        features: (M, C).
        count: at most M.
    """
    points = np.asarray(features, dtype=np.float64)
    chosen = [int(np.square(points - points.mean(axis=0)).sum(axis=1).argmin())]
    distance = np.full(len(points), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, np.square(points - points[chosen[-1]]).sum(axis=1))
        distance[chosen[-1]] = -1.0  # duplicates have distance 0 and still come before one that is taken
        chosen.append(int(distance.argmax()))
    return tuple(chosen)


def hash_images(images: ImageSet) -> tuple[str, tuple[str, ...]]:
    """What is hashed, and the sha256 of each image: of the file where there is one, else of shape and RGB pixels."""
    paths = paths_of(images)
    if paths is not None:
        try:
            return "file bytes", tuple(sha256(path) for path in paths)
        except OSError as error:
            raise DataError(f"image {error.filename}: cannot be read ({error.strerror})") from None
    return "decoded pixels", tuple(_pixel_hash(images[index][0]) for index in range(len(images)))


def _pixel_hash(pixels: npt.NDArray[np.uint8]) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _compare(hashes: set[str], hashed: str, data: str, against: str | None, size: int) -> Disjointness | None:
    """The comparison with the images that the model is judged by, of ``against`` or of the data itself."""
    where = evaluation_data(data, against)
    if where is None:
        return None
    split, others = _held_out(where, RENDERED_COMPARED, size)
    kind, found = hash_images(others)
    if kind != hashed:
        raise DataError(
            f"data {where}: images of {kind} cannot be compared with those of {hashed}; leave out --against"
        )
    return Disjointness(where, split, len(found), sum(one in hashes for one in set(found)))


def evaluation_data(data: str, against: str | None) -> str | None:
    """Whose test (or val) images judge the model: ``against``, or the data itself where it has such; else None."""
    if against is not None:
        return against
    if is_folder(data) and unlabelled_folder(Path(data)) is not None:
        return None
    return data if {"test", "val"}.intersection(split_names(data)) else None


def _held_out(where: str, count: int, size: int) -> tuple[Split, ImageSet]:
    """Test images, or val images where there are none; a folder of images without classes is all test images."""
    loose = unlabelled_folder(Path(where)) if is_folder(where) else None
    split = held_out_split(where) if loose is None else "test"
    return split, _open_pool(where, split, count, size)


@dataclass(frozen=True)
class HeldOut:
    """Images that judge a model.

    Attributes:
        data, split: where they are from.
        images: the images.
    """

    data: str
    split: Split
    images: ImageSet


def held_out_images(data: str, against: str | None, count: int, size: int, model: Path) -> HeldOut | None:
    """The images of the evaluation (at most ``count``, spread over all there are), or None when none are known.

    Those that the checkpoint in the folder ``model`` was trained on are left out.
    """
    where = evaluation_data(data, against)
    if where is None:
        return None
    split, images = _held_out(where, count, size)
    images = not_trained_on(images, model, split, where)
    images = images if len(images) <= count else Subset(images, spread(len(images), count))
    return HeldOut(where, split, images)


def shared_images(images: ImageSet, others: ImageSet) -> int:
    """How many images are also among the others: files of equal bytes, or rendered from the same split."""
    paths, other_paths = paths_of(images), paths_of(others)
    if paths is None or other_paths is None:
        images, others = (each.base if isinstance(each, Relabelled) else each for each in (images, others))
        same = isinstance(images, Typefaces) and isinstance(others, Typefaces) and images.split == others.split
        return len(images) if same else 0
    sizes = {file_size(path) for path in other_paths} - {-1}
    alike = [path for path in paths if file_size(path) in sizes]  # only these need reading
    mine = {file_size(path) for path in alike}
    hashes = {sha256(path) for path in other_paths if file_size(path) in mine}
    return sum(sha256(path) in hashes for path in alike)


def model_features(model: nn.Module, spec: PreprocessSpec) -> Features:
    """What the classifier reads (the class token after all blocks), as a function of images."""
    import torch
    from torch import nn

    classifier = getattr(model, "head", None) or model.classifier
    assert isinstance(classifier, nn.Module)

    def features(images: ImageSet) -> npt.NDArray[np.float32]:
        seen: list[npt.NDArray[np.float32]] = []
        handle = classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy()))
        try:
            with torch.no_grad():
                for batch, _ in evaluation_batches(images, spec):
                    model(torch.from_numpy(batch))
        finally:
            handle.remove()
        return np.concatenate(seen)

    return features
