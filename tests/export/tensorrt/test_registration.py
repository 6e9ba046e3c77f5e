"""Engines that trtexec built are entered in the manifest: on the machine of the plan alone, with a record that the checks accept.

The engines here are a few bytes: nothing is loaded, and no test needs TensorRT.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from gft_edge.cli.main import main
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.tensorrt.build import plan_build
from gft_edge.export.tensorrt.options import BuildOptions
from gft_edge.export.tensorrt.registration import read_plan, register_engine
from gft_edge.files import write_json
from gft_edge.hardware import this_device
from gft_edge.manifest import MODEL, load_artifact
from gft_edge.runtime.backends.engine_files import EngineHost, check_engine

HERE = EngineHost("tensorrt", "10.3.0", "8.7", "orin-nano-8gb")


@pytest.fixture(autouse=True)
def no_tensorrt(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)


@pytest.fixture(scope="module")
def planned(exported):
    return plan_build(exported("fp32-none"), "orin-nano", BuildOptions(tensorrt="10.3")).plan


@pytest.fixture
def engine(tmp_path) -> Path:
    path = tmp_path / "model.engine"
    path.write_bytes(b"ftrt and the rest of an engine")
    return path


def test_the_engine_passes_the_checks_of_its_board(copied, plant, planned, engine):
    artifact, root = copied("fp32-none"), plant("orin-nano-super")
    record = register_engine(artifact, engine, planned, "10.3.0", root)
    assert record["key"] == "trt10.3.0_sm87_orin-nano-8gb-super_fp32_b1-1-8"
    artifact = load_artifact(artifact.path)
    path, stored = check_engine(artifact, record["key"], HERE)
    assert path.read_bytes() == engine.read_bytes()
    assert stored == record
    assert (stored["builder"], stored["layers"], stored["version"]) == ("trtexec", None, "10.3.0")
    with pytest.raises(ArtifactError, match="it was built on orin-nano-8gb-super"):
        check_engine(artifact, record["key"], dataclasses.replace(HERE, device="orin-nx-16gb"))
    engine.write_bytes(b"ftrt, built again")
    register_engine(artifact, engine, planned, "10.3.0", root)
    register_engine(artifact, path, planned, "10.3.0", root)  # in its place already
    assert check_engine(load_artifact(artifact.path), record["key"], HERE)[0].read_bytes() == b"ftrt, built again"


@pytest.mark.parametrize(
    ("board", "version", "words"),
    [
        (
            "agx-orin-64gb",
            "10.3.0",
            "planned for Jetson Orin Nano 8GB (super), and this is Jetson AGX Orin 64GB (part number",
        ),
        ("thor-t5000", "10.13.3", "and this is Jetson Thor T5000"),
        ("orin-nano-super", "8.6.2", "planned for TensorRT 10.3, but 8.6.2 is installed; give --tensorrt 8.6.2"),
        ("orin-nano-super", "ten", "expected numbers with dots"),
        (None, "10.3.0", "no NVIDIA GPU found here"),
    ],
)
def test_another_board_or_tensorrt_is_refused(
    copied, plant, planned, engine, monkeypatch, tmp_path, board, version, words
):
    monkeypatch.setattr(this_device.shutil, "which", lambda name: None)
    root = plant(board) if board else tmp_path / "pc"
    artifact = copied("fp32-none")
    with pytest.raises(ConfigError) as caught:
        register_engine(artifact, engine, planned, version, root)
    assert words in str(caught.value)
    assert not (artifact.path / "engines").exists()


@pytest.mark.parametrize("version", ["10.3.0", "10.3.0.30", "10.5.0"])
def test_bindings_that_would_not_load_it_are_refused(copied, plant, planned, engine, monkeypatch, version):
    module = type(sys)("tensorrt")
    module.__version__ = version
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    if version == "10.5.0":
        with pytest.raises(ConfigError, match=r"trtexec is of TensorRT 10\.3\.0, Python imports 10\.5\.0"):
            register_engine(copied("fp32-none"), engine, planned, "10.3.0", plant("orin-nano-super"))
        return
    record = register_engine(copied("fp32-none"), engine, planned, "10.3.0", plant("orin-nano-super"))
    assert record["version"] == version  # as the runtime compares it


def test_what_is_no_engine_is_refused(copied, plant, planned, exported, tmp_path):
    artifact, root = copied("fp32-none"), plant("orin-nano-super")
    (tmp_path / "empty").touch()
    for path, words in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "empty", "is an empty file"),
        (artifact.path / MODEL, "is an ONNX graph, no engine"),
    ):
        with pytest.raises(ConfigError, match=words):
            register_engine(artifact, path, planned, "10.3.0", root)


def test_a_plan_of_another_artefact_or_builder_is_refused(copied, plant, planned, engine):
    artifact, root = copied("fp32-none"), plant("orin-nano-super")
    other = dataclasses.replace(planned, precision="int8")
    with pytest.raises(ArtifactError, match="the plan is of another artefact"):
        register_engine(artifact, engine, other, "10.3.0", root)
    rtx = plan_build(artifact, "rtx").plan
    with pytest.raises(ConfigError, match="trtexec does not build by this plan"):
        register_engine(artifact, engine, rtx, "10.3.0", root)
    with (artifact.path / MODEL).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match="was changed since it was written"):
        register_engine(artifact, engine, planned, "10.3.0", root)


def test_a_card_takes_a_plan_of_its_compute_capability(copied, engine, monkeypatch, tmp_path):
    artifact = copied("fp32-none")
    plan = plan_build(artifact, "l4", BuildOptions(tensorrt="10.3")).plan
    card = this_device.Recognized(this_device.parse_gpu("NVIDIA L4, 8.9, 23034"), "test")
    monkeypatch.setattr(this_device, "_first_gpu", lambda root: card)
    assert register_engine(artifact, engine, plan, "10.3.0", tmp_path / "pc")["device"] == "l4"
    other = this_device.Recognized(this_device.parse_gpu("NVIDIA A10, 8.6, 23034"), "test")
    monkeypatch.setattr(this_device, "_first_gpu", lambda root: other)
    with pytest.raises(ConfigError, match="planned for L4, and this is NVIDIA A10"):
        register_engine(artifact, engine, plan, "10.3.0", tmp_path / "pc")


def test_plans_are_read_in_both_forms(planned, tmp_path):
    write_json(tmp_path / "plan.json", planned.to_json())
    write_json(tmp_path / "verb.json", {"plan": planned.to_json(), "lint": []})
    assert read_plan(tmp_path / "plan.json") == read_plan(tmp_path / "verb.json") == planned
    (tmp_path / "verb.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"verb\.json: build plan: missing or unknown entries"):
        read_plan(tmp_path / "verb.json")


class TestVerb:
    @pytest.fixture
    def words(self, copied, planned, engine, tmp_path):
        write_json(tmp_path / "plan.json", planned.to_json())
        artifact = copied("fp32-none").path
        return ["build", artifact, "--engine", engine, "--plan-file", tmp_path / "plan.json", "--tensorrt", "10.3.0"]

    def test_it_registers_on_the_board(self, words, plant, monkeypatch, capsys):
        found = this_device.device_here(plant("orin-nano-super"))
        monkeypatch.setattr("gft_edge.export.tensorrt.registration.device_here", lambda root: found)
        assert main([str(word) for word in (*words, "--json")]) == 0
        assert json.loads(capsys.readouterr().out)["builder"] == "trtexec"
        assert main([str(word) for word in words]) == 0
        assert "built by trtexec; not yet run" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("left_out", "more", "message"),
        [
            (None, [], "no NVIDIA GPU found here"),
            ("--engine", [], "--engine, --plan-file and --tensorrt go together"),
            ("--plan-file", [], "--engine, --plan-file and --tensorrt go together"),
            ("--tensorrt", [], "--engine, --plan-file and --tensorrt go together"),
            (None, ["--target", "this-gpu"], "the plan file names the target"),
        ],
    )
    def test_misuse_is_one_line(self, words, monkeypatch, capsys, left_out, more, message):
        monkeypatch.setattr(this_device, "board", lambda root: None)
        monkeypatch.setattr(this_device.shutil, "which", lambda name: None)
        if left_out:
            at = words.index(left_out)
            words = words[:at] + words[at + 2 :]
        assert main([str(word) for word in (*words, *more)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
