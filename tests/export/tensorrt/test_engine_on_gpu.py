"""On a machine with an NVIDIA GPU: an engine gives the golden outputs. Run by `make gpu-check`."""

import importlib.util

import numpy as np
import pytest
import torch

from gft_edge.checkpoint import load_checkpoint
from gft_edge.data.batches import evaluation_batches
from gft_edge.data.datasets import open_images
from gft_edge.export.graph.loading import load_graph
from gft_edge.export.graph.summary import summarize
from gft_edge.export.onnx.artifact import export_artifact
from gft_edge.export.tensorrt.build import build_engine
from gft_edge.export.tensorrt.options import BuildOptions
from gft_edge.export.tensorrt.planning import make_plan
from gft_edge.hardware.tensorrt_versions import rtx_refusal
from gft_edge.manifest import MODEL, load_artifact
from gft_edge.runtime.backends.sessions import open_session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and driver"),
    pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx"),
]


def test_rtx_engine_gives_the_golden_logits(tmp_path):
    capability = ".".join(str(number) for number in torch.cuda.get_device_capability())
    if reason := rtx_refusal(capability):
        pytest.skip(reason)
    import tensorrt_rtx as trt

    checkpoint = load_checkpoint("builtin")
    images, _ = next(evaluation_batches(open_images("typefaces", "test", 8, 96), checkpoint.info.preprocess))
    artifact = export_artifact(checkpoint, tmp_path / "artifact", images)
    options = BuildOptions(compute_capabilities=(capability,))
    plan = make_plan(summarize(load_graph(artifact.path / MODEL)), "rtx", options)
    record = build_engine(artifact, plan)
    artifact = load_artifact(artifact.path)
    golden = np.load(artifact.file("golden.npz"))["logits"]
    session = open_session(artifact, f"tensorrt_rtx:{record['key']}")
    assert session.options["version"] == trt.__version__
    np.testing.assert_allclose(session(images)["logits"], golden, rtol=0, atol=1e-2 * np.abs(golden).max())
    twenty = np.concatenate([images] * 3)  # more than the engine takes at a time
    np.testing.assert_allclose(session(twenty)["logits"][-8:], golden, rtol=0, atol=1e-2 * np.abs(golden).max())
