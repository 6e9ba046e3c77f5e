"""Learning rate, phase of a curriculum, token budgets and random seeds of each step; they depend on seed and step alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from gft_edge.budget import MIN_TOKENS, TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.config.recipe import TrainSection

Phase = tuple[float, ...]
"""Share of steps where a phase of a curriculum begins, scale of the marks, number of distractors, side of the windows in pixels
(0: whole images)."""


def learning_rate(train: TrainSection, step: int, done: Callable[[float], float] = float) -> float:
    """Returns the rate: linear warm-up over ``warmup_steps``, then a cosine from ``lr`` to ``min_lr`` at the last step.

    Args:
        train: settings.
        step: number of the step.
        done: pixels seen before a step, in units of one step of whole images; see :func:`pixels_seen`.
    """
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    start, end = done(train.warmup_steps), done(train.steps - 1)
    part = (done(step) - start) / max(1.0, end - start)
    return train.min_lr + 0.5 * (train.lr - train.min_lr) * (1 + math.cos(math.pi * min(part, 1.0)))


def pixels_seen(curriculum: Sequence[Phase], train: TrainSection, size: int) -> Callable[[float], float]:
    """Returns a function from a step to the pixels seen before it, in units of one step of whole images.

    Steps on small windows are many and cheap. The learning rate follows the pixels, else little of it would be left when the
    whole images begin.

    Args:
        curriculum: phases, of which some may have windows.
        train: has the number of all steps.
        size: of the whole images, in pixels.
    """
    weights = [
        (part, (window / size) ** 2 if window else 1.0)
        for (_, _, _, window), part in phases(curriculum, train, range(train.steps))
    ]

    def seen(step: float) -> float:
        return sum(weight * max(0.0, min(step, part.stop) - part.start) for part, weight in weights)

    return seen if weights else float


def phases(curriculum: Sequence[Phase], train: TrainSection, steps: range) -> list[tuple[Phase, range]]:
    """Returns the phases of a curriculum that some steps lie in, each with its steps, in order.

    Args:
        curriculum: see :class:`gft_edge.config.recipe.DataSection`; a phase begins at the first step that is at least its
            share of all steps.
        train: has the number of all steps.
        steps: of one run.
    """
    starts = [math.ceil(phase[0] * train.steps) for phase in curriculum]
    found = []
    for phase, start, end in zip(curriculum, starts, [*starts[1:], train.steps]):
        part = range(max(start, steps.start), min(end, steps.stop))
        if part:
            found.append((phase, part))
    return found


def step_budgets(config: GFTConfig, train: TrainSection, step: int) -> list[TokenBudget]:
    """Returns the budgets of one step, fixed by seed and step: the model's own, or with elastic training the full one first.

    Elastic training: the full budget learns from the labels; after ``elastic_start`` the smallest one, one drawn between,
    or both learn from its logits.
    """
    if not train.elastic or config.is_baseline:
        return [config.budget]
    if step < train.elastic_start * train.steps:
        return [config.full_budget]
    num_patches = config.num_patches
    smallest = [max(MIN_TOKENS, int(k * train.smallest_ratio)) for k in config.budget.keep]
    rng = np.random.default_rng([train.seed, 7, step])
    low = np.array(smallest) / num_patches
    # One share between smallest and full, jittered per stage, then made non-increasing.
    share = np.clip(rng.random() + rng.uniform(-0.15, 0.15, len(low)), 0, 1)
    drawn = np.minimum.accumulate(np.maximum(((low + share * (1 - low)) * num_patches).astype(int), smallest))
    both = [TokenBudget(tuple(smallest), num_patches), TokenBudget(tuple(int(k) for k in drawn), num_patches)]
    return [config.full_budget, *(both if train.elastic_samples == 2 else [both[step % 2]])]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds torch (drop path, dropout) and numpy (mixup) for one step, so that resuming does not need the state of a generator."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(2)
    torch.default_generator.manual_seed(int(state[0]))  # torch.manual_seed records stack traces for devices not in use
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(int(state[0]))
    np.random.seed(int(state[1]))  # noqa: NPY002 - timm's Mixup draws from it
