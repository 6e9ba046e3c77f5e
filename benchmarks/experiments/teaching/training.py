"""One short training of an arm: pruned passes that learn from the labels, and what the arm adds; resumes exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gft_edge.benchmarks.experiments.teaching.gates import add_gates
from gft_edge.benchmarks.experiments.teaching.plan import Arm, Plan
from gft_edge.benchmarks.experiments.teaching.targets import TARGETS
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import load_weights
from gft_edge.config.model import GFTConfig
from gft_edge.config.recipe import TrainSection
from gft_edge.data.datasets import open_images
from gft_edge.data.training import BatchOptions, training_batches
from gft_edge.distill.alignment import alignment_loss, taught_blocks, trace
from gft_edge.distill.losses import label_loss
from gft_edge.errors import CheckFailed
from gft_edge.files import replacing
from gft_edge.model.build import build_model
from gft_edge.model.choices import Following, ranked
from gft_edge.model.focal_block import FocalBlock
from gft_edge.model.gft import FocalGFT
from gft_edge.model.places import random_places
from gft_edge.preprocess import PreprocessSpec
from gft_edge.progress import Track, silent
from gft_edge.train.optim import make_optimizer, set_rate
from gft_edge.train.schedule import learning_rate, seed_step

GATE_RATE = 30.0
"""Rate of the gates over that of the weights: in a few hundred steps a gate must be able to open."""
SAVE_EVERY = 50
CURVE = 50
"""Steps whose training accuracy is one point of the curve."""
DRAW_SEED = 1000
"""Of the random patches in training; the seeds of those at test are small numbers."""


@dataclass(frozen=True)
class Start:
    """What every arm starts from.

    Attributes:
        config: of the model, at the sizes of the plan.
        weights: of the model.
        spec: preprocessing.
        sha256: of the checkpoint.
        is_taught: whether the training of the checkpoint aligned its scores already.
    """

    config: GFTConfig
    weights: Mapping[str, Tensor]
    spec: PreprocessSpec
    sha256: str
    is_taught: bool

    def model(self, arm: Arm) -> tuple[FocalGFT, list[nn.Parameter]]:
        """Returns a new model in eval mode, and its gates if the arm has any."""
        model = build_model(self.config)
        assert isinstance(model, FocalGFT)
        load_weights(model, self.weights, "start")
        return model.eval(), add_gates(model) if arm.gate else []


def fine_tune(
    start: Start, arm: Arm, seed: int, plan: Plan, state_file: Path, track: Track = silent
) -> tuple[FocalGFT, list[float]]:
    """Trains an arm; returns the model in eval mode, and the training accuracy of each :data:`CURVE` steps.

    Images, budgets and random patches depend on seed and step alone, so every arm sees the same images at the same budgets, and
    a training that was interrupted goes on exactly.

    Args:
        start: weights and sizes.
        arm: what to train.
        seed: of the order of the images, the budgets and the random patches.
        plan: sizes.
        state_file: of this training; removed at its end by the caller.
        track: shows progress.

    Raises:
        CheckFailed: the loss is NaN or infinite.
    """
    model, gates = start.model(arm)
    settings = TrainSection(
        steps=plan.steps, batch_size=plan.batch_size, lr=plan.lr, warmup_steps=plan.warmup_steps, seed=seed
    )
    optimizer = make_optimizer(model, start.config, settings)
    _rate_of_gates(optimizer, gates)
    budgets = plan.token_budgets(start.config)
    first, right = _restored(state_file, model, optimizer)
    images = open_images(plan.data, "train", plan.steps * plan.batch_size, plan.size, seed)
    steps = range(first, plan.steps)
    batches = training_batches(images, start.spec, steps, BatchOptions(plan.batch_size, seed, num_workers=0))
    model.train()
    for step, (pixels, labels) in zip(track(steps, f"{arm.name} {seed}", len(steps)), batches):
        seed_step(seed, step, 0)
        set_rate(optimizer, learning_rate(settings, step))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(pixels.device.type, dtype=torch.bfloat16, enabled=plan.bf16):
            logits = pruned_logits(model, arm, pixels, _budget(budgets, seed, step), seed, step)
            taught = (
                _taught(model, arm.target, pixels[: plan.taught], labels[: plan.taught], plan) if arm.target else 0.0
            )
        loss = label_loss(logits.float(), labels, settings.label_smoothing) + plan.weight * taught
        if not bool(torch.isfinite(loss)):
            raise CheckFailed(f"loss of arm {arm.name} is {float(loss)} at step {step}; lower the learning rate")
        loss.backward()
        optimizer.step()
        right.append(float((logits.argmax(1) == labels).float().mean()))
        if (step + 1) % SAVE_EVERY == 0:
            _save(state_file, model, optimizer, right)
    curve = [float(np.mean(right[at : at + CURVE])) for at in range(0, len(right), CURVE)]
    return model.eval(), curve


def pruned_logits(model: FocalGFT, arm: Arm, pixels: Tensor, budget: TokenBudget, seed: int, step: int) -> Tensor:
    """Returns the logits (B, classes) of one step of an arm at a budget: its own patches, or new random ones."""
    if not arm.random:
        return model(pixels, budget)
    draws = range(step * len(pixels), (step + 1) * len(pixels))
    places = random_places(draws, model.config.num_patches, DRAW_SEED + seed)
    return model(pixels, budget, choose=Following(ranked(0, places[:, None])))


def _taught(model: FocalGFT, target: str, pixels: Tensor, labels: Tensor, plan: Plan) -> Tensor:
    """Returns the mean alignment loss of the selecting blocks."""
    traces = trace(model, pixels, labels)
    losses = []
    for number in taught_blocks(model):
        block = model.blocks[number - 1]
        assert isinstance(block, FocalBlock)
        importance = TARGETS[target](traces, number, block.attn.num_heads, block.num_prefix_tokens)
        losses.append(alignment_loss(block, traces[number].tokens, importance, plan.temperature))
    return torch.stack(losses).mean()


def _budget(budgets: list[TokenBudget], seed: int, step: int) -> TokenBudget:
    return budgets[int(np.random.default_rng([seed, 13, step]).integers(len(budgets)))]


def _rate_of_gates(optimizer: torch.optim.Optimizer, gates: list[nn.Parameter]) -> None:
    """Moves the gates to a group of their own, without decay and with a higher rate."""
    if not gates:
        return
    own = {id(gate) for gate in gates}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
    optimizer.add_param_group({"params": gates, "weight_decay": 0.0, "lr_scale": GATE_RATE})


def _save(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, right: list[float]) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "right": right}
    with replacing(file) as temporary, temporary.open("wb") as opened:
        torch.save(state, opened)


def _restored(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[float]]:
    """Fills model and optimiser from the file, if there is one; returns the next step and the accuracies so far."""
    if not file.exists():
        return 0, []
    state: dict[str, Any] = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return len(state["right"]), state["right"]
