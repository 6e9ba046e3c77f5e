from __future__ import annotations

import collections
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper

import gft_edge
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import load_checkpoint
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.onnx import artifact as export_module
from gft_edge.export.onnx.artifact import export_artifact
from gft_edge.export.onnx.interface import graph_outputs
from gft_edge.export.onnx.reference import golden_arrays
from gft_edge.manifest import GOLDEN, MODEL
from gft_edge.quant.modules import QuantLinear
from gft_edge.stats.metrics import sqnr_db

NAMES = ["fp32-none", "fp32-compact", "int8-none", "int8-compact", "fp32-compact-full"]
TYPES = {TensorProto.FLOAT: "float32", TensorProto.INT32: "int32"}


@pytest.fixture(params=NAMES)
def artifact(request, exported):
    return exported(request.param)


def _graph(artifact) -> onnx.GraphProto:
    return onnx.load(artifact.path / MODEL).graph


def _count(artifact) -> collections.Counter:
    return collections.Counter(node.op_type for node in _graph(artifact).node)


def _run(artifact, images):
    session = ort.InferenceSession(str(artifact.path / MODEL), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": images}), strict=True))


def _shape(value) -> tuple:
    return tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)


@pytest.mark.parametrize("batch", [1, 3, 16])
@torch.no_grad()
def test_onnxruntime_gives_what_torch_gives(artifact, checkpoints, batch):
    images = np.random.default_rng(batch).standard_normal((batch, 3, 32, 32), dtype=np.float32)
    precision = artifact.manifest.precision
    expected = checkpoints[precision].model(torch.from_numpy(images), artifact.manifest.budget, maps=True)
    found = _run(artifact, images)
    logits = expected.logits.numpy()
    assert found["logits"].shape == (batch, 4)
    if precision == "fp32":
        assert np.abs(found["logits"] - logits).max() <= 1e-4 * np.abs(logits).max()
    else:
        assert sqnr_db(logits, found["logits"]) > 25
    if artifact.manifest.maps == "compact":
        for stage, maps in enumerate(expected.stages):
            kept, importance = found[f"kept_{stage}"], found[f"importance_{stage}"]
            assert kept.dtype == np.int32
            np.testing.assert_array_equal(kept, maps.kept.numpy())
            np.testing.assert_allclose(importance, maps.importance.numpy(), rtol=1e-3, atol=1e-5)


def test_int8_graph_differs_from_the_fp32_one(exported, clear_images):
    fp32, int8 = (_run(exported(name), clear_images)["logits"] for name in ("fp32-none", "int8-none"))
    assert 15 < sqnr_db(fp32, int8) < 60


def test_maps_do_not_change_the_logits(exported, clear_images):
    for precision in ("fp32", "int8"):
        a, b = (_run(exported(f"{precision}-{maps}"), clear_images)["logits"] for maps in ("none", "compact"))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())


def test_full_budget_keeps_every_patch_and_selects_nothing(exported, clear_images):
    artifact = exported("fp32-compact-full")
    found = _run(artifact, clear_images)
    assert (found["kept_1"] == np.arange(16)).all()
    assert _count(artifact)["TopK"] == 0


def test_interface_in_the_manifest_is_the_graphs(artifact):
    graph, manifest = _graph(artifact), artifact.manifest
    for values, infos in ((graph.input, manifest.inputs), (graph.output, manifest.outputs)):
        found = [(v.name, TYPES[v.type.tensor_type.elem_type], _shape(v)) for v in values]
        assert found == [(i.name, i.dtype, i.shape) for i in infos]
    assert {i.name for i in graph.initializer}.isdisjoint(v.name for v in graph.input)


def test_only_the_batch_is_symbolic(artifact):
    graph = _graph(artifact)
    for value in (*graph.input, *graph.output):
        assert _shape(value)[0] == "batch"
        assert all(isinstance(size, int) and size > 0 for size in _shape(value)[1:])
    inner = {value.name: _shape(value) for value in graph.value_info}
    assert len(inner) > 100
    wrong = [n for n, s in inner.items() if not all(isinstance(size, int) and size > 0 for size in s[1:])]
    assert not wrong, "sizes inside the graph that are not constants"


def test_outputs_without_maps_are_the_logits_alone(exported):
    for precision in ("fp32", "int8"):
        none, compact = exported(f"{precision}-none"), exported(f"{precision}-compact")
        assert [v.name for v in _graph(none).output] == ["logits"]
        assert [v.name for v in _graph(compact).output] == [
            "logits",
            *("importance_0", "kept_0", "importance_1", "kept_1"),
        ]
        assert len(_graph(none).node) < len(_graph(compact).node)


def test_pruned_graph_sizes_follow_the_budget(exported):
    sizes = {output.name: _shape(output)[1] for output in _graph(exported("int8-compact")).output}
    assert sizes == {"logits": 4, "importance_0": 16, "kept_0": 12, "importance_1": 12, "kept_1": 6}


def test_same_checkpoint_gives_the_same_bytes_in_another_process(exported, checkpoints, clear_images, tmp_path):
    first = exported("int8-compact")
    np.save(tmp_path / "images.npy", clear_images)
    code = (
        "import sys, pathlib, numpy as np\n"
        "from gft_edge.checkpoint import load_checkpoint\n"
        "from gft_edge.export.onnx.artifact import export_artifact\n"
        "from gft_edge.export.onnx.options import GraphOptions\n"
        "checkpoint, images = load_checkpoint(sys.argv[1]), np.load('images.npy')\n"
        "export_artifact(checkpoint, pathlib.Path('again'), images, options=GraphOptions('compact'))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(checkpoints["int8"].path)]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    for name in (MODEL, GOLDEN):
        assert (tmp_path / "again" / name).read_bytes() == (first.path / name).read_bytes(), name


def test_no_file_tells_where_it_was_made(artifact):
    secrets = {str(Path(gft_edge.__file__).parents[1]), tempfile.gettempdir(), str(artifact.path), "/work", ".py"}
    for file in artifact.path.iterdir():
        data = file.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in data], file.name


def test_graph_holds_no_metadata(artifact):
    model = onnx.load(artifact.path / MODEL)
    elements = (*model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.graph.input)
    assert not any(element.doc_string or element.metadata_props for element in (*elements, *model.graph.output))
    assert not (model.doc_string or model.metadata_props or model.graph.doc_string or len(model.functions))
    assert (model.producer_name, model.producer_version) == ("gft_edge", gft_edge.__version__)


def test_opset_is_20_of_the_default_domain_alone(artifact):
    model = onnx.load(artifact.path / MODEL)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert {node.domain for node in model.graph.node} == {""}
    assert artifact.manifest.opset == 20
    onnx.checker.check_model(model, full_check=True)


def test_layer_norm_and_gelu_are_single_operators(artifact, checkpoints):
    count = _count(artifact)
    model = checkpoints["fp32"].model
    norms = sum(isinstance(module, torch.nn.LayerNorm) for module in model.modules())
    assert count["LayerNormalization"] == norms == 7
    assert count["Gelu"] == 3
    assert count["Erf"] == count["Tanh"] == count["BatchNormalization"] == count["If"] == 0


def test_selected_rows_are_gathered_by_gather_nd(artifact):
    count = _count(artifact)
    if artifact.manifest.budget == artifact.manifest.model.full_budget:
        assert count["GatherND"] == count["GatherElements"] == 0
    else:
        # tokens and queries of two blocks; positions are composed by elements
        assert count["GatherND"] == 4
        assert count["GatherElements"] == (artifact.manifest.maps == "compact")


def test_golden_holds_the_named_arrays_alone_with_any_numpy(tmp_path, monkeypatch):
    """Before 2.2, np.savez knows no options: every keyword is an array."""
    written = {}
    monkeypatch.setattr(np, "savez", lambda file, *arrays, **named: written.update(named))
    export_module.save_npz(tmp_path / GOLDEN, {"logits": np.zeros(1)})
    assert set(written) == {"logits"}


def test_golden_holds_the_outputs_of_the_fp32_model(artifact, checkpoints, clear_images):
    quantized = artifact.manifest.precision == "int8"
    with np.load(artifact.path / GOLDEN) as file:
        golden = dict(file)
    with torch.no_grad():
        images, budget = torch.from_numpy(clear_images), artifact.manifest.budget
        expected = checkpoints["fp32"].model(images, budget, maps=True)
        int8 = checkpoints["int8"].model(images, budget, maps=True)
    np.testing.assert_array_equal(golden["images"], clear_images)
    np.testing.assert_array_equal(golden["logits"], expected.logits)
    for stage, maps in enumerate(expected.stages):
        np.testing.assert_array_equal(golden[f"kept_{stage}"], maps.kept)
        np.testing.assert_array_equal(golden[f"importance_{stage}"], maps.importance)
        np.testing.assert_array_equal(golden[f"scores_{stage}"], maps.scores)
    assert ("logits_quantized" in golden) == quantized
    if quantized:
        np.testing.assert_array_equal(golden["logits_quantized"], int8.logits)
        for stage, maps in enumerate(int8.stages):
            np.testing.assert_array_equal(golden[f"quantized_kept_{stage}"], maps.kept)


class TestInt8Graph:
    @pytest.fixture(params=["int8-none", "int8-compact"])
    def artifact(self, request, exported):
        return exported(request.param)

    @pytest.fixture
    def layers(self, artifact):
        return artifact.manifest.quantization["ranges"]

    @staticmethod
    def _initializers(artifact):
        return {t.name: numpy_helper.to_array(t) for t in _graph(artifact).initializer}

    def test_each_linear_quantizes_its_input_once(self, artifact, layers):
        count = _count(artifact)
        assert count["QuantizeLinear"] == len(layers)
        assert count["DequantizeLinear"] == 2 * len(layers)

    def test_zero_points_are_explicit_int8_zeros(self, artifact):
        initializers = self._initializers(artifact)
        for node in _graph(artifact).node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                zero = initializers[node.input[2]]
                assert zero.dtype == np.int8
                assert not zero.any()

    def test_weights_are_int8_and_biases_are_not_quantized(self, artifact, layers):
        initializers = self._initializers(artifact)
        sources = [n.input[0] for n in _graph(artifact).node if n.op_type == "DequantizeLinear"]
        weights = [initializers[name] for name in sources if name in initializers]
        assert len(weights) == len(layers)
        assert all(weight.dtype == np.int8 and weight.ndim == 2 for weight in weights)
        assert all(np.abs(weight.astype(int)).max() == 127 for weight in weights)
        assert not [name for name, value in initializers.items() if value.dtype == np.int32 and name in sources]

    def test_quantized_values_feed_the_products_and_nothing_else(self, artifact, layers):
        graph = _graph(artifact)
        consumers = collections.defaultdict(list)
        for node in graph.node:
            for name in node.input:
                consumers[name].append(node)
        dequantized = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
        products = set()
        for node in graph.node:
            if node.op_type == "QuantizeLinear":
                assert [n.op_type for n in consumers[node.output[0]]] == ["DequantizeLinear"]
            if node.op_type == "DequantizeLinear":
                (product,) = consumers[node.output[0]]
                assert product.op_type == "MatMul"
                assert set(product.input) <= dequantized
                products.add(product.output[0])
        assert len(products) == len(layers)

    def test_scales_are_the_calibrated_ranges(self, artifact, layers, checkpoints):
        initializers = self._initializers(artifact)
        scales = [initializers[n.input[1]] for n in _graph(artifact).node if n.op_type == "QuantizeLinear"]
        assert sorted(float(s) for s in scales) == pytest.approx(sorted(r / 127 for r in layers.values()), rel=1e-6)
        model = checkpoints["int8"].model
        assert {name for name, m in model.named_modules() if isinstance(m, QuantLinear)} == set(layers)


def test_outputs_describe_every_stage(tiny_config):
    outputs = graph_outputs(TokenBudget((12, 6), 16), tiny_config, "compact")
    assert [(o.name, o.dtype, o.shape) for o in outputs] == [
        ("logits", "float32", ("batch", 4)),
        ("importance_0", "float32", ("batch", 16)),
        ("kept_0", "int32", ("batch", 12)),
        ("importance_1", "float32", ("batch", 12)),
        ("kept_1", "int32", ("batch", 6)),
    ]
    assert all(o.meaning for o in outputs)


def test_golden_outputs_do_not_depend_on_the_number_of_threads():
    builtin = load_checkpoint("builtin")
    side, budget = builtin.info.model.image_size, builtin.info.model.budget
    images = np.random.default_rng(0).standard_normal((8, 3, side, side), dtype=np.float32)
    found = {}
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found[threads] = {name: array.tobytes() for name, array in golden_arrays(builtin, images, budget).items()}
        assert torch.get_num_threads() == threads
    assert found[1] == found[2] == found[4]


def test_output_folder_that_is_not_empty_is_refused(checkpoints, clear_images, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        export_artifact(checkpoints["fp32"], tmp_path / "out", clear_images)
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "note.txt"]


@pytest.mark.parametrize("budget", [TokenBudget((12,), 16), TokenBudget((12, 6), 25)])
def test_budget_that_does_not_fit_is_refused(checkpoints, clear_images, tmp_path, budget):
    with pytest.raises(
        ConfigError, match="does not fit a model of 16 patches and 2 stages|numbers? for a model of 2 stages"
    ):
        export_artifact(checkpoints["fp32"], tmp_path / "out", clear_images, [budget])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_nothing_behind(checkpoints, clear_images, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error("stop")

    monkeypatch.setattr(export_module, "export_graph", fail)
    with pytest.raises(error, match="stop"):
        export_artifact(checkpoints["fp32"], tmp_path / "out", clear_images)
    assert not list(tmp_path.iterdir())


def _fix_batch(model):
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2


def _rename(model):
    model.graph.output[0].name = "scores"


def _change_type(model):
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


@pytest.mark.parametrize("change", [_fix_batch, _rename, _change_type])
def test_graph_with_another_interface_is_not_written(
    exported, checkpoints, clear_images, tmp_path, monkeypatch, change
):
    model = onnx.load(exported("fp32-none").path / MODEL)
    change(model)
    monkeypatch.setattr(export_module, "export_graph", lambda *_: model)
    with pytest.raises(ArtifactError, match="(logits|scores) is"):
        export_artifact(checkpoints["fp32"], tmp_path / "out", clear_images)
    assert not list(tmp_path.iterdir())
