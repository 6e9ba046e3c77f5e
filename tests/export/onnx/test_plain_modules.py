from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import Attention
from torch import nn

from gft_edge.budget import TokenBudget
from gft_edge.export.onnx.plain_modules import PlainAttend, exportable
from gft_edge.export.onnx.quantized import QDQLayer
from gft_edge.model.layers import Attend, SelfAttention
from gft_edge.quant.modules import QuantLinear, insert_quantizers

BUDGETS = [TokenBudget((12, 6), 16), TokenBudget((16, 16), 16), TokenBudget((2, 2), 16)]


def _images(dtype, batch=3):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda b: b.id)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@torch.no_grad()
def test_exportable_model_computes_what_the_model_computes(tiny_model, budget, dtype, tolerance):
    model = copy.deepcopy(tiny_model).to(dtype)
    images = _images(dtype)
    expected, found = model(images, budget, maps=True), exportable(model)(images, budget, maps=True)
    torch.testing.assert_close(found.logits, expected.logits, rtol=tolerance, atol=tolerance)
    for a, b in zip(found.stages, expected.stages, strict=True):
        assert torch.equal(a.kept, b.kept)
        torch.testing.assert_close(a.importance, b.importance, rtol=100 * tolerance, atol=tolerance)


def test_every_attention_is_written_out(tiny_model):
    kinds = [type(module) for module in exportable(tiny_model).modules()]
    assert not {Attention, Attend} & set(kinds)
    assert kinds.count(SelfAttention) == kinds.count(PlainAttend) == 3


@pytest.mark.parametrize("rows", [1, 4, 9])
@torch.no_grad()
def test_attention_of_some_rows_is_that_of_the_model(rows):
    torch.manual_seed(0)
    q, k, v = 3 * torch.randn(3, 2, 9, 24, dtype=torch.float64)
    arguments = (q[:, :rows], k, v)
    torch.testing.assert_close(PlainAttend(3)(*arguments), Attend(3)(*arguments), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_plain_attend_is_softmax_attention_head_by_head():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 6, generator=generator, dtype=torch.float64).numpy() for n in (4, 5, 5))
    expected = np.zeros((2, 4, 6))
    for image in range(2):
        for head in (slice(0, 3), slice(3, 6)):
            for row in range(4):
                weights = np.exp(k[image, :, head] @ q[image, row, head] / np.sqrt(3))
                expected[image, row, head] = weights @ v[image, :, head] / weights.sum()
    found = PlainAttend(2)(*(torch.from_numpy(t) for t in (q, k, v)))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("options", [{"qk_norm": True, "norm_layer": nn.LayerNorm}, {"proj_bias": False}], ids=str)
@torch.no_grad()
def test_attention_of_any_kind_keeps_its_result(options):
    torch.manual_seed(0)
    layer = nn.Sequential(Attention(16, num_heads=2, qkv_bias=True, **options).double().eval())
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    copied = exportable(layer)
    assert type(copied[0]) is (Attention if "qk_norm" in options else SelfAttention)
    torch.testing.assert_close(copied(x), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_the_original_is_left_unchanged(tiny_model, dtype):
    """The exportable model shares its memory and changes none of it."""
    model = copy.deepcopy(tiny_model).train()
    insert_quantizers(model, {"blocks.0.attn.qkv": 1.0})
    kinds = [type(module) for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    own = exportable(model, dtype)
    with torch.no_grad():
        own(torch.zeros(1, 3, 32, 32, dtype=dtype))
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not own.training
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in own.parameters())


def test_quantized_linears_are_replaced_and_no_other(tiny_model):
    model = copy.deepcopy(tiny_model)
    names = ["blocks.0.attn.qkv", "blocks.1.attn.proj", "blocks.2.mlp.fc2"]
    insert_quantizers(model, dict.fromkeys(names, 1.0))
    found = exportable(model)
    assert [name for name, module in found.named_modules() if isinstance(module, QDQLayer)] == sorted(names)
    assert not any(isinstance(module, QuantLinear) for module in found.modules())


class TestQDQLayer:
    @pytest.fixture(params=[True, False], ids=["bias", "no bias"])
    def layer(self, request):
        linear = nn.Linear(40, 12, bias=request.param)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in linear.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            linear.weight[3] = 0
            linear.weight[4] *= 1000
        return QuantLinear(linear, "int8", 2.54)

    def test_integer_weights_are_those_of_numpy(self, layer):
        weight = layer.weight.detach().numpy()
        scale = np.maximum(np.abs(weight).max(axis=1), np.float32(1e-5)) / np.float32(127)
        codes = np.clip(np.rint(weight / scale[:, None]), -128, 127).astype(np.int8)
        found = QDQLayer(layer)
        assert found.weight_stored.dtype == torch.int8
        assert found.weight_stored.shape == (40, 12)
        assert found.weight_stored.is_contiguous()
        np.testing.assert_array_equal(found.weight_stored.numpy(), codes.T)
        np.testing.assert_array_equal(found.weight_scale.numpy(), scale)
        assert set(np.abs(codes).max(axis=1)) == {0, 127}

    def test_integer_weights_are_those_of_the_fake_quantization(self, layer):
        found = QDQLayer(layer)
        fake = torch.fake_quantize_per_channel_affine(
            layer.weight.detach(), found.weight_scale, torch.zeros(12, dtype=torch.int32), 0, -128, 127
        )
        assert torch.equal(found.weight_stored.t().float() * found.weight_scale[:, None], fake)

    def test_activation_scale_is_one_number_and_all_zero_points_are_int8_zeros(self, layer):
        found = QDQLayer(layer)
        assert found.input_scale.shape == found.input_zero.shape == ()
        assert found.input_scale.dtype == torch.float32
        assert found.input_scale.item() == pytest.approx(0.02, rel=1e-6)
        for zero in (found.input_zero, found.weight_zero):
            assert zero.dtype == torch.int8
            assert not zero.any()
        assert found.weight_zero.shape == (12,)

    def test_importance_still_reads_the_float_weights(self, layer):
        found = QDQLayer(layer)
        assert found.weight is layer.weight
        assert found.bias is layer.bias
