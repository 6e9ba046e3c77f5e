"""Logits of one batch at many token budgets: budgets that begin with the same counts share the blocks up to there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gft_edge.budget import TokenBudget
from gft_edge.model.focal_block import Choice
from gft_edge.model.gft import FocalGFT, check_budget
from gft_edge.model.scores import SCORES
from gft_edge.model.selection import select_patches, select_unordered


@torch.no_grad()
def tree_logits(model: FocalGFT, images: Tensor, budgets: Sequence[TokenBudget]) -> list[Tensor]:
    """Returns the logits (B, classes) at each budget, bit for bit those of ``model(images, budget)``.

    Args:
        model: in eval mode, quantized or not.
        images: normalised, (B, 3, H, W).
        budgets: that fit the model.

    Raises:
        ConfigError: a budget does not fit.
    """
    for budget in budgets:
        check_budget(budget, model.config)
    ordered = len(model.config.stages) > 1 and SCORES[model.config.score].reads_neighbours
    found: dict[int, Tensor] = {}
    tree = _Tree(model, budgets, select_patches if ordered else select_unordered, found)
    tree.descend(model.embed(images), 1, list(range(len(budgets))))
    return [found[number] for number in range(len(budgets))]


class _Tree:
    """Runs the blocks depth first, so that the states of one path alone are held at a time.

    Args:
        model: of the blocks.
        budgets: its leaves.
        choose: selects the patches.
        found: receives the logits by the number of the budget.
    """

    def __init__(
        self, model: FocalGFT, budgets: Sequence[TokenBudget], choose: Choice, found: dict[int, Tensor]
    ) -> None:
        self.model, self.budgets, self.choose, self.found = model, budgets, choose, found

    def descend(self, x: Tensor, number: int, members: list[int]) -> None:
        """Runs the blocks from a number on for the budgets that share the tokens before it."""
        model, config = self.model, self.model.config
        if number > config.depth:
            logits = model.forward_head(model.norm(x))
            self.found.update(dict.fromkeys(members, logits))
            return
        patches = x.shape[1] - model.num_prefix_tokens
        stage = config.stages.index(number) if number in config.stages else None
        groups: dict[tuple[int, bool], list[int]] = {}
        for member in members:
            keep = self.budgets[member].keep
            # Behind the last selection the class token alone is read, so the last block computes nothing else.
            class_only = number == config.depth and keep[-1] < config.num_patches
            k = patches if stage is None or class_only else keep[stage]
            groups.setdefault((k, class_only), []).append(member)
        block = model.blocks[number - 1]
        for (k, class_only), group in groups.items():
            if k == patches and not class_only:
                self.descend(block(x), number + 1, group)
            else:
                rule = None if class_only else self.choose
                self.descend(block(x, k, rule, class_only).tokens, number + 1, group)
