"""The dialect for TensorRT 8.6: opset 17, the same results, compiled by TensorRT-RTX; the default dialect as it was."""

from __future__ import annotations

import collections
import dataclasses
import hashlib

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from gft_edge.budget import NO_BUDGET
from gft_edge.calibration.ptq import quantize_int8
from gft_edge.checkpoint import load_checkpoint, save_checkpoint
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ConfigError
from gft_edge.export.graph.summary import summarize
from gft_edge.export.lint.linter import lint
from gft_edge.export.onnx.artifact import export_artifact, tool_versions
from gft_edge.export.onnx.dialects import export_command, to_trt8
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.export.tensorrt.build import require_dialect
from gft_edge.export.tensorrt.builders import compile_plan
from gft_edge.export.tensorrt.options import BuildOptions
from gft_edge.export.tensorrt.planning import make_plan
from gft_edge.export.verify.artifact_alone import verify_golden
from gft_edge.export.verify.claims import claim_places
from gft_edge.hardware.tensorrt_versions import platform
from gft_edge.manifest import MODEL, DeploymentManifest, load_artifact
from gft_edge.quant.policy import uniform_policy
from gft_edge.stats.metrics import sqnr_db

STRUCTURE = {
    "tools": {"torch": "2.14.1+cu130", "onnxscript": "0.7.2", "onnxslim": "0.1.98"},
    "fp32 compact float": "273254902782b850",
    "int8 dense uint8": "4575ffc25d0342dc",
}
"""Hashes of the default dialect's graphs without their floating-point weights, and the tools they hold for."""
FORMS = [("fp32", "compact", "float"), ("int8", "dense", "uint8")]


def run(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"image": images}), strict=True))


def load(artifact) -> onnx.ModelProto:
    return onnx.load(artifact.path / MODEL)


@pytest.fixture(scope="module")
def artifacts(exported_once):
    """Artefacts of both dialects, by form, each exported once; not to be changed."""

    def get(precision, maps, kind):
        usual = GraphOptions(maps, input=kind)
        return exported_once(precision, usual), exported_once(precision, dataclasses.replace(usual, dialect="trt8"))

    return get


@pytest.fixture(scope="module")
def pair(artifacts):
    """Their graphs."""
    return lambda *form: tuple(load(artifact) for artifact in artifacts(*form))


@pytest.mark.parametrize(("precision", "maps", "kind"), FORMS)
def test_it_computes_the_same(pair, checkpoints, precision, maps, kind):
    usual, old = pair(precision, maps, kind)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    images = pixels if kind == "uint8" else checkpoints[precision].info.preprocess.normalize(pixels)
    expected, found = run(usual, images), run(old, images)
    assert list(expected) == list(found)
    assert found["logits"].shape == (5, 4)
    for name, value in expected.items():
        if name.startswith("kept"):
            assert found[name].dtype == np.int32
            np.testing.assert_array_equal(found[name], value)
        elif precision == "fp32":
            assert np.abs(found[name] - value).max() <= 1e-4 * np.abs(value).max()
        else:
            assert sqnr_db(value, found[name]) >= 50


@pytest.mark.parametrize(("precision", "maps", "kind"), FORMS)
def test_it_is_of_opset_17_and_passes_lint_for_8_6(pair, precision, maps, kind):
    usual, old = pair(precision, maps, kind)
    onnx.checker.check_model(old, full_check=True)
    assert [(o.domain, o.version) for o in old.opset_import] == [("", 17)]
    assert old.ir_version == 8
    found = {finding.rule for finding in lint(old, platform("orin-nano", "8.6")).findings}
    assert found == ({"GE029"} if precision == "fp32" else set())  # 8.6 computes FP32 unless a flag is given
    broken = {finding.rule for finding in lint(usual, platform("orin-nano", "8.6")).errors}
    assert broken == {"GE011", "GE015", "GE022"}
    count, before = (collections.Counter(node.op_type for node in model.graph.node) for model in (old, usual))
    assert count["Erf"] == before["Gelu"] == 3
    assert count["Gelu"] == 0
    assert count["LayerNormalization"] == before["LayerNormalization"]
    types = {v.name: v.type.tensor_type.elem_type for v in (*old.graph.value_info, *old.graph.input)}
    for node in old.graph.node:
        names = {attribute.name for attribute in node.attribute}
        assert "num_outputs" not in names
        assert not (node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.input) > 1)
        assert node.op_type != "TopK" or types[node.input[0]] == TensorProto.FLOAT
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert len(node.input) == 3
    sizes, before = (
        {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
        for model in (old, usual)
    )
    common = [name for name in sizes.keys() & before.keys() if not name.startswith("val_")]  # val_N are counted anew
    assert len(common) > 60
    assert all(sizes[name] == before[name] for name in common)


@pytest.mark.parametrize(("precision", "maps", "kind"), FORMS)
def test_rtx_compiles_it(pair, tmp_path, precision, maps, kind):
    trt = pytest.importorskip("tensorrt_rtx")
    model = pair(precision, maps, kind)[1]
    onnx.save(model, tmp_path / "model.onnx")
    plan = make_plan(summarize(model), "rtx", BuildOptions(compute_capabilities=("8.6",)))
    assert (plan.precision, plan.opset) == (precision, 17)
    assert len(compile_plan(trt, tmp_path / "model.onnx", plan)[0]) > 10_000


def structure(model: onnx.ModelProto) -> str:
    """Hash of a graph but for the values of its floating-point weights, which processors round differently."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.producer_version = ""
    for tensor in copy.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT or (tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1):
            tensor.raw_data = b""
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    return hashlib.sha256(copy.SerializeToString(deterministic=True)).hexdigest()[:16]


@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_default_dialect_is_what_it_was(pair, form):
    if not STRUCTURE["tools"].items() <= tool_versions().items():
        pytest.skip(f"the hashes are for {STRUCTURE['tools']}")
    assert structure(pair(*form)[0]) == STRUCTURE[" ".join(form)]


def traced(nodes, inputs, outputs, **constants) -> onnx.ModelProto:
    values = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in side.items()] for side in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", *values, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


REWRITES = {
    "Split into equal parts": (
        [helper.make_node("Split", ["image"], ["a", "b"], "s", axis=1, num_outputs=2), helper.make_node("Sub", ["a", "b"], ["y"])],
        [2, 3],
        {},
    ),
    "Split into unequal parts": (
        [helper.make_node("Split", ["image"], ["y", "b"], "s", axis=1, num_outputs=2)],
        [2, 3],
        {},
    ),
    "ReduceMax of given axes": ([helper.make_node("ReduceMax", ["image", "axes"], ["y"], "r")], [2, 1], {"axes": np.array([-1])}),
    "ReduceL2 of all axes": ([helper.make_node("ReduceL2", ["image"], ["y"], "r", keepdims=0)], [], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", REWRITES)
def test_forms_of_opset_18_are_rewritten(name):
    nodes, shape, constants = REWRITES[name]
    width = 5 if "unequal" in name else 6
    model = traced(nodes, {"image": [2, width]}, {"y": shape}, **constants)
    image = np.random.default_rng(0).standard_normal((2, width), dtype=np.float32)
    expected = run(model, image)["y"]
    old = to_trt8(model)
    onnx.checker.check_model(old, full_check=True)
    np.testing.assert_array_equal(run(old, image)["y"], expected)


def test_form_of_opset_18_that_is_not_known_is_refused():
    node = helper.make_node("Pad", ["image", "pads", "", "axes"], ["y"], "padding")
    model = traced([node], {"image": [2, 3]}, {"y": [2, 5]}, pads=np.array([1, 1]), axes=np.array([1]))
    with pytest.raises(ConfigError, match="Pad padding is of opset 18, and its form of opset 17 is not known"):
        to_trt8(model)


@pytest.mark.parametrize("rest", ["fp16", "bf16"])
def test_half_precision_types_are_refused(rest):
    with pytest.raises(ConfigError, match=f"takes a graph typed FP32, not {rest.upper()}; leave --precision fp32"):
        GraphOptions(rest=rest, dialect="trt8")


class TestArtifact:
    @pytest.fixture(scope="class")
    def artifact(self, artifacts):
        return artifacts(*FORMS[1])[1]

    @pytest.fixture(scope="class")
    def other(self, artifacts):
        return artifacts(*FORMS[1])[0]

    def test_manifest_records_it(self, artifact, other):
        assert (artifact.manifest.dialect, artifact.manifest.opset) == ("trt8", 17)
        assert load_artifact(artifact.path).manifest == artifact.manifest
        assert GraphOptions.of(artifact.manifest).dialect == "trt8"
        assert claim_places(artifact.manifest, load(artifact)) == []
        assert verify_golden(artifact).comparisons[0].stages, "its TopK sorts positions as FP32, and they are read"
        usual = other.manifest
        assert usual.dialect == "trt10"
        data = usual.to_json()
        del data["dialect"]  # as artefacts were before there were two
        assert DeploymentManifest.from_json(data) == usual
        with pytest.raises(ConfigError, match="dialect must be one of trt10, trt8, found 'trt7'"):
            DeploymentManifest(**{**vars(usual), "dialect": "trt7"})

    def test_plan_for_8_6_takes_it_and_refuses_the_other_with_the_command(self, artifact, other):
        def plan(of, version):
            summary = summarize(load(of))
            return make_plan(summary, "orin-nano", BuildOptions(tensorrt=version))

        made = plan(artifact, "8.6")
        require_dialect(artifact, made)
        assert made.dialect == "trt8" and "opset 7 to 17" in made.graph_form
        assert set(made.builder_flags) == {"FP16", "INT8"}
        with pytest.raises(ConfigError, match="TensorRT 8.6 needs dialect trt8") as caught:
            require_dialect(other, plan(other, "8.6"))
        assert str(caught.value).endswith(
            f"gft-edge export CKPT --dialect trt8 --budget 12-6 --maps dense --input uint8 --batch 1:1:8 --out {other.path}-trt8"
        )
        for of in (artifact, other):  # newer ones read both
            require_dialect(of, plan(of, "10.3"))
            assert plan(of, "10.3").dialect == "trt10"

    def test_command_repeats_what_was_chosen_alone(self, other):
        manifest = dataclasses.replace(other.manifest, batch=(4, 4, 4), maps="none")
        command = export_command(dataclasses.replace(other, manifest=manifest), "trt8")
        assert "--batch 4 " in command and "--maps" not in command
        old = manifest.model
        baseline = GFTConfig("vit_tiny_patch16_224", old.image_size, num_classes=old.num_classes, variant="timm")
        manifest = dataclasses.replace(manifest, model=baseline, budget=NO_BUDGET)
        command = export_command(dataclasses.replace(other, manifest=manifest), "trt8")
        assert "--budget" not in command, "a model without stages has none"


@pytest.mark.parametrize(
    ("precision", "words"), [("fp8", "no FP8 networks"), ("int8-weights", "quantize to int8, inputs too")]
)
def test_precisions_that_8_6_does_not_compute_are_refused(
    tiny_model, tiny_info, clear_images, tmp_path, precision, words
):
    quantized = quantize_int8(tiny_model, [clear_images], policy=uniform_policy(precision))
    save_checkpoint(tmp_path / "c", dataclasses.replace(tiny_info, quantization=quantized.summary), quantized.model)
    with pytest.raises(ConfigError, match=words):
        export_artifact(
            load_checkpoint(tmp_path / "c"), tmp_path / "a", clear_images, options=GraphOptions(dialect="trt8")
        )
    assert not (tmp_path / "a").exists()
