"""What is compared: the arms of the study, and the sizes that all of them share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gft_edge.benchmarks.experiments.teaching.targets import TARGETS
from gft_edge.budget import TokenBudget
from gft_edge.config.model import GFTConfig
from gft_edge.control_checkpoint import require_dropping
from gft_edge.control_rules import require_selection
from gft_edge.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: in files and on the command line.
        title: in tables.
        random: keep random patches, drawn anew for every image and step.
        target: name in :data:`TARGETS` of what the score is taught, or None.
        gate: let the loss reach the score by gates.
    """

    name: str
    title: str
    random: bool = False
    target: str | None = None
    gate: bool = False


ARMS = {
    arm.name: arm
    for arm in (
        Arm("plain", "score not taught"),
        Arm("twin", "random patches", random=True),
        *(Arm(name, f"taught {name}", target=name) for name in TARGETS),
        Arm("gate", "gate", gate=True),
    )
}
PLAIN, TWIN = "plain", "twin"
PRODUCT = "gradient-attention"
"""The target of ``train.align``."""


def arms_named(names: str) -> list[Arm]:
    """Returns arms by their names, separated by commas; the one without teaching must be among them.

    Raises:
        ConfigError: an unknown name, or no arm to compare with.
    """
    found = []
    for name in names.split(","):
        if name not in ARMS:
            raise ConfigError(f"arms: unknown {name!r}{did_you_mean(name, ARMS)}; there are: {', '.join(ARMS)}")
        found.append(ARMS[name])
    if ARMS[PLAIN] not in found:
        raise ConfigError(f"arms {names}: {PLAIN!r}, which the others are compared with, is missing")
    return found


@dataclass(frozen=True)
class Plan:
    """Sizes of a study; every arm has the same.

    Attributes:
        data: of :func:`gft_edge.data.datasets.open_images`, with known marks.
        size: of the images, in pixels; a position embedding of a larger grid is cut out in its middle.
        stages: selecting blocks.
        budgets: of each step one is drawn, and all are measured.
        steps, batch_size, lr, warmup_steps: of each training.
        taught: images of a batch that the target is computed on.
        weight: of the alignment loss.
        temperature: of the score's distribution.
        bf16: whether the training computes products in bfloat16.
        images: of the split test that are measured.

    Raises:
        ConfigError: a number that is not positive, or more taught images than a batch has.
    """

    data: str = "scenes,share=0.06,distractors=3"
    size: int = 96
    stages: tuple[int, ...] = (1,)
    budgets: tuple[str, ...] = ("36", "18", "9")
    steps: int = 200
    batch_size: int = 32
    lr: float = 3e-4
    warmup_steps: int = 20
    taught: int = 8
    weight: float = 1.0
    temperature: float = 1.0
    bf16: bool = True
    images: int = 800

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0:
                raise ConfigError(f"{field.name} must be above 0, found {value}")
        if self.taught > self.batch_size:
            raise ConfigError(f"taught must be at most the batch of {self.batch_size}, found {self.taught}")

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {**dataclasses.asdict(self), "stages": list(self.stages), "budgets": list(self.budgets)}

    def token_budgets(self, config: GFTConfig) -> list[TokenBudget]:
        """Returns the budgets for a model; raises ConfigError where one does not fit, or drops nothing that is read."""
        found = [TokenBudget.parse(text, config.num_patches) for text in self.budgets]
        for budget in found:
            require_dropping(budget, config)
        return found


def fitted(
    weights: Mapping[str, Tensor], config: GFTConfig, plan: Plan, where: str
) -> tuple[GFTConfig, dict[str, Tensor]]:
    """Returns the model of a plan with the weights of a trained one, whose position embedding is cut to the smaller grid.

    Patches of the plan's images are as large in pixels as those of the trained model, so nothing is resampled.

    Raises:
        ConfigError: the model does not select, or the plan's images are larger than the model's or no whole number of patches.
    """
    require_selection(config, where)
    if plan.size > config.image_size or plan.size % config.patch_size:
        raise ConfigError(
            f"{where}: images of {plan.size} px; needs a multiple of {config.patch_size} px up to {config.image_size} px"
        )
    patches = (plan.size // config.patch_size) ** 2
    budget = TokenBudget.full(len(plan.stages), patches)
    new = dataclasses.replace(config, image_size=plan.size, stages=plan.stages, budget=budget)
    positions = weights["pos_embed"]
    prefix = positions.shape[1] - config.num_patches
    first = (config.grid[0] - new.grid[0]) // 2
    part = slice(first, first + new.grid[0])
    grid = positions[:, prefix:].unflatten(1, config.grid)[:, part, part].flatten(1, 2)
    return new, {**weights, "pos_embed": torch.cat((positions[:, :prefix], grid), dim=1)}
