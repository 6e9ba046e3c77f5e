"""Half precision, pixels as input, static batches and dense maps: every graph is run and compared."""

import dataclasses
import itertools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper

from gft_edge.calibration.ptq import quantize_int8
from gft_edge.checkpoint import load_checkpoint, save_checkpoint
from gft_edge.errors import ConfigError
from gft_edge.export.onnx.artifact import export_artifact
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.export.verify.claims import claim_places
from gft_edge.manifest import MODEL
from gft_edge.preprocess import PreprocessSpec
from gft_edge.quant.policy import QuantPolicy, QuantRule
from gft_edge.runtime.artifact_graph import load_artifact_graph
from gft_edge.runtime.backends.sessions import open_session
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.maps import importance_maps
from gft_edge.stats.metrics import sqnr_db
from gft_edge.stats.verdict import Limits


@pytest.fixture(scope="module")
def export(exported_once):
    """Exports with options; artefacts are not to be changed."""
    return lambda precision, **options: exported_once(precision, GraphOptions(**options))


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(5).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A bfloat16 graph with every bfloat16 made float32, which ONNX Runtime can run on a CPU; weights keep their values."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for attribute in itertools.chain.from_iterable(node.attribute for node in model.graph.node):
        if attribute.name in ("to", "output_dtype") and attribute.i == TensorProto.BFLOAT16:
            attribute.i = TensorProto.FLOAT
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.BFLOAT16:
            attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32)))
    del model.graph.value_info[:]
    model.opset_import[0].version = 20
    return model


@pytest.mark.parametrize(("precision", "least_db"), [("fp32", 45), ("int8", 15)])
@pytest.mark.parametrize("rest", ["fp16", "bf16"])
@torch.no_grad()
def test_half_precision_stays_near_float32(export, checkpoints, clear_images, precision, rest, least_db):
    artifact = export(precision, rest=rest, maps="compact")
    manifest = artifact.manifest
    assert (manifest.precision, manifest.rest) == (rest if precision == "fp32" else "int8", rest)
    model = onnx.load(artifact.path / MODEL)
    assert claim_places(manifest, model) == []
    low = TensorProto.FLOAT16 if rest == "fp16" else TensorProto.BFLOAT16
    large = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 64]
    assert len(large) <= 2 * 2, "query and key weights of each stage, for the importance"
    assert sum(t.data_type == low for t in model.graph.initializer) > 20
    run = in_float32(model) if rest == "bf16" else model
    session = ort.InferenceSession(run.SerializeToString(), providers=["CPUExecutionProvider"])
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"image": clear_images})))
    assert {value.dtype for value in found.values()} == {np.dtype("float32"), np.dtype("int32")}
    expected = checkpoints["fp32"].model(torch.from_numpy(clear_images), maps=True)
    assert sqnr_db(expected.logits.numpy(), found["logits"]) > least_db - 20 * (rest == "bf16")
    assert (found["logits"].argmax(1) == expected.logits.numpy().argmax(1)).all()


@pytest.mark.parametrize("rest", ["fp16", "bf16"])
def test_the_importance_is_computed_in_float32(export, rest):
    """From the cast of the normalised tokens to the map, and from that of keys and mean query to TopK, nothing has fewer bits."""
    model = onnx.shape_inference.infer_shapes(onnx.load(export("fp32", rest=rest, maps="compact").path / MODEL))
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    producers = {output: node for node in model.graph.node for output in node.output}
    for stage in range(2):
        node, seen = producers[f"importance_{stage}"], []
        while node.op_type != "Cast":
            seen.append(node.op_type)
            name = next(name for name in node.input if name in producers)
            assert types[name] in (TensorProto.FLOAT, TensorProto.INT64) or producers[name].op_type == "Cast"
            node = producers[name]
        assert "Conv" in seen, "the smoothing is part of the path"
    without = onnx.shape_inference.infer_shapes(onnx.load(export("fp32", rest=rest).path / MODEL))
    casts = [node for node in without.graph.node if node.op_type == "Cast"]
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in without.graph.value_info}
    inner = [sizes[node.input[0]] for node in casts if node.input[0] in sizes and "logits" not in node.output]
    assert sorted(inner) == [[0, 12, 32], [0, 16, 32], [0, 32], [0, 32]], (
        "keys and mean query of each selection alone are cast"
    )
    types = {v.name: v.type.tensor_type.elem_type for v in without.graph.value_info}
    assert [types[node.input[0]] for node in without.graph.node if node.op_type == "TopK"] == [TensorProto.FLOAT] * 2


@torch.no_grad()
def test_pixels_are_normalised_inside_the_graph(export, checkpoints, pixels, tmp_path):
    spec = PreprocessSpec(32, 32, color_order="bgr", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    source = checkpoints["fp32"]
    save_checkpoint(tmp_path / "bgr", dataclasses.replace(source.info, preprocess=spec), source.model)
    checkpoint = load_checkpoint(tmp_path / "bgr")
    artifact = export_artifact(
        checkpoint, tmp_path / "artifact", spec.normalize(pixels), options=GraphOptions(input="uint8")
    )
    assert artifact.manifest.inputs[0].shape == ("batch", 32, 32, 3)
    session = ort.InferenceSession(str(artifact.path / MODEL), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": pixels})
    normalised = spec.normalize(pixels)
    expected = checkpoint.model(torch.from_numpy(normalised)).numpy()
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    opened = open_session(artifact)
    assert np.array_equal(opened(pixels)["logits"], opened(normalised)["logits"]), "both forms of the input are taken"
    predictions = Classifier.open(artifact.path).predict(list(pixels))
    assert np.allclose([p.logits for p in predictions], expected, atol=1e-4)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_pixels_come_back_from_normalised_images_exactly(order):
    spec = PreprocessSpec(16, 16, color_order=order)
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    every = every + np.array([0, 7, 100], dtype=np.uint8)
    assert np.array_equal(spec.pixels(spec.normalize(every)), every)


@pytest.mark.parametrize("size", [1, 3])
def test_a_static_batch_serves_any_number_of_images(export, clear_images, size):
    artifact = export("fp32", batch=(size, size, size), maps="compact")
    assert claim_places(artifact.manifest, load_artifact_graph(artifact)) == []
    assert artifact.manifest.outputs[0].shape == (size, 4)
    usual = open_session(export("fp32", maps="compact"))(clear_images[:7])
    found = open_session(artifact)(clear_images[:7])
    for name, value in usual.items():
        assert np.allclose(found[name], value, atol=1e-5), name
    session = ort.InferenceSession(str(artifact.path / MODEL), providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="invalid dimensions"):
        session.run(None, {"image": clear_images[: size + 1]})


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_dense_maps_are_the_compact_ones_on_the_grid(export, clear_images, precision):
    dense, compact = (export(precision, maps=maps) for maps in ("dense", "compact"))
    maps = open_session(dense)(clear_images)["gala_maps"]
    expected = importance_maps(open_session(compact)(clear_images), compact.manifest)
    assert maps.shape == (len(clear_images), 2, 4, 4)
    assert np.allclose(maps, np.stack(expected, axis=1), atol=1e-6)
    assert ((maps == 0) == (np.stack(expected, axis=1) == 0)).all()
    assert np.allclose(importance_maps(open_session(dense)(clear_images), dense.manifest), expected, atol=1e-6)
    operators = {node.op_type for node in onnx.load(dense.path / MODEL).graph.node}
    assert not [name for name in operators if name.startswith("Scatter")]


def test_the_same_options_give_the_same_bytes(exported_once, checkpoints, clear_images, tmp_path):
    options = GraphOptions(rest="fp16", input="float255", maps="dense", batch=(1, 1, 1), probabilities=True)
    first = exported_once("int8", options)
    second = export_artifact(checkpoints["int8"], tmp_path / "again", clear_images, options=options)
    assert first.manifest.files[MODEL] == second.manifest.files[MODEL]
    assert claim_places(first.manifest, load_artifact_graph(first)) == []


@pytest.mark.parametrize("batch", [(0, 1, 2), (2, 1, 3), (1, 4, 3)])
def test_batch_sizes_must_rise(batch):
    with pytest.raises(ConfigError, match="^batch .*: expected 1 <= smallest <= usual <= largest"):
        GraphOptions(batch=batch)


@pytest.mark.parametrize(
    ("name", "precision", "least_db", "stored"),
    [("fp8", "fp8", 15, "FLOAT8E4M3FN"), ("weights", "int8-weights", 25, "INT8")],
)
@torch.no_grad()
def test_other_eight_bit_forms_compute_what_torch_computes(
    checkpoints, export, clear_images, name, precision, least_db, stored
):
    source, quantized = checkpoints["fp32"], checkpoints[name]
    artifact = export(name)
    assert artifact.manifest.precision == precision
    kinds = [tensor.data_type for tensor in onnx.load(artifact.path / MODEL).graph.initializer if len(tensor.dims) == 2]
    assert kinds.count(getattr(TensorProto, stored)) == len(quantized.info.quantization["precisions"])
    found = open_session(artifact)(clear_images)["logits"]
    same, full = (m(torch.from_numpy(clear_images)).numpy() for m in (quantized.model, source.model))
    assert sqnr_db(same, found) > Limits().same_sqnr_db
    assert sqnr_db(full, found) > least_db


def test_several_eight_bit_precisions_in_one_graph_are_refused(checkpoints, clear_images, tmp_path):
    source = checkpoints["fp32"]
    rules = (QuantRule("*.mlp.fc1", "fp8", "a"), QuantRule("*.mlp.fc2", "int8", "b"))
    quantized = quantize_int8(source.model, [clear_images], QuantPolicy(rules))
    save_checkpoint(tmp_path / "q", dataclasses.replace(source.info, quantization=quantized.summary), quantized.model)
    with pytest.raises(ConfigError, match=r"layers of several 8-bit precisions \(mixed\); quantize to one"):
        export_artifact(load_checkpoint(tmp_path / "q"), tmp_path / "artifact", clear_images)
