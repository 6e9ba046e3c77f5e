"""Right answers of one model with its own, random and the mark's patches, on the same test images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gft_edge.benchmarks.experiments.teaching.targets import TARGETS
from gft_edge.budget import TokenBudget
from gft_edge.control_results import ORACLE, OWN, RANDOM
from gft_edge.control_rules import Batch, Ranking, Rule, mark_recall, rules
from gft_edge.data.batches import indexed_batches
from gft_edge.data.marks import marked_patches, marks_of
from gft_edge.data.sets import ImageSet
from gft_edge.distill.alignment import taught_blocks, trace
from gft_edge.errors import ConfigError
from gft_edge.model.build import logits_function
from gft_edge.model.choices import Following, ranked
from gft_edge.model.focal_block import FocalBlock
from gft_edge.model.gft import FocalGFT
from gft_edge.model.places import distinct
from gft_edge.preprocess import PreprocessSpec
from gft_edge.runtime.finite import require_finite

COMPARED = (OWN, RANDOM, ORACLE)
MaskOf = Callable[[int], npt.NDArray[np.bool_]]


def require_marks(images: ImageSet, name: str) -> MaskOf:
    """Returns the marks of images; raises ConfigError where they are not known."""
    mask_of = marks_of(images)
    if mask_of is None:
        raise ConfigError(f"data {name}: its marks are not known, which this study needs; give scenes")
    return mask_of


def measure(
    model: FocalGFT, budgets: Sequence[TokenBudget], images: ImageSet, spec: PreprocessSpec, mask_of: MaskOf
) -> dict[str, Any]:
    """Returns for each budget the right answers and the mean recall of the mark's patches by rule, as plain JSON values.

    Right answers are texts of 0 and 1, one for each draw of a rule, a character for each image.

    Args:
        model: in eval mode.
        budgets: that drop patches which are read.
        images: to classify.
        spec: preprocessing.
        mask_of: marks of the images.
    """
    config = model.config
    places = np.zeros((len(config.stages), config.num_patches), np.int64)  # of the static rule, which is not compared
    by_budget = [
        [rule for rule in rules(config, places[config.selecting_stages(budget)], True) if rule.name in COMPARED]
        for budget in budgets
    ]
    answers = [_Answers() for _ in budgets]
    for indices, pixels, truth in indexed_batches(images, spec):
        marked = np.stack([marked_patches(mask_of(i), spec, config.grid) for i in indices])
        with embedded_once(model, pixels):
            for budget, compared, found in zip(budgets, by_budget, answers):
                found.add(model, budget, compared, Batch(indices, marked), pixels, truth)
    return {budget.id: found.to_json() for budget, found in zip(budgets, answers)}


def full_answers(model: FocalGFT, images: ImageSet, spec: PreprocessSpec) -> str:
    """Returns the right answers with every patch, a character for each image."""
    forward = logits_function(model, model.config.full_budget)
    parts = [forward(pixels).argmax(axis=1) == truth for _, pixels, truth in indexed_batches(images, spec)]
    return as_text(np.concatenate(parts))


def measure_targets(
    model: FocalGFT, budgets: Sequence[TokenBudget], images: ImageSet, spec: PreprocessSpec, mask_of: MaskOf
) -> dict[str, Any]:
    """As :func:`measure`, with the patches of the highest target: what a score that learned it perfectly would keep.

    Targets know the label, so these are bounds, not rules that could be used. The rule of a target has its name.
    """
    config = model.config
    blocks = taught_blocks(model)
    answers = [_Answers() for _ in budgets]
    for indices, pixels, truth in indexed_batches(images, spec):
        marked = np.stack([marked_patches(mask_of(i), spec, config.grid) for i in indices])
        traces = trace(model, torch.from_numpy(pixels), torch.from_numpy(truth))
        found_rules = []
        for name, target in TARGETS.items():
            values = []
            for number in blocks:
                block = model.blocks[number - 1]
                assert isinstance(block, FocalBlock)
                importance = target(traces, number, block.attn.num_heads, block.num_prefix_tokens)
                values.append(distinct(importance.detach().numpy()))
            found_rules.append(Rule(name, _fixed(Ranking(0, np.stack(values, axis=1)))))
        with embedded_once(model, pixels):
            for budget, found in zip(budgets, answers):
                found.add(model, budget, found_rules, Batch(indices, marked), pixels, truth)
    return {budget.id: found.to_json() for budget, found in zip(budgets, answers)}


def _fixed(ranking: Ranking) -> Callable[[Batch], Ranking]:
    return lambda batch: ranking


@contextlib.contextmanager
def embedded_once(model: FocalGFT, pixels: npt.NDArray[np.float32]) -> Iterator[None]:
    """Embeds images (B, 3, H, W) once for all passes in the block: after an early cut the stem costs most of a pass."""
    with torch.no_grad():
        tokens = model.embed(torch.from_numpy(pixels))
    setattr(model, "embed", lambda images: tokens)  # noqa: B010 - mypy refuses to assign to a method
    try:
        yield
    finally:
        del model.embed


class _Answers:
    """Collects the answers at one budget."""

    def __init__(self) -> None:
        self._right: dict[str, list[list[npt.NDArray[np.bool_]]]] = {}
        self._recalls: dict[str, list[npt.NDArray[np.float64]]] = {}

    def add(
        self,
        model: FocalGFT,
        budget: TokenBudget,
        compared: Sequence[Rule],
        batch: Batch,
        pixels: npt.NDArray[np.float32],
        truth: npt.NDArray[np.int64],
    ) -> None:
        """Runs the rules on a batch."""
        draws: dict[str, list[npt.NDArray[np.bool_]]] = {}
        for rule in compared:
            choice = Following(ranked(*rule.ranking(batch)))
            logits = logits_function(model, budget, choose=choice)(pixels)
            require_finite(logits, f"model at {budget.id} with {rule.name} patches")
            draws.setdefault(rule.name, []).append(logits.argmax(axis=1) == truth)
            assert choice.positions is not None
            assert batch.marked is not None
            self._recalls.setdefault(rule.name, []).append(mark_recall(batch.marked, choice.positions.cpu().numpy()))
        for name, parts in draws.items():
            self._right.setdefault(name, []).append(parts)

    def to_json(self) -> dict[str, Any]:
        """Returns right answers and mean recall by rule."""
        return {
            "right": {name: [as_text(np.concatenate(draw)) for draw in zip(*b)] for name, b in self._right.items()},
            "recall": {name: float(np.nanmean(np.concatenate(parts))) for name, parts in self._recalls.items()},
        }


def as_text(right: npt.NDArray[np.bool_]) -> str:
    """Returns answers (images,) as a text of 0 and 1."""
    return "".join("01"[int(one)] for one in right)


def from_texts(texts: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Returns the answers of several draws, (draws, images)."""
    return np.array([[character == "1" for character in text] for text in texts])


def mean_right(found: Mapping[str, Any], budget: str, rule: str) -> npt.NDArray[np.float64]:
    """Returns the share of the draws of a rule that are right, by image, (images,), from what :func:`measure` returned."""
    means: npt.NDArray[np.float64] = from_texts(found[budget]["right"][rule]).mean(axis=0)
    return means
