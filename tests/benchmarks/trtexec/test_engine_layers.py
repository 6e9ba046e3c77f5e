from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.benchmarks.trtexec.engine_layers import LayerSummary, parse_layers, parse_profile, with_times
from gft_edge.errors import ArtifactError, GFTEdgeError

DATA = Path(__file__).parents[2] / "recorded/trtexec"


def data(name):
    return json.loads((DATA / name).read_text())


def roles(name):
    return [(layer.role, layer.precision) for layer in parse_layers(data(name))]


def test_recorded_layers_of_resnet18_in_int8():
    assert roles("layers-resnet18-int8.json") == [("reformat", "fp32"), ("convolution", "int8")]
    onnx = parse_layers(data("layers-resnet18-int8.json"))[1].onnx
    assert onnx == ("resnetv15_stage2_conv1_fwd", "resnetv15_stage2_batchnorm1_fwd")


def test_recorded_layers_of_a_bert_in_fp16_whose_modules_are_named_mha():
    assert roles("layers-bert-fp16.json") == [("gemm", "fp16"), ("other", "fp16"), ("gemm", "fp16")]
    summary = LayerSummary.of(parse_layers(data("layers-bert-fp16.json")))
    assert summary.fused_attention == 0
    assert summary.int8.startswith("INT8 is not faster here because no matrix product is in INT8; ")


def test_8_6_hides_attention_in_a_region():
    assert roles("layers-8.6.json") == [
        ("reformat", "fp32"),
        ("convolution", "fp16"),
        ("gemm", "int8"),
        ("region", "unknown"),
    ]
    summary = LayerSummary.of(parse_layers(data("layers-8.6.json")))
    assert (summary.attention, summary.regions) == ("unknown", 1)
    assert "the inside of 1 fused region(s) is unknown" in summary.int8


def test_10_3_with_fused_attention():
    summary = LayerSummary.of(parse_layers(data("layers-10.3.json")))
    assert (summary.attention, summary.fused_attention, summary.reformats, summary.count) == ("fused", 2, 2, 11)
    assert summary.gemm_shares == pytest.approx({"int8": 4 / 11, "fp16": 1 / 11})
    assert not summary.timed
    assert summary.reformat_share is None


def test_11_tells_format_and_type_apart():
    summary = LayerSummary.of(parse_layers(data("layers-11.json")), tokens=785)
    assert summary.attention == "not fused"
    assert summary.gemm_shares == pytest.approx({"int8": 4 / 15, "fp16": 5 / 15})
    assert "attention is not fused (785 tokens, more than 512)" in summary.int8
    assert "gains little or nothing" in summary.int8


def test_shares_are_of_the_profiles_time():
    times = parse_profile(data("profile.json"))
    layers = with_times(parse_layers(data("layers-10.3.json")), times)
    assert sum(layer.share for layer in layers) == pytest.approx(1)
    total = sum(times.values())
    summary = LayerSummary.of(layers)
    assert summary.gemm_shares["int8"] == pytest.approx(2 * (0.2 + 0.1) / total)
    assert summary.gemm_shares["fp16"] == pytest.approx(0.3 / total)
    assert summary.reformat_share == pytest.approx(2 * 0.06 / total)
    assert "has room to be faster" in summary.int8
    assert "2 reformats take 8 % of the time" in summary.int8


def test_a_layer_only_the_profile_knows_is_kept():
    layers = with_times(parse_layers(["/blocks.0/attn/qkv/MatMul"]), {"_gemm_mha_v2_myl3_6": 1.0})
    assert [(layer.role, layer.share) for layer in layers] == [("gemm", None), ("attention", 1.0)]


def test_layers_of_one_name_share_its_time():
    layers = with_times(parse_layers(["fc", "fc", "relu"]), {"fc": 6.0, "relu": 2.0})
    assert [(layer.time_ms, layer.share) for layer in layers] == [(3.0, 0.375), (3.0, 0.375), (2.0, 0.25)]


@pytest.mark.parametrize("key", ["Layers", "layers", "LayerInfo", None])
def test_every_root_is_read(key):
    layers = data("layers-10.3.json")["Layers"]
    assert len(parse_layers(layers if key is None else {key: layers})) == 11


def test_names_alone_tell_no_precision():
    layers = parse_layers(
        {"Layers": ["/blocks.0/attn/qkv/MatMul + /blocks.0/attn/qkv/Add", "Reformatting CopyNode for x"]}
    )
    assert [layer.role for layer in layers] == ["gemm", "reformat"]
    assert "--profilingVerbosity=detailed" in LayerSummary.of(layers).int8


@pytest.mark.parametrize(
    ("tactic", "precision"),
    [
        ("sm80_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize32x32x64", "int8"),
        ("ampere_int8_i16832gemm_int8_256x128_ldg16", "int8"),
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize128x128x16", "tf32"),
        ("sm75_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc", "fp16"),
        ("ampere_h16816gemm_256x128_ldg8_nn_v1", "fp16"),
        ("volta_fp16_s884cudnn_fp16_256x64", "fp16"),
        ("sm89_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n", "fp8"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "bf16"),
        ("ampere_sgemm_128x64_tn", "fp32"),
    ],
)
def test_tactics_tell_the_precision(tactic, precision):
    layer = parse_layers([{"Name": "x", "LayerType": "gemm", "TacticName": tactic}])[0]
    assert (layer.role, layer.precision) == ("gemm", precision)


@pytest.mark.parametrize(
    "layers", [None, {}, [], {"Layers": {}}, {"Layers": []}, 3, {"Layers": [3]}, {"Layers": [None]}]
)
def test_what_is_no_list_of_layers_is_refused(layers):
    with pytest.raises(ArtifactError, match="layers"):
        parse_layers(layers)


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({}, "expected the list"),
        ([], "zero length"),
        ([{"count": 10}], "zero length"),
        ([{"name": "a"}], "no averageMs"),
        ([{"name": 3, "averageMs": 1}], "no name"),
        ([{"name": "a", "averageMs": -1.0}], "the clock went backwards"),
        ([{"name": "a", "averageMs": float("nan")}], "a: nan ms"),
    ],
)
def test_a_profile_that_cannot_be_used_is_refused(profile, message):
    with pytest.raises(ArtifactError, match=message):
        parse_profile(profile)


KEYS = [
    "Name",
    "LayerType",
    "TacticName",
    "Metadata",
    "Inputs",
    "Outputs",
    "Weights",
    "Type",
    "Format",
    "Format/Datatype",
]
KEYS += ["Layers", "name", "averageMs", "Precision"]
WORDS = ["gemm", "Reformat", "Myelin", "[ONNX Layer: /Softmax]", "i8i8", "Half", "_gemm_mha_v2", "Int8", "kgen"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(WORDS)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=8),
    max_leaves=40,
)


@given(JSON, JSON, st.none() | st.integers(0, 4000))
def test_whatever_is_given_gives_a_sentence_or_an_error(layers, profile, tokens):
    try:
        table = parse_layers(layers)
    except GFTEdgeError as error:
        assert "\n" not in str(error)
        table = parse_layers(["x"])
    try:
        table = with_times(table, parse_profile(profile))
    except GFTEdgeError as error:
        assert "\n" not in str(error)
    summary = LayerSummary.of(table, tokens)
    assert summary.int8.endswith(".")
    json.dumps(summary.to_json(table), allow_nan=False)
