"""Traces a checkpoint's model to an ONNX graph with a static token budget; only the batch may be dynamic."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import onnx
import onnxslim
import torch
from torch import Tensor, nn
from torch.export import Dim

from gft_edge import __version__
from gft_edge.budget import TokenBudget
from gft_edge.export.graph.dtypes import torch_dtype
from gft_edge.export.onnx.dialects import TRACED_OPSET, to_trt8
from gft_edge.export.onnx.interface import graph_input, graph_outputs
from gft_edge.export.onnx.options import DEFAULT_OPTIONS, GraphOptions
from gft_edge.export.onnx.plain_modules import exportable
from gft_edge.export.onnx.rewrite import rewrite
from gft_edge.export.onnx.weights import lift_weights, put_back
from gft_edge.model.gft import StageMaps
from gft_edge.preprocess import PreprocessSpec

MAX_BATCH = 1024
"""Upper end of the batch axis that the exported graph is checked for; engines set their own."""


class _Graph(nn.Module):
    """The function that is traced, from an image to logits and, with maps, importance and kept positions of each stage."""

    scale: Tensor
    shift: Tensor
    order: Tensor

    def __init__(self, model: nn.Module, budget: TokenBudget, options: GraphOptions, spec: PreprocessSpec) -> None:
        super().__init__()
        self.dtype = torch_dtype(options.rest)
        self.model, self.budget, self.options = exportable(model, self.dtype), budget, options
        self.channels = [2, 1, 0] if spec.color_order == "bgr" else [0, 1, 2]
        scale, shift = spec.scale_and_shift()
        self.register_buffer("scale", torch.from_numpy(scale))
        self.register_buffer("shift", torch.from_numpy(shift))
        self.register_buffer("order", torch.tensor(self.channels))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Returns the graph's outputs."""
        if self.options.input == "uint8":
            # Cast first: TensorRT takes 8-bit pixels only at the graph's input.
            image = (image.float()[..., self.channels] * self.scale + self.shift).permute(0, 3, 1, 2)
        if self.options.input == "float255":
            if self.channels != sorted(self.channels):
                image = image.index_select(1, self.order)  # one Gather; plain indexing adds two Transposes
            image = image * self.scale[:, None, None] + self.shift[:, None, None]
        image = image.to(self.dtype)
        maps = self.options.maps
        if maps == "none":
            return (self._answer(self.model(image, self.budget)),)
        out = self.model(image, self.budget, maps=True)
        if maps == "dense":
            return self._answer(out.logits), self._dense(out.stages)
        stages = [t for stage in out.stages for t in (stage.importance, stage.kept.to(torch.int32))]
        return (self._answer(out.logits), *stages)

    def _answer(self, logits: Tensor) -> Tensor:
        """Returns the first output, (B, classes) float32."""
        logits = logits.float()
        return logits.softmax(dim=1) if self.options.probabilities else logits

    def _dense(self, stages: list[StageMaps]) -> Tensor:
        """Returns importance on the grid, zero where a patch was dropped before, (B, stages, rows, cols).

        Every patch of the grid sums the importances of the tokens that stand for it: one product with a mask, because a
        scatter would be slow or unsupported in TensorRT.
        """
        config: Any = self.model.config
        grid = [stages[0].importance]
        everything = torch.arange(config.num_patches)
        for stage, before in zip(stages[1:], stages):
            stands_for = (before.kept.unsqueeze(2) == everything).to(stage.importance.dtype)
            grid.append((stage.importance.unsqueeze(1) @ stands_for).squeeze(1))
        return torch.stack(grid, dim=1).unflatten(2, config.grid)


def graph_module(model: nn.Module, spec: PreprocessSpec, budget: TokenBudget, options: GraphOptions) -> nn.Module:
    """Returns the function that :func:`export_graph` traces, from the graph's input to the tuple of its outputs."""
    return _Graph(model, budget, options, spec).eval()


def export_graph(
    model: nn.Module, spec: PreprocessSpec, budget: TokenBudget, options: GraphOptions = DEFAULT_OPTIONS
) -> onnx.ModelProto:
    """Traces a model at one token budget.

    Args:
        model: of any variant, quantized or not.
        spec: its preprocessing, for graphs that take pixels.
        budget: compiled into the graph as constants.
        options: inputs, outputs, precision.

    Returns:
        The graph; the same model and arguments give the same bytes.
    """
    config: Any = model.config
    static = options.static_batch
    names = [o.name for o in graph_outputs(budget, config, options.maps, probabilities=options.probabilities)]
    # A dynamic axis is traced with two images: one would be taken for a constant.
    image = graph_input(config, options.input, static or 2)
    example = torch.zeros([int(axis) for axis in image.shape], dtype=getattr(torch, image.dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Graph(model, budget, options, spec),
            (example,),
            dynamo=True,
            opset_version=TRACED_OPSET if options.dialect == "trt8" else options.opset,
            input_names=[image.name],
            output_names=names,
            dynamic_shapes=None if static else {"image": {0: Dim("batch", min=1, max=MAX_BATCH)}},
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    weights = lift_weights(program.model)
    graph = program.model_proto
    del program
    gc.collect()  # exporter and onnxslim leave cycles of whole models
    graph = rewrite(onnxslim.slim(graph))
    gc.collect()
    put_back(graph.graph, weights)
    return _canonical(to_trt8(graph) if options.dialect == "trt8" else graph)


def _canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    """Removes source paths and versions in metadata, which depend on the machine, and checks the graph."""
    model.producer_name, model.producer_version = "gft_edge", __version__
    model.doc_string = ""
    model.graph.name, model.graph.doc_string = "gft", ""
    del model.metadata_props[:]
    for element in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        element.doc_string = ""
        del element.metadata_props[:]
    for initializer in model.graph.initializer:
        initializer.doc_string = ""
        del initializer.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    return model
