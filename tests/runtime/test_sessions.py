from __future__ import annotations

import collections
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from gft_edge.errors import ArtifactError, ConfigError, DataError, MissingExtraError
from gft_edge.manifest import GOLDEN, MODEL, load_artifact, register_files
from gft_edge.runtime.backends.sessions import DISABLED_FOR_INT8, onnxruntime_session, open_session
from gft_edge.storage.seals import write_sealed


@pytest.fixture
def optimized(monkeypatch, tmp_path):
    """Opens an artefact and tells which operators ONNX Runtime really runs."""
    real = ort.InferenceSession

    def recording(model, options, **more):
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        return real(model, options, **more)

    monkeypatch.setattr(ort, "InferenceSession", recording)

    def operators(artifact):
        open_session(artifact, threads=1)
        graph = onnx.load(tmp_path / "optimized.onnx").graph
        return collections.Counter(node.op_type for node in graph.node)

    return operators


def test_every_quantized_linear_runs_as_an_int8_product(int8, optimized):
    count = optimized(int8)
    layers = len(int8.manifest.quantization["ranges"])
    assert layers == 12  # four in each of three blocks
    assert count["MatMulIntegerToFloat"] == layers
    assert count["QuantizeLinear"] == layers
    assert count["DequantizeLinear"] == 0


def test_int8_products_survive_a_fixed_batch(int8, monkeypatch, tmp_path):
    """With every shape known, MatMulAddFusion would make float products of them; the session switches it off."""
    model = onnx.load(int8.path / MODEL)
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    real, file = ort.InferenceSession, tmp_path / "optimized.onnx"

    def recording(source, options, **more):
        options.optimized_model_filepath = str(file)
        return real(source, options, **more)

    monkeypatch.setattr(ort, "InferenceSession", recording)
    onnxruntime_session(model.SerializeToString(), quantized=True, threads=1)
    count = collections.Counter(node.op_type for node in onnx.load(file).graph.node)
    assert count["MatMulIntegerToFloat"] == len(int8.manifest.quantization["ranges"])
    assert count["DequantizeLinear"] == 0


def test_fp32_graph_has_no_int8_product(with_maps, optimized):
    count = optimized(with_maps)
    assert count["MatMulIntegerToFloat"] == count["QuantizeLinear"] == 0
    assert count["MatMul"] + count["Gemm"] > 20


def test_outputs_come_by_name_and_are_the_golden_ones(with_maps, images):
    session = open_session(with_maps, threads=1)
    found = session(images)
    assert tuple(found) == session.outputs == ("logits", "importance_0", "kept_0", "importance_1", "kept_1")
    with np.load(with_maps.path / GOLDEN) as golden:
        for name, value in found.items():
            np.testing.assert_allclose(value, golden[name], rtol=1e-3, atol=1e-5)


def test_images_are_independent_of_each_other(int8, images):
    session = open_session(int8, threads=1)
    together = session(images)["logits"]
    apart = np.concatenate([session(images[i : i + 1])["logits"] for i in range(len(images))])
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-5 * np.abs(apart).max())


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_options_are_on_record(int8, with_maps, threads):
    for artifact, disabled in ((int8, list(DISABLED_FOR_INT8)), (with_maps, [])):
        session = open_session(artifact, threads=threads)
        assert session.backend == "onnxruntime"
        assert session.options == {
            "version": ort.__version__,
            "provider": "CPUExecutionProvider",
            "intra_op_num_threads": threads,
            "inter_op_num_threads": 1,
            "disabled_optimizers": disabled,
            "fused_biases": False,
            "shared": False,
            "huge_pages_bytes": 0,
        }


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 3, 31, 32), np.float32),
        np.zeros((1, 1, 32, 32), np.float32),
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((3, 32, 32), np.float32),
        np.zeros((1, 3, 32, 32), np.float64),
        np.zeros((1, 3, 32, 32), np.uint8),
    ],
    ids=lambda a: f"{a.shape} {a.dtype}",
)
def test_input_that_does_not_fit_is_a_data_error(with_maps, array):
    session = open_session(with_maps, threads=1)
    with pytest.raises(DataError, match=r"input .* does not fit the graph") as caught:
        session(array)
    assert f"{array.shape} {array.dtype}" in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"no graph", b"\x08\x0a" * 40], ids=["empty", "text", "bytes"])
def test_damaged_graph_is_an_artefact_error(copied, with_maps, data):
    artifact = copied(with_maps)
    (artifact.path / MODEL).write_bytes(data)
    artifact = register_files(artifact, [MODEL])
    with pytest.raises(ArtifactError, match=r"model\.onnx:? (is no ONNX model|ONNX Runtime cannot load it)"):
        open_session(artifact)
    with pytest.raises(ArtifactError, match="model: ONNX Runtime cannot load it"):
        onnxruntime_session(data, quantized=False)


def test_half_a_graph_is_an_artefact_error(copied, with_maps):
    artifact = copied(with_maps)
    data = (artifact.path / MODEL).read_bytes()
    (artifact.path / MODEL).write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match="is no ONNX model"):
        open_session(register_files(artifact, [MODEL]))


def test_changed_graph_is_refused_before_it_is_loaded(copied, with_maps):
    artifact = copied(with_maps)
    (artifact.path / MODEL).write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"model\.onnx was changed since it was written"):
        open_session(artifact)
    (artifact.path / MODEL).unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx is missing"):
        open_session(artifact)


def test_missing_file_is_an_artefact_error(tmp_path):
    with pytest.raises(ArtifactError, match="ONNX Runtime cannot load it"):
        onnxruntime_session(tmp_path / "nowhere.onnx", quantized=False)


@pytest.mark.parametrize("backend", ["tensorflow", "", "ONNXRuntime"])
def test_unknown_backend_is_refused_with_the_known_ones(with_maps, backend):
    with pytest.raises(ConfigError, match=f"unknown backend '{backend}'.*; there are: onnxruntime, onnxruntime-cuda"):
        open_session(with_maps, backend)


def test_negative_threads_are_refused(with_maps):
    with pytest.raises(ConfigError, match="threads must be 0 .* or more, found -1"):
        open_session(with_maps, threads=-1)


def test_missing_onnxruntime_names_the_extra(with_maps, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"onnxruntime is not installed; .*gft-edge\[onnx\]"):
        open_session(with_maps)


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("outputs", lambda t: t[:-1]),
        ("outputs", lambda t: [*t[1:], t[0]]),
        ("outputs", lambda t: [{**t[0], "dtype": "int8"}, *t[1:]]),
        ("inputs", lambda t: [{**t[0], "shape": ["batch", 1, 7, 7]}]),
        ("inputs", lambda t: [{**t[0], "name": "pixels"}]),
    ],
    ids=["one output less", "order", "type", "shape", "name"],
)
def test_a_graph_whose_interface_is_not_that_of_the_manifest_is_refused(with_maps, copied, table, change):
    artifact = copied(with_maps)
    data = artifact.manifest.to_json()
    write_sealed(artifact.path / "manifest.json", {**data, table: change(data[table])})
    with pytest.raises(ArtifactError, match=rf"{table} of the graph differ from its manifest"):
        open_session(load_artifact(artifact.path))
