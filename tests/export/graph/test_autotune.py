"""The graph for Autotune's ``--qdq_baseline``: same numbers, names of the full-precision graph, read by Autotune's own code."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from gft_edge.errors import ArtifactError
from gft_edge.export.graph.autotune import autotune_baseline, autotune_commands, has_placeholder_scales
from gft_edge.export.graph.qdq_boundaries import compare_boundaries

from .test_qdq_boundaries import NAMES, block, node, put, without


def full() -> onnx.ModelProto:
    """The same block in full precision, its tensors under other names."""
    model = without(block(), "nd", "ad", "md")
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    for found in nodes:
        for names in (found.input, found.output):
            for place, name in enumerate(names):
                names[place] = {"w1d": "first", "w2d": "second", "w3d": "third"}.get(name, name)
                names[place] = f"full_{name}" if name in ("n", "a", "m", "r") else names[place]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    keep = {"g1": values["g1"], "b1": values["b1"], "b2": values["b2"]}
    for number, name in enumerate(("first", "second", "third"), start=1):
        keep[name] = values[NAMES[number - 1]].astype(np.float32) * values[f"ws{number}"]
    for name, value in keep.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto) -> np.ndarray:
    x = np.random.default_rng(5).standard_normal((2, 8, 16), dtype=np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_it_computes_as_the_quantized_graph_under_names_of_the_full_one():
    made = autotune_baseline(full(), block())
    onnx.checker.check_model(made.model, full_check=True)
    assert set(made.tensors) == {"full_n", "full_a", "full_m", "first", "second", "third"}
    assert made.left_out == ()
    dequantized = {n.input[0] for n in made.model.graph.node if n.op_type == "DequantizeLinear"}
    assert dequantized == set(made.tensors)
    np.testing.assert_allclose(run(made.model), run(block()), rtol=1e-5, atol=1e-5)
    assert np.abs(run(full()) - run(block())).max() > 1e-3
    assert compare_boundaries(block(), made.model).same == 6


def test_what_has_no_place_in_the_full_graph_is_named():
    pair = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s1", "z"], ["xq"], "xq"),
        onnx.helper.make_node("DequantizeLinear", ["xq", "s1", "z"], ["xd"], "xd"),
    ]
    quantized = block()
    node(quantized, "n").input[0] = "xd"
    for found in reversed(pair):
        quantized.graph.node.insert(0, found)
    made = autotune_baseline(full(), quantized)
    assert made.left_out == ("input of LayerNormalization n: int8 per tensor, scale 0.01",), "an input keeps its type"
    assert len(made.tensors) == 6


def test_graphs_without_a_quantized_operand_in_common():
    with pytest.raises(ArtifactError, match="no quantized operand in common"):
        autotune_baseline(full(), full())


def test_commands_name_flags_that_exist():
    reason = "onnx-graphsurgeon and lief are not installed (extra quant)"
    for module in ("onnx_graphsurgeon", "lief"):
        pytest.importorskip(module, reason=reason)
    commands = autotune_commands(Path("full.onnx"), Path("b.onnx"), Path("images.npy"), Path("out"))
    for command in commands:
        module, *flags = command.removeprefix("python -m ").split()
        parser = importlib.import_module(f"{module}.__main__").get_parser()
        assert parser.parse_args(flags).onnx_path == "full.onnx"


def test_commands_take_paths_with_spaces():
    folder = Path("my models")
    commands = autotune_commands(folder / "full.onnx", folder / "b.onnx", folder / "images.npy", folder)
    assert all("my models/full.onnx" in shlex.split(command) for command in commands)


def test_placeholder_scales():
    assert not has_placeholder_scales(block())
    model = block()
    for name in ("s1", "s2", "s3"):
        model = put(model, name, np.float32(0.1))
    assert has_placeholder_scales(model)
    assert not has_placeholder_scales(full())


def test_autotune_takes_the_places_over():
    reason = "onnx-graphsurgeon and lief are not installed (extra quant)"
    for module in ("onnx_graphsurgeon", "lief"):
        pytest.importorskip(module, reason=reason)
    tuner = pytest.importorskip("modelopt.onnx.quantization.autotune.autotuner", reason=reason)
    from modelopt.onnx.quantization.autotune.common import Config
    from modelopt.onnx.quantization.qdq_utils import get_quantized_tensors

    def places(baseline):
        found = tuner.QDQAutotuner(full())
        found.initialize(Config(default_quant_type="int8"))
        found.import_insertion_points(get_quantized_tensors(baseline))
        schemes = [scheme for pattern in found.pattern_cache.pattern_schemes for scheme in pattern.schemes]
        return sum(len(s.node_inputs) + len(s.child_region_inputs) + len(s.region_outputs) for s in schemes)

    assert places(block()) == 0
    assert places(autotune_baseline(full(), block()).model) >= 3
