from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from gft_edge.errors import ConfigError
from gft_edge.quant.levels import SMALLEST_RANGE
from gft_edge.quant.modules import QuantLinear, insert_quantizers, without_quantizers

UNIT = 1 / 16
"""A scale that float32 holds exactly, so that ties of the rounding are exact too."""


def _codes(values, scale):
    """INT8 codes, one value at a time; Python's round goes half to even."""
    return np.vectorize(lambda value, unit: min(max(round(value / unit), -128), 127))(values, scale)


def _linear(weight, bias=None):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
        if bias is not None:
            linear.bias.copy_(torch.from_numpy(bias))
    return linear


@pytest.mark.parametrize("with_bias", [True, False])
@torch.no_grad()
def test_output_is_the_integer_product_times_the_scales(with_bias):
    rng = np.random.default_rng(0)
    weight = rng.integers(-254, 255, (6, 40)) * (UNIT / 2)
    weight[:, 0] = 127 * UNIT
    weight *= 2.0 ** np.arange(-3, 3)[:, None]
    bias = rng.integers(-100, 100, 6) * UNIT if with_bias else None
    x = rng.integers(-600, 600, (5, 40)) * (UNIT / 2)
    assert (np.abs(x) > 128 * UNIT).any(), "some values are clamped"
    weight_scale = np.abs(weight).max(axis=1, keepdims=True) / 127
    product = _codes(x, UNIT) @ _codes(weight, weight_scale).T
    expected = product * UNIT * weight_scale.T + (0 if bias is None else bias)
    layer = QuantLinear(_linear(weight, bias), "int8", 127 * UNIT)
    np.testing.assert_array_equal(layer(torch.from_numpy(x).float()), expected)


@torch.no_grad()
def test_rounding_is_half_to_even_and_clamped():
    layer = QuantLinear(_linear(np.ones((1, 1))), "int8", 127 * UNIT)
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 300.0, -128.5, -300.0]).reshape(-1, 1) * UNIT
    expected = [0, 2, 2, 0, -2, 126, 127, 127, -128, -128]
    assert (layer(x).flatten() / UNIT).round().tolist() == expected


@torch.no_grad()
def test_random_values_stay_within_the_quantization_error():
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, 32)
    nn.init.normal_(linear.weight, generator=generator)
    x = torch.randn(100, 64, generator=generator)
    error = QuantLinear(linear, "int8", float(x.abs().max()))(x) - linear(x)
    x_step, w_step = x.abs().max() / 127, linear.weight.abs().amax(dim=1) / 127
    bound = (
        0.51 * (x_step * linear.weight.abs().sum(dim=1) + w_step * x.abs().sum(dim=1, keepdim=True))
        + 32 * x_step * w_step
    )
    assert (error.abs() <= bound).all()
    assert error.abs().max() > 0


@torch.no_grad()
def test_leading_shape_is_kept():
    layer = QuantLinear(nn.Linear(8, 3), "int8", 1.0)
    x = torch.rand(2, 5, 8)
    assert torch.equal(layer(x), layer(x.reshape(10, 8)).reshape(2, 5, 3))


def test_state_dict_is_that_of_the_plain_layer():
    linear = nn.Linear(8, 3)
    layer = QuantLinear(linear, "int8", 1.0)
    assert layer.state_dict().keys() == linear.state_dict().keys()
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias


@torch.no_grad()
def test_dead_channels_and_tiny_ranges_have_usable_scales():
    linear = nn.Linear(8, 2)
    nn.init.zeros_(linear.weight)
    layer = QuantLinear(linear, "int8", 1e-30)
    assert layer.input_quantizer.scale == SMALLEST_RANGE / 127
    assert (layer.weight_quantizer.ranges == np.float32(SMALLEST_RANGE)).all()
    assert torch.equal(layer(torch.ones(1, 8)), linear.bias.reshape(1, 2))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_unusable_range_is_refused(value):
    with pytest.raises(ConfigError, match=r"range .*found"):
        QuantLinear(nn.Linear(8, 2), "int8", value)


def test_insert_replaces_the_named_layers_only(tiny_model):
    model = copy.deepcopy(tiny_model)
    names = ["blocks.0.attn.qkv", "blocks.2.mlp.fc1", "head"]
    insert_quantizers(model, dict.fromkeys(names, 1.0))
    assert [name for name, module in model.named_modules() if isinstance(module, QuantLinear)] == names


@pytest.mark.parametrize("name", ["nose", "blocks.9.mlp.fc1", "blocks.0", "norm", "stages.0.attn.q", ""])
def test_insert_refuses_what_is_no_linear_layer(tiny_model, name):
    with pytest.raises(ConfigError, match=f"quantization: {name} is not a linear layer"):
        insert_quantizers(copy.deepcopy(tiny_model), {name: 1.0})


def _e4m3(value):
    """Nearest FP8 E4M3 number: 3 bits of mantissa, smallest exponent -6, at most 448; half to even."""
    if value == 0:
        return 0.0
    step = 2.0 ** (max(math.floor(math.log2(abs(value))), -6) - 3)
    return max(min(round(value / step) * step, 448.0), -448.0)


@torch.no_grad()
def test_fp8_is_the_product_of_rounded_inputs():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((5, 30)).astype(np.float32)
    weight[0, 0] = 4.0
    x = rng.standard_normal((7, 30)).astype(np.float32) * 3
    layer = QuantLinear(_linear(weight), "fp8", 2.0)
    x_scale, w_scale = 2 / 448, 4 / 448
    rounded = np.vectorize(_e4m3)
    expected = rounded(x / np.float32(x_scale)) @ rounded(weight / np.float32(w_scale)).T * x_scale * w_scale
    np.testing.assert_allclose(layer(torch.from_numpy(x)), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_weight_only_rounds_weights_and_nothing_else():
    weight = np.random.default_rng(0).standard_normal((5, 30))
    scale = np.abs(weight).max(axis=1, keepdims=True) / 127
    x = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    expected = x.numpy() @ (_codes(weight, scale) * scale).T
    np.testing.assert_allclose(QuantLinear(_linear(weight), "int8-weights")(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_precisions_are_inserted_and_taken_out_again(tiny_model):
    model = copy.deepcopy(tiny_model)
    kinds = {"blocks.0.attn.qkv": "fp8", "blocks.0.mlp.fc1": "int8-weights", "head": "int8"}
    insert_quantizers(model, dict.fromkeys(kinds, 3.0), kinds)
    assert [model.get_submodule(n).precision for n in kinds] == list(kinds.values())
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(model(x), tiny_model(x))
    assert torch.equal(without_quantizers(model)(x), tiny_model(x))
    with pytest.raises(ConfigError, match="'int3'"):
        insert_quantizers(copy.deepcopy(tiny_model), {"head": 1.0}, {"head": "int3"})
