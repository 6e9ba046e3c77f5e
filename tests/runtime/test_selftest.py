"""The self-test finds what differs, names it with its limit, and refuses what is not whole or not for this board."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gft_edge.bundle import ARTIFACT, RECORD, SIGNATURE, write_record
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.manifest import GOLDEN, MANIFEST, MODEL, FileInfo, Member, load_artifact, register_files
from gft_edge.runtime import selftest as module
from gft_edge.runtime.selftest import SelfTestOptions, selftest
from gft_edge.storage.pack import pack
from gft_edge.storage.seals import write_sealed
from gft_edge.storage.signatures import write_signature

KEYS = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
PEM = __import__("cryptography.hazmat.primitives.serialization", fromlist=["x"])


@pytest.fixture
def bundle(with_maps, tmp_path) -> Path:
    folder = tmp_path / "bundle"
    shutil.copytree(with_maps.path, folder / ARTIFACT)
    (folder / "labels.txt").write_text("ant;bee")
    write_record(folder, "jetson", "orin-nano-8gb")
    return folder


def change_golden(folder: Path, **changes: np.ndarray) -> None:
    """Stores other golden arrays, as if another model had been the trainer's."""
    artifact = load_artifact(folder)
    with np.load(artifact.path / GOLDEN) as file:
        arrays = dict(file)
    np.savez(artifact.path / GOLDEN, **{**arrays, **changes})
    register_files(artifact, [GOLDEN])


def golden(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / GOLDEN) as file:
        return dict(file)


def test_bundle_zip_and_artefact_pass(bundle, with_maps, tmp_path):
    pack(bundle, tmp_path / "b.zip")
    for path, target in ((bundle, "jetson"), (tmp_path / "b.zip", "jetson"), (with_maps.path, "")):
        done = selftest(path)
        assert (done.verdict, done.failures, done.target, done.backend) == ("pass", (), target, "onnxruntime")
        assert done.precision == "fp32" and done.signature == "none"
        (budget,) = done.budgets
        assert [row.expected for row in budget.images] == [row.found for row in budget.images]
        assert all(row.kept == (1.0, 1.0) for row in budget.images)
        json.dumps(done.to_json(), allow_nan=False)
    assert any("made for Jetson Orin Nano" in note for note in selftest(bundle).notes)


def test_int8_is_compared_with_its_own_arithmetic_too(int8):
    done = selftest(int8.path)
    assert done.verdict != "fail"
    assert [c.kind for c in done.budgets[0].comparisons] == ["compression", "same_arithmetic"]


def test_other_logits_are_named_with_image_figure_and_limit(bundle):
    logits = golden(bundle / ARTIFACT)["logits"]
    logits[2] = logits[2, ::-1]
    change_golden(bundle / ARTIFACT, logits=logits)
    write_record(bundle, "jetson")
    done = selftest(bundle)
    (text,) = done.failures
    labels = load_artifact(bundle / ARTIFACT).manifest.labels
    row = done.budgets[0].images[2]
    assert text.startswith("budget 12-6: onnxruntime fp32 against torch fp32: logits differ by ")
    assert ", limit 1e-04; worst: image 2 (" in text
    assert f"{row.found} instead of {row.expected}" in text and {row.found, row.expected} <= set(labels)
    assert f"SQNR {row.logit_sqnr_db:.1f} dB" in text
    assert done.to_json()["verdict"] == "fail"


def test_other_kept_patches_are_named_with_stage_and_image(bundle):
    kept = golden(bundle / ARTIFACT)["kept_1"]
    out = np.setdiff1d(golden(bundle / ARTIFACT)["kept_0"][3], kept[3])
    kept[3, 0] = out[0]
    change_golden(bundle / ARTIFACT, kept_1=np.sort(kept, axis=1))
    write_record(bundle, "jetson")
    text = " ".join(selftest(bundle).failures)
    assert "stage 2 keeps other patches on 1 images" in text
    assert "worst: image 3 (" in text and "stage 2 keeps 71% of the patches" in text


def test_logits_that_are_no_numbers_fail(bundle, monkeypatch):
    real = module.ComparedModel.__call__

    def broken(self, images):
        outputs = real(self, images)
        outputs["logits"] = np.where(np.arange(len(images))[:, None] == 1, np.nan, outputs["logits"])
        return outputs

    monkeypatch.setattr(module.ComparedModel, "__call__", broken)
    assert any("images are not finite; worst: image 1 (" in text for text in selftest(bundle).failures)


def test_changed_file_is_refused_before_anything_runs(bundle, monkeypatch):
    monkeypatch.setattr(module, "ComparedModel", None)
    with (bundle / ARTIFACT / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff\x00\xff")
    with pytest.raises(ArtifactError, match="model.onnx was changed since it was written"):
        selftest(bundle)
    with pytest.raises(ArtifactError, match="model.onnx was changed since it was written"):
        selftest(bundle / ARTIFACT)


@pytest.mark.parametrize(
    ("board", "here", "device", "refused"),
    [
        ("orin-nano-super", "orin-nano-8gb-super", "orin-nano-8gb", None),  # higher clocks of the same module
        ("orin-nano-super", "orin-nano-8gb-super", "", None),
        (
            "agx-orin-64gb",
            "agx-orin-64gb",
            "orin-nano-8gb",
            "is for .*Orin Nano.*, this is .*AGX Orin.*; make one for it: gft-edge bundle ARTIFACT --target jetson "
            "--device agx-orin-64gb",
        ),
        ("thor-t5000", "thor-t5000", "h100", "is for .*H100.*, this is .*Thor"),
    ],
)
def test_bundle_of_another_board_is_refused_with_the_command(bundle, plant, board, here, device, refused):
    root = plant(board)
    write_record(bundle, "jetson", device)
    if refused is None:
        assert selftest(bundle, SelfTestOptions(root=root)).here == here
    else:
        with pytest.raises(ArtifactError, match=refused):
            selftest(bundle, SelfTestOptions(root=root))


def test_unknown_board_is_refused(bundle, tmp_path):
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("NVIDIA Jetson Next")
    with pytest.raises(ArtifactError, match="this is NVIDIA Jetson Next; make one for it: .* --device DEVICE"):
        selftest(bundle, SelfTestOptions(root=tmp_path))


def test_signature(bundle, tmp_path):
    key = KEYS.Ed25519PrivateKey.generate()
    pem = key.public_key().public_bytes(PEM.Encoding.PEM, PEM.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(pem)
    checked = SelfTestOptions(key=tmp_path / "public.pem")
    with pytest.raises(ArtifactError, match="bundle.sig: is missing"):
        selftest(bundle, checked)
    write_signature(bundle / RECORD, bundle / SIGNATURE, key)
    assert selftest(bundle).signature == "not checked"
    assert selftest(bundle, checked).signature == "valid"
    (bundle / "labels.txt").write_text("bee;ant")
    write_record(bundle, "jetson", "orin-nano-8gb")  # whole by its hashes, but not what was signed
    assert selftest(bundle).verdict == "pass"
    with pytest.raises(ArtifactError, match="was not made with this key for this bundle.json"):
        selftest(bundle, checked)
    with pytest.raises(ConfigError, match="is an artefact, which has no signature"):
        selftest(bundle / ARTIFACT, checked)


def test_zip_is_unpacked_for_good_only_if_it_is_right(bundle, tmp_path):
    place = SelfTestOptions(unpack=tmp_path / "place")
    pack(bundle, tmp_path / "b.zip")
    (bundle / "labels.txt").write_text("changed")
    pack(bundle, tmp_path / "changed.zip")
    with pytest.raises(ArtifactError, match="labels.txt was changed"):
        selftest(tmp_path / "changed.zip", place)
    assert not (tmp_path / "place").exists()
    assert selftest(tmp_path / "b.zip", place).verdict == "pass"
    assert selftest(tmp_path / "place").verdict == "pass"
    with pytest.raises(ConfigError, match="not empty"):
        selftest(tmp_path / "b.zip", place)
    with pytest.raises(ConfigError, match="--unpack: .* is no zip"):
        selftest(bundle, place)
    with pytest.raises(ConfigError, match="c.zip: no such file; give the zip"):
        selftest(tmp_path / "c.zip", place)


def test_auto_takes_an_engine_where_it_can_run(bundle, monkeypatch):
    artifact = load_artifact(bundle / ARTIFACT)
    (artifact.path / "engines").mkdir()
    (artifact.path / "engines/trt10.3.0_x.engine").write_bytes(b"code")
    artifact = register_files(artifact, ["engines/trt10.3.0_x.engine"])
    assert module._backend(artifact) == "onnxruntime"
    monkeypatch.setattr(module, "has_nvidia_driver", lambda: True)
    monkeypatch.setattr(module, "is_installed", lambda name: name != "tensorrt")
    assert module._backend(artifact) == "onnxruntime"  # the engine is none of TensorRT-RTX
    monkeypatch.setattr(module, "is_installed", lambda name: True)
    assert module._backend(artifact) == "tensorrt"


def test_every_budget_of_a_family_is_tested_or_the_one_that_is_named(with_maps, tmp_path):
    """A further member with the graph of the first one, and with golden logits of none."""
    folder = tmp_path / "family"
    shutil.copytree(with_maps.path, folder)
    artifact = load_artifact(folder)
    shutil.copy(folder / MODEL, folder / "model-b.onnx")
    np.savez(folder / "golden-b.npz", **{**golden(folder), "logits": -golden(folder)["logits"]})
    member = Member(artifact.manifest.budget, artifact.manifest.outputs, "model-b.onnx", "golden-b.npz")
    files = {name: FileInfo.of(folder / name) for name in ("model-b.onnx", "golden-b.npz")}
    manifest = replace(artifact.manifest, family={"b": member}, files={**artifact.manifest.files, **files})
    write_sealed(folder / MANIFEST, manifest.to_json())
    assert [bool(each.assessment.failures) for each in selftest(folder).budgets] == [False, True]
    assert selftest(f"{folder}@12-6").verdict == "pass"
    assert selftest(f"{folder}@b").verdict == "fail"
