"""Calibration sets: images that ranges are found on, chosen reproducibly and compared with those of the evaluation."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gft_edge.calibration.options import CHOICES, CalibrationOptions, Choice
from gft_edge.data.batches import Problem, indexed_batches
from gft_edge.data.datasets import (
    held_out_split,
    is_folder,
    is_rendered,
    match_labels,
    open_images,
    split_names,
    unlabelled_folder,
)
from gft_edge.data.for_model import EVERYTHING
from gft_edge.data.intact import Intact, in_words, intact, names_of, require_few
from gft_edge.data.sets import NO_CLASSES, ImageSet, Subset, readable, spread
from gft_edge.data.splits import Split, file_size
from gft_edge.data.trained import not_trained_on, paths_of
from gft_edge.errors import ArtifactError, ConfigError, DataError
from gft_edge.files import canonical_json, sha256
from gft_edge.preprocess import PreprocessSpec

if TYPE_CHECKING:
    from torch import nn

SCHEMA = 1
POOL_FACTOR = 4
RENDERED_COMPARED = 256
"""Images of an endless evaluation split that are compared with."""
KEPT_BYTES = 1 << 28
"""Memory for rendered images between hashing and use."""

Features = Callable[[ImageSet, Problem | None], tuple[list[int], npt.NDArray[np.floating[Any]]]]
"""Indices of the M images of a set that can be read, and their features (M, C); the callback receives why others cannot."""


@dataclass(frozen=True)
class Disjointness:
    """The comparison of calibration images with evaluation images.

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
        hashed: the hashed content, ``"file bytes"`` or ``"decoded pixels"`` (of images that are not files).
        hashes: sha256 of each image, in the order they are run.
        class_counts: images per class.
        preprocess: id of the preprocessing.
        evaluation: the comparison with the evaluation images; None when no such images are known.
        unreadable: names of images that were tried and left out.
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
    unreadable: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The sha256 of the card as canonical JSON; recorded in everything that is made with the images."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Returns the card as plain JSON values; ``unreadable`` is left out where there are none."""
        data = {**asdict(self), "hashes": list(self.hashes), "class_counts": dict(self.class_counts)}
        del data["unreadable"]
        if self.unreadable:
            data["unreadable"] = list(self.unreadable)
        return {"schema": SCHEMA, "images": len(self.hashes), **data}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "calibration card") -> CalibrationSet:
        """Reads what :meth:`to_json` returns.

        Raises:
            ArtifactError: another schema, a missing or malformed entry.
        """
        if data.get("schema") != SCHEMA:
            raise ArtifactError(f"{where}: schema {data.get('schema')!r}, this version reads {SCHEMA}")
        try:
            fields = {key: value for key, value in data.items() if key not in ("schema", "images", "id")}
            evaluation = fields.pop("evaluation")
            fields["hashes"] = tuple(fields["hashes"])
            fields["unreadable"] = tuple(fields.get("unreadable", ()))
            if len(fields["hashes"]) != data["images"]:
                raise ArtifactError(f"{where}: {len(fields['hashes'])} hashes of {data['images']} images")
            card = cls(**fields, evaluation=evaluation and Disjointness(**evaluation))
            if data.get("id", card.id) != card.id:
                raise ArtifactError(f"{where}: was changed since it was written (its id differs)")
            return card
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{where}: incomplete or malformed ({error!r})") from None

    def describe(self) -> str:
        """Returns one line for people."""
        line = f"{len(self.hashes)} {self.split} images of {self.data}, {self.choice}, seed {self.seed}, "
        line += "all there are" if len(self.hashes) == self.pool else f"chosen from {self.pool} candidates"
        if self.unreadable:
            line += f" ({in_words(self.unreadable)})"
        if self.evaluation is None:
            return f"{line}; not compared with evaluation images, none are known (name them with --against)"
        e = self.evaluation
        return f"{line}; {e.overlap} of them among {e.compared} {e.split} images of {e.data}"


def choose_images(
    options: CalibrationOptions,
    spec: PreprocessSpec,
    labels: Sequence[str],
    features: Features | None = None,
    problem: Problem | None = None,
) -> tuple[CalibrationSet, ImageSet]:
    """Chooses calibration images and compares them with those of the evaluation.

    Args:
        options: which images, and how they are chosen; ``data`` must be given.
        spec: the model's preprocessing.
        labels: the model's classes; the data must have the same, unless it has none.
        features: of images, for ``"coverage"``.
        problem: receives images that cannot be read; they are replaced, see :mod:`gft_edge.data.intact`. Without it the files
            are not tried.

    Returns:
        the card, and the images in the order of its hashes.

    Raises:
        ConfigError: no data, an unknown choice, or coverage without features.
        DataError: fewer images than asked for, other classes, too many unreadable images, or images of the evaluation.
    """
    data, count, choice = options.data, options.images, options.choice
    if data is None:
        raise ConfigError("calibration: no data is given")
    pool = _open_pool(data, options.split, POOL_FACTOR * count, spec.height)
    if pool.labels != NO_CLASSES:
        pool = match_labels(pool, labels, data)
    if len(pool) < count:
        if not (options.fewer and len(pool)):
            raise DataError(f"data {data}: {len(pool)} images, {count} asked for; lower --images")
        count = len(pool)
    classes = pool.class_numbers()
    if choice == "coverage":
        if features is None:
            raise ConfigError("calibration: a choice by coverage needs the model's features; use a checkpoint")
        found = _covering(pool, features, count, data, problem)
    elif choice in CHOICES:
        found = Intact(_drawn(classes, count, options.seed, balanced=choice == "balanced"))
        if problem is not None and not is_rendered(data):
            found = intact(pool, found.indices, data, problem)
    else:
        raise ConfigError(f"calibration: choice must be one of {', '.join(CHOICES)}, found {choice!r}")
    indices = found.indices
    chosen = (_Rendered if is_rendered(data) else Subset)(pool, indices)
    counts = Counter(pool.labels[classes[index]] for index in indices)
    hashed, hashes = hash_images(chosen)
    evaluation = _compare(set(hashes), hashed, data, options.against, spec.height)
    if evaluation is not None and evaluation.overlap and not options.force:
        raise DataError(
            f"data {data}: {evaluation.overlap} calibration images are also among the {evaluation.split} images of "
            f"{evaluation.data}; choose another --split, or --force"
        )
    card = CalibrationSet(
        data=data,
        split=options.split,
        choice=choice,
        seed=options.seed,
        pool=len(pool),
        hashed=hashed,
        hashes=hashes,
        class_counts=dict(sorted(counts.items())),
        preprocess=spec.id,
        evaluation=evaluation,
        unreadable=names_of(pool, found.damaged, data),
    )
    return card, chosen


def _covering(pool: ImageSet, features: Features, count: int, data: str, problem: Problem | None) -> Intact:
    """Chooses by :func:`cover` among the images of a pool that can be read."""
    problems: list[str] = []
    places, points = features(pool, None if problem is None else problems.append)
    if problem is not None:
        require_few(problems, len(pool), data)
        for text in problems:
            problem(text)
    chosen = cover(points, min(count, len(places)))
    return Intact(tuple(places[index] for index in chosen), tuple(sorted(set(range(len(pool))) - set(places))))


class _Rendered(Subset):
    """Rendered images, which are kept after they were hashed: the model reads them next, and drawing takes long."""

    @functools.cached_property
    def _kept(self) -> dict[int, tuple[npt.NDArray[np.uint8], int]]:
        return {}

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        if index in self._kept:
            return self._kept[index]
        image = super().__getitem__(index)
        if (len(self._kept) + 1) * image[0].nbytes <= KEPT_BYTES:
            self._kept[index] = image
        return image


def _open_pool(data: str, split: Split, count: int, size: int) -> ImageSet:
    """Opens a data set (rendered images up to ``count``), or the image files of a folder without classes."""
    loose = unlabelled_folder(Path(data)) if is_folder(data) else None
    if loose is not None:
        return readable(loose)
    rendered = is_rendered(data)
    return readable(open_images(data, split, count if rendered else EVERYTHING, size))


def _drawn(classes: Sequence[int], count: int, seed: int, balanced: bool) -> tuple[int, ...]:
    """Draws indices at random; balanced: the classes take turns while they have images left."""
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
    """Chooses by greedy k-centre: starts nearest to the mean, then adds the point farthest from all chosen ones.

    The radius is at most twice the best possible one (Gonzalez, 1985). Of equal distances the first is chosen.

    Args:
        features: (M, C).
        count: at most M.
    """
    points = np.asarray(features, dtype=np.float64)
    chosen = [int(np.square(points - points.mean(axis=0)).sum(axis=1).argmin())]
    distance = np.full(len(points), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, np.square(points - points[chosen[-1]]).sum(axis=1))
        distance[chosen[-1]] = -1.0  # duplicates have distance 0 and still come before a chosen one
        chosen.append(int(distance.argmax()))
    return tuple(chosen)


def hash_images(images: ImageSet, skip: bool = False) -> tuple[str, tuple[str, ...]]:
    """Returns the hashed content, and the sha256 of each image: of the file where there is one, else of shape and RGB pixels.

    Args:
        images: files or rendered ones.
        skip: files that cannot be opened, such as broken links; otherwise they are an error.

    Raises:
        DataError: a file cannot be opened.
    """
    paths = paths_of(images)
    if paths is not None:
        hashes = []
        for path in paths:
            try:
                hashes.append(sha256(path))
            except OSError as error:
                if not skip:
                    raise DataError(f"image {error.filename}: cannot be read ({error.strerror})") from None
        return "file bytes", tuple(hashes)
    return "decoded pixels", tuple(_pixel_hash(images[index][0]) for index in range(len(images)))


def _pixel_hash(pixels: npt.NDArray[np.uint8]) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _compare(hashes: set[str], hashed: str, data: str, against: str | None, size: int) -> Disjointness | None:
    """Compares with the evaluation images of ``against`` or of the data itself; None where none are known."""
    where = evaluation_data(data, against)
    if where is None:
        return None
    split, others = _held_out(where, RENDERED_COMPARED, size)
    kind, found = hash_images(others, skip=True)
    if kind != hashed:
        raise DataError(
            f"data {where}: images hashed by {kind} cannot be compared with those hashed by {hashed}; leave out --against"
        )
    return Disjointness(where, split, len(found), sum(one in hashes for one in set(found)))


def evaluation_data(data: str, against: str | None) -> str | None:
    """Returns the data whose test (or val) images evaluate the model: ``against``, or ``data`` if it has any; else None."""
    if against is not None:
        return against
    if is_folder(data) and unlabelled_folder(Path(data)) is not None:
        return None
    return data if {"test", "val"}.intersection(split_names(data)) else None


def _held_out(where: str, count: int, size: int) -> tuple[Split, ImageSet]:
    """Opens the test images, or val images where there are none; a folder of images without classes is all test images."""
    loose = unlabelled_folder(Path(where)) if is_folder(where) else None
    split = held_out_split(where) if loose is None else "test"
    return split, _open_pool(where, split, count, size)


@dataclass(frozen=True)
class HeldOut:
    """Images that evaluate a model.

    Attributes:
        data, split: where they are from.
        images: the images.
    """

    data: str
    split: Split
    images: ImageSet


def held_out_images(data: str, against: str | None, count: int, size: int, model: Path) -> HeldOut | None:
    """Opens the evaluation images (at most ``count``, evenly spread), or returns None when none are known.

    Images that the checkpoint in the folder ``model`` was trained on are left out.
    """
    where = evaluation_data(data, against)
    if where is None:
        return None
    split, images = _held_out(where, count, size)
    images = not_trained_on(images, model, split, where)
    images = images if len(images) <= count else Subset(images, spread(len(images), count))
    return HeldOut(where, split, images)


def shared_images(images: ImageSet, others: ImageSet) -> int:
    """Counts the images that are also among the others: files of equal bytes, or rendered from the same split."""
    paths, other_paths = paths_of(images), paths_of(others)
    if paths is None or other_paths is None:
        same = images.rendered_split is not None and images.rendered_split == others.rendered_split
        return len(images) if same else 0
    sizes = {file_size(path) for path in other_paths} - {-1}
    alike = [path for path in paths if file_size(path) in sizes]  # only these need reading
    mine = {file_size(path) for path in alike}
    hashes = {sha256(path) for path in other_paths if file_size(path) in mine}
    return sum(sha256(path) in hashes for path in alike)


def model_features(model: nn.Module, spec: PreprocessSpec) -> Features:
    """Returns a function that computes the classifier's inputs (the class token after all blocks) for images."""
    import torch
    from torch import nn

    classifier = getattr(model, "head", None) or model.classifier
    assert isinstance(classifier, nn.Module)

    def features(images: ImageSet, problem: Problem | None = None) -> tuple[list[int], npt.NDArray[np.float32]]:
        inputs: list[npt.NDArray[np.float32]] = []
        places: list[int] = []
        handle = classifier.register_forward_pre_hook(lambda _, given: inputs.append(given[0].numpy()))
        try:
            with torch.no_grad():
                for indices, batch, _ in indexed_batches(images, spec, problem=problem):
                    places += indices
                    model(torch.from_numpy(batch))
        finally:
            handle.remove()
        return places, np.concatenate(inputs) if inputs else np.empty((0, 0), np.float32)

    return features
