"""The rules of the comparison of selections on a checkpoint, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.control_results import LOWER, SmallerImages
from gft_edge.control_rules import Answer, Batch, Measured, Rule, Run, measure, require_choice, rules, standardised
from gft_edge.data.batches import batch_count, evaluation_batches
from gft_edge.data.marks import marks_of
from gft_edge.data.sets import ImageSet
from gft_edge.errors import DataError
from gft_edge.model.adapt import smaller_model
from gft_edge.model.build import logits_function
from gft_edge.model.choices import Following, ranked
from gft_edge.model.gft import check_budget
from gft_edge.model.macs import count_macs
from gft_edge.model.places import Ranks, distinct
from gft_edge.preprocess import PreprocessSpec
from gft_edge.progress import Track, silent
from gft_edge.runtime.accuracy import Forward


def require_dropping(budget: TokenBudget, config: GFTConfig) -> None:
    """Refuses a budget that does not fit a focal model, or at which the kept patches do not decide anything.

    Raises:
        ConfigError: says why.
    """
    check_budget(budget, config)
    require_choice(budget, config)


def learn_places(
    model: nn.Module, config: GFTConfig, images: ImageSet, spec: PreprocessSpec, track: Track = silent
) -> tuple[Ranks, int]:
    """Returns ranks of the places of the grid by their mean score over images, (stages, P), and the number of images.

    The scores are those of the network with every patch, so that every place counts in every image and one pass serves all budgets.
    A score only ranks the patches of one image, so each image's scores are standardised before the mean.

    Raises:
        DataError: none of the images can be read.
    """
    device = next(model.parameters()).device
    total = np.zeros((len(config.stages), config.num_patches))
    count = 0
    batches = evaluation_batches(images, spec, problem=lambda text: None)
    for pixels, _ in track(batches, "static places", batch_count(len(images))):
        with torch.no_grad():
            stages = model(torch.from_numpy(pixels).to(device), config.full_budget, maps=True).stages
        total += np.stack([standardised(stage.scores.cpu().numpy()).sum(axis=0) for stage in stages])
        count += len(pixels)
    if not count:
        raise DataError("none of the images for the static places can be read")
    return distinct(total), count


def measure_rules(
    model: nn.Module,
    config: GFTConfig,
    budgets: Sequence[TokenBudget],
    images: ImageSet,
    spec: PreprocessSpec,
    static: Ranks,
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
        problem, track, where: see :func:`gft_edge.control_rules.measure`.

    Raises:
        DataError: an image cannot be read, or none of them.
        CheckFailed: logits that are NaN or infinite.
    """
    has_marks = marks_of(images) is not None
    runs = []
    for number, budget in enumerate(budgets):
        # The rules of a budget get the static places of the stages that select at it.
        compared = rules(config, static[config.selecting_stages(budget)], has_marks)
        at_budget = [_run(model, budget, rule) for rule in compared]
        if smaller and (network := smaller[number]) is not None:
            at_budget.append(_run_smaller(*network))
        runs.append(at_budget)
    full = config.full_budget
    every = (full.id, logits_function(model, full))
    return measure(every, runs, images, spec, config.grid, problem, track, where)


def _run(model: nn.Module, budget: TokenBudget, rule: Rule) -> Run:
    def answer(pixels: npt.NDArray[np.float32], batch: Batch) -> Answer:
        choice = Following(ranked(*rule.ranking(batch)))
        logits = logits_function(model, budget, choose=choice)(pixels)
        return Answer(logits, None if choice.positions is None else choice.positions.cpu().numpy())

    return Run(rule.name, f"{budget.id} with {rule.name} patches", answer)


def _run_smaller(network: SmallerImages, forward: Forward) -> Run:
    return Run(LOWER, f"{network.image_size} pixels", lambda pixels, _: Answer(forward(pixels)))


def on_smaller_images(model: nn.Module, config: GFTConfig, budget: TokenBudget) -> tuple[SmallerImages, Forward] | None:
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
