"""Graphs that take pixels of 0 to 255 as float32 and give probabilities: the same answers as the usual graph everywhere."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from gft_edge.benchmarks.measuring.subjects import random_images
from gft_edge.calibration.graph import graph_features, linear_tensors, observe_graph
from gft_edge.calibration.observing.collect import Collector
from gft_edge.checkpoint import load_checkpoint, save_checkpoint
from gft_edge.errors import ArtifactError, CheckFailed
from gft_edge.export.graph.summary import summarize
from gft_edge.export.lint.linter import lint
from gft_edge.export.onnx.artifact import export_artifact
from gft_edge.export.onnx.dialects import export_command
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.export.tensorrt.options import BuildOptions
from gft_edge.export.tensorrt.planning import make_plan
from gft_edge.export.verify.artifact_alone import verify_golden
from gft_edge.export.verify.claims import claim_places, corrected
from gft_edge.export.verify.trace import fresh_graph
from gft_edge.export.verify.with_checkpoint import verify_checkpoint
from gft_edge.manifest import MODEL, load_artifact, register_files
from gft_edge.preprocess import PreprocessSpec
from gft_edge.runtime.artifact_graph import load_artifact_graph
from gft_edge.runtime.backends.graph_io import LEAST, to_graph_input, with_logits
from gft_edge.runtime.backends.sessions import open_session
from gft_edge.runtime.classifier import Classifier
from gft_edge.stats.metrics import softmax

SPEC = PreprocessSpec(32, 32, color_order="bgr", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
SMALL = GraphOptions("dense", "fp16", "float255", (1, 1, 1), probabilities=True)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoint(checkpoints, tmp_path_factory):
    source, folder = checkpoints["fp32"], tmp_path_factory.mktemp("bgr") / "checkpoint"
    save_checkpoint(folder, dataclasses.replace(source.info, preprocess=SPEC), source.model)
    return load_checkpoint(folder)


@pytest.fixture(scope="module")
def artifact(checkpoint, pixels, tmp_path_factory):
    options = GraphOptions("compact", input="float255", probabilities=True)
    return export_artifact(checkpoint, tmp_path_factory.mktemp("deep") / "a", SPEC.normalize(pixels), options=options)


@pytest.fixture(scope="module")
def small(exported_once):
    """INT8 and FP16, with a static batch; tests/export/onnx/test_options.py exports it too."""
    return exported_once("int8", SMALL)


@pytest.fixture(scope="module")
@torch.no_grad()
def expected(checkpoint, pixels) -> np.ndarray:
    return checkpoint.model(torch.from_numpy(SPEC.normalize(pixels))).numpy()


def test_plain_onnxruntime_needs_no_preprocessing_but_the_resize(artifact, pixels, expected):
    """As a client without this package runs it: RGB planes of 0 to 255 in, probabilities out."""
    session = ort.InferenceSession(str(artifact.path / MODEL), providers=["CPUExecutionProvider"])
    feed = {"pixels": pixels.transpose(0, 3, 1, 2).astype(np.float32)}
    (found,) = session.run(["probabilities"], feed)
    np.testing.assert_allclose(found, softmax(expected), rtol=1e-4, atol=1e-6)
    assert [o.name for o in session.get_outputs()][:2] == ["probabilities", "importance_0"]
    with pytest.raises(Exception, match="Required inputs .*pixels.* are missing"):
        session.run(None, {"image": feed["pixels"]})


def test_every_form_of_the_input_gives_the_same_bits(artifact, pixels, expected):
    session = open_session(artifact)
    ways = [
        session(pixels),
        session(SPEC.normalize(pixels)),
        session.compute(to_graph_input(pixels, artifact.manifest)),
    ]
    for found in ways:
        assert sorted(found) == ["importance_0", "importance_1", "kept_0", "kept_1", "logits", "probabilities"]
        for name, value in found.items():
            np.testing.assert_array_equal(value, ways[0][name], err_msg=name)
    difference = ways[0]["logits"] - expected
    assert np.ptp(difference, axis=1).max() < 1e-4, "the logits but for one number per image"
    predictions = Classifier(artifact, session).predict(list(pixels))
    np.testing.assert_allclose([p.probability for p in predictions], softmax(expected).max(1), atol=1e-5)
    assert all(p.importance[0].shape == (4, 4) and p.kept[1].sum() == 6 for p in predictions)


def test_manifest_says_it_and_options_come_back(artifact, small):
    for each in (artifact, small):
        manifest = each.manifest
        assert (manifest.input_kind, manifest.gives_probabilities) == ("float255", True)
        assert claim_places(manifest, load_artifact_graph(each)) == []
        assert "--input float255 --probabilities" in export_command(each, "trt10")
    assert GraphOptions.of(small.manifest) == SMALL


def test_verify_compares_log_probabilities(artifact, small, checkpoint, pixels):
    golden = verify_golden(artifact)
    assert golden.passed and golden.comparisons[0].max_relative_error < 1e-5
    assert any("log-softmax of PyTorch's logits, down to -87.3" in note for note in golden.notes)
    assert verify_golden(small).passed
    fresh = fresh_graph(checkpoint, corrected(artifact, load_artifact_graph(artifact)))
    batches = [(SPEC.normalize(pixels), np.zeros(7, np.int64))]
    report = verify_checkpoint(artifact, checkpoint, batches, "seven", fresh=fresh)
    assert (report.verdict, report.fresh_export, report.places) == ("pass", "identical", ())


@pytest.mark.parametrize("fault", ["scale", "order", "temperature"])
def test_verify_finds_faults_inside(artifact, tmp_path, fault):
    """Another standard deviation, the other colour order, another temperature of the softmax."""
    import shutil

    copy = load_artifact(shutil.copytree(artifact.path, tmp_path / "a"))
    model = onnx.load(copy.path / MODEL)
    if fault == "temperature":
        maker = next(node for node in model.graph.node if "probabilities" in node.output)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1.01), "factor"))
        half = onnx.helper.make_node("Mul", [maker.input[0], "factor"], ["half"])
        model.graph.node.insert(list(model.graph.node).index(maker), half)
        maker.input[0] = "half"
    else:
        operator = {"scale": "Mul", "order": "Gather"}[fault]
        constant = next(node for node in model.graph.node if node.op_type == operator).input[1]
        tensor = next(t for t in model.graph.initializer if t.name == constant)
        values = onnx.numpy_helper.to_array(tensor)
        values = values * np.float32(1.02) if fault == "scale" else values[::-1].copy()
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, constant))
    onnx.save(model, copy.path / MODEL)
    assert verify_golden(register_files(copy, [MODEL])).verdict == "fail"


def test_a_manifest_of_normalised_images_is_refused(artifact):
    """Nothing but the name of the input tells the two apart."""
    wrong = dataclasses.replace(artifact.manifest.inputs[0], name="image")
    claimed = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, inputs=(wrong,)))
    with pytest.raises(ArtifactError, match="inputs of the graph differ from its manifest"):
        open_session(claimed)
    report = verify_golden(claimed)
    assert report.verdict == "fail" and [place.name for place in report.places] == ["inputs"]


def test_lint_and_plans_read_it(artifact, small):
    graph = load_artifact_graph(artifact)
    assert [f for f in lint(graph).findings if f.severity == "error"] == []
    plan = make_plan(summarize(graph), "orin-nano")
    assert plan.profile["pixels"][0] == (1, 3, 32, 32)
    assert make_plan(summarize(load_artifact_graph(small)), "orin-nano", BuildOptions(batch=(1, 1, 1))).profile == {}


def test_calibration_and_bench_feed_pixels(artifact, checkpoint, pixels):
    graph, manifest = load_artifact_graph(artifact), artifact.manifest
    names, images = linear_tensors(graph), SPEC.normalize(pixels)

    def ranges(model, convert):
        collector = Collector(names, "max")
        assert list(observe_graph(model, 32, collector, [images], convert)) == [7]
        return {name: stats.largest for name, stats in collector.stats.items()}

    found = ranges(graph, lambda batch: to_graph_input(batch, manifest))
    wrong = ranges(graph, np.asarray)
    assert found != wrong
    data = [(picture, 0) for picture in pixels]
    places, features = graph_features(graph, SPEC, lambda batch: to_graph_input(batch, manifest))(data)
    assert places == list(range(7))
    assert features.shape == (7, 32)
    inputs = random_images(artifact, 2, np.random.default_rng(0))
    assert inputs.shape == (2, 3, 32, 32) and inputs.dtype == np.float32
    assert inputs.max() > 200 and (inputs == np.rint(inputs)).all()


def test_vanishing_probabilities_have_finite_logarithms_and_nan_stays():
    found = with_logits({"probabilities": np.array([[1, 0, 1e-44], [np.nan, 1, 0]], np.float32)})["logits"]
    assert found[0].tolist() == pytest.approx([0, math.log(LEAST), math.log(LEAST)])
    assert np.isnan(found[1, 0])
    assert found.dtype == np.float32


def test_no_label_from_nan_probabilities(artifact, pixels):
    session = open_session(artifact)
    broken = session.compute(np.full((1, 3, 32, 32), np.nan, np.float32))
    assert np.isnan(broken["probabilities"]).all()
    with pytest.raises(CheckFailed, match="logits of 1 of 1 images are NaN or infinite"):
        Classifier(artifact, session).decode(broken)
