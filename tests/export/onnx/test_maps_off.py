"""With maps off a graph holds no trace of them: node for node that of a model that knows nothing of maps."""

from __future__ import annotations

import functools
import logging
import warnings

import numpy as np
import onnx
import onnxslim
import pytest
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import nn
from torch.export import Dim

from gft_edge.constants import OPSET
from gft_edge.export.onnx.plain_modules import exportable
from gft_edge.export.onnx.rewrite import rewrite
from gft_edge.manifest import MODEL


class NoMaps(nn.Module):
    """A focal model's parts put together anew, with nothing in it about maps: no traces, no positions, no importance."""

    def __init__(self, model: nn.Module, keep: tuple[int, ...]) -> None:
        super().__init__()
        parts = exportable(model)
        self.patch_embed, self.cls_token, self.pos_embed = parts.patch_embed, parts.cls_token, parts.pos_embed
        self.blocks, self.norm, self.head = parts.blocks, parts.norm, parts.head
        self.keep = dict(zip(model.config.stages, keep))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embed(image)
        x = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1) + self.pos_embed
        for number, block in enumerate(self.blocks, start=1):
            x = self.run(x, block, self.keep.get(number))
        return self.head(self.norm(x)[:, 0])

    @staticmethod
    def run(x: torch.Tensor, block: nn.Module, k: int | None) -> torch.Tensor:
        """Runs a block that keeps k patches, or the last one, which computes the class token alone."""
        z = block.norm1(x)
        qkv, width = block.attn.qkv, x.shape[2]
        q, keys, values = qkv(z).chunk(3, dim=2)
        if k is None:
            x, q = x[:, :1], q[:, :1]
        else:
            if isinstance(qkv, nn.Linear):
                mean = q[:, 1:].mean(dim=1)
                products = keys[:, 1:] @ mean.unsqueeze(2)
            else:  # from the weights before they were rounded
                products = z[:, 1:] @ F.linear(z[:, 1:].mean(dim=1), block.matrix, block.offset).unsqueeze(2)
            chosen = products.squeeze(2).topk(k, dim=1, sorted=False).indices
            chosen = F.pad(chosen + 1, (1, 0)).unsqueeze(-1).expand(-1, -1, width)
            x, q = x.gather(1, chosen), q.gather(1, chosen)
        x = x + block.attn.proj(block.attn.attend(q, keys, values))
        return x + block.mlp(block.norm2(x))


def export_no_maps(model: nn.Module, keep: tuple[int, ...]) -> onnx.ModelProto:
    logging.getLogger("onnxslim").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            NoMaps(model, keep),
            (torch.zeros(2, 3, 32, 32),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes={"image": {0: Dim("batch", min=1, max=1024)}},
            verbose=False,
        )
    return rewrite(onnxslim.slim(program.model_proto))


def described(model: onnx.ModelProto) -> list[tuple]:
    """Every node by operator, attributes and what it reads: the number of the node it comes from, or a constant's value."""
    known = {value.name: ("input", place) for place, value in enumerate(model.graph.input)}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        known[tensor.name] = ("constant", tensor.data_type, array.shape, array.tobytes())
    nodes = []
    for number, node in enumerate(model.graph.node):
        attributes = sorted((a.name, repr(helper.get_attribute_value(a))) for a in node.attribute)
        nodes.append((node.op_type, attributes, [known[name] if name else None for name in node.input]))
        known |= {name: ("node", number, place) for place, name in enumerate(node.output)}
    return [*nodes, ("outputs", [known[value.name] for value in model.graph.output])]


@pytest.fixture(scope="module")
def no_maps(checkpoints):
    return functools.cache(lambda precision: export_no_maps(checkpoints[precision].model, (12, 6)))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_graph_without_maps_is_that_of_a_model_without_maps(exported, no_maps, precision):
    found, with_maps = (
        described(onnx.load(exported(f"{precision}-{maps}").path / MODEL)) for maps in ("none", "compact")
    )
    expected = described(no_maps(precision))
    assert len(found) == len(expected) > 100
    for number, (node, other) in enumerate(zip(found, expected)):
        assert node == other, number
    assert with_maps != expected


def test_description_sees_wiring_attributes_and_constants(no_maps):
    plain = no_maps("fp32")

    def changed(change) -> list[tuple]:
        model = onnx.ModelProto()
        model.CopyFrom(plain)
        change(model.graph)
        return described(model)

    def swap_inputs(graph):
        node = next(n for n in graph.node if n.op_type == "MatMul")
        node.input[0], node.input[1] = node.input[1], node.input[0]

    def change_attribute(graph):
        next(n for n in graph.node if n.op_type == "LayerNormalization").attribute[0].f += 1
        next(n for n in graph.node if n.op_type == "Softmax").attribute[0].i = 1

    def change_weight(graph):
        tensor = graph.initializer[0]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(1e-3), tensor.name))

    def rename(graph):
        for node in graph.node:
            node.name += "_x"

    assert changed(rename) == described(plain)
    for change in (swap_inputs, change_attribute, change_weight):
        assert changed(change) != described(plain)
