from __future__ import annotations

import concurrent.futures
import shutil
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gft_edge.bundle import load_bundle
from gft_edge.cli.main import main
from gft_edge.errors import ArtifactError, ConfigError, MissingExtraError
from gft_edge.export.deploy.bundling import make_bundle
from gft_edge.export.deploy.normalize_graph import normalize_graph
from gft_edge.export.deploy.options import BundleOptions
from gft_edge.export.deploy.triton import client as triton_client
from gft_edge.export.deploy.triton.config import TYPES, read_model_config
from gft_edge.manifest import MODEL, TensorInfo, load_artifact
from gft_edge.manifest_schema import DeploymentManifest
from gft_edge.preprocess import PreprocessSpec
from gft_edge.runtime.classifier import Classifier

from .triton_simulator import Simulator

OPTIONS = BundleOptions("triton")


def bundle(artifact, tmp_path, options=OPTIONS):
    return make_bundle(load_artifact(artifact), tmp_path / "bundle", options)


@pytest.fixture(scope="module")
def tiny_bundle(tiny_artifact, tmp_path_factory):
    return bundle(tiny_artifact, tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def server(tiny_bundle):
    return Simulator(tiny_bundle.path / "models")


@pytest.fixture(scope="module")
def classifier(tiny_artifact):
    return Classifier.open(tiny_artifact)


@pytest.mark.parametrize("size", [1, 5, 8])
def test_ensemble_gives_what_the_classifier_gives(server, classifier, images, size):
    expected = classifier.predict(list(images[:size]))
    outputs = server.infer("gft_12-6_pixels", {"pixels": images[:size]})
    np.testing.assert_array_equal(outputs["logits"], np.stack([p.logits for p in expected]))
    assert server.classify("gft_12-6_pixels", "logits", outputs["logits"]) == [p.label for p in expected]
    assert server.classify("gft_12-6_pixels", "logits", np.eye(4)) == ["ant", "bee", "cat", "dog"]


def test_configurations_say_what_the_artefact_says(tiny_bundle, tiny_artifact):
    manifest = load_artifact(tiny_artifact).manifest
    for repository, backend in tiny_bundle.facts["repositories"].items():
        config = read_model_config(tiny_bundle.path / repository / "gft_12-6/config.pbtxt")
        assert (config.backend, config.max_batch_size) == (backend, 8)
        assert config.dynamic_batching and config.preferred_batch_sizes == (8,) and config.max_queue_delay_us > 0
        assert [w.batch_size for w in config.warm_ups] == [1, 8]
        assert config.outputs[0].label_filename == "labels.txt"
        assert (config.folder / "labels.txt").read_text().split("\n")[:-1] == list(manifest.labels)
        assert config.message.parameters["gft_edge_preprocess"].string_value == manifest.preprocess.id
        assert config.message.version_policy.latest.num_versions == 1
        assert config.instance_kinds == (("KIND_AUTO",) if backend == "onnxruntime" else ("KIND_GPU",))
        assert config.accelerators == ()
    plan = tiny_bundle.path / "models-tensorrt/gft_12-6/1"
    assert [path.name for path in plan.iterdir()] == ["README.md"]
    assert "gft-edge build artifact --target this-gpu" in (plan / "README.md").read_text()
    assert tiny_bundle.facts["default"] == "gft_12-6_pixels"
    assert tiny_bundle.check()


@pytest.mark.parametrize(("accelerator", "kind"), [("cpu", "KIND_CPU"), ("gpu", "KIND_GPU"), ("tensorrt", "KIND_GPU")])
def test_accelerator_decides_where_onnxruntime_computes(tiny_artifact, tmp_path, accelerator, kind):
    made = bundle(tiny_artifact, tmp_path, BundleOptions("triton", accelerator=accelerator))
    config = read_model_config(made.path / "models/gft_12-6/config.pbtxt")
    assert config.instance_kinds == (kind,)
    assert config.accelerators == (("tensorrt",) if accelerator == "tensorrt" else ())
    if accelerator == "tensorrt":
        (entry,) = config.message.optimization.execution_accelerators.gpu_execution_accelerator
        assert entry.parameters["precision_mode"] == "FP32"
        assert entry.parameters["trt_profile_max_shapes"] == "image:8x3x32x32"


def test_every_budget_of_a_family_is_a_model_with_its_maps(exported_once, tmp_path, images):
    from gft_edge.budget import TokenBudget
    from gft_edge.export.onnx.options import GraphOptions

    artifact = exported_once("fp32", GraphOptions("compact"), (TokenBudget((12, 6), 16), TokenBudget((8, 4), 16)))
    made = bundle(artifact.path, tmp_path)
    server = Simulator(made.path / "models")
    assert set(made.facts["models"]) == {"12-6", "8-4"}
    for budget, names in made.facts["models"].items():
        classifier = Classifier.open(f"{artifact.path}@{budget}")
        outputs = server.infer(names["pixels"], {"pixels": images})
        expected = classifier.session.compute(classifier.prepare(list(images)))
        assert set(outputs) == set(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(outputs[name], values, err_msg=name)
    assert (made.path / "models/gft_8-4/1/weights.bin").is_file()


def test_graph_that_takes_pixels_needs_no_ensemble(exported, tmp_path, images):
    artifact = exported("fp32-compact-uint8")
    made = bundle(artifact.path, tmp_path)
    budget = artifact.manifest.budget.id
    assert sorted(p.name for p in (made.path / "models").iterdir()) == [f"gft_{budget}"]
    assert made.facts["default"] == f"gft_{budget}"
    outputs = Simulator(made.path / "models").infer(f"gft_{budget}", {"image": images})
    expected = Classifier.open(artifact.path).predict(list(images))
    np.testing.assert_array_equal(outputs["logits"], np.stack([p.logits for p in expected]))


CASES = {
    "static one": ({"batch": (1, 1, 1)}, 0, True),
    "static many": ({"batch": (4, 4, 4)}, 0, False),
    "one to one usual": ({"batch": (1, 4, 16)}, 16, True),
    "pixels as float": ({"image": ("pixels", "float32", 3, 32, 32)}, 8, True),
    "maps": (
        {
            "outputs": tuple(
                TensorInfo(*t, "")
                for t in (
                    ("logits", "float32", ("batch", 4)),
                    ("importance_0", "float32", ("batch", 16)),
                    ("kept_0", "int32", ("batch", 12)),
                )
            )
        },
        8,
        True,
    ),
    "bf16": ({"precision": "bf16", "rest": "bf16"}, 8, True),
}


@pytest.mark.parametrize("name", CASES)
def test_names_types_and_dims_are_those_of_the_graph(stand_in, tmp_path, name):
    changes, largest, labelled = CASES[name]
    artifact = stand_in(**changes)
    made = make_bundle(artifact, tmp_path / "bundle", OPTIONS)
    assert list(made.facts["repositories"]) == (
        ["models-tensorrt"] if name == "bf16" else ["models", "models-tensorrt"]
    )
    graph = onnx.load(artifact.path / MODEL).graph
    kinds = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT32: "int32", onnx.TensorProto.UINT8: "uint8"}
    for repository in made.facts["repositories"]:
        config = read_model_config(made.path / repository / "gft_12-6/config.pbtxt")
        assert config.max_batch_size == largest
        assert config.dynamic_batching == (largest > 1)
        assert [o.name for o in config.outputs if o.label_filename] == (["logits"] if labelled else [])
        for entries, values in ((config.inputs, graph.input), (config.outputs, graph.output)):
            assert [e.name for e in entries] == [v.name for v in values]
            for entry, value in zip(entries, values):
                tensor = value.type.tensor_type
                axes = [axis.dim_value for axis in tensor.shape.dim][1 if largest else 0 :]
                assert entry.data_type == TYPES[kinds[tensor.elem_type]] and list(entry.dims) == axes
        ensemble = made.path / repository / "gft_12-6_pixels"
        assert ensemble.exists() == (name != "pixels as float")
        if ensemble.exists():
            steps = read_model_config(ensemble / "config.pbtxt")
            assert steps.inputs[0].dims == ((32, 32, 3) if largest else (changes["batch"][0], 32, 32, 3))
            assert [s.model_name for s in steps.steps] == ["gft_normalize", "gft_12-6"]
            assert [(o.name, o.dims) for o in steps.outputs] == [(o.name, o.dims) for o in config.outputs]


def test_the_readme_names_the_type_that_onnxruntime_does_not_compute(stand_in, tmp_path):
    made = make_bundle(stand_in(precision="int8", rest="bf16"), tmp_path / "bundle", OPTIONS)
    assert "The onnxruntime backend does not compute bf16: " in (made.path / "README.md").read_text()


def test_what_triton_cannot_serve_is_refused(stand_in, tmp_path):
    with pytest.raises(ConfigError, match="takes 2 to 8 images"):
        make_bundle(stand_in(batch=(2, 4, 8)), tmp_path / "bundle", OPTIONS)
    assert not (tmp_path / "bundle").exists()


def test_an_accelerator_without_effect_is_refused(stand_in, tmp_path):
    with pytest.raises(ConfigError, match="does not compute bf16"):
        make_bundle(
            stand_in(precision="bf16", rest="bf16"), tmp_path / "bundle", BundleOptions("triton", accelerator="cpu")
        )
    with pytest.raises(ConfigError, match="unknown accelerator 'npu'"):
        BundleOptions("triton", accelerator="npu")


def test_a_type_that_triton_does_not_have_is_refused(stand_in, tmp_path, monkeypatch):
    monkeypatch.delitem(TYPES, "float32")
    with pytest.raises(ConfigError, match="image is float32, which Triton has no type for"):
        make_bundle(stand_in(), tmp_path / "bundle", OPTIONS)


def test_labels_that_would_break_the_label_file_are_in_no_artefact(tiny_artifact):
    data = load_artifact(tiny_artifact).manifest.to_json()
    data["labels"][1] = "bee\nwasp"
    with pytest.raises(ArtifactError, match="control character"):
        DeploymentManifest.from_json(data)


def test_a_missing_tritonclient_is_found_before_anything_is_written(tiny_artifact, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient.grpc.model_config_pb2", None)
    with pytest.raises(MissingExtraError, match=r"gft-edge\[triton\]"):
        bundle(tiny_artifact, tmp_path)
    assert not (tmp_path / "bundle").exists()
    assert main(["bundle", str(tiny_artifact), "--target", "triton", "--out", str(tmp_path / "bundle")]) == 3


@pytest.mark.parametrize(
    ("target", "name", "code"), [("triton", "cpu", 0), ("triton", "npu", 2), ("onnxruntime", "cpu", 2)]
)
def test_verb_takes_the_accelerator(tiny_artifact, tmp_path, capsys, target, name, code):
    out = tmp_path / "bundle"
    arguments = ["bundle", str(tiny_artifact), "--target", target, "--accelerator", name, "--out", str(out)]
    assert main(arguments) == code
    assert out.exists() == (code == 0)
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 0 or (len(lines) == 1 and "accelerator" in lines[0])


def test_bundles_of_one_artefact_have_the_same_bytes(tiny_bundle, tiny_artifact, tmp_path):
    again = bundle(tiny_artifact, tmp_path)
    assert again.files == tiny_bundle.files


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_normalising_graph_gives_the_bits_of_numpy_for_every_level(order):
    spec = PreprocessSpec(16, 16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.31), color_order=order)
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    images = np.concatenate(
        [np.repeat(levels, 3, axis=3), np.stack([levels[..., 0], 255 - levels[..., 0], levels[..., 0]], -1)]
    )
    model = normalize_graph(spec)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixels": images})
    np.testing.assert_array_equal(found.view(np.int32), np.ascontiguousarray(spec.normalize(images)).view(np.int32))


@settings(max_examples=15)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    resize=st.sampled_from(["stretch", "crop"]),
    ratio=st.sampled_from([1.0, 0.875, 0.6]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    seed=st.integers(0, 9),
)
def test_client_without_gft_edge_resizes_alike(tmp_path_factory, size, resize, ratio, interpolation, seed):
    ratio = ratio if resize == "crop" else 1.0
    spec = PreprocessSpec(24, 16, resize, ratio, interpolation)
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("client") / "image.png"
    Image.fromarray(image).save(path)
    expected = spec.geometry(image)
    np.testing.assert_array_equal(triton_client.pillow_pixels(str(path), spec.to_json()), expected)
    np.testing.assert_array_equal(triton_client.network_pixels(str(path), {**spec.to_json(), "id": spec.id}), expected)


class TestClient:
    """The client of the bundle asks a server that speaks Triton's protocol over gRPC."""

    @pytest.fixture
    def serve(self, monkeypatch):
        monkeypatch.setenv("no_grpc_proxy", "127.0.0.1")
        grpc = pytest.importorskip("grpc")
        from tritonclient.grpc import service_pb2 as pb
        from tritonclient.grpc import service_pb2_grpc as services

        numbers = {"UINT8": np.uint8, "FP32": np.float32}
        servers = []

        def start(simulator: Simulator) -> str:
            class Servicer(services.GRPCInferenceServiceServicer):
                def ModelMetadata(self, request, context):
                    config, answer = simulator.models[request.name], pb.ModelMetadataResponse(name=request.name)
                    for entries, tensors in ((answer.inputs, config.inputs), (answer.outputs, config.outputs)):
                        for t in tensors:
                            shape = simulator._axes(config, t)
                            entries.add(name=t.name, datatype=t.data_type.removeprefix("TYPE_"), shape=shape)
                    return answer

                def ModelInfer(self, request, context):
                    (tensor,) = request.inputs
                    array = np.frombuffer(request.raw_input_contents[0], numbers[tensor.datatype]).reshape(tensor.shape)
                    outputs = simulator.infer(request.model_name, {tensor.name: array})
                    answer = pb.ModelInferResponse(model_name=request.model_name)
                    for wanted in request.outputs:
                        values = outputs[wanted.name]
                        answer.outputs.add(name=wanted.name, datatype="FP32", shape=values.shape)
                        answer.raw_output_contents.append(values.tobytes())
                    return answer

            server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
            services.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            servers.append(server)
            return f"127.0.0.1:{port}"

        yield start
        for server in servers:
            server.stop(None)

    def test_client_prints_what_the_classifier_says(
        self, tiny_bundle, server, classifier, images, serve, tmp_path, capsys
    ):
        paths = [str(tmp_path / f"{index}.png") for index in range(2)]
        for path, image in zip(paths, images):
            Image.fromarray(np.repeat(image, 2, axis=0)).save(path)
        url = serve(server)
        assert triton_client.main([*paths, "--url", url, "--top", "2"], tiny_bundle.path) == 0
        expected = []
        for path, prediction in zip(paths, classifier.predict(paths)):
            top = prediction.top(2)
            expected.append(f"{path}\t" + ", ".join(f"{label} {share:.4f}" for label, share in top))
        assert capsys.readouterr().out.splitlines() == expected

        assert triton_client.main([paths[0], "--url", url, "--model", "gft_12-6"], tiny_bundle.path) == 2
        assert capsys.readouterr().err == (
            "model gft_12-6 takes normalised images; name the ensemble gft_12-6_pixels\n"
        )

    @pytest.mark.parametrize("decoder", ["gft_edge", "pillow"])
    def test_an_image_that_cannot_be_read_is_told_in_one_line(
        self, tiny_bundle, server, serve, tmp_path, capsys, monkeypatch, decoder
    ):
        if decoder == "pillow":
            monkeypatch.setitem(sys.modules, "gft_edge.data.images", None)
        (tmp_path / "text.png").write_text("no image")
        url = serve(server)
        for name in ("missing.png", "text.png"):
            assert triton_client.main([str(tmp_path / name), "--url", url], tiny_bundle.path) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert name in line

    def test_file_in_the_bundle_is_the_module(self, tiny_bundle):
        from pathlib import Path

        assert (tiny_bundle.path / "client.py").read_bytes() == Path(triton_client.__file__).read_bytes()

    @pytest.mark.parametrize("shape", [[-1, 32, 32, 3], [4, 32, 32, 3]])
    def test_a_static_batch_is_filled(self, images, shape):
        metadata = {"name": "m", "inputs": [{"name": "image", "datatype": "UINT8", "shape": shape}]}
        batch = triton_client.request_input(images[0], metadata)
        assert batch.shape == (max(shape[0], 1), 32, 32, 3) and batch.dtype == np.uint8
        metadata["inputs"][0] |= {"name": "pixels", "datatype": "FP32"}
        batch = triton_client.request_input(images[0], metadata)
        np.testing.assert_array_equal(batch[-1], np.moveaxis(images[0], -1, 0).astype(np.float32))

    def test_probabilities_are_not_softmaxed_twice(self):
        scores = np.array([0.25, 0.75], np.float32)
        assert triton_client.probabilities(scores, "probabilities").tolist() == [0.25, 0.75]
        logits = triton_client.probabilities(np.array([1000.0, 1000.0]), "logits")
        assert logits.tolist() == [0.5, 0.5]


def test_a_changed_configuration_is_found(tiny_bundle, tmp_path):
    copy = load_bundle(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))
    path = copy.path / "models/gft_12-6/config.pbtxt"
    path.write_text(path.read_text().replace("max_batch_size: 8", "max_batch_size: 9"))
    with pytest.raises(ArtifactError, match=r"models/gft_12-6/config\.pbtxt was changed"):
        copy.check()


def test_simulator_refuses_what_triton_refuses(server, images):
    with pytest.raises(AssertionError):
        server.infer("gft_12-6_pixels", {"pixels": np.repeat(images, 2, axis=0)})
    with pytest.raises(AssertionError):
        server.infer("gft_12-6_pixels", {"pixels": images.astype(np.float32)})
