"""Exchange with Autotune of NVIDIA's Model-Optimizer, which searches places for Q/DQ by the latency of built engines.

It starts from the full-precision graph. ``--qdq_baseline`` names a second graph whose places it tries first; of that it reads only
the names of what each DequantizeLinear dequantizes, and looks for them among the tensors of the full-precision graph (0.47,
``get_quantized_tensors`` and ``add_pattern_from_region``). In an ordinary Q/DQ graph those are names of INT8 tensors, which the
full-precision graph does not have: nothing would be taken over, without a word. In the graph written here they are the names of
the full-precision tensors.
"""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from gft_edge.errors import ArtifactError
from gft_edge.export.graph.products import name_of, output_axis
from gft_edge.export.graph.qdq_boundaries import PER_OUTPUT, Boundary, Operand, matched_operands
from gft_edge.export.graph.view import DEQUANTIZE, QUANTIZE


@dataclass(frozen=True)
class Baseline:
    """A graph for ``--qdq_baseline``.

    Args:
        model: the full-precision graph with Q/DQ. Scores that the quantized graph computes from weights of their own come from
            the quantized layers here, as in the full-precision graph.
        tensors: of the full-precision graph, which are quantized in it.
        left_out: quantized operands without a counterpart there, in words.
    """

    model: onnx.ModelProto
    tensors: tuple[str, ...]
    left_out: tuple[str, ...]


def autotune_baseline(full: onnx.ModelProto, quantized: onnx.ModelProto) -> Baseline:
    """Returns a full-precision graph with the Q/DQ of a quantized graph of the same model.

    Args:
        full: with its weights.
        quantized: INT8, symmetric.

    Raises:
        ArtifactError: one of them is no valid graph, or they have no quantized operand in common.
    """
    writer = _Writer.of(full)
    left_out = []
    for one, other in matched_operands(full, quantized):
        if other is None or other.boundary is None:
            continue
        if one is None or one.boundary is not None or not writer.place(one, other.boundary):
            left_out.append(f"{other.label}: {other.boundary.describe()}")
    if not writer.tensors:
        raise ArtifactError("baseline: the graphs have no quantized operand in common; are they of one model?")
    return Baseline(writer.finish(), tuple(writer.tensors), tuple(left_out))


@dataclass(frozen=True)
class _Writer:
    """A copy of a graph that receives Q/DQ.

    Args:
        model: the copy.
        nodes: of it, by first output.
        values: its initialisers.
        fixed: inputs and outputs, which keep their type.
        tensors: quantized so far, with their nodes.
    """

    model: onnx.ModelProto
    nodes: dict[str, NodeProto]
    values: dict[str, onnx.TensorProto]
    fixed: frozenset[str]
    tensors: dict[str, tuple[Boundary, list[NodeProto]]]

    @classmethod
    def of(cls, full: onnx.ModelProto) -> _Writer:
        model = onnx.ModelProto()
        model.CopyFrom(full)
        graph = model.graph
        return cls(
            model,
            {name_of(node): node for node in graph.node},
            {tensor.name: tensor for tensor in graph.initializer},
            frozenset(value.name for value in (*graph.input, *graph.output)),
            {},
        )

    def place(self, operand: Operand, boundary: Boundary) -> bool:
        """Quantizes what a node reads; False where that cannot be."""
        tensor = operand.tensor
        node = None if operand.node is None else self.nodes.get(name_of(operand.node))
        symmetric = boundary.scales is not None and not any(boundary.zeros or (1.0,)) and boundary.dtype == "int8"
        known_axis = boundary.channels in ("per tensor", PER_OUTPUT)
        if node is None or tensor in self.fixed or not (symmetric and known_axis):
            return False
        known, extra = self.tensors.setdefault(tensor, (boundary, []))
        if known.differences(boundary):
            return False
        if not extra:
            extra += self._pair(tensor, boundary, output_axis(node, operand.place, 4 if "Conv" in node.op_type else 2))
        node.input[operand.place] = f"{tensor}_dequantized"
        return True

    def _pair(self, tensor: str, boundary: Boundary, axis: int | None) -> list[NodeProto]:
        """Returns the nodes that quantize a tensor: its own name becomes that of its INT8 values."""
        assert boundary.scales is not None
        scale = np.array(boundary.scales, np.float32)
        if boundary.channels != PER_OUTPUT:
            scale, axis = scale.reshape(()), None
        names = [f"{tensor}_scale", f"{tensor}_zero"]
        for name, value in zip(names, (scale, np.zeros(scale.shape, np.int8))):
            self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        attributes = {} if axis is None else {"axis": axis}
        make = onnx.helper.make_node
        back = make(DEQUANTIZE, [tensor, *names], [f"{tensor}_dequantized"], f"{tensor}_dequantize", **attributes)
        return [make(QUANTIZE, [f"{tensor}_float", *names], [tensor], f"{tensor}_quantize", **attributes), back]

    def finish(self) -> onnx.ModelProto:
        """Returns the graph, its nodes in an order that can be run."""
        graph = self.model.graph
        for node in graph.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name in self.tensors:
                        names[place] = f"{name}_float"
        for name in self.tensors:
            if name in self.values:
                self.values[name].name = f"{name}_float"
        ordered: list[NodeProto] = []
        pairs = {f"{name}_float": nodes for name, (_, nodes) in self.tensors.items()}
        for name in [name for name in pairs if name.removesuffix("_float") in self.values]:
            ordered += pairs.pop(name)
        for node in graph.node:
            ordered.append(node)
            for output in node.output:
                ordered += pairs.pop(output, [])
        ordered += [node for nodes in pairs.values() for node in nodes]
        nodes = [NodeProto.FromString(node.SerializeToString()) for node in ordered]
        del graph.node[:]
        graph.node.extend(nodes)
        del graph.value_info[:]
        return self.model


def autotune_commands(full: Path, baseline: Path, images: Path, out: Path) -> tuple[str, str]:
    """Returns the commands that run Autotune, alone and with calibration, for a shell.

    They need TensorRT and the GPU of the engine.

    Args:
        full: the full-precision graph.
        baseline: of :func:`autotune_baseline`.
        images: calibration inputs as .npy, for the second command.
        out: folder of the results.
    """
    python, module = ("python", "-m"), "modelopt.onnx.quantization"
    alone = ("--onnx_path", full, "--qdq_baseline", baseline, "--output_dir", out, "--quant_type", "int8")
    calibrated = (
        *("--onnx_path", full, "--quantize_mode", "int8", "--autotune", "default", "--autotune_qdq_baseline", baseline),
        *("--calibration_data_path", images, "--calibration_method", "max", "--output_path", out / "calibrated.onnx"),
    )
    commands = ((*python, f"{module}.autotune", *alone), (*python, module, *calibrated))
    first, second = (shlex.join(map(str, words)) for words in commands)
    return first, second


def has_placeholder_scales(model: onnx.ModelProto) -> bool:
    """Returns True if every quantizer has one and the same scale: places without calibration, as Autotune writes them alone."""
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    scales: Counter[bytes] = Counter()
    for node in model.graph.node:
        if node.op_type == QUANTIZE and node.input[1] in values:
            scales[numpy_helper.to_array(values[node.input[1]]).tobytes()] += 1
    return len(scales) == 1 and scales.total() > 2
