"""Budgets that share blocks give the logits of the model itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from gft_edge.budget import TokenBudget
from gft_edge.calibration.ptq import quantize_int8
from gft_edge.errors import ConfigError
from gft_edge.search.accuracy import rounded_to_half
from gft_edge.search.tree import tree_logits

KEEPS = ((16, 16), (12, 12), (12, 6), (12, 2), (16, 6), (6, 6), (12, 6))


@pytest.fixture(scope="module")
def pixels():
    return torch.randn((5, 3, 32, 32), generator=torch.Generator().manual_seed(3))


def budgets(count=2):
    return [TokenBudget(keep[:count] if count < 3 else (*keep, keep[-1]), 16) for keep in KEEPS]


def require_equal(model, pixels, several):
    found = tree_logits(model, pixels, several)
    with torch.no_grad():
        for budget, logits in zip(several, found, strict=True):
            assert torch.equal(logits, model(pixels, budget)), budget.id


@pytest.mark.parametrize("score", ["column-mean", "row-gala", "class-row"])
def test_logits_are_those_of_the_model(tiny_config, make_model, pixels, score):
    require_equal(make_model(dataclasses.replace(tiny_config, score=score)), pixels, budgets())


@pytest.mark.parametrize("stages", [(1,), (3,), (2, 3), (1, 2, 3)])
def test_stages_at_any_block(tiny_config, make_model, pixels, stages):
    config = dataclasses.replace(tiny_config, stages=stages, budget=TokenBudget.full(len(stages), 16))
    require_equal(make_model(config), pixels, budgets(len(stages)))


def test_other_precisions(tiny_model, pixels):
    quantized = quantize_int8(tiny_model, [pixels.numpy()]).model.eval()
    require_equal(quantized, pixels, budgets())
    halved = rounded_to_half(tiny_model)
    require_equal(halved, pixels, budgets())
    assert not torch.equal(halved.head.weight, tiny_model.head.weight)
    assert torch.equal(halved.head.weight, tiny_model.head.weight.half().float())


def test_blocks_before_a_shared_cut_run_once(tiny_model, pixels):
    calls = []
    hooks = [block.register_forward_hook(lambda *_, n=n: calls.append(n)) for n, block in enumerate(tiny_model.blocks)]
    tree_logits(tiny_model, pixels, [TokenBudget(keep, 16) for keep in ((12, 12), (12, 6), (12, 4), (8, 4))])
    for hook in hooks:
        hook.remove()
    assert np.bincount(calls).tolist() == [2, 4, 4]


def test_a_budget_that_does_not_fit(tiny_model, pixels):
    with pytest.raises(ConfigError, match="2 stages|of 2"):
        tree_logits(tiny_model, pixels, [TokenBudget((8,), 16)])
