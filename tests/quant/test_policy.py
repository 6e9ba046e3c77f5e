from __future__ import annotations

import json

import pytest
from torch import nn

from gft_edge.config.model import preset
from gft_edge.errors import ConfigError
from gft_edge.model.build import build_model
from gft_edge.quant.attention import unused_patterns
from gft_edge.quant.modules import quantized_names
from gft_edge.quant.policy import DEFAULT_POLICY, QuantPolicy, QuantRule, read_policy, uniform_policy


@pytest.fixture(scope="module")
def typeface_model():
    return build_model(preset("gft_typeface"))


def test_json_round_trip():
    assert QuantPolicy.from_json(json.loads(json.dumps(DEFAULT_POLICY.to_json()))) == DEFAULT_POLICY


@pytest.mark.parametrize(
    "rule",
    [
        {"pattern": "*", "precision": "int8"},
        {"pattern": "*", "precision": "int8", "reason": "x", "more": 1},
        {"pattern": "*", "precision": "int3", "reason": "x"},
        "head",
        5,
    ],
    ids=str,
)
def test_malformed_rules_are_refused(rule):
    with pytest.raises(ConfigError, match="quantization policy"):
        QuantPolicy.from_json({"rules": [rule]})


def test_every_rule_has_a_reason():
    assert all(rule.reason for rule in DEFAULT_POLICY.rules)


def test_the_first_matching_rule_decides():
    policy = QuantPolicy(
        (QuantRule("a.b", "high", "one"), QuantRule("a.*", "int8", "two"), QuantRule("*", "high", "three"))
    )
    assert [policy.rule_for(name).reason for name in ("a.b", "a.c", "b")] == ["one", "two", "three"]
    assert [policy.is_quantized(name) for name in ("a.b", "a.c", "b")] == [False, True, False]


def test_what_no_rule_matches_stays_high():
    assert QuantPolicy(()).rule_for("head") is None
    assert not QuantPolicy(()).is_quantized("head")


def test_patterns_are_case_sensitive():
    assert not QuantPolicy((QuantRule("HEAD", "int8", "x"),)).is_quantized("head")


def test_exactly_the_matrix_products_of_the_blocks_are_quantized(typeface_model):
    products = [f"blocks.{i}.{part}" for i in range(6) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert quantized_names(typeface_model, DEFAULT_POLICY) == products


def test_only_linear_layers_and_convolutions_can_be_quantized(typeface_model):
    names = quantized_names(typeface_model, QuantPolicy((QuantRule("*", "int8", "all"),)))
    assert "head" in names
    assert not any("norm" in name for name in names)
    assert {type(typeface_model.get_submodule(name)) for name in names} == {nn.Linear, nn.Conv2d}


def test_policy_that_quantizes_nothing_is_refused(typeface_model):
    with pytest.raises(ConfigError, match="no linear layer or convolution of this model matches a rule that quantizes"):
        quantized_names(typeface_model, QuantPolicy(()))


def test_rules_that_match_nothing_are_found(typeface_model):
    """Such as those for layers that models once had, and for an attention that is not there."""
    rules = [QuantRule(pattern, "int8", "x") for pattern in ("stages.*", "*.attn.q", "*.mlp.fc1", "blocks.9.*attend")]
    high = QuantRule("stages.0.attn.proj", "high", "x")
    assert unused_patterns(typeface_model, QuantPolicy((*rules, rules[0], high, *DEFAULT_POLICY.rules))) == (
        "stages.*",
        "*.attn.q",
        "blocks.9.*attend",
        "stages.0.attn.proj",
    )
    everything = QuantPolicy((QuantRule("*", "high", "x"), QuantRule("*.attn.attend", "high", "x")))
    assert unused_patterns(typeface_model, everything) == unused_patterns(typeface_model, DEFAULT_POLICY) == ()


def test_policy_files(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps({**DEFAULT_POLICY.to_json(), "smoothquant": 0.7}))
    assert read_policy(tmp_path / "p.json") == QuantPolicy(DEFAULT_POLICY.rules, 0.7)
    (tmp_path / "p.toml").write_text('[[rules]]\npattern = "*.fc1"\nprecision = "fp8"\nreason = "half of the work"\n')
    assert read_policy(tmp_path / "p.toml") == QuantPolicy((QuantRule("*.fc1", "fp8", "half of the work"),))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", "{"),
        ("p.toml", "rules ="),
        ("p.json", "[]"),
        ("p.json", "{}"),
        ("p.json", '{"rules": 5}'),
        ("p.json", '{"rules": [], "smoothquant": 2}'),
        ("p.json", '{"rules": [], "smoothquant": true}'),
        ("p.json", '{"rules": [], "more": 1}'),
        ("p.json", '{"rules": [{"pattern": "*", "precision": "int8", "reason": ""}]}'),
        ("none.json", None),
        pytest.param("p.json", "[" * 100_000, id="deep json"),
        pytest.param("p.toml", "a = " + "[" * 100_000, id="deep toml"),
    ],
)
def test_malformed_policy_files_are_refused(tmp_path, name, text):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match="quantization policy") as error:
        read_policy(tmp_path / name)
    assert "\n" not in str(error.value)


def test_uniform_policies_keep_the_rules():
    policy = uniform_policy("fp8")
    assert [rule.pattern for rule in policy.rules] == [rule.pattern for rule in DEFAULT_POLICY.rules]
    assert policy.precision_of("blocks.0.mlp.fc1") == "fp8"
    assert policy.precision_of("head") == "high"
    assert uniform_policy("int8") == DEFAULT_POLICY
