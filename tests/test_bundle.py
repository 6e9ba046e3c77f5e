"""Bundles: every file is in a record, an artefact can be opened in one, and nothing that was changed is accepted."""

from __future__ import annotations

import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gft_edge.bundle import (
    ARTIFACT,
    RECORD,
    artifact_id,
    load_bundle,
    open_artifact,
    opened_bundle,
    write_record,
)
from gft_edge.errors import ArtifactError
from gft_edge.files import sha256, write_json
from gft_edge.manifest import MODEL, load_artifact, register_files
from gft_edge.runtime.backends.engine_files import EngineHost, check_engine, engine_files
from gft_edge.storage.pack import pack
from gft_edge.storage.seals import read_sealed, write_sealed

FLIPS = 150
"""Single bytes that are changed, spread over all files by their number, not by their size."""


def make(tiny_artifact: Path, folder: Path, labels: str = "ant;bee;cat;dog") -> Path:
    """A bundle of the tiny artefact with two files of a target."""
    (folder / "extra").mkdir(parents=True)
    shutil.copytree(tiny_artifact, folder / ARTIFACT, ignore=shutil.ignore_patterns("reports"))
    (folder / "labels.txt").write_text(labels)
    (folder / "extra/run.sh").write_text("#!/bin/sh\n")
    write_record(folder, "jetson", "orin-nano-8gb", {"tensorrt": "10.3"})
    return folder


@pytest.fixture(scope="module")
def bare(tiny_artifact, tmp_path_factory) -> Path:
    """The tiny artefact without what other tests registered in it."""
    folder = tmp_path_factory.mktemp("bare") / "artifact"
    shutil.copytree(tiny_artifact, folder, ignore=shutil.ignore_patterns("reports"))
    data = read_sealed(folder / "manifest.json", "manifest", "")
    data["files"] = {name: info for name, info in data["files"].items() if (folder / name).is_file()}
    write_sealed(folder / "manifest.json", data)
    return folder


@pytest.fixture
def bundle(bare, tmp_path) -> Path:
    return make(bare, tmp_path / "bundle")


def test_whole_bundle_is_accepted_and_opened(bundle, bare):
    read = load_bundle(bundle)
    assert (read.target, read.device, read.facts) == ("jetson", "orin-nano-8gb", {"tensorrt": "10.3"})
    assert set(read.files) == {"labels.txt", "extra/run.sh"}
    assert read.check().path == bundle / ARTIFACT
    assert read.artifact_id == artifact_id(load_artifact(bare).manifest)
    for path in (bundle, bare):
        assert open_artifact(path).manifest.budget.id == "12-6"
    assert open_artifact(f"{bundle}@12-6").path == bundle / ARTIFACT
    assert (open_artifact(bundle).name, open_artifact(bare).name) == ("bundle", "artifact")  # bench compares by name
    with pytest.raises(ArtifactError, match="no graph of budget 1-1"):
        open_artifact(f"{bundle}@1-1")


def test_reports_and_registered_engines_keep_it_valid(bundle):
    artifact, identity = load_artifact(bundle / ARTIFACT), load_bundle(bundle).artifact_id
    for name in ("engines/x.engine", "reports/verify.json", "reports/build.log"):
        (artifact.path / name).parent.mkdir(exist_ok=True)
        (artifact.path / name).write_bytes(b"made here")
    register_files(artifact, ["engines/x.engine", "reports/verify.json"], {"top1": 0.5})
    found = load_bundle(bundle).check()
    assert "engines/x.engine" in found.manifest.files and artifact_id(found.manifest) == identity


def test_engine_in_a_bundle_is_handed_out_or_refused_with_the_command(bundle):
    """As in an artefact: see tests/runtime/test_engine_files.py for every reason."""
    artifact, key = load_artifact(bundle / ARTIFACT), "trt10.3.0_sm87_orin-nano-8gb_fp32_b1-1-8"
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
    register_files(artifact, [engine, sidecar])
    opened = open_artifact(bundle)
    assert check_engine(opened, key, EngineHost("tensorrt", "10.3.0", "8.7", "orin-nano-8gb"))[1] == record
    for host, reason in (
        (EngineHost("tensorrt", "10.7.0", "8.7", "orin-nano-8gb"), "built by tensorrt 10.3.0, here is 10.7.0"),
        (EngineHost("tensorrt", "10.3.0", "8.9", "orin-nano-8gb"), "for compute capability 8.7, this GPU has 8.9"),
        (EngineHost("tensorrt", "10.3.0", "8.7", "agx-orin-64gb"), "built on orin-nano-8gb, this is agx-orin-64gb"),
    ):
        with pytest.raises(ArtifactError, match=f"{reason}; not loaded. Build it again: gft-edge build {opened.path}"):
            check_engine(opened, key, host)
    (artifact.path / engine).write_bytes(b"other code!")
    with pytest.raises(ArtifactError, match="engine was changed since it was written"):
        open_artifact(bundle)


def add(name: str, data: str = "x") -> Callable[[Path, Path], None]:
    def change(bundle: Path, other: Path) -> None:
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text(data)

    return change


def remove(name: str) -> Callable[[Path, Path], None]:
    return lambda bundle, other: (bundle / name).unlink()


def swap(name: str) -> Callable[[Path, Path], None]:
    return lambda bundle, other: (bundle / name).write_bytes((other / name).read_bytes())


def link(name: str) -> Callable[[Path, Path], None]:
    """Replaces a file or folder by a link to the same content elsewhere."""

    def change(bundle: Path, other: Path) -> None:
        place = bundle.parent / "elsewhere"
        (bundle / name).rename(place)
        (bundle / name).symlink_to(place)

    return change


def other_artifact(bundle: Path, other: Path) -> None:
    """Seals another artefact: one whose first two labels are exchanged."""
    data = read_sealed(bundle / ARTIFACT / "manifest.json", "manifest", "")
    data["labels"][:2] = data["labels"][1::-1]
    write_sealed(bundle / ARTIFACT / "manifest.json", data)


def pipe(bundle: Path, other: Path) -> None:
    os.mkfifo(bundle / "pipe")


def edit(**fields: object) -> Callable[[Path, Path], None]:
    """Changes the record and seals it again; None takes a field away."""

    def change(bundle: Path, other: Path) -> None:
        data = {**read_sealed(bundle / RECORD, "record", ""), **fields}
        write_sealed(bundle / RECORD, {key: value for key, value in data.items() if value is not None})

    return change


CHANGES = {
    "extra file": (add("new.txt"), "new.txt is in no record; remove it"),
    "extra file in the artefact": (add("artifact/new.txt"), "artifact/new.txt is in no record"),
    "engine that nobody registered": (add("artifact/engines/x.engine"), "engines/x.engine is in no record"),
    "missing": (remove("labels.txt"), "labels.txt is missing; copy the bundle again"),
    "missing graph": (remove("artifact/model.onnx"), "model.onnx is missing"),
    "missing manifest": (remove("artifact/manifest.json"), "has no manifest.json"),
    "missing record": (remove(RECORD), "has no bundle.json; make one with gft-edge bundle"),
    "file of another bundle": (swap("labels.txt"), "labels.txt was changed since the bundle was made"),
    "record of another bundle": (swap(RECORD), "labels.txt was changed since the bundle was made"),
    "another artefact": (other_artifact, "holds artefact [0-9a-f]{16}, its record names [0-9a-f]{16}; copy it again"),
    "link to a file": (link("labels.txt"), "labels.txt is a link; put the file itself in its place"),
    "link to a folder": (link("extra"), "extra is a link"),
    "link to an artefact": (link(ARTIFACT), "artifact is a link"),
    "link to the record": (link(RECORD), "bundle.json is a link"),
    "pipe": (pipe, "pipe is a pipe or device; remove it"),
    "name that leads out": (edit(files={"../x": {"sha256": "0" * 64, "size": 1}}), "'../x' leads out"),
    "another schema": (edit(schema=2), "this version reads schema 1"),
    "another target": (edit(target="moon"), "target 'moon' is none of jetson, deepstream, triton, onnxruntime"),
    "no device": (edit(device=None), "incomplete or malformed"),
    "size as a text": (edit(files={"x": {"sha256": "0", "size": "1"}}), "bundle.json: x"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_bundles_are_refused_with_the_file_and_the_reason(bundle, bare, tmp_path, name):
    other = make(bare, tmp_path / "other", "dog;cat;bee;ant")
    change, reason = CHANGES[name]
    change(bundle, other)
    with pytest.raises(ArtifactError, match=reason):
        load_bundle(bundle).check()


def test_single_bytes_of_any_file_are_refused(bundle):
    """``make torture`` does the same a thousand times."""
    rng = random.Random(0)
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    for number in range(FLIPS):
        path = files[number % len(files)]
        whole = path.read_bytes()
        place = rng.randrange(len(whole))
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([whole[place] ^ rng.randrange(1, 256)]))
        with pytest.raises(ArtifactError):
            load_bundle(bundle).check()
        path.write_bytes(whole)
    load_bundle(bundle).check()


def test_zip_is_read_like_its_folder_and_is_no_place_to_work_in(bundle, tmp_path):
    pack(bundle, tmp_path / "bundle.zip")
    with opened_bundle(tmp_path / "bundle.zip") as inside:
        assert inside.check().manifest.labels == ("ant", "bee", "cat", "dog")
        place = inside.path
    assert not place.exists()
    with opened_bundle(bundle) as same:
        assert same.path == bundle
    with pytest.raises(
        ArtifactError, match="is a zip; check and unpack it: gft-edge selftest .*bundle.zip --unpack DIR"
    ):
        open_artifact(tmp_path / "bundle.zip")
    with zipfile.ZipFile(tmp_path / "nested.zip", "w") as archive:
        archive.write(bundle / RECORD, f"bundle/{RECORD}")
    with pytest.raises(ArtifactError, match="has no bundle.json at its top"), opened_bundle(tmp_path / "nested.zip"):
        pass


def test_single_bytes_of_a_zip_are_refused_or_change_nothing(bundle, tmp_path):
    """A zip has bytes that no reader uses, such as dates."""
    path = tmp_path / "bundle.zip"
    pack(bundle, path)
    whole, rng = path.read_bytes(), random.Random(1)
    directory = whole.rfind(b"PK\1\2") - 400
    refused = 0
    for number in range(60):
        place = rng.randrange(directory, len(whole)) if number % 2 else rng.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ rng.randrange(1, 256)]) + whole[place + 1 :])
        try:
            with opened_bundle(path) as found:
                found.check()
        except ArtifactError:
            refused += 1
    assert refused > 30


def test_no_folder_and_no_bundle(tmp_path):
    with pytest.raises(ArtifactError, match="no such folder; make one with gft-edge bundle"):
        load_bundle(tmp_path / "none")
    with pytest.raises(ArtifactError, match="has no bundle.json"):
        load_bundle(tmp_path)
