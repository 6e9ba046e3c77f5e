"""Every score and every number of tokens before the patches, exported: the same patches stay as in PyTorch."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest

from gft_edge.checkpoint import load_checkpoint, save_checkpoint
from gft_edge.export.onnx.artifact import export_artifact
from gft_edge.export.verify.artifact_alone import verify_golden
from gft_edge.manifest import MODEL
from gft_edge.model.scores import SCORES

DISTILLED = {"backbone": "deit_tiny_distilled_patch16_224", "num_prefix_tokens": 2, "stem": "linear", "patch_size": 8}
CASES = [{"score": name} for name in SCORES if name != "column-mean"] + [DISTILLED]


@pytest.mark.parametrize("changes", CASES, ids=lambda changes: changes.get("score", "two tokens before the patches"))
def test_the_same_patches_stay(tiny_config, tiny_info, make_model, tmp_path, changes):
    config = dataclasses.replace(tiny_config, **changes)
    save_checkpoint(tmp_path / "c", dataclasses.replace(tiny_info, model=config), make_model(config))
    images = np.random.default_rng(0).standard_normal((6, 3, 32, 32), dtype=np.float32)
    artifact = export_artifact(load_checkpoint(tmp_path / "c"), tmp_path / "a", images)
    report = verify_golden(artifact)
    assert report.failures == ()
    assert [(s.identical + s.ties, s.reordered) for s in report.comparisons[0].stages] == [(6, 0), (6, 0)]
    topk = sum(node.op_type == "TopK" for node in onnx.load(artifact.path / MODEL).graph.node)
    assert topk == (4 if SCORES[config.score].reads_neighbours else 2), "sorted where the order matters, and only there"
