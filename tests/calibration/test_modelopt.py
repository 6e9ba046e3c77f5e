"""Post-training quantization against NVIDIA's Model-Optimizer, by our policy as its recipe: same layers, ranges and numbers."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from gft_edge.calibration.modelopt_recipe import quant_cfg, recipe, write_recipe
from gft_edge.calibration.ptq import quantize_int8
from gft_edge.errors import ConfigError
from gft_edge.quant.modules import QuantLinear
from gft_edge.quant.policy import DEFAULT_POLICY, QuantPolicy, QuantRule, uniform_policy


@pytest.fixture(scope="module")
def mtq():
    return pytest.importorskip("modelopt.torch.quantization", reason="nvidia-modelopt is not installed (extra quant)")


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def names(tiny_model):
    return [name for name, module in tiny_model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def quantized_by(mtq, model, config, images):
    with torch.no_grad():
        return mtq.quantize(copy.deepcopy(model).eval(), config, lambda model: model(images)).eval()


@pytest.fixture(scope="module")
def both(mtq, tiny_model, names, images):
    """The tiny model quantized by this project and by Model-Optimizer, on the same images."""
    config = {"quant_cfg": quant_cfg(DEFAULT_POLICY, names), "algorithm": "max"}
    return quantize_int8(tiny_model, [images.numpy()]), quantized_by(mtq, tiny_model, config, images)


def enabled(model):
    """Names of the layers whose weights, and whose inputs, Model-Optimizer quantizes; and of any other quantizer at work."""
    on = {name for name, m in model.named_modules() if name.endswith("_quantizer") and m.is_enabled}
    sides = [{n.removesuffix(s) for n in on if n.endswith(s)} for s in (".weight_quantizer", ".input_quantizer")]
    return (*sides, {n for n in on if not n.endswith((".weight_quantizer", ".input_quantizer"))})


def test_the_same_layers_are_quantized(both):
    ours, theirs = both
    layers = set(ours.summary["ranges"])
    assert len(layers) > 10
    assert enabled(theirs) == (layers, layers, set())


def test_ranges_are_the_same(both):
    ours, theirs = both
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


MIXED = QuantPolicy(
    (
        QuantRule("blocks.0.*.fc1", "high", "first of two rules that match"),
        QuantRule("*.mlp.fc1", "int8", "all others"),
        QuantRule("blocks.1.mlp.*", "int8-weights", "overlaps the rule before it"),
        QuantRule("head", "fp8", "another precision"),
        QuantRule("nothing.here", "int8", "matches no layer"),
    )
)


def test_overlapping_rules_decide_as_in_the_policy(mtq, tiny_model, names, images):
    theirs = quantized_by(mtq, tiny_model, {"quant_cfg": quant_cfg(MIXED, names), "algorithm": "max"}, images)
    weights, inputs, others = enabled(theirs)
    assert weights == {name for name in names if MIXED.is_quantized(name)}
    assert inputs == {name for name in names if MIXED.precision_of(name) in ("int8", "fp8")}
    assert "blocks.1.mlp.fc2" in weights - inputs and others == set()
    assert theirs.head.weight_quantizer.num_bits == (4, 3)


def test_the_file_is_read_by_load_recipe(mtq, names, tmp_path):
    from modelopt.recipe import load_recipe

    write_recipe(tmp_path / "ours.yaml", MIXED, names)
    read = load_recipe(tmp_path / "ours.yaml").quantize
    assert read.algorithm == "max"
    assert [entry.quantizer_name for entry in read.quant_cfg] == [
        entry["quantizer_name"] for entry in quant_cfg(MIXED, names)
    ]


def test_entries_without_model_optimizer(names):
    entries = quant_cfg(MIXED, names)
    assert entries[0] == {"quantizer_name": "*", "enable": False}
    assert [e["quantizer_name"] for e in entries[1:5:2]] == ["head.weight_quantizer", "blocks.1.mlp.*.weight_quantizer"]
    assert entries[-1] == {"quantizer_name": "blocks.0.*.fc1.input_quantizer", "enable": False}
    assert not any("nothing" in e["quantizer_name"] for e in entries)
    assert recipe(MIXED, names)["metadata"]["recipe_type"] == "ptq"


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (uniform_policy("int8", smoothquant=0.5), "leave out smoothquant"),
        (uniform_policy("int8", attention="int8"), "blocks.0.attn.attend; keep attention high"),
        (QuantPolicy((QuantRule("*", "high", "nothing"),)), "quantizes no layer"),
    ],
)
def test_what_a_recipe_cannot_say(names, policy, words):
    with pytest.raises(ConfigError, match=words):
        quant_cfg(policy, [*names, "blocks.0.attn.attend"])


def test_a_file_of_that_name_is_replaced_whole(names, tmp_path):
    (tmp_path / "ours.yaml").write_text("old")
    (tmp_path / "link.yaml").hardlink_to(tmp_path / "ours.yaml")
    write_recipe(tmp_path / "ours.yaml", MIXED, names)
    assert (tmp_path / "link.yaml").read_text() == "old", "written beside it and renamed, not into it"


def test_suffix_of_the_file(names, tmp_path):
    with pytest.raises(ConfigError, match=r"reads \.yaml and \.yml only"):
        write_recipe(tmp_path / "ours.json", MIXED, names)
