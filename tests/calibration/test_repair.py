"""Repair of a model whose quantization disturbs one layer on purpose."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from gft_edge.calibration import repair
from gft_edge.calibration.options import CalibrationOptions
from gft_edge.calibration.ptq import PostTrained, quantize_int8, quantize_with
from gft_edge.calibration.qat import QatSettings
from gft_edge.calibration.quantize import (
    QatOptions,
    QuantizeOptions,
    quantize_checkpoint,
    recommended_method,
    recommended_policy,
)
from gft_edge.calibration.ranges import Ranges
from gft_edge.calibration.repair import Raised, layer_macs, repaired, within_limits
from gft_edge.calibration.safety import SelectionSafety, model_outputs, paired_outputs, safety_of
from gft_edge.checkpoint import load_checkpoint
from gft_edge.errors import ConfigError
from gft_edge.quant.modules import quantized_names
from gft_edge.quant.policy import DEFAULT_POLICY, QuantPolicy, uniform_policy

BAD = "blocks.0.mlp.fc2"
BASE = SelectionSafety(32, 0.9, (), None)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((16, 3, 32, 32)).astype(np.float32) for _ in range(4)]


@pytest.fixture(scope="module")
def start(tiny_model, images):
    """Good ranges, but one layer's input is clipped to a hundredth of what it is."""
    good = quantize_int8(tiny_model, images).summary["ranges"]
    values = {name: 0.01 * value if name == BAD else value for name, value in good.items()}
    ranges = Ranges(values, "module inputs", "max", 64, "0" * 64, None, None)
    return PostTrained(tiny_model, ranges, quantize_with(tiny_model, values, DEFAULT_POLICY, "max", 64))


def compared(full, compressed, batches):
    return safety_of(*paired_outputs(full, compressed, batches))


def run(start, images, model):
    reference = model_outputs(model, images, "in full precision")
    before = safety_of(reference, model_outputs(start.quantized.model, images, "quantized"))
    return repaired(start, DEFAULT_POLICY, reference, before, lambda: images)


def test_the_layer_that_disturbs_is_raised(start, images, tiny_model):
    before = compared(tiny_model, start.quantized.model, images)
    assert not within_limits(before)
    quantized, after, done = run(start, images, tiny_model)
    names = [layer.name for layer in done.raised]
    assert names[0] == BAD and len(names) <= 2, "the worst first, and no more than are needed"
    assert done.raised[0].score_noise > 0.5 and done.raised[0].logit_noise > 0.5
    assert done.before == before and done.holds and within_limits(after)
    assert after == compared(tiny_model, quantized.model, images)
    policy = QuantPolicy.from_json({"rules": quantized.summary["policy"]})
    assert policy.precision_of(BAD) == "high" and policy.rules[len(names) :] == DEFAULT_POLICY.rules
    assert policy.rules[0].reason == done.raised[0].reason and "of the work" in policy.rules[0].reason
    again = quantize_with(tiny_model, start.ranges.values, policy, "max", 64)
    assert again.summary == quantized.summary
    with torch.no_grad():
        assert torch.equal(again.model(torch.from_numpy(images[0])), quantized.model(torch.from_numpy(images[0])))
    text = done.describe()
    assert text.startswith(f"raised {len(names)} layers, ") and "do not hold" not in text
    assert json.loads(json.dumps(done.to_json()))["holds"] is True
    assert run(start, images, tiny_model)[2] == done, "the same input raises the same layers"


def test_a_model_within_the_limits_is_left_as_it_is(start, images, tiny_model, monkeypatch):
    monkeypatch.setattr(repair, "LEAST_JACCARD", 0.0)
    monkeypatch.setattr(repair, "LEAST_SQNR_DB", -100.0)
    monkeypatch.setattr(repair, "_alone", None)
    quantized, safety, done = run(start, images, tiny_model)
    assert quantized is start.quantized and done is None
    assert safety == compared(tiny_model, quantized.model, images)


def test_a_repair_is_bounded_and_says_so(start, images, tiny_model, monkeypatch):
    monkeypatch.setattr(repair, "LEAST_SQNR_DB", 300.0)
    _, _, done = run(start, images, tiny_model)
    macs = layer_macs(tiny_model, images[0][:1])
    quantized = sum(macs[name] for name in quantized_names(tiny_model, DEFAULT_POLICY))
    raised = sum(macs[layer.name] for layer in done.raised)
    assert 0 < raised <= repair.MOST_RAISED * quantized and not done.holds
    assert "--selection exact" in done.describe()


def test_nothing_is_raised_where_nothing_is_measured():
    assert repair._most([], 1.0) == 0
    assert repair._most([Raised("only", 1.0, 1.0, 1.0)], 1.0) == 0
    assert repair._most([Raised("large", 1.0, 1.0, 0.9), Raised("small", 0.0, 0.1, 0.1)], 1.0) == 1


def test_limits():
    assert within_limits(BASE) and not within_limits(dataclasses.replace(BASE, logit_sqnr_db=23.9))


def test_macs_are_rows_times_weights(tiny_model, images):
    seen = {}
    handles = [
        tiny_model.get_submodule(name).register_forward_pre_hook(
            lambda layer, given, name=name: seen.update(
                {name: given[0].numel() // layer.in_features * layer.weight.numel()}
            )
        )
        for name in quantized_names(tiny_model, DEFAULT_POLICY)
    ]
    with torch.no_grad():
        tiny_model(torch.from_numpy(images[0][:1]))
    for handle in handles:
        handle.remove()
    found = layer_macs(tiny_model, images[0][:3])
    assert seen.items() <= found.items()


def test_options(tiny_checkpoint, folders, tmp_path):
    with pytest.raises(ConfigError, match="selection must be one of repair, exact, as-is"):
        QuantizeOptions(selection="none")
    with pytest.raises(ConfigError, match="QAT changes the noise"):
        QuantizeOptions(policy=DEFAULT_POLICY, qat=QatOptions(QatSettings(steps=1)), selection="repair")
    assert [recommended_method(uniform_policy(name)) for name in ("int8", "fp8", "int8-weights")] == [
        "mse",
        "max",
        "max",
    ]
    checkpoint = load_checkpoint(tiny_checkpoint)
    calibration = CalibrationOptions(str(folders), images=8, method="mse")
    options = QuantizeOptions(calibration, recommended_policy(checkpoint.model), selection="exact")
    result = quantize_checkpoint(checkpoint, options, tmp_path / "out")
    assert [stage.jaccard for stage in result.selection.safety.stages] == [1.0, 1.0]
    assert 0 < result.selection.quantized_macs < 1 and result.summary["smoothquant"] == 0.5


def test_quantize_repairs_unless_told_otherwise(tiny_checkpoint, folders, tmp_path, monkeypatch):
    monkeypatch.setattr("gft_edge.calibration.repair.LEAST_SQNR_DB", 500.0)
    checkpoint, calibration = load_checkpoint(tiny_checkpoint), CalibrationOptions(str(folders), images=8)
    done = quantize_checkpoint(checkpoint, QuantizeOptions(calibration), tmp_path / "repaired")
    assert done.selection.repair is not None
    raised = [layer.name for layer in done.selection.repair.raised]
    assert raised and not set(raised) & set(done.summary["precisions"])
    assert [rule["pattern"] for rule in done.summary["policy"][: len(raised)]] == raised
    left = quantize_checkpoint(checkpoint, QuantizeOptions(calibration, selection="as-is"), tmp_path / "left")
    assert left.selection.repair is None
    assert set(raised) <= set(left.summary["precisions"])
