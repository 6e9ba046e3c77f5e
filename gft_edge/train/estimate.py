"""Estimates the duration of a training before it begins, from steps that change nothing."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from gft_edge.config.model import GFTConfig
from gft_edge.config.recipe import Recipe
from gft_edge.data.training import default_workers
from gft_edge.model.gft import FocalGFT
from gft_edge.model.macs import count_macs
from gft_edge.progress import duration
from gft_edge.train.schedule import step_budgets

BUDGETS = 8
"""Steps over which the budgets of elastic training are averaged."""


def seconds_per_step(
    model: torch.nn.Module, config: GFTConfig, recipe: Recipe, batches: Iterator[tuple[Tensor, Tensor]]
) -> float:
    """Returns about how long a step takes, in seconds: network and preparation of its images, evaluations not counted.

    Measured with a few images on a copy of the model at its default budget, and scaled by images and multiply-accumulates;
    the first of two runs warms up.

    Args:
        model: in training mode, on its device; not changed.
        config: of the model.
        recipe: of the training.
        batches: yields a few images, prepared in this process.
    """
    settings = recipe.train
    per_step = settings.batch_size * settings.accumulate
    images, preparing = _prepared(batches)
    state = torch.random.get_rng_state()
    copied = copy.deepcopy(model)
    computing = min(_step_seconds(copied, config, images, settings.precision) for _ in range(2))
    torch.random.set_rng_state(state)
    computing *= _relative_cost(model, config, recipe)
    workers = recipe.data.num_workers
    workers = default_workers(images.device) if workers is None else workers
    each = max(computing, preparing / workers) if workers else computing + preparing
    return each * per_step / len(images)


def estimate_line(seconds: float, steps: int) -> str:
    """Returns the estimate in words."""
    each = f"{steps} steps of {seconds:.2g} s"
    return f"about {duration(seconds * steps)} for {each}, estimated from a few images; evaluations add to it"


def _prepared(batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, float]:
    began = time.perf_counter()
    images, _ = next(batches)
    return images, time.perf_counter() - began


def _step_seconds(model: torch.nn.Module, config: GFTConfig, images: Tensor, precision: str) -> float:
    """Returns the time of one forward and backward pass."""
    kind = images.device.type
    began = time.perf_counter()
    with torch.autocast(kind, torch.float16 if precision == "fp16" else torch.bfloat16, enabled=precision != "fp32"):
        logits = model(images, config.budget)
    logits.float().logsumexp(dim=1).sum().backward()  # any loss has the same cost
    if kind == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _relative_cost(model: torch.nn.Module, config: GFTConfig, recipe: Recipe) -> float:
    """Returns the cost of a step's passes over that of the pass measured, at the model's default budget."""
    if not isinstance(model, FocalGFT):
        return 1.0
    measured = count_macs(config, config.budget)
    passes = [step_budgets(config, recipe.train, number) for number in range(recipe.train.steps)[-BUDGETS:]]
    return sum(count_macs(config, budget) for step in passes for budget in step) / len(passes) / measured
