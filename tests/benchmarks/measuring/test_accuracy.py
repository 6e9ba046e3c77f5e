"""Energy per correct image: with the accuracy that was recorded, or none and the reason."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from PIL import Image

from gft_edge.benchmarks.measuring import accuracy, bench
from gft_edge.benchmarks.measuring.accuracy import AccuracyFigure, recorded_accuracy
from gft_edge.benchmarks.measuring.bench import PARTS, BenchOptions
from gft_edge.benchmarks.measuring.protocol import BenchProtocol
from gft_edge.benchmarks.power.meter import Load, PowerMeter
from gft_edge.constants import VERIFY_REPORT
from gft_edge.errors import ArtifactError
from gft_edge.manifest import MODEL, register_files
from gft_edge.runtime.backends.sessions import open_session


@pytest.fixture
def reported(copied):
    """A copy of the artefact with a report of verify and these changes in it."""

    def make(top1=0.75, **changes):
        artifact = copied("fp32")
        comparison = {"candidate": "tensorrt int8", "backend": "onnxruntime", "top1_candidate": top1}
        sha256 = artifact.manifest.files[MODEL].sha256
        report = {"model_sha256": sha256, "source": "40 test images of D", "comparisons": [comparison], **changes}
        (artifact.path / VERIFY_REPORT).parent.mkdir(exist_ok=True)
        (artifact.path / VERIFY_REPORT).write_text(json.dumps(report))
        return register_files(artifact, [VERIFY_REPORT])

    return make


def test_what_verify_recorded_is_taken(reported):
    artifact = reported()
    assert recorded_accuracy(artifact, "onnxruntime") == AccuracyFigure(0.75, "40 test images of D")
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


def test_a_bench_row_has_the_energy_per_correct_image(reported, tegrastats, recorded_line, monkeypatch):
    tegrastats(recorded_line("orin-nano-jp6"))
    monkeypatch.setattr(bench, "Load", functools.partial(Load, settle_seconds=0))
    monkeypatch.setattr(bench, "locked_mhz", lambda: 1020.0)
    idle = PowerMeter.idle
    monkeypatch.setattr(PowerMeter, "idle", lambda meter: idle(meter, 0.5))
    protocol = BenchProtocol(rounds=2, runs_per_round=1, warmup_seconds=0, energy_seconds=0.5)
    data = bench.bench(BenchOptions((reported(),), protocol, skip=PARTS, power="tegrastats"))
    energy = data["results"][0]["energy"]
    assert energy["mj_per_correct_image"] == pytest.approx(energy["mj_per_image"] / 0.75)
    assert energy["accuracy"]["source"] == "40 test images of D"
    assert any("fp32: GPU below its locked 1020 MHz" in warning for warning in data["warnings"])


def test_accuracy_on_data_is_measured_once_for_each_backend(exported, tmp_path, monkeypatch):
    for number, label in enumerate(exported.manifest.labels * 2):
        file = tmp_path / f"test/{label}/{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (30 * number, 200, 10)).save(file)
    opened = []
    monkeypatch.setattr(accuracy, "open_session", lambda *asked: opened.append(asked[1]) or open_session(*asked))
    accuracy_of = accuracy.measured_accuracy(str(tmp_path), lambda note: None)
    found = [accuracy_of(exported, "onnxruntime") for _ in range(2)]
    assert opened == ["onnxruntime"]
    assert found[0] == found[1]
    assert (found[0].source, found[0].refused) == (f"8 test images of {tmp_path}", None)
    images = np.stack(
        [exported.manifest.preprocess(np.full((40, 40, 3), (30 * n, 200, 10), np.uint8)) for n in range(8)]
    )
    predicted = open_session(exported, "onnxruntime")(images)["logits"].argmax(axis=1)
    assert found[0].top1 == np.mean(predicted == np.arange(8) % 4)
