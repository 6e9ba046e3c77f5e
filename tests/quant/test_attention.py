"""Attention with both products in 8 bits: which, whether TensorRT fuses it, what it computes."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import Attention

from gft_edge.budget import TokenBudget
from gft_edge.calibration.observing.collect import Collector, collect, observe
from gft_edge.calibration.ptq import observed_names, quantize_int8, quantize_with
from gft_edge.config.model import preset
from gft_edge.errors import ConfigError
from gft_edge.model.build import build_model
from gft_edge.model.layers import Attend, SelfAttention
from gft_edge.quant.attention import attention_names, attention_tensors, quantized_attention
from gft_edge.quant.modules import QuantAttend, insert_quantizers, without_quantizers
from gft_edge.quant.policy import DEFAULT_POLICY, QuantPolicy, QuantRule, uniform_policy

SITES = [f"blocks.{i}.attn.attend" for i in range(3)]
PRECISIONS = ("int8", "fp8")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((6, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module", params=PRECISIONS)
def quantized(request, tiny_model, images):
    return quantize_int8(tiny_model, [images], uniform_policy(request.param, attention=request.param))


def test_the_default_policy_leaves_attention_alone_and_says_why(tiny_model):
    assert sorted(attention_names(tiny_model)) == SITES
    assert quantized_attention(tiny_model, DEFAULT_POLICY) == {}
    assert "FP16 attention is fused by every TensorRT" in DEFAULT_POLICY.rule_for(SITES[0]).reason


def test_attention_goes_by_its_own_rules_only(tiny_model):
    everything = QuantPolicy((QuantRule("*", "int8", "all layers"), QuantRule("blocks.[01].*.attend", "fp8", "these")))
    chosen = quantized_attention(tiny_model, everything)
    assert chosen == dict.fromkeys(SITES[:2], "fp8")
    assert attention_tensors(tiny_model, everything)[:3] == [f"{SITES[0]}.{part}" for part in "qkv"]
    assert quantized_attention(tiny_model, QuantPolicy((QuantRule("*", "int8", "all layers"),))) == {}


@pytest.mark.parametrize("pattern", ["*.attend.q", "*.attn.attend.probs", "blocks.0.attn.attend.*"])
def test_a_policy_for_one_of_the_products_cannot_be_written(pattern):
    with pytest.raises(ConfigError, match="must end in 'attend'"):
        QuantRule(pattern, "int8", "half")


def test_attention_has_no_weights():
    with pytest.raises(ConfigError, match=r"'\*\.attend': an attention has no weights"):
        QuantRule("*.attend", "int8-weights", "x")


def test_rules_that_match_no_attention_are_refused(tiny_model):
    policy = QuantPolicy((*DEFAULT_POLICY.rules[:-4], QuantRule("blocks.9.attn.attend", "int8", "x")))
    with pytest.raises(ConfigError, match="no attention of this model matches"):
        observed_names(tiny_model, dataclasses.replace(policy, rules=policy.rules[-1:] + DEFAULT_POLICY.rules))


@pytest.fixture(scope="module")
def long_model():
    """23 x 23 patches and the class token: 530 tokens, 401 behind the first block that selects, 101 behind the second."""
    budget = TokenBudget((400, 100), 529)
    size = {"image_size": 92, "patch_size": 4, "budget": budget}
    return build_model(
        preset("gft_typeface", num_classes=4, embed_dim=32, depth=3, num_heads=2, stages=(1, 2), **size)
    ).eval()


def test_int8_attention_ends_at_512_tokens(long_model):
    with pytest.raises(
        ConfigError, match=r"blocks\.0\.attn\.attend attends to 530 tokens, .* up to 512 \(NVIDIA/TensorRT issue 3724\)"
    ) as error:
        quantize_int8(long_model, [], uniform_policy("int8", attention="int8"))
    assert "\n" not in str(error.value)
    later = QuantPolicy((QuantRule("blocks.[12].attn.attend", "int8", "401 and 101 tokens"),))
    assert set(quantized_attention(long_model, later)) == {"blocks.1.attn.attend", "blocks.2.attn.attend"}
    assert len(quantized_attention(long_model, uniform_policy("fp8", attention="fp8"))) == 3


@pytest.mark.parametrize(("heads", "width"), [(4, 8), (3, None)])
def test_fp8_attention_needs_heads_that_fuse(tiny_config, heads, width):
    width = 32 if width else 72
    model = build_model(dataclasses.replace(tiny_config, embed_dim=width, num_heads=heads)).eval()
    with pytest.raises(ConfigError, match=rf"has heads of {width // heads} channels; .* multiples of 16 up to 256"):
        quantized_attention(model, uniform_policy("fp8", attention="fp8"))


@torch.no_grad()
def test_ranges_are_those_of_scaled_queries_of_computed_rows_and_all_keys_and_values(tiny_model, images):
    names = observed_names(tiny_model, uniform_policy("int8", attention="int8"))
    collector = Collector(names)
    collect(collector, observe(tiny_model, collector, [images]))
    ranges = collector.ranges()
    seen = {}
    handles = [
        tiny_model.get_submodule(name).register_forward_hook(lambda _, i, o, name=name: seen.update({name: (i, o)}))
        for name in (f"blocks.{i}.attn.qkv" for i in range(3))
    ]
    kept = tiny_model(torch.from_numpy(images), maps=True).stages[0].kept
    for handle in handles:
        handle.remove()
    for block, tokens in enumerate((17, 13, 7)):
        q, k, v = seen[f"blocks.{block}.attn.qkv"][1].numpy().reshape(6, tokens, 3, 32).transpose(2, 0, 1, 3)
        if block == 0:  # rows of the patches that stay, and the class token's
            q = np.stack([image[[0, *(positions + 1)]] for image, positions in zip(q, kept.numpy())])
        elif block == 2:  # the last block computes the class token alone
            q = q[:, :1]
        for part, value in (("q", q / math.sqrt(16)), ("k", k), ("v", v)):
            if (block, part) != (1, "q"):
                name = f"blocks.{block}.attn.attend.{part}"
                assert ranges[name] == pytest.approx(np.abs(value).max(), rel=1e-6), name


def _int8(x, scale):
    return np.clip(np.rint(x / scale), -128, 127) * scale


def _e4m3(x, scale):
    y = np.clip(x / scale, -448, 448)
    exponent = np.floor(np.log2(np.maximum(np.abs(y), 2.0**-6)))
    step = 2.0 ** (np.maximum(exponent, -6) - 3)
    return np.rint(y / step) * step * scale


@pytest.mark.parametrize(("precision", "largest", "rounded"), [("int8", 127, _int8), ("fp8", 448, _e4m3)])
@torch.no_grad()
def test_attention_is_that_of_rounded_operands_head_by_head(precision, largest, rounded):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, n, 32)).astype(np.float32) for n in (5, 9, 9))
    ranges = {"q": 0.6, "k": 2.0, "v": 1.5, "probs": 1.0}
    found = QuantAttend(2, ranges, precision)(*map(torch.from_numpy, (q, k, v))).numpy()
    scale = {part: value / largest for part, value in ranges.items()}
    for head in (slice(0, 16), slice(16, 32)):
        scores = rounded(q[..., head].astype(np.float64) / 4, scale["q"]) @ rounded(
            k[..., head].astype(np.float64), scale["k"]
        ).transpose(0, 2, 1)
        probs = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        expected = rounded(probs, scale["probs"]) @ rounded(v[..., head].astype(np.float64), scale["v"])
        # a value within float noise of a rounding boundary may fall to its other side
        assert np.median(np.abs(found[..., head] - expected)) < 1e-6
        np.testing.assert_allclose(found[..., head], expected, atol=0.06)


def test_probabilities_have_a_fixed_scale(quantized):
    scale = 1 / 127 if quantized.summary["precision"] == "int8" else 1 / 448
    attends = [m for m in quantized.model.modules() if isinstance(m, QuantAttend)]
    assert len(attends) == 3
    assert all(attend.quantizers["probs"].scale == scale for attend in attends)
    assert {quantized.summary["ranges"][f"{site}.probs"] for site in SITES} == {1.0}


@torch.no_grad()
def test_logits_change_a_little(tiny_model, quantized, images):
    x = torch.from_numpy(images)
    plain, low = tiny_model(x), quantized.model(x)
    assert not torch.equal(plain, low)
    assert (plain - low).square().mean() < 0.05 * plain.square().mean()


@torch.no_grad()
def test_attention_of_a_plain_transformer_is_exchanged_too(images):
    torch.manual_seed(0)
    model = build_model(preset("vit_tiny", backbone="test_vit", image_size=32, num_classes=4)).eval()
    low = quantize_int8(model, [images], uniform_policy("int8", attention="int8"))
    attends = [name for name, module in low.model.named_modules() if isinstance(module, QuantAttend)]
    assert attends == attention_names(model) and len(attends) > 1
    assert not any(isinstance(m, SelfAttention) for m in model.modules())
    x = torch.from_numpy(images)
    assert not torch.equal(low.model(x), model(x))
    torch.testing.assert_close(without_quantizers(low.model)(x), model(x))


@torch.no_grad()
def test_quantized_attention_is_inserted_and_taken_out_again(tiny_model, quantized, images):
    assert sum(isinstance(m, Attend) for m in tiny_model.modules()) == 3
    assert not any(isinstance(m, Attention | Attend) for m in quantized.model.modules())
    again = copy.deepcopy(tiny_model)
    insert_quantizers(again, quantized.summary["ranges"], quantized.summary["precisions"])
    x = torch.from_numpy(images)
    assert torch.equal(again(x), quantized.model(x))
    assert torch.equal(without_quantizers(again)(x), tiny_model(x))
    assert quantized.model.state_dict().keys() == tiny_model.state_dict().keys()


def test_missing_operands_are_refused(tiny_model):
    model = copy.deepcopy(tiny_model)
    with pytest.raises(ConfigError, match="attention needs ranges of q, k, v, probs; v has none"):
        insert_quantizers(model, {f"{SITES[0]}.q": 1.0, f"{SITES[0]}.k": 1.0})
    with pytest.raises(ConfigError, match=r"blocks\.9\.attn\.attend is not an attention"):
        insert_quantizers(model, {"blocks.9.attn.attend.q": 1.0})
    policy = uniform_policy("int8", attention="int8")
    ranges = dict.fromkeys(observed_names(tiny_model, DEFAULT_POLICY), 1.0)
    with pytest.raises(ConfigError, match=r"none for the input of blocks\.0\.attn\.attend\.q .*--attention"):
        quantize_with(tiny_model, ranges, policy, "max", 1)
