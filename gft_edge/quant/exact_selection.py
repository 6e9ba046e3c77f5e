"""A policy whose quantized model keeps the patches of the full-precision model, since nothing that feeds a score is quantized."""

from __future__ import annotations

import dataclasses

from gft_edge.config.model import GFTConfig
from gft_edge.errors import ConfigError
from gft_edge.quant.policy import ATTEND, QuantPolicy, QuantRule

REASON = "before the last block that selects: nothing is rounded that its scores read"


def blocks_before_scores(config: GFTConfig) -> int:
    """Returns the number of blocks before the last one that drops patches at the configuration's budget.

    The scores of a block come from its input and the exact weights of its projection (:mod:`gft_edge.model.scores`), so its own
    quantized layers do not change them.
    """
    dropping = [block for block, n, k in zip(config.stages, config.budget.stage_inputs, config.budget.keep) if k < n]
    return max(dropping, default=1) - 1


def with_exact_selection(policy: QuantPolicy, config: GFTConfig) -> QuantPolicy:
    """Returns a policy with rules before its own that leave the blocks before the last scores in high precision.

    Args:
        policy: for the other blocks.
        config: of the model; its budget says which stage drops patches last.

    Raises:
        ConfigError: the model does not select inside its blocks, or drops no patches.
    """
    if config.variant != "focal" or config.budget.keep[-1] == config.num_patches:
        raise ConfigError("exact selection is for models that drop patches inside their blocks; leave it out")
    rules = [
        QuantRule(f"blocks.{block}.{part}", "high", REASON)
        for block in range(blocks_before_scores(config))
        for part in ("*", f"attn.{ATTEND}")
    ]
    return dataclasses.replace(policy, rules=(*rules, *policy.rules))
