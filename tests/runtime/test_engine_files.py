"""An engine that does not belong to the artefact or does not fit the machine is refused."""

from __future__ import annotations

import dataclasses
import json
import shlex
import zipfile
from pathlib import Path

import pytest

from gft_edge.bundle import RECORD, refuse_zip
from gft_edge.errors import ArtifactError
from gft_edge.files import sha256, write_json
from gft_edge.manifest import MODEL, Artifact, load_artifact, register_files
from gft_edge.runtime.backends.engine_files import EngineHost, build_command, check_engine, engine_files
from gft_edge.storage.seals import write_sealed

HOST = EngineHost("tensorrt", "10.3.0", "8.7", "orin-nano-8gb")


@pytest.fixture
def built(copied, with_maps):
    """An artefact with an entry for an engine, whose bytes no check reads."""
    artifact = copied(with_maps)
    key = "trt10.3.0_sm87_orin-nano-8gb_fp32_b1-1-8"
    engine, sidecar = engine_files(key)
    (artifact.path / "engines").mkdir()
    (artifact.path / engine).write_bytes(b"native code")
    record = {
        "key": key,
        "module": "tensorrt",
        "version": "10.3.0",
        "device": "orin-nano-8gb",
        "compute_capabilities": ["8.7"],
        "engine_sha256": sha256(artifact.path / engine),
        "model_sha256": artifact.manifest.files[MODEL].sha256,
    }
    write_json(artifact.path / sidecar, record)
    return register_files(artifact, [engine, sidecar]), key


def test_own_engine_is_handed_out(built):
    artifact, key = built
    path, record = check_engine(artifact, key, HOST)
    assert path.read_bytes() == b"native code"
    assert record["key"] == key
    check_engine(artifact, key, EngineHost("tensorrt", "10.3.0", "8.7"))
    check_engine(artifact, key, EngineHost("tensorrt", "10.3.0", "8.7", "orin-nano-8gb-super"))  # higher clocks


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx", "torch_tensorrt"])
def test_the_command_can_be_pasted_from_a_path_with_blanks(built, module):
    artifact = dataclasses.replace(built[0], path=Path("my models/it's one"))
    words = shlex.split(build_command(artifact, EngineHost(module, None, "8.9")))
    assert words[:2] == ["gft-edge", "build"] and str(artifact.path) in words


def test_so_can_those_of_a_zip_and_of_a_checkpoint(tmp_path):
    folder = tmp_path / "my models"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).touch()
    with pytest.raises(ArtifactError) as raised:
        load_artifact(folder)
    assert shlex.split(str(raised.value))[-2:] == ["export", str(folder)]
    with zipfile.ZipFile(folder / "b.zip", "w") as archive:
        archive.writestr(RECORD, "{}")
    with pytest.raises(ArtifactError) as raised:
        refuse_zip(folder / "b.zip")
    assert shlex.split(str(raised.value))[-4:] == ["selftest", str(folder / "b.zip"), "--unpack", "DIR"]


def edit_record(artifact: Artifact, name: str, **changes) -> Artifact:
    """Changes the record and enters it in the manifest, as anyone can who may write to the folder."""
    _, sidecar = engine_files(name)
    record = json.loads((artifact.path / sidecar).read_text())
    write_json(artifact.path / sidecar, {**record, **changes})
    return register_files(artifact, [sidecar])


def swap_engine(artifact: Artifact, key: str) -> Artifact:
    (artifact.path / engine_files(key)[0]).write_bytes(b"other code!")
    return load_artifact(artifact.path)


def swap_and_register(artifact: Artifact, key: str) -> Artifact:
    swap_engine(artifact, key)
    return register_files(artifact, [engine_files(key)[0]])


def swap_model(artifact: Artifact, key: str) -> Artifact:
    with (artifact.path / MODEL).open("ab") as file:
        file.write(b"\0")
    return register_files(artifact, [MODEL])


def remove(artifact: Artifact, key: str) -> Artifact:
    (artifact.path / engine_files(key)[0]).unlink()
    return artifact


def unlist(artifact: Artifact, key: str) -> Artifact:
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    del manifest["files"][engine_files(key)[0]]
    write_sealed(artifact.path / "manifest.json", manifest)
    return load_artifact(artifact.path)


TAMPERED = {
    "engine changed": (swap_engine, "was changed since it was written"),
    "engine changed and entered": (swap_and_register, "the record is of another file"),
    "engine gone": (remove, "is missing"),
    "not in the manifest": (unlist, "is not in the artefact's manifest"),
    "another graph": (swap_model, "built from another graph than the artefact's model.onnx"),
    "record of another key": (lambda a, k: edit_record(a, k, key="x"), "the record is of engine x"),
    "other flavour": (lambda a, k: edit_record(a, k, module="tensorrt_rtx"), "built by tensorrt_rtx, not tensorrt"),
    "older TensorRT": (lambda a, k: edit_record(a, k, version="8.6.2"), "built by tensorrt 8.6.2, here is 10.3.0"),
    "other capability": (
        lambda a, k: edit_record(a, k, compute_capabilities=["8.6"]),
        "for compute capability 8.6, this",
    ),
    "no capability": (lambda a, k: edit_record(a, k, compute_capabilities=None), "for compute capability"),
    "a number as capabilities": (
        lambda a, k: edit_record(a, k, compute_capabilities=8.7),
        "for compute capability unknown",
    ),
    "a number as board": (lambda a, k: edit_record(a, k, device=5), "built on 5, this is orin-nano-8gb"),
    "other board": (
        lambda a, k: edit_record(a, k, device="agx-orin-64gb"),
        "built on agx-orin-64gb, this is orin-nano-8gb",
    ),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampering_is_refused_with_the_command_that_builds_it_again(built, name):
    tamper, reason = TAMPERED[name]
    artifact, key = built
    artifact = tamper(artifact, key)
    with pytest.raises(ArtifactError, match=reason) as caught:
        check_engine(artifact, key, HOST)
    assert f"not loaded. Build it again: gft-edge build {artifact.path} --target orin-nano-8gb" in str(caught.value)


def test_engine_nobody_built_is_refused(built):
    artifact, _ = built
    (artifact.path / "engines/x.engine").write_bytes(b"planted")
    with pytest.raises(ArtifactError, match="engine x: .* is not in the artefact's manifest"):
        check_engine(artifact, "x", HOST)


def test_key_that_leads_out_of_the_folder_is_refused(built):
    with pytest.raises(ArtifactError, match="is not in the artefact's manifest"):
        check_engine(built[0], "../../tmp/x", HOST)


def test_command_for_an_rtx_engine_names_the_capability(built):
    with pytest.raises(ArtifactError, match="--target rtx --compute-capability 8.9"):
        check_engine(built[0], "x", EngineHost("tensorrt_rtx", "1.7", "8.9"))


def test_checks_need_neither_onnx_nor_tensorrt():
    import subprocess
    import sys

    code = (
        "import sys\nfor name in ('onnx', 'torch', 'tensorrt', 'tensorrt_rtx', 'onnxruntime'): sys.modules[name] = None\n"
        "import gft_edge.runtime.backends.engine_files"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
