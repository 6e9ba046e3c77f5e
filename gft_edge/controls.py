"""Whether the selection of a focal model matters on given images: its accuracy with the patches of other rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gft_edge.budget import TokenBudget, patches_per_block
from gft_edge.checkpoint import Checkpoint
from gft_edge.config.model import GFTConfig
from gft_edge.control_results import (
    CENTRE,
    LEAST,
    LOWER,
    ORACLE,
    OWN,
    RANDOM,
    STATIC,
    BudgetControls,
    Controls,
    Learned,
    Rights,
    SmallerImages,
    budget_controls,
    rule_accuracy,
)
from gft_edge.data.batches import batch_count, evaluation_batches, indexed_batches
from gft_edge.data.datasets import held_out_split, open_images, split_names
from gft_edge.data.for_model import Note, Request, known_data, labelled_images
from gft_edge.data.marks import marked_patches, marks_of
from gft_edge.data.sets import ImageSet
from gft_edge.data.splits import SPLITS, Split
from gft_edge.errors import ConfigError, DataError
from gft_edge.evaluation import torch_threads
from gft_edge.manifest import Artifact
from gft_edge.model import choices
from gft_edge.model.adapt import smaller_model
from gft_edge.model.build import logits_function
from gft_edge.model.choices import Following, Rank
from gft_edge.model.gft import check_budget
from gft_edge.model.macs import count_macs
from gft_edge.preprocess import PreprocessSpec
from gft_edge.progress import Track, silent
from gft_edge.runtime.accuracy import Forward
from gft_edge.runtime.finite import require_finite

SEEDS = (0, 1, 2)
"""Of the draws of random patches."""
STATIC_IMAGES = 256
"""Images at most that the static rule is learned from."""


@dataclass(frozen=True)
class ControlOptions:
    """Options of :func:`controls`.

    Attributes:
        data: a name for :func:`~gft_edge.data.datasets.open_images`; None is the data that the model was trained on.
        split: None is test, or val where there are no test images.
        images: number of images at most.
        budgets: token budgets, as texts; none given: the checkpoint's own.
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


class Batch(NamedTuple):
    """What a rule may know of the images of a batch: their numbers, and which places hold their marks, (B, P), if known."""

    indices: Sequence[int]
    marked: Tensor | None


class Rule(NamedTuple):
    """A rule by name; ``rank`` makes it for a batch. Draws of a random rule share the name."""

    name: str
    rank: Callable[[Batch], Rank]


class Measured(NamedTuple):
    """Answers at every budget, by the name of the rule, and with every patch.

    Attributes:
        full: right answers with every patch, (1, images).
        rights: of each budget: right answers by rule, (draws, images) each.
        recalls: of each budget: share of the mark's patches that are kept to the end, by rule; empty without marks.
    """

    full: Rights
    rights: list[dict[str, Rights]]
    recalls: list[dict[str, float]]


def controls(
    model: Checkpoint | Artifact,
    options: ControlOptions | None = None,
    note: Note | None = None,
    track: Track = silent,
) -> Controls:
    """Measures a checkpoint with the most important, random, least important, static and central patches, at each budget.

    Images that the model was trained on, and images that cannot be read, are left out. Where the data knows its marks
    (:mod:`gft_edge.data.marks`) an oracle that keeps them is measured too.

    Args:
        model: an opened checkpoint of a focal model.
        options: defaults where None.
        note: receives how the images were found.
        track: shows progress, batch by batch.

    Raises:
        ConfigError: the model has no selection that its logits depend on; a budget that does not fit or drops nothing; no data
            given or recorded.
        DataError: nothing usable in the data, or the model does not know a class.
        CheckFailed: NaN or infinite logits.
    """
    options = options or ControlOptions()
    if isinstance(model, Artifact):
        raise ConfigError(
            f"artefact {model.path}: its selection is fixed in its graph; give the checkpoint that it was exported from"
        )
    where, info = f"checkpoint {model.path}", model.info
    require_selection(info.model, where)
    budgets = [info.model.parse_budget(text) for text in options.budgets or (info.model.budget.id,)]
    budgets = list(dict.fromkeys(budgets))
    for budget in budgets:
        require_dropping(budget, info.model)
    data = known_data(options.data, info.data, where)
    split = options.split or held_out_split(data)
    images = labelled_images(Request(data, split, options.images), info.model.image_size, info.labels, model.path, note)
    learned, places = _other_images(data, split, info.model.image_size)
    unreadable: list[str] = []
    with torch_threads(options.threads):
        static, used = learn_places(model.model, info.model, places, info.preprocess, track)
        smaller = [] if info.quantization is not None else [_smaller(model.model, info.model, b) for b in budgets]
        measured = measure_rules(
            model.model, info.model, budgets, images, info.preprocess, static, smaller, unreadable.append, track, where
        )
    full = info.model.full_budget
    found = [
        _figures(info.model, budget, measured, number, smaller[number] if smaller else None)
        for number, budget in enumerate(budgets)
    ]
    return Controls(
        data,
        split,
        measured.full.shape[1],
        tuple(unreadable),
        SEEDS,
        Learned(data, learned, used),
        marks_of(images) is not None,
        (full.id, count_macs(info.model, full), rule_accuracy("all", measured.full)),
        tuple(found),
    )


def require_selection(config: GFTConfig, where: str) -> None:
    """Refuses a model whose logits do not depend on which patches are kept.

    Raises:
        ConfigError: says why.
    """
    if config.variant == "published":
        raise ConfigError(
            f"{where}: is of the published variant, whose logits do not depend on the selection; give a focal checkpoint"
        )
    if config.is_baseline:
        raise ConfigError(
            f"{where}: is a baseline of variant {config.variant!r} without stages, which selects no patches; "
            "give a focal checkpoint"
        )


def require_dropping(budget: TokenBudget, config: GFTConfig) -> None:
    """Refuses a budget that does not fit a focal model, or at which the kept patches do not decide anything.

    Raises:
        ConfigError: says why.
    """
    check_budget(budget, config)
    if budget.keep[-1] == config.num_patches:
        raise ConfigError(
            f"token budget {budget.id}: keeps every patch, so nothing is selected; give a smaller one, for example --budget 50%"
            + ",50%" * (len(budget.keep) - 1)
        )
    if not dropping_stages(budget, config):
        raise ConfigError(
            f"token budget {budget.id}: drops patches in the last block only, after which nothing reads them; the logits do not "
            "depend on the selection"
        )


def dropping_stages(budget: TokenBudget, config: GFTConfig) -> list[int]:
    """Returns the stages, from 0, that drop patches and whose kept patches are read afterwards: each calls a choice once."""
    entering = patches_per_block(config.stages, budget.keep, config.num_patches, config.depth)
    return [
        number
        for number, (block, keep) in enumerate(zip(config.stages, budget.keep))
        if keep < entering[block - 1] and block < config.depth
    ]


def learn_places(
    model: nn.Module, config: GFTConfig, images: ImageSet, spec: PreprocessSpec, track: Track = silent
) -> tuple[Tensor, int]:
    """Returns ranks of the places of the grid by their mean score over images, (stages, P), and the number of images.

    The scores are those of the network with every patch, so that every place counts in every image and one pass serves all budgets.
    A score only ranks the patches of one image, so each image's scores are standardised before the mean.

    Raises:
        DataError: none of the images can be read.
    """
    device = next(model.parameters()).device
    total: Tensor | float = 0.0
    count = 0
    batches = evaluation_batches(images, spec, problem=lambda text: None)
    for pixels, _ in track(batches, "static places", batch_count(len(images))):
        with torch.no_grad():
            stages = model(torch.from_numpy(pixels).to(device), config.full_budget, maps=True).stages
        scores = torch.stack([stage.scores for stage in stages]).double().cpu()
        spread = scores.std(dim=2, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        total = total + ((scores - scores.mean(dim=2, keepdim=True)) / spread).sum(dim=1)
        count += len(pixels)
    if not isinstance(total, Tensor):
        raise DataError("none of the images for the static places can be read")
    return choices.distinct(total), count


def rules(config: GFTConfig, static: Tensor, has_marks: bool) -> list[Rule]:
    """Returns the rules to compare, the model's own first.

    Args:
        config: of a focal model.
        static: values of places, (stages, P).
        has_marks: add the oracle.
    """

    def random(seed: int) -> Callable[[Batch], Rank]:
        return lambda batch: choices.by_place(choices.random_places(batch.indices, config.num_patches, seed))

    def oracle(batch: Batch) -> Rank:
        assert batch.marked is not None
        return choices.marks_first(batch.marked)

    fixed, centre = choices.by_place(static.unsqueeze(1)), choices.by_place(choices.centre_first(config.grid))
    return [
        Rule(OWN, lambda batch: choices.most_important),
        *(Rule(RANDOM, random(seed)) for seed in SEEDS),
        Rule(LEAST, lambda batch: choices.least_important),
        Rule(STATIC, lambda batch: fixed),
        Rule(CENTRE, lambda batch: centre),
        *([Rule(ORACLE, oracle)] if has_marks else []),
    ]


def measure_rules(
    model: nn.Module,
    config: GFTConfig,
    budgets: Sequence[TokenBudget],
    images: ImageSet,
    spec: PreprocessSpec,
    static: Tensor,
    smaller: Sequence[tuple[SmallerImages, Forward] | None] = (),
    problem: Callable[[str], None] | None = None,
    track: Track = silent,
    where: str = "model",
) -> Measured:
    """Runs every rule at every budget on the same images; each image is read once.

    Args:
        model: called as :meth:`gft_edge.model.gft.FocalGFT.forward`.
        config: of the model.
        budgets: that pass :func:`require_dropping`.
        images: with the model's class numbers.
        spec: preprocessing.
        static: values of places, (stages, P), see :func:`learn_places`.
        smaller: for each budget the network on smaller images, or None; empty for none.
        problem: receives why an image cannot be read; the image is then left out. Without it, such an image is an error.
        track: shows progress, batch by batch.
        where: name of the model, for messages.

    Raises:
        DataError: an image cannot be read, or none of them.
        CheckFailed: logits that are NaN or infinite.
    """
    mark = marks_of(images)
    # The rules of a budget get the static places of the stages that select at it.
    by_budget = [rules(config, static[dropping_stages(budget, config)], mark is not None) for budget in budgets]
    full: list[npt.NDArray[np.bool_]] = []
    answers: list[dict[str, list[list[npt.NDArray[np.bool_]]]]] = [{} for _ in budgets]
    recalls: list[dict[str, list[npt.NDArray[np.float64]]]] = [{} for _ in budgets]

    def right(forward: Forward, pixels: npt.NDArray[np.float32], truth: npt.NDArray[np.int64], at: str) -> Rights:
        logits = forward(pixels)
        require_finite(logits, f"{where} at {at}")
        found: Rights = logits.argmax(axis=1) == truth
        return found

    batches = indexed_batches(images, spec, problem=problem)
    for indices, pixels, truth in track(batches, "controls", batch_count(len(images))):
        marked = None
        if mark is not None:
            marked = torch.from_numpy(np.stack([marked_patches(mark(i), spec, config.grid) for i in indices]))
        batch = Batch(indices, marked)
        full.append(right(logits_function(model, config.full_budget), pixels, truth, config.full_budget.id))
        for number, (budget, compared) in enumerate(zip(budgets, by_budget)):
            found: dict[str, list[npt.NDArray[np.bool_]]] = {}
            for rule in compared:
                choice = Following(rule.rank(batch))
                forward = logits_function(model, budget, choose=choice)
                found.setdefault(rule.name, []).append(
                    right(forward, pixels, truth, f"{budget.id} with {rule.name} patches")
                )
                if marked is not None and choice.positions is not None:
                    recalls[number].setdefault(rule.name, []).append(mark_recall(marked, choice.positions))
            network = smaller[number] if smaller else None
            if network is not None:
                found[LOWER] = [right(network[1], pixels, truth, f"{network[0].image_size} pixels")]
            for name, draws in found.items():
                answers[number].setdefault(name, []).append(draws)
    if not full:
        raise DataError("none of the images can be read")
    return Measured(
        np.concatenate(full)[None],
        [{name: np.concatenate(parts, axis=1) for name, parts in of_one.items()} for of_one in answers],
        [{name: _mean_known(np.concatenate(parts)) for name, parts in of_one.items()} for of_one in recalls],
    )


def _figures(
    config: GFTConfig,
    budget: TokenBudget,
    measured: Measured,
    number: int,
    smaller: tuple[SmallerImages, Forward] | None,
) -> BudgetControls:
    cost = count_macs(config, budget)
    recalls = {name: value for name, value in measured.recalls[number].items() if not np.isnan(value)}
    return budget_controls(budget.id, cost, measured.rights[number], recalls, smaller[0] if smaller else None)


def mark_recall(marked: Tensor, positions: Tensor) -> npt.NDArray[np.float64]:
    """Returns the share of the marked patches (B, P) that are at the positions (B, K), (B,); NaN for an image without marks."""
    kept = marked.gather(1, positions.cpu()).sum(dim=1).double()
    shares: npt.NDArray[np.float64] = (kept / marked.sum(dim=1)).numpy()
    return shares


def _mean_known(values: npt.NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _other_images(data: str, split: Split, size: int) -> tuple[Split, ImageSet]:
    """Returns images for the static rule: those of train, or of the next part that is not evaluated; else the evaluated ones."""
    names = split_names(data)
    part = next((name for name in SPLITS if name in names and name != split), split)
    return part, open_images(data, part, STATIC_IMAGES, size)


def _smaller(model: nn.Module, config: GFTConfig, budget: TokenBudget) -> tuple[SmallerImages, Forward] | None:
    """Returns the same weights on smaller images, at about the cost of a budget; None where no smaller size fits."""
    found = smaller_model(model, config, count_macs(config, budget))
    if found is None:
        return None
    new, network = found
    logits = logits_function(network)

    def forward(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        small = F.interpolate(torch.from_numpy(pixels), (new.image_size,) * 2, mode="bicubic", antialias=True)
        return logits(small.numpy())

    return SmallerImages(new.image_size, count_macs(new)), forward
