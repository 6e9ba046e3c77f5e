from __future__ import annotations

import dataclasses
import json

import onnx
import pytest

from gft_edge.errors import ArtifactError
from gft_edge.files import sha256
from gft_edge.manifest import (
    Artifact,
    DeploymentManifest,
    FileInfo,
    TensorInfo,
    load_artifact,
    register_files,
)
from gft_edge.storage.seals import write_sealed

GRAPH = onnx.ModelProto(producer_name="test").SerializeToString()
ANOTHER = onnx.ModelProto(producer_name="another").SerializeToString()


@pytest.fixture
def manifest(tiny_info):
    return DeploymentManifest(
        model=tiny_info.model,
        labels=tiny_info.labels,
        preprocess=tiny_info.preprocess,
        budget=tiny_info.model.budget,
        precision="fp32",
        maps="compact",
        opset=20,
        inputs=(TensorInfo("image", "float32", ("batch", 3, 32, 32), "normalised images"),),
        outputs=(TensorInfo("logits", "float32", ("batch", 4), "one per class"),),
        checkpoint_sha256="0" * 64,
        parity={"max_error": 1e-7},
        tools={"torch": "2"},
    )


@pytest.fixture
def artifact(manifest, tmp_path):
    folder = tmp_path / "artifact"
    (folder / "reports").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(GRAPH)
    (folder / "reports" / "verify.json").write_text("{}")
    write_sealed(folder / "manifest.json", manifest.to_json())
    return register_files(Artifact(folder, manifest), ["model.onnx", "reports/verify.json"])


def test_json_round_trip(artifact):
    manifest = artifact.manifest
    assert DeploymentManifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
    assert load_artifact(artifact.path).manifest == manifest


def test_json_names_the_variant_and_the_preprocessing(manifest):
    data = manifest.to_json()
    assert data["schema"] == 1
    assert data["variant"] == "focal"
    assert data["preprocess"]["id"] == manifest.preprocess.id


def test_the_file_is_canonical(artifact):
    before = (artifact.path / "manifest.json").read_bytes()
    write_sealed(artifact.path / "manifest.json", load_artifact(artifact.path).manifest.to_json())
    assert (artifact.path / "manifest.json").read_bytes() == before


def test_file_returns_the_checked_path(artifact):
    path = load_artifact(artifact.path).file("reports/verify.json")
    assert path == artifact.path / "reports" / "verify.json"
    assert artifact.name == "artifact"


@pytest.mark.parametrize("content", [b"Graph", GRAPH + b" and more", b""], ids=["hash", "longer", "empty"])
def test_changed_file_is_refused(artifact, content):
    (artifact.path / "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.onnx was changed since it was written"):
        artifact.file("model.onnx")


def test_missing_file_is_refused(artifact):
    (artifact.path / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx is missing; export it again"):
        artifact.file("model.onnx")


def test_file_outside_the_manifest_is_refused(artifact):
    (artifact.path / "own.engine").write_bytes(b"native code")
    with pytest.raises(ArtifactError, match=r"own\.engine is not in its manifest"):
        artifact.file("own.engine")


def test_register_files_adds_renews_and_writes(artifact):
    (artifact.path / "model.onnx").write_bytes(ANOTHER)
    (artifact.path / "golden.npz").write_bytes(b"golden")
    again = register_files(artifact, ["model.onnx", "golden.npz"], {"top1": 1.0})
    assert load_artifact(artifact.path) == again
    assert again.file("model.onnx").read_bytes() == ANOTHER
    assert again.manifest.files["golden.npz"] == FileInfo(sha256(artifact.path / "golden.npz"), 6)
    assert again.manifest.files["reports/verify.json"] == artifact.manifest.files["reports/verify.json"]
    assert again.manifest.parity == {"max_error": 1e-7, "top1": 1.0}
    assert "golden.npz" not in artifact.manifest.files


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "..", "", "."])
def test_names_that_lead_out_of_the_folder_are_refused(artifact, name):
    with pytest.raises(ArtifactError, match="leads out of the artefact's folder"):
        register_files(artifact, [name])
    data = artifact.manifest.to_json()
    data["files"][name] = {"sha256": "0" * 64, "size": 1}
    with pytest.raises(ArtifactError, match="leads out of the artefact's folder"):
        DeploymentManifest.from_json(data)


def test_missing_folder_or_manifest_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"artefact .*none: no such folder; make one with gft-edge export"):
        load_artifact(tmp_path / "none")
    with pytest.raises(ArtifactError, match=r"has no manifest\.json; make one with gft-edge export"):
        load_artifact(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_manifest_that_is_no_json_object_is_refused(artifact, text):
    (artifact.path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest .*manifest\.json: "):
        load_artifact(artifact.path)


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_another_schema_is_refused(manifest, schema):
    with pytest.raises(ArtifactError, match=r"manifest: schema .*, this version reads 1"):
        DeploymentManifest.from_json({**manifest.to_json(), "schema": schema})


def test_every_key_but_those_that_older_versions_do_not_write_is_needed(manifest):
    data = manifest.to_json()
    assert {f.name for f in dataclasses.fields(manifest)} == set(data) - {"schema", "variant"}
    for key in set(data) - {"schema", "variant", "dialect", "data", "golden_images"}:
        with pytest.raises(ArtifactError, match=f"incomplete or malformed .*{key}"):
            DeploymentManifest.from_json({k: v for k, v in data.items() if k != key})
    assert DeploymentManifest.from_json({k: v for k, v in data.items() if k != "dialect"}).dialect == "trt10"


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocess": []},
        {"preprocess": {"height": 32, "width": 32}},
        {"budget": [12, 6]},
        {"budget": {"keep": [12, 6], "num_patches": 25}},
        {"budget": {"keep": [12], "num_patches": 16}},
        {"labels": ["one"]},
        {"model": {}},
        {"inputs": [{"name": "image"}]},
        {"inputs": 5},
        {"files": []},
        {"files": {"model.onnx": {"sha256": "0"}}},
        {"precision": "int3"},
        {"maps": "all"},
        {"opset": "twenty"},
    ],
    ids=str,
)
def test_malformed_entries_are_refused(manifest, changes):
    with pytest.raises(ArtifactError, match="manifest: "):
        DeploymentManifest.from_json({**manifest.to_json(), **changes})


def test_preprocessing_edited_by_hand_is_refused(manifest):
    data = manifest.to_json()
    data["preprocess"]["mean"] = [0.5, 0.5, 0.5]
    with pytest.raises(ArtifactError, match="preprocessing does not match its id"):
        DeploymentManifest.from_json(data)


def test_a_file_that_the_graph_reads_and_the_manifest_does_not_list_is_refused(artifact):
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w2.bin")
    model = onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor]))
    (artifact.path / "model.onnx").write_bytes(model.SerializeToString())
    (artifact.path / "w2.bin").write_bytes(bytes(4))
    with pytest.raises(ArtifactError, match=r"reads 'w2\.bin', which is not in its manifest"):
        register_files(artifact, ["model.onnx"]).file("model.onnx")
    listed = register_files(artifact, ["model.onnx", "w2.bin"])
    assert listed.file("model.onnx").is_file()
    (artifact.path / "w2.bin").write_bytes(b"1234")
    with pytest.raises(ArtifactError, match=r"w2\.bin was changed since it was written"):
        listed.file("model.onnx")


def test_files_that_another_process_entered_meanwhile_stay(artifact):
    for name in ("a", "b"):
        (artifact.path / name).write_text(name)
    register_files(artifact, ["a"])
    register_files(artifact, ["b"])  # by a process that read the manifest before the first one wrote it
    assert {"a", "b"} <= load_artifact(artifact.path).manifest.files.keys()


def test_a_flipped_bit_of_the_manifest_is_refused(artifact):
    file = artifact.path / "manifest.json"
    whole = file.read_bytes()
    for position in range(0, len(whole), 11):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        file.write_bytes(changed)
        with pytest.raises(ArtifactError):
            load_artifact(artifact.path)
