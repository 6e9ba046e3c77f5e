from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from gft_edge.budget import TokenBudget
from gft_edge.calibration.observing.collect import Collector, collect, observe
from gft_edge.calibration.ptq import quantize_int8, quantize_with
from gft_edge.checkpoint import load_checkpoint, save_checkpoint
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ArtifactError, ConfigError, DataError
from gft_edge.model.build import build_model
from gft_edge.quant.levels import SMALLEST_RANGE
from gft_edge.quant.modules import QuantLinear, quantized_names
from gft_edge.quant.policy import DEFAULT_POLICY, QuantPolicy, QuantRule, uniform_policy
from gft_edge.storage.seals import write_sealed


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((n, 3, 32, 32)).astype(np.float32) * scale for n, scale in ((3, 1), (5, 2), (2, 1))]


@pytest.fixture(scope="module")
def quantized(tiny_model, batches):
    return quantize_int8(tiny_model, batches)


def input_ranges(model, names, batches):
    collector = Collector(names)
    collect(collector, observe(model, collector, batches))
    return collector.ranges(), collector.images


@pytest.fixture
def with_bad_activation(tiny_model):
    """A model whose first MLP puts out one value that is not finite, on the second image only."""

    def build(value):
        model = copy.deepcopy(tiny_model)

        def spoil(module, inputs, output):
            output = output.clone()
            output[1, 0, 0] = value
            return output

        model.blocks[0].mlp.act.register_forward_hook(spoil)
        return model

    return build


@torch.no_grad()
def test_ranges_are_the_largest_magnitudes_over_all_batches(tiny_model, batches):
    names = quantized_names(tiny_model, DEFAULT_POLICY)
    seen = {name: [] for name in names}
    model = copy.deepcopy(tiny_model)
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, x, name=name: seen[name].append(x[0].numpy().copy())
        )
    for images in batches:
        model(torch.from_numpy(images))
    ranges, count = input_ranges(tiny_model, names, batches)
    assert count == 10
    assert ranges == {name: float(max(np.abs(x).max() for x in values)) for name, values in seen.items()}


def test_ranges_do_not_depend_on_how_images_are_batched(tiny_model, batches):
    names = quantized_names(tiny_model, DEFAULT_POLICY)
    together, _ = input_ranges(tiny_model, names, [np.concatenate(batches)])
    apart, _ = input_ranges(tiny_model, names, batches)
    assert together == pytest.approx(apart, rel=1e-5)


def test_the_given_model_is_left_unchanged(tiny_model, batches):
    model = copy.deepcopy(tiny_model)
    images = torch.from_numpy(batches[0])
    with torch.no_grad():
        before = model(images)
    quantize_int8(model, batches)
    with torch.no_grad():
        assert torch.equal(model(images), before)
    assert not any(isinstance(module, QuantLinear) or module._forward_pre_hooks for module in model.modules())
    own = tiny_model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


def test_the_copy_shares_no_weights_with_the_given_model(tiny_model, quantized):
    own = {p.data_ptr() for p in tiny_model.parameters()}
    assert not own & {p.data_ptr() for p in quantized.model.parameters()}


def test_summary_is_plain_json_and_says_what_was_done(tiny_model, quantized):
    summary = quantized.summary
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["precision"], summary["method"], summary["calibration_images"]) == ("int8", "max", 10)
    assert QuantPolicy.from_json({"rules": summary["policy"]}) == DEFAULT_POLICY
    inserted = {name for name, module in quantized.model.named_modules() if isinstance(module, QuantLinear)}
    assert inserted == set(summary["ranges"]) == set(quantized_names(tiny_model, DEFAULT_POLICY))


def test_the_policy_decides_what_is_quantized(tiny_model, batches):
    policy = QuantPolicy((QuantRule("blocks.0.mlp.*", "int8", "test"),))
    assert set(quantize_int8(tiny_model, batches, policy).summary["ranges"]) == {"blocks.0.mlp.fc1", "blocks.0.mlp.fc2"}


@torch.no_grad()
def test_logits_change_a_little(tiny_model, quantized, batches):
    images = torch.from_numpy(batches[0])
    plain, int8 = tiny_model(images), quantized.model(images)
    assert not torch.equal(plain, int8)
    assert (plain - int8).square().mean() < 0.05 * plain.square().mean()


def test_quantized_model_is_in_eval_mode(quantized):
    assert not any(module.training for module in quantized.model.modules())


def test_dead_inputs_get_the_smallest_range(tiny_model, batches):
    model = copy.deepcopy(tiny_model)
    nn.init.zeros_(model.blocks[0].norm2.weight)
    nn.init.zeros_(model.blocks[0].norm2.bias)
    assert quantize_int8(model, batches).summary["ranges"]["blocks.0.mlp.fc1"] == SMALLEST_RANGE


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_activation_that_is_not_finite_is_refused_and_named(with_bad_activation, batches, value):
    with pytest.raises(DataError, match=r"calibration: input of blocks\.0\.mlp\.fc2 is not finite"):
        quantize_int8(with_bad_activation(value), batches)


def test_image_with_nan_is_refused(tiny_model, batches):
    damaged = batches[1].copy()
    damaged[2, 0, 5, 5] = np.nan
    with pytest.raises(DataError, match=r"calibration: input of .* is not finite"):
        quantize_int8(tiny_model, [batches[0], damaged, batches[2]])


def test_no_images_are_refused_and_hooks_removed(tiny_model):
    with pytest.raises(DataError, match="calibration: no images"):
        quantize_int8(tiny_model, [])
    assert not any(module._forward_pre_hooks for module in tiny_model.modules())


def test_hooks_are_removed_when_a_batch_fails(tiny_model):
    with pytest.raises(DataError, match="the model takes"):
        quantize_int8(tiny_model, [np.zeros((1, 4, 32, 32), np.float32)])
    assert not any(module._forward_pre_hooks for module in tiny_model.modules())


def test_nothing_to_quantize_is_refused(tiny_model, batches):
    with pytest.raises(ConfigError, match="no linear layer or convolution of this model matches a rule that quantizes"):
        quantize_int8(tiny_model, batches, QuantPolicy(()))


def test_ranges_that_miss_a_layer_are_refused(tiny_model):
    with pytest.raises(ConfigError, match=r"ranges: none for the input of blocks\.0\.attn\.qkv and 11 others"):
        quantize_with(tiny_model, {}, DEFAULT_POLICY, "max", 1)


def test_a_quantized_checkpoint_of_the_old_form_gets_the_one_line_about_its_form(
    tmp_path, tiny_model, tiny_info, quantized
):
    """Its layers are named before its quantization, which names layers that no model has any more, is looked at."""
    summary = {**quantized.summary, "ranges": {"stages.0.attn.q": 1.0}, "precisions": {"stages.0.attn.q": "int8"}}
    save_checkpoint(tmp_path / "old", dataclasses.replace(tiny_info, quantization=summary), tiny_model)
    data = json.loads((tmp_path / "old/config.json").read_text())
    for name in ("score", "num_prefix_tokens"):
        del data["model"][name]
    write_sealed(tmp_path / "old/config.json", data)
    with pytest.raises(ArtifactError, match="is a focal model of the old form") as error:
        load_checkpoint(tmp_path / "old")
    assert "\n" not in str(error.value) and "stages.0" not in str(error.value)


@pytest.mark.parametrize(
    "policy",
    [
        DEFAULT_POLICY,
        uniform_policy("int8", smoothquant=0.5, attention="int8"),
        QuantPolicy((QuantRule("*.attend", "int8", "all"), QuantRule("*", "int8", "all"))),
    ],
    ids=["default", "smoothed with attention", "everything"],
)
def test_layers_of_the_published_variant_that_never_run_stay_as_they_are(policy, batches):
    sizes = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
    budget = TokenBudget((12, 6), 16)
    config = GFTConfig("vit_tiny_patch16_224", 32, 4, stages=(2, 2), budget=budget, variant="published", **sizes)
    torch.manual_seed(0)
    model = build_model(config).eval()
    done = quantize_int8(model, batches, policy)
    blocks = {name.split(".")[2] for name in done.summary["ranges"] if name.startswith("base_model.blocks.")}
    assert blocks == {"0", "1"}
    images = torch.from_numpy(batches[0])
    expected, found = model(images), done.model(images)
    assert not torch.equal(found, expected)
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()
