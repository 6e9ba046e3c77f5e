from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from gft_edge.budget import TokenBudget
from gft_edge.calibration.ptq import quantize_int8
from gft_edge.config.model import preset
from gft_edge.errors import ConfigError
from gft_edge.quant.exact_selection import with_exact_selection
from gft_edge.quant.policy import DEFAULT_POLICY, uniform_policy


def test_every_stage_keeps_the_patches_of_full_precision(tiny_config, tiny_model):
    images = np.random.default_rng(0).standard_normal((12, 3, 32, 32)).astype(np.float32)
    policy = with_exact_selection(uniform_policy("int8", attention="int8"), tiny_config)
    quantized = quantize_int8(tiny_model, [images], policy).model
    with torch.no_grad():
        full, found = (model(torch.from_numpy(images), maps=True) for model in (tiny_model, quantized))
    assert not torch.equal(full.logits, found.logits)
    for ours, theirs in zip(full.stages, found.stages, strict=True):
        assert torch.equal(ours.kept, theirs.kept)
        sides = [
            scores - scores.mean(dim=1, keepdim=True) for scores in (ours.scores, theirs.scores)
        ]  # terms of all alike differ
        torch.testing.assert_close(*sides, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("keep", "blocks"), [((12, 6), 1), ((12, 12), 0), ((16, 6), 1)])
def test_blocks_before_the_last_stage_that_drops_stay(tiny_config, tiny_model, keep, blocks):
    config = dataclasses.replace(tiny_config, budget=TokenBudget(keep, 16))
    policy = with_exact_selection(uniform_policy("int8", attention="int8"), config)
    for block in range(3):
        names = [f"blocks.{block}.{part}" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "attn.attend")]
        assert [policy.is_quantized(name) for name in names] == [block >= blocks] * 5


def test_models_without_such_a_stage_are_refused(tiny_config):
    full = dataclasses.replace(tiny_config, budget=TokenBudget.full(2, 16))
    for config in (full, preset("gft_base_published")):
        with pytest.raises(ConfigError, match="drop patches inside their blocks"):
            with_exact_selection(DEFAULT_POLICY, config)
