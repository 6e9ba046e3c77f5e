"""Ranges of an exported graph's tensors, found by running the graph itself in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from gft_edge.calibration.images import Features
from gft_edge.calibration.observing.collect import Collector, require_images
from gft_edge.data.batches import Problem, indexed_batches
from gft_edge.data.datasets import ImageSet
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.manifest import LOGITS, PROBABILITIES
from gft_edge.preprocess import PreprocessSpec
from gft_edge.runtime.backends.sessions import Session, onnxruntime_session

Convert = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
"""Turns preprocessed images into the input of a graph."""


def linear_tensors(model: onnx.ModelProto) -> list[str]:
    """Returns inputs and outputs of the linear layers: products of an activation and a constant matrix, and their bias's sum.

    These are the tensors that need a scale for the linears to run in INT8 and nothing else: TensorRT keeps a layer out
    of INT8 when a tensor it reads or writes has none. Products of two activations, scores, maps and the
    classifier (a Gemm) are not among them.

    Raises:
        ConfigError: the graph is quantized already.
    """
    nodes = model.graph.node
    if any(node.op_type == "QuantizeLinear" for node in nodes):
        raise ConfigError(
            "calibration: this graph is quantized already, and TensorRT ignores a cache for it; give the FP32 artefact"
        )
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    vectors = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 1}
    linears = [node for node in nodes if node.op_type == "MatMul" and node.input[1] in matrices]
    biased = {
        name: node.output[0]
        for node in nodes
        if node.op_type == "Add" and set(node.input) & vectors
        for name in node.input
    }
    names: dict[str, None] = {}
    for node in linears:
        names[node.input[0]] = names[node.output[0]] = None
        if node.output[0] in biased:
            names[biased[node.output[0]]] = None
    if not names:
        raise ConfigError("calibration: this graph has no linear layer")
    return list(names)


def _session(model: onnx.ModelProto, outputs: list[str]) -> Session:
    """Returns a session that computes some of the graph's inner tensors."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs
    )
    return onnxruntime_session(model.SerializeToString(), quantized=False)


def observe_graph(
    model: onnx.ModelProto,
    size: int,
    collector: Collector,
    batches: Iterable[npt.NDArray[np.float32]],
    convert: Convert = np.asarray,
) -> Iterator[int]:
    """Runs images through a graph, one batch for each step of the iteration; yields the number of images so far.

    Args:
        model: FP32 graph with one input.
        size: pixels of its square images.
        collector: of the graph's tensors.
        batches: preprocessed images, (B, 3, size, size) float32.
        convert: turns them into the graph's input.

    Raises:
        DataError: images of another shape, or an activation that is not finite.
    """
    session = _session(model, list(collector.stats))
    for images in batches:
        require_images(images, size)
        for name, values in session(convert(images)).items():
            collector.add(name, torch.from_numpy(values))
        collector.end_batch(len(images))
        yield collector.images


def graph_features(model: onnx.ModelProto, spec: PreprocessSpec, convert: Convert = np.asarray) -> Features:
    """Returns a function that computes the inputs of the classifier for images; ``convert`` is that of :func:`observe_graph`.

    Raises:
        ArtifactError: the graph's logits are not those of a linear layer.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    maker = producers.get(LOGITS) or producers.get(PROBABILITIES)
    while maker is not None and maker.op_type in ("Softmax", "Cast"):
        maker = producers.get(maker.input[0])
    if maker is None or maker.op_type != "Gemm":
        raise ArtifactError("calibration: the graph's logits do not come from a Gemm; choose images without coverage")
    session = _session(model, [maker.input[0]])

    def features(images: ImageSet, problem: Problem | None = None) -> tuple[list[int], npt.NDArray[np.float32]]:
        places: list[int] = []
        found = []
        for indices, batch, _ in indexed_batches(images, spec, problem=problem):
            places += indices
            found.append(next(iter(session(convert(batch)).values())))
        return places, np.concatenate(found) if found else np.empty((0, 0), np.float32)

    return features
