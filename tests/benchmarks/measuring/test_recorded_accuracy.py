"""Energy per correct image: with the accuracy that was recorded, or none and the reason."""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from gft_edge.benchmarks.measuring import latency
from gft_edge.benchmarks.measuring.latency import bench_artifacts
from gft_edge.benchmarks.measuring.protocol import BenchProtocol
from gft_edge.benchmarks.measuring.recorded_accuracy import Accuracy, recorded_accuracy
from gft_edge.benchmarks.power import meter as power
from gft_edge.checkpoint import load_checkpoint
from gft_edge.constants import VERIFY_REPORT
from gft_edge.errors import ArtifactError
from gft_edge.export.onnx.artifact import export_artifact
from gft_edge.manifest import MODEL, load_artifact, register_files

LINE = (Path(__file__).parents[2] / "recorded/tegrastats/orin-nano-jp6.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def exported(tiny_checkpoint, tmp_path_factory):
    images = np.zeros((2, 3, 32, 32), np.float32)
    return export_artifact(load_checkpoint(tiny_checkpoint), tmp_path_factory.mktemp("accuracy") / "fp32", images)


@pytest.fixture
def reported(exported, tmp_path):
    """A copy of the artefact with a report of verify, changed as told."""

    def make(top1=0.75, **changes):
        artifact = load_artifact(shutil.copytree(exported.path, tmp_path / "fp32"))
        comparison = {"candidate": "tensorrt int8", "backend": "onnxruntime", "top1_candidate": top1}
        sha256 = artifact.manifest.files[MODEL].sha256
        report = {"model_sha256": sha256, "source": "40 test images of D", "comparisons": [comparison], **changes}
        (artifact.path / VERIFY_REPORT).parent.mkdir(exist_ok=True)
        (artifact.path / VERIFY_REPORT).write_text(json.dumps(report))
        return register_files(artifact, [VERIFY_REPORT])

    return make


def test_what_verify_recorded_is_taken(reported):
    artifact = reported()
    assert recorded_accuracy(artifact, "onnxruntime") == Accuracy(0.75, "40 test images of D")
    assert (
        "accuracy of fp32 on tensorrt is not known: run gft-edge verify"
        in recorded_accuracy(artifact, "tensorrt").refused
    )


@pytest.mark.parametrize("changes", [{"top1": None}, {"model_sha256": "of another graph"}, {"comparisons": []}])
def test_nothing_is_invented(reported, changes):
    found = recorded_accuracy(reported(**changes), "onnxruntime")
    assert found.top1 is None
    assert found.refused.count("\n") == 0


def test_without_a_report_it_is_not_known(exported):
    assert "is not known" in recorded_accuracy(exported, "onnxruntime").refused


def test_a_damaged_report_is_refused(reported, tmp_path):
    artifact = reported(comparisons=[{"backend": "onnxruntime"}])
    with pytest.raises(ArtifactError, match="malformed .*; run gft-edge verify again"):
        recorded_accuracy(artifact, "onnxruntime")


def test_a_bench_row_has_the_energy_per_correct_image(reported, tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "line").write_text(LINE.strip() + "\n", encoding="utf-8")
    (folder / "tegrastats").write_text(f"#!/bin/sh\nwhile :; do cat {tmp_path}/line; sleep 0.01; done\n")
    (folder / "tegrastats").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(latency, "measure_energy", functools.partial(power.measure_energy, settle_seconds=0))
    monkeypatch.setattr(latency, "locked_mhz", lambda: 1020.0)
    idle = power.PowerMeter.idle
    monkeypatch.setattr(power.PowerMeter, "idle", lambda meter: idle(meter, 0.5))
    protocol = BenchProtocol(rounds=2, runs_per_round=1, warmup_seconds=0, energy_seconds=0.5)
    data = bench_artifacts([reported()], protocol, power="tegrastats")
    energy = data["results"][0]["energy"]
    assert energy["mj_per_correct_image"] == pytest.approx(energy["mj_per_image"] / 0.75)
    assert energy["accuracy"]["source"] == "40 test images of D"
    assert any("fp32: GPU below its locked 1020 MHz" in warning for warning in data["warnings"])
