from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from gft_edge.benchmarks import latency
from gft_edge.benchmarks.latency import bench_artifacts, measure
from gft_edge.benchmarks.protocol import BenchProtocol
from gft_edge.checkpoint import load_checkpoint
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.onnx import export_artifact
from gft_edge.manifest import MODEL, load_artifact


class Clock:
    """Stands in for the time module; only the candidates make it go on."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def perf_counter(self):
        return self.now

    def candidate(self, name, milliseconds):
        def run():
            self.calls.append(name)
            self.now += milliseconds / 1e3

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return clock


def _orders(clock, names, **how):
    candidates = {name: clock.candidate(name, 1 + index) for index, name in enumerate(names)}
    measure(candidates, BenchProtocol(warmup_seconds=0, **how))
    return "".join(clock.calls)


def test_rounds_alternate_their_order(clock):
    assert _orders(clock, "AB", rounds=4, runs_per_round=2) == "AB" + "AABB" + "BBAA" + "AABB" + "BBAA"


def test_three_candidates_go_forth_and_back(clock):
    assert _orders(clock, "ABC", rounds=3, runs_per_round=1) == "ABC" + "ABC" + "CBA" + "ABC"


def test_one_candidate_is_measured_alone(clock):
    assert _orders(clock, "A", rounds=2, runs_per_round=3) == "A" + "AAA" + "AAA"


def test_samples_are_milliseconds_of_single_requests(clock):
    candidates = {"a": clock.candidate("a", 2), "b": clock.candidate("b", 0.5)}
    found = measure(candidates, BenchProtocol(rounds=3, runs_per_round=4, warmup_seconds=0))
    assert list(found) == ["a", "b"]
    for name, expected in (("a", 2), ("b", 0.5)):
        assert np.shape(found[name].rounds_ms) == (3, 4)
        np.testing.assert_allclose(found[name].rounds_ms, expected)
        assert found[name].variation == pytest.approx(0, abs=1e-9)


def test_warm_up_lasts_for_each_candidate_and_is_not_measured(clock):
    candidates = {"a": clock.candidate("a", 4), "b": clock.candidate("b", 30)}
    found = measure(candidates, BenchProtocol(rounds=1, runs_per_round=1, warmup_seconds=0.01))
    assert "".join(clock.calls) == "aaa" + "b" + "ab"
    assert len(found["a"].rounds_ms) == 1


def test_progress_is_told_for_each_round(clock):
    told = []

    def track(items, title, total):
        for item in items:
            told.append((title, item, total))
            yield item

    measure({"a": clock.candidate("a", 1)}, BenchProtocol(rounds=3, warmup_seconds=0), track)
    assert told == [("bench", 0, 3), ("bench", 1, 3), ("bench", 2, 3)]


@pytest.fixture(scope="module")
def artifacts(tiny_checkpoint, tmp_path_factory):
    """The same artefact under two names."""
    folder = tmp_path_factory.mktemp("bench")
    images = np.zeros((2, 3, 32, 32), np.float32)
    first = export_artifact(load_checkpoint(tiny_checkpoint), folder / "first", images)
    return [first, load_artifact(Path(shutil.copytree(first.path, folder / "second")))]


@pytest.fixture(scope="module")
def protocol():
    return BenchProtocol(batch=2, rounds=2, runs_per_round=3, warmup_seconds=0)


def test_result_tells_what_was_measured_how_and_where(artifacts, protocol):
    data = json.loads(json.dumps(bench_artifacts(artifacts, protocol), allow_nan=False))
    assert set(data) == {"backend", "baseline", "protocol", "machine", "results"}
    assert (data["backend"], data["baseline"]) == ("onnxruntime", "first")
    assert data["protocol"] == vars(protocol)
    assert {"cpu", "system", "load_average"} <= set(data["machine"])
    assert [r["name"] for r in data["results"]] == ["first", "second"]
    for row in data["results"]:
        assert (row["precision"], row["budget"]) == ("fp32", "12-6")
        assert row["model_sha256"] == artifacts[0].manifest.files[MODEL].sha256
        assert row["options"]["version"] == ort.__version__
        assert row["options"]["intra_op_num_threads"] == 1
        assert np.shape(row["rounds_ms"]) == (2, 3)
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        low, high = row["speedup_interval"]
        assert 0 < low <= row["speedup"] <= high
    assert data["results"][0]["speedup"] == 1.0
    assert data["results"][0]["speedup_interval"] == [1.0, 1.0]


def test_every_request_has_the_batch_and_the_images_of_the_seed(artifacts, protocol, monkeypatch):
    seen = {}

    class Recorder:
        def __init__(self, artifact, backend, threads):
            self.name, self.options = artifact.name, {"asked for": [backend, threads]}

        def __call__(self, images):
            seen.setdefault(self.name, []).append(images)

    monkeypatch.setattr(latency, "open_session", Recorder)
    data = bench_artifacts(artifacts, protocol)
    assert data["results"][0]["options"] == {"asked for": ["onnxruntime", 1]}
    for images in seen.values():
        assert len(images) == 1 + 2 * 3
        assert all(i.shape == (2, 3, 32, 32) and i.dtype == np.float32 for i in images)
        assert all(i is images[0] for i in images)
    first = [images[0].copy() for images in seen.values()]
    seen.clear()
    bench_artifacts(artifacts, protocol)
    for before, images in zip(first, seen.values(), strict=True):
        np.testing.assert_array_equal(images[0], before)


def test_two_artefacts_of_one_name_are_refused(artifacts, protocol):
    with pytest.raises(ConfigError, match="artefacts must have different folder names"):
        bench_artifacts([artifacts[0], artifacts[0]], protocol)


def test_unknown_backend_is_refused(artifacts, protocol):
    with pytest.raises(ConfigError, match="unknown backend 'tpu'"):
        bench_artifacts(artifacts, protocol, "tpu")


def test_changed_graph_is_refused(artifacts, protocol, tmp_path):
    changed = load_artifact(Path(shutil.copytree(artifacts[0].path, tmp_path / "changed")))
    with (changed.path / MODEL).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ArtifactError, match=r"model\.onnx was changed"):
        bench_artifacts([artifacts[0], changed], protocol)
