from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from gft_edge.benchmarks.measuring import latency
from gft_edge.benchmarks.measuring.latency import (
    bench_artifacts,
    bound_of,
    mean_tokens,
    measure,
    measure_throughput,
    warm_up,
)
from gft_edge.benchmarks.measuring.protocol import BenchProtocol
from gft_edge.checkpoint import load_checkpoint
from gft_edge.config.model import preset
from gft_edge.errors import ArtifactError, ConfigError, DataError
from gft_edge.export.onnx.artifact import export_artifact
from gft_edge.hardware.devices import device
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
    found = measure(candidates, BenchProtocol(rounds=1, runs_per_round=1, warmup_seconds=0.012))
    assert "".join(clock.calls) == "aaaa" + "bb" + "ab"  # two windows of 6 ms or one request
    assert len(found["a"].rounds_ms) == 1
    assert (found["a"].warmup.ended, found["a"].warmup.requests) == ("stable", 4)
    assert found["b"].warmup.seconds == pytest.approx(0.06)


def _falling(clock, milliseconds):
    """A candidate whose requests take the times given, then the last one for ever."""
    left = list(milliseconds)

    def run():
        clock.now += (left.pop(0) if len(left) > 1 else left[0]) / 1e3

    return run


def test_warm_up_goes_on_until_two_windows_agree(clock):
    protocol = BenchProtocol(warmup_seconds=0.01, warmup_cap_seconds=10)
    found = warm_up(_falling(clock, [40, 30, 20, 10, 10]), protocol)
    assert (found.ended, found.requests) == ("stable", 5)


def test_warm_up_that_never_settles_ends_at_its_cap(clock):
    protocol = BenchProtocol(warmup_seconds=0.01, warmup_cap_seconds=0.5)
    found = warm_up(_falling(clock, [10 * 1.1**i for i in range(100)]), protocol)
    assert found.ended == "cap"
    assert 0.5 <= found.seconds < 0.6


def test_no_warm_up_is_one_request(clock):
    assert warm_up(clock.candidate("a", 1), BenchProtocol(warmup_seconds=0)).ended == "none"
    assert clock.calls == ["a"]


def test_a_clock_that_goes_backwards_is_refused(clock):
    with pytest.raises(DataError, match="the clock went backwards"):
        measure({"a": clock.candidate("a", -1)}, BenchProtocol(warmup_seconds=0))


def test_throughput_counts_the_images_of_all_requests():
    calls = []
    candidates = {"a": lambda: calls.append(time.sleep(0.002))}
    protocol = BenchProtocol(batch=3, in_flight=2, throughput_seconds=0.02, throughput_windows=2)
    found = measure_throughput(candidates, protocol)["a"]
    assert found["in_flight"] == 2
    assert sum(window["requests"] for window in found["windows"]) == len(calls)
    for window in found["windows"]:
        assert window["images_per_s"] == pytest.approx(3 * window["requests"] / window["seconds"])
    rates = sorted(window["images_per_s"] for window in found["windows"])
    assert found["images_per_s"] == pytest.approx(sum(rates) / 2)


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
    assert set(data) == {"schema", "source", "machine", "results", "warnings"}
    assert {"cpu", "system", "load_average", "clocks", "clocks_after", "commit", "versions"} <= set(data["machine"])
    assert [r["name"] for r in data["results"]] == ["first", "second"]
    for row in data["results"]:
        assert (row["precision"], row["budget"]) == ("fp32", "12-6")
        assert (row["backend"], row["baseline"]) == ("onnxruntime", "first")
        assert row["protocol"] == json.loads(json.dumps(vars(protocol)))
        assert row["mean_tokens"] == pytest.approx((17 + 13 + 7) / 3)
        assert row["verdict"] == ("unstable" if row["variation"] > 0.025 else "stable")
        assert "not asked for" in row["energy"]["refused"]
        assert not {"stages", "throughput", "process"} & set(row)
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
        def __init__(self, artifact, backend, threads, huge_pages):
            self.name, self.backend, self.options = artifact.name, backend, {"asked for": [backend, threads]}

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


def test_sweep_has_a_row_for_each_point(artifacts):
    protocol = BenchProtocol(rounds=2, runs_per_round=1, warmup_seconds=0)
    rows = bench_artifacts(artifacts, protocol, batches=[1, 2, 2], threads=[1, 2])["results"]
    assert [(row["threads"], row["batch"], row["name"]) for row in rows] == [
        (threads, batch, name) for threads in (1, 2) for batch in (1, 2) for name in ("first", "second")
    ]
    for row in rows:
        assert (row["protocol"]["batch"], row["protocol"]["threads"]) == (row["batch"], row["threads"])
        assert row["options"]["intra_op_num_threads"] == row["threads"]
    assert [row["speedup"] for row in rows if row["name"] == "first"] == [1.0] * 4


def test_parts_are_kept_apart(artifacts):
    protocol = BenchProtocol(
        rounds=2, runs_per_round=2, warmup_seconds=0, throughput_seconds=0.02, processes=1, source_size=(40, 50)
    )
    row = bench_artifacts(artifacts[:1], protocol, skip=())["results"][0]
    assert set(row["stages"]) == {"preprocessing", "inference", "postprocessing", "end_to_end"}  # no transfers here
    for stage in row["stages"].values():
        assert np.shape(stage["rounds_ms"]) == (2, 2)
        assert 0 < stage["p50_ms"] <= stage["p99_ms"]
    assert row["throughput"]["images_per_s"] > 0
    process = row["process"]
    steps = [process["runs"][0][key] for key in ("start_ms", "import_ms", "load_ms", "first_ms")]
    assert all(step > 0 for step in steps)
    assert process["cold_start_ms"] == pytest.approx(sum(steps))
    assert 20e6 < process["peak_rss_bytes"] < 2e9


def test_stages_are_those_of_a_prediction(artifacts):
    classifier = latency.Classifier(artifacts[0], latency.open_session(artifacts[0], "onnxruntime", 1))
    pictures = list(np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8))
    step_by_step = classifier.decode(classifier.session(classifier.prepare(pictures)))
    for a, b in zip(step_by_step, classifier.predict(pictures), strict=True):
        assert (a.label, a.probability) == (b.label, b.probability)


def test_the_published_variant_works_on_every_patch(artifacts):
    published = preset("gft_base_published")
    manifest = SimpleNamespace(model=published, budget=published.budget)
    assert mean_tokens(SimpleNamespace(manifest=manifest)) == 197
    assert mean_tokens(artifacts[0]) == pytest.approx((17 + 13 + 7) / 3)


def test_a_device_bounds_no_figure_of_this_processor(artifacts, protocol):
    with pytest.raises(ConfigError, match="leave --target out"):
        bench_artifacts(artifacts, protocol, target=device("orin-nano-8gb"))


def test_a_figure_below_its_bound_is_called_implausible(artifacts):
    found = bound_of(artifacts[0], device("orin-nano-8gb"), 1, 1e-6)
    assert "bound" in found["implausible"]
    assert found["roofline"]["kind"] == "bound"
    assert bound_of(artifacts[0], device("orin-nano-8gb"), 1, 1.0)["implausible"] is None
