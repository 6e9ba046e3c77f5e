"""Post-training quantization against NVIDIA's Model-Optimizer: the same ranges and the same numbers."""

import copy

import numpy as np
import pytest
import torch

from gft_edge.calibration.ptq import quantize_int8
from gft_edge.quant.modules import QuantLinear
from gft_edge.quant.policy import DEFAULT_POLICY

mtq = pytest.importorskip("modelopt.torch.quantization", reason="nvidia-modelopt is not installed (extra quant)")


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def both(tiny_model, images):
    """The tiny model quantized by this project and by Model-Optimizer, on the same images."""
    ours = quantize_int8(tiny_model, [images.numpy()])
    rules = [{"quantizer_name": "*", "enable": False}]
    for name in ours.summary["ranges"]:
        rules.append({"quantizer_name": f"{name}.weight_quantizer", "cfg": {"num_bits": 8, "axis": 0}})
        rules.append({"quantizer_name": f"{name}.input_quantizer", "cfg": {"num_bits": 8, "axis": None}})
    with torch.no_grad():
        theirs = mtq.quantize(
            copy.deepcopy(tiny_model).eval(), {"quant_cfg": rules, "algorithm": "max"}, lambda model: model(images)
        )
    return ours, theirs.eval()


def test_ranges_are_the_same(both):
    ours, theirs = both
    assert len(ours.summary["ranges"]) > 10
    for name, expected in ours.summary["ranges"].items():
        assert theirs.get_submodule(name).input_quantizer.amax.item() == pytest.approx(expected, rel=1e-6), name
        layer = ours.model.get_submodule(name)
        assert isinstance(layer, QuantLinear)
        np.testing.assert_allclose(
            theirs.get_submodule(name).weight_quantizer.amax.flatten().numpy(),
            layer.weight_quantizer.ranges.numpy(),
            rtol=1e-6,
        )


def test_every_layer_computes_the_same(both):
    ours, theirs = both
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, input_range in ours.summary["ranges"].items():
            layer = ours.model.get_submodule(name)
            x = torch.randn(64, layer.in_features, generator=generator) * input_range / 2
            torch.testing.assert_close(theirs.get_submodule(name)(x), layer(x), rtol=1e-5, atol=1e-5 * input_range)


def test_models_agree(both, images):
    ours, theirs = both
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), ours.model(images), rtol=1e-3, atol=1e-4)
    assert not DEFAULT_POLICY.is_quantized("head")
