from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import helper

from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.deploy import onnxruntime_context as contexts
from gft_edge.export.deploy import place_engine as placing
from gft_edge.export.deploy.bundling import make_bundle
from gft_edge.export.deploy.onnxruntime_context import check_context, provider_options, write_context
from gft_edge.export.deploy.options import BundleOptions
from gft_edge.files import sha256, write_json
from gft_edge.manifest import MODEL, Artifact, load_artifact, register_files
from gft_edge.runtime.backends.engine_files import EngineHost, engine_files

HOST = EngineHost("tensorrt", "10.3.0", "8.7", "orin-nano-8gb")
KEY = "trt10.3.0_sm87_orin-nano-8gb_fp32_b1-1-8"


def add_engine(folder: Path, key: str = KEY, content: bytes = b"native code", **changes) -> Artifact:
    """Enters an engine, whose bytes no check reads, in the manifest of an artefact."""
    artifact = load_artifact(folder)
    engine, sidecar = engine_files(key)
    (folder / "engines").mkdir(exist_ok=True)
    (folder / engine).write_bytes(content)
    record = {
        "key": key,
        "module": "tensorrt",
        "version": "10.3.0",
        "device": "orin-nano-8gb",
        "compute_capabilities": ["8.7"],
        "engine_sha256": sha256(folder / engine),
        "model_sha256": artifact.manifest.files[MODEL].sha256,
    }
    write_json(folder / sidecar, {**record, **changes})
    return register_files(artifact, [engine, sidecar])


@pytest.fixture
def built(tiny_artifact, tmp_path) -> Artifact:
    return add_engine(Path(shutil.copytree(tiny_artifact, tmp_path / "artefact")))


@pytest.mark.parametrize("embed", [False, True])
def test_context_model_names_its_engine_and_is_read_back(built, embed):
    path = write_context(built, KEY, HOST, embed=embed)
    assert path == built.path / f"engines/{KEY}_ctx.onnx"
    artifact = load_artifact(built.path)
    assert check_context(path, artifact, HOST) == "TensorrtExecutionProvider"
    assert artifact.file(f"engines/{KEY}_ctx.onnx") == path
    model = onnx.load(path)
    onnx.checker.check_model(model)  # accepts operators of other domains; their attributes are not its concern
    (node,) = model.graph.node
    assert {a.name: helper.get_attribute_value(a) for a in node.attribute} == {
        "main_context": 1,
        "embed_mode": int(embed),
        "ep_cache_context": b"native code" if embed else f"{KEY}.engine".encode(),
        "ep_sdk_version": b"10.3.0",
        "hardware_architecture": b"87",
        "onnx_model_filename": b"model.onnx",
        "partition_name": b"EPContext",
        "source": b"TensorrtExecutionProvider",
    }
    graph = onnx.load(artifact.path / MODEL).graph
    for mine, theirs in ((model.graph.input, graph.input), (model.graph.output, graph.output)):
        assert [(v.name, v.type) for v in mine] == [(v.name, v.type) for v in theirs]


def test_context_model_elsewhere_takes_its_engine_along(built, tmp_path):
    path = write_context(built, KEY, HOST, tmp_path / "out.onnx")
    assert (tmp_path / f"{KEY}.engine").read_bytes() == b"native code"
    assert check_context(path, built, HOST)
    assert load_artifact(built.path).manifest == built.manifest
    alone = write_context(built, KEY, HOST, tmp_path / "alone.onnx", embed=True)
    (tmp_path / f"{KEY}.engine").unlink()
    assert check_context(alone, built, HOST)
    with pytest.raises(ArtifactError, match="loads another engine"):
        check_context(path, built, HOST)


def test_engine_too_large_for_a_protobuf_is_not_embedded(built, monkeypatch):
    monkeypatch.setattr(contexts, "MAX_EMBEDDED", 3)
    with pytest.raises(ConfigError, match="do not embed it"):
        write_context(built, KEY, HOST, embed=True)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ({"compute_capability": "8.9", "device": None}, "compute capability 8.7"),
        ({"version": "10.7.0"}, "built by tensorrt 10.3.0, here is 10.7.0"),
        ({"device": "agx-orin-64gb"}, "built on orin-nano-8gb"),
        ({"module": "tensorrt_rtx"}, "built by tensorrt, not tensorrt_rtx"),
    ],
)
def test_foreign_hosts_are_refused_on_writing_and_on_reading(built, host, words):
    path = write_context(built, KEY, HOST)
    other = dataclasses.replace(HOST, **host)
    for call in (lambda: write_context(built, KEY, other), lambda: check_context(path, built, other)):
        with pytest.raises(ArtifactError, match=words):
            call()


def attribute(name, value):
    def change(model):
        (node,) = model.graph.node
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, *([] if value is None else [helper.make_attribute(name, value)])])

    return change


def metadata(key, value):
    def change(model):
        facts = {p.key: p.value for p in model.metadata_props if p.key != key}
        del model.metadata_props[:]
        helper.set_model_props(model, facts if value is None else {**facts, key: value})

    return change


def add_node(model):
    model.graph.node.append(helper.make_node("Identity", ["image"], ["more"]))


def rename_output(model):
    model.graph.output[0].name = "other"


def other_domain(model):
    model.graph.node[0].domain = "elsewhere"


FAULTS = {
    "engine elsewhere": (attribute("ep_cache_context", "../x.engine"), "loads another engine"),
    "absolute path": (attribute("ep_cache_context", "/etc/passwd"), "loads another engine"),
    "path that is no text": (attribute("ep_cache_context", b"\xff"), "loads another engine"),
    "other engine inside": (attribute("embed_mode", 1), "loads another engine"),
    "capability": (
        attribute("hardware_architecture", "89"),
        "is for TensorrtExecutionProvider on compute capability 89",
    ),
    "provider": (attribute("source", "NvTensorRTRTXExecutionProvider"), "is for NvTensorRTRTXExecutionProvider"),
    "no path": (attribute("ep_cache_context", None), "incomplete or malformed"),
    "number for a text": (attribute("source", 3), "incomplete or malformed"),
    "no key": (metadata("gft_edge_engine", None), "does not say which engine"),
    "unknown key": (metadata("gft_edge_engine", "../../x"), "not in the artefact's manifest"),
    "hash": (metadata("gft_edge_engine_sha256", "0" * 64), "another engine or graph"),
    "graph": (metadata("gft_edge_model_sha256", "0" * 64), "another engine or graph"),
    "two nodes": (add_node, "no graph of one"),
    "operator": (other_domain, "no graph of one"),
    "interface": (rename_output, "inputs and outputs"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_changed_context_models_are_refused(built, name):
    change, words = FAULTS[name]
    path = write_context(built, KEY, HOST)
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match=words) as caught:
        check_context(path, built, HOST)
    assert "\n" not in str(caught.value)


def test_changed_engine_is_refused(built):
    path = write_context(built, KEY, HOST)
    (built.path / engine_files(KEY)[0]).write_bytes(b"other code!")
    with pytest.raises(ArtifactError, match="its hash differs"):
        check_context(path, built, HOST)


class TestBundle:
    @pytest.fixture
    def bundle(self, tiny_artifact, tmp_path):
        made = make_bundle(load_artifact(tiny_artifact), tmp_path / "bundle", BundleOptions("onnxruntime"))
        add_engine(made.path / "artifact")
        return made

    def test_options_are_those_of_the_artefact(self, bundle):
        options = json.loads((bundle.path / "providers.json").read_text())
        assert options["models"] == {"12-6": "artifact/model.onnx"}
        assert list(options["providers"]) == sorted(options["providers"])
        tensorrt = options["providers"]["TensorrtExecutionProvider"]
        shapes = {key: value for key, value in tensorrt.items() if "profile" in key}
        assert shapes == {
            f"trt_profile_{w}_shapes": f"image:{n}x3x32x32" for w, n in (("min", 1), ("opt", 1), ("max", 8))
        }
        assert "trt_fp16_enable" not in tensorrt
        assert (bundle.path / bundle.facts["models"]["12-6"]).is_file()

    @pytest.mark.parametrize(
        ("precision", "rest", "flags"), [("fp16", "fp16", {"fp16"}), ("int8", "fp16", {"int8", "fp16"})]
    )
    def test_precision_becomes_flags(self, tiny_artifact, precision, rest, flags):
        manifest = dataclasses.replace(load_artifact(tiny_artifact).manifest, precision=precision, rest=rest)
        options = provider_options(manifest)["TensorrtExecutionProvider"]
        assert {
            key.split("_")[1] for key in options if key in ("trt_fp16_enable", "trt_int8_enable", "trt_bf16_enable")
        } == flags

    def test_static_batch_needs_no_profile(self, stand_in):
        options = provider_options(stand_in(batch=(1, 1, 1)).manifest)
        assert not [key for each in options.values() for key in each if "profile" in key]

    def test_command_writes_a_context_model_that_the_bundle_accepts(self, bundle, capsys):
        assert placing.main([str(bundle.path), "--engine", KEY], lambda module: HOST) == 0
        path = Path(capsys.readouterr().out.strip())
        assert path == bundle.path / f"artifact/engines/{KEY}_ctx.onnx"
        assert check_context(path, bundle.check(), HOST)


class TestTriton:
    @pytest.fixture
    def bundle(self, tiny_artifact, tmp_path):
        made = make_bundle(load_artifact(tiny_artifact), tmp_path / "bundle", BundleOptions("triton"))
        add_engine(made.path / "artifact")
        return made

    def test_engine_gets_to_its_place_and_the_bundle_accepts_it(self, bundle, capsys):
        assert placing.main([str(bundle.path), "--engine", KEY], lambda module: HOST) == 0
        plan = bundle.path / "models-tensorrt/gft_12-6/1/model.plan"
        assert capsys.readouterr().out.strip() == str(plan)
        assert plan.read_bytes() == b"native code"
        bundle.check()
        plan.write_bytes(b"other code!")
        with pytest.raises(ArtifactError, match=r"model\.plan is in no record"):
            bundle.check()

    def test_foreign_engines_are_not_placed(self, bundle):
        with pytest.raises(ArtifactError, match="compute capability"):
            placing.place_engine(bundle, KEY, EngineHost("tensorrt", "10.3.0", "8.9"))
        with pytest.raises(ArtifactError, match="not in the artefact's manifest"):
            placing.place_engine(bundle, "trt-none", HOST)
        with pytest.raises(ConfigError, match="loads no engines of tensorrt_rtx"):
            placing.place_engine(bundle, "rtx-x", EngineHost("tensorrt_rtx", "1.7", "8.9"))
        assert [p.name for p in (bundle.path / "models-tensorrt/gft_12-6/1").iterdir()] == ["README.md"]

    def test_bundles_of_other_targets_are_refused(self, bundle):
        other = dataclasses.replace(bundle, target="jetson")
        with pytest.raises(ConfigError, match="target jetson loads engines from the artefact"):
            placing.place_engine(other, KEY, HOST)
