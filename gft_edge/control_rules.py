"""What the comparison of selections needs of every kind of model: which it takes, the rules, and the loop over images.

NumPy alone: an artefact is measured without PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.control_results import CENTRE, LEAST, ORACLE, OWN, RANDOM, STATIC, Rights
from gft_edge.data.batches import batch_count, indexed_batches
from gft_edge.data.datasets import open_images, split_names
from gft_edge.data.marks import marked_patches, marks_of
from gft_edge.data.sets import ImageSet
from gft_edge.data.splits import SPLITS, Split
from gft_edge.errors import ConfigError, DataError
from gft_edge.model.places import Ranks, centre_first, marked_first, random_places
from gft_edge.preprocess import PreprocessSpec
from gft_edge.progress import Track, silent
from gft_edge.runtime.accuracy import Forward
from gft_edge.runtime.finite import require_finite

SEEDS = (0, 1, 2)
"""Of the draws of random patches."""
STATIC_IMAGES = 256
"""Images at most that the static rule is learned from."""


class Batch(NamedTuple):
    """What a rule may know of the images of a batch: their numbers, and which places hold their marks, (B, P), if known."""

    indices: Sequence[int]
    marked: npt.NDArray[np.bool_] | None


class Ranking(NamedTuple):
    """Weight of the scores and values of places, (B, S, P), for :func:`gft_edge.model.choices.ranked` or an exported graph."""

    weight: int
    places: Ranks | None = None


class Rule(NamedTuple):
    """A rule by name; ``ranking`` makes it for a batch. Draws of a random rule share the name."""

    name: str
    ranking: Callable[[Batch], Ranking]


class Answer(NamedTuple):
    """Logits (B, classes), and the places that were kept to the end, (B, K); None where nothing was selected."""

    logits: npt.NDArray[Any]
    positions: npt.NDArray[np.int64] | None = None


class Run(NamedTuple):
    """One rule at one budget. Draws of a random rule share the name.

    Attributes:
        name: of the rule.
        at: budget and rule, for messages.
        answer: runs it on preprocessed images (B, 3, H, W) float32.
    """

    name: str
    at: str
    answer: Callable[[npt.NDArray[np.float32], Batch], Answer]


class Measured(NamedTuple):
    """Answers at every budget, by the name of the rule, and with every patch.

    Attributes:
        full: right answers with every patch, (1, images); None where they were not measured.
        rights: of each budget: right answers by rule, (draws, images) each.
        recalls: of each budget: share of the mark's patches that are kept to the end, by rule; empty without marks.
        images: number of images that were read.
    """

    full: Rights | None
    rights: list[dict[str, Rights]]
    recalls: list[dict[str, float]]
    images: int


def require_selection(config: GFTConfig, where: str) -> None:
    """Refuses a model whose logits do not depend on which patches are kept.

    Raises:
        ConfigError: says why.
    """
    if config.variant == "published":
        raise ConfigError(
            f"{where}: is of the published variant, whose logits do not depend on the selection; give a focal model"
        )
    if config.is_baseline:
        raise ConfigError(
            f"{where}: is a baseline of variant {config.variant!r} without stages, which selects no patches; "
            "give a focal model"
        )


def require_choice(budget: TokenBudget, config: GFTConfig, instead: str | None = None) -> None:
    """Refuses a budget at which the kept patches do not decide anything.

    Args:
        budget: that fits the model.
        config: of a focal model.
        instead: what to do where every patch is kept; a smaller budget of a checkpoint by default.

    Raises:
        ConfigError: says why.
    """
    if budget.keep[-1] == config.num_patches:
        instead = instead or "give a smaller one, for example --budget 50%" + ",50%" * (len(budget.keep) - 1)
        raise ConfigError(f"token budget {budget.id}: keeps every patch, so nothing is selected; {instead}")
    if not config.selecting_stages(budget):
        raise ConfigError(
            f"token budget {budget.id}: drops patches in the last block only, after which nothing reads them; the logits do not "
            "depend on the selection"
        )


def rules(config: GFTConfig, static: Ranks, has_marks: bool) -> list[Rule]:
    """Returns the rules to compare, the model's own first.

    Args:
        config: of a focal model.
        static: values of places at each selection, (S, P).
        has_marks: add the oracle.
    """

    def random(seed: int) -> Callable[[Batch], Ranking]:
        return lambda batch: Ranking(0, random_places(batch.indices, config.num_patches, seed)[:, None])

    def oracle(batch: Batch) -> Ranking:
        assert batch.marked is not None
        return Ranking(1, marked_first(batch.marked)[:, None])

    fixed, centre = Ranking(0, static[None]), Ranking(0, centre_first(config.grid)[None, None])
    return [
        Rule(OWN, lambda batch: Ranking(1)),
        *(Rule(RANDOM, random(seed)) for seed in SEEDS),
        Rule(LEAST, lambda batch: Ranking(-1)),
        Rule(STATIC, lambda batch: fixed),
        Rule(CENTRE, lambda batch: centre),
        *([Rule(ORACLE, oracle)] if has_marks else []),
    ]


def standardised(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Returns scores (B, N) less their mean, over their standard deviation, for each image."""
    exact = scores.astype(np.float64)
    spread = np.maximum(exact.std(axis=1, ddof=1, keepdims=True), np.finfo(np.float64).tiny)
    found: npt.NDArray[np.float64] = (exact - exact.mean(axis=1, keepdims=True)) / spread
    return found


def other_images(data: str, split: Split, size: int) -> tuple[Split, ImageSet]:
    """Returns images for the static rule: those of train, or of the next part that is not evaluated; else the evaluated ones."""
    names = split_names(data)
    part = next((name for name in SPLITS if name in names and name != split), split)
    return part, open_images(data, part, STATIC_IMAGES, size)


def measure(
    full: tuple[str, Forward] | None,
    runs: Sequence[Sequence[Run]],
    images: ImageSet,
    spec: PreprocessSpec,
    grid: tuple[int, int],
    problem: Callable[[str], None] | None = None,
    track: Track = silent,
    where: str = "model",
) -> Measured:
    """Runs every rule at every budget on the same images; each image is read once.

    Args:
        full: id of the budget that keeps every patch, and the function of it; None where there is none.
        runs: of each budget.
        images: with the model's class numbers.
        spec: preprocessing.
        grid: rows and columns of patches.
        problem: receives why an image cannot be read; the image is then left out. Without it, such an image is an error.
        track: shows progress, batch by batch.
        where: name of the model, for messages.

    Raises:
        DataError: an image cannot be read, or none of them.
        CheckFailed: logits that are NaN or infinite.
    """
    mark = marks_of(images)
    every: list[npt.NDArray[np.bool_]] = []
    answers: list[dict[str, list[list[npt.NDArray[np.bool_]]]]] = [{} for _ in runs]
    recalls: list[dict[str, list[npt.NDArray[np.float64]]]] = [{} for _ in runs]

    def right(logits: npt.NDArray[Any], truth: npt.NDArray[np.int64], at: str) -> npt.NDArray[np.bool_]:
        require_finite(logits, f"{where} at {at}")
        found: npt.NDArray[np.bool_] = logits.argmax(axis=1) == truth
        return found

    count = 0
    batches = indexed_batches(images, spec, problem=problem)
    for indices, pixels, truth in track(batches, "controls", batch_count(len(images))):
        count += len(indices)
        marked = None if mark is None else np.stack([marked_patches(mark(i), spec, grid) for i in indices])
        batch = Batch(indices, marked)
        if full is not None:
            every.append(right(full[1](pixels), truth, full[0]))
        for number, compared in enumerate(runs):
            found: dict[str, list[npt.NDArray[np.bool_]]] = {}
            for run in compared:
                logits, positions = run.answer(pixels, batch)
                found.setdefault(run.name, []).append(right(logits, truth, run.at))
                if marked is not None and positions is not None:
                    recalls[number].setdefault(run.name, []).append(mark_recall(marked, positions))
            for name, draws in found.items():
                answers[number].setdefault(name, []).append(draws)
    if not count:
        raise DataError("none of the images can be read")
    return Measured(
        np.concatenate(every)[None] if every else None,
        [{name: np.concatenate(parts, axis=1) for name, parts in of_one.items()} for of_one in answers],
        [{name: _mean_known(np.concatenate(parts)) for name, parts in of_one.items()} for of_one in recalls],
        count,
    )


def mark_recall(marked: npt.NDArray[np.bool_], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Returns the share of the marked patches (B, P) that are at the positions (B, K), (B,); NaN for an image without marks."""
    kept = np.take_along_axis(marked, positions, axis=1).sum(axis=1)
    count = marked.sum(axis=1)
    shares: npt.NDArray[np.float64] = np.where(count > 0, kept / np.maximum(count, 1), np.nan)
    return shares


def _mean_known(values: npt.NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
