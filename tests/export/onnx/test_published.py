"""The published variant exported: no trace of the stages without maps, the published selection with maps."""

import collections

import numpy as np
import onnx
import pytest
import torch

from gft_edge.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from gft_edge.config.model import preset
from gft_edge.export.lint.linter import lint
from gft_edge.export.onnx.artifact import export_artifact
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.export.onnx.reference import reference_outputs
from gft_edge.export.verify.artifact_alone import verify_golden
from gft_edge.hardware.tensorrt_versions import platform
from gft_edge.manifest import MODEL
from gft_edge.model.build import build_model
from gft_edge.preprocess import PreprocessSpec
from gft_edge.runtime.backends.sessions import open_session


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = preset(
        "gft_base_published",
        image_size=48,
        patch_size=8,
        embed_dim=64,
        num_heads=2,
        depth=4,
        num_classes=5,
        stages=(2,) * 3,
    )
    torch.manual_seed(5)
    model = build_model(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("published") / "checkpoint"
    save_checkpoint(path, CheckpointInfo(config, tuple("abcde"), PreprocessSpec(48, 48)), model)
    return load_checkpoint(path)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((3, 3, 48, 48), dtype=np.float32)


@pytest.fixture(scope="module", params=["none", "compact"])
def artifact(request, checkpoint, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("published") / request.param
    return export_artifact(checkpoint, out, images, options=GraphOptions(request.param))


def test_graph_holds_the_stages_only_with_maps(artifact):
    model = onnx.load(artifact.path / MODEL)
    count = collections.Counter(node.op_type for node in model.graph.node)
    assert count["LayerNormalization"] == 2 * 2  # two of the four blocks run, and no final norm
    if artifact.manifest.maps == "none":
        assert count["TopK"] == count["GatherND"] == count["GatherElements"] == 0
        assert count["Softmax"] == 2
        assert not [t for t in model.graph.initializer if tuple(t.dims) == (1, 1, 3)]
    else:
        assert count["TopK"] == 3


def test_onnxruntime_gives_the_published_outputs(artifact, checkpoint, images):
    found = open_session(artifact)(images)
    expected = reference_outputs(checkpoint.model, images, artifact.manifest.budget)
    for name in found:
        if name.startswith("kept"):
            np.testing.assert_array_equal(found[name], expected[name])  # most important first
        else:
            # the softmax of importance has temperature 0.1, which enlarges float noise tenfold
            limit = (1e-4 if name == "logits" else 1e-3) * np.abs(expected[name]).max()
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=limit)
    assert verify_golden(artifact).passed


@pytest.mark.parametrize("target", [None, "rtx", "orin-nano", "thor"])
def test_lint_finds_its_fp32_alone(artifact, target):
    findings = lint(onnx.load(artifact.path / MODEL), platform(target)).findings
    assert {finding.rule for finding in findings} == ({"GE029"} if target else set())
