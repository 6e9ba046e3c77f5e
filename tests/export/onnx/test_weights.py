"""Weights kept out of the passes over a graph: the same bytes as with them in."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from gft_edge.export.onnx import artifact as export
from gft_edge.export.onnx import weights
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.export.onnx.plain_modules import exportable
from gft_edge.export.onnx.tracing import export_graph
from gft_edge.manifest import MODEL


@pytest.mark.parametrize(
    ("options", "lifts"),
    [
        (GraphOptions("compact"), True),
        (GraphOptions("compact", batch=(3, 3, 3)), False),
    ],
)
def test_the_graph_is_the_same_byte_for_byte(checkpoints, exported_once, monkeypatch, options, lifts):
    """The artefact was exported with its small weights in the graph."""
    checkpoint = checkpoints["fp32"]
    expected = (exported_once("fp32", options).path / MODEL).read_bytes()
    assert all(tensor.nbytes < weights.LIFTED_BYTES for tensor in checkpoint.model.state_dict().values())
    seen = []
    real = export.onnxslim.slim

    def slim(model):
        seen.append(sum(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer))
        return real(model)

    monkeypatch.setattr(export.onnxslim, "slim", slim)
    monkeypatch.setattr(weights, "LIFTED_BYTES", 64)
    graph = export_graph(checkpoint.model, checkpoint.info.preprocess, checkpoint.info.model.budget, options)
    assert graph.SerializeToString(deterministic=True) == expected
    assert (seen[0] > 0) == lifts


def test_an_exportable_model_shares_memory_and_leaves_the_other_alone(tiny_model):
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in tiny_model.named_parameters()}
    copied = exportable(tiny_model)
    places = {p.data_ptr() for p in tiny_model.parameters()}
    shared = [p for p in copied.parameters() if p.data_ptr() in places]
    assert sum(p.numel() for p in shared) > 0.8 * sum(p.numel() for p in tiny_model.parameters())
    assert not any(p.requires_grad for p in copied.parameters())
    exportable(tiny_model, torch.float16)
    for name, p in tiny_model.named_parameters():
        assert p.requires_grad == before[name][0]
        assert np.array_equal(p.detach().numpy(), before[name][1].numpy())
