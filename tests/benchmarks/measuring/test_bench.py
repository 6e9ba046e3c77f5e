from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from gft_edge.benchmarks.measuring import subjects
from gft_edge.benchmarks.measuring.artifact_facts import bound_of, mean_tokens
from gft_edge.benchmarks.measuring.bench import PARTS, BenchOptions, bench
from gft_edge.benchmarks.measuring.protocol import BenchProtocol
from gft_edge.config.model import preset
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.hardware.devices import device
from gft_edge.manifest import MODEL, load_artifact
from gft_edge.runtime.backends.sessions import open_session
from gft_edge.runtime.classifier import Classifier


@pytest.fixture(scope="module")
def artifacts(exported, tmp_path_factory):
    """The same artefact under two names."""
    folder = tmp_path_factory.mktemp("bench")
    return (exported, load_artifact(Path(shutil.copytree(exported.path, folder / "second"))))


PROTOCOL = BenchProtocol(rounds=2, runs_per_round=3, warmup_seconds=0)


def options(artifacts, protocol=PROTOCOL, **changes):
    """Latency alone, at a batch of 2, unless it is changed."""
    return BenchOptions(tuple(artifacts), protocol, **{"batches": (2,), "skip": PARTS, "power": "none", **changes})


def test_result_tells_what_was_measured_how_and_where(artifacts):
    data = json.loads(json.dumps(bench(options(artifacts)), allow_nan=False))
    assert set(data) == {"schema", "source", "machine", "results", "warnings"}
    assert {"cpu", "system", "load_average", "clocks", "clocks_after", "commit", "versions"} <= set(data["machine"])
    assert [r["name"] for r in data["results"]] == ["first", "second"]
    for row in data["results"]:
        assert (row["precision"], row["budget"]) == ("fp32", "12-6")
        assert (row["backend"], row["baseline"]) == ("onnxruntime", "first")
        assert row["protocol"] == json.loads(json.dumps({**vars(PROTOCOL), "batch": 2}))
        assert row["mean_tokens"] == pytest.approx((13 + 7 + 1) / 3)
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


def test_every_request_has_the_batch_and_the_images_of_the_seed(artifacts, monkeypatch):
    seen = {}

    class Recorder:
        def __init__(self, artifact, backend, threads, huge_pages):
            self.name, self.backend, self.options = artifact.name, backend, {"asked for": [backend, threads]}

        def compute(self, images):
            seen.setdefault(self.name, []).append(images)

    monkeypatch.setattr(subjects, "open_session", Recorder)
    data = bench(options(artifacts))
    assert data["results"][0]["options"] == {"asked for": ["onnxruntime", 1]}
    for images in seen.values():
        assert len(images) == 1 + 2 * 3
        assert all(i.shape == (2, 3, 32, 32) and i.dtype == np.float32 for i in images)
        assert all(i is images[0] for i in images)
    first = [images[0].copy() for images in seen.values()]
    seen.clear()
    bench(options(artifacts))
    for before, images in zip(first, seen.values(), strict=True):
        np.testing.assert_array_equal(images[0], before)


def test_two_artefacts_of_one_name_are_refused(artifacts):
    with pytest.raises(ConfigError, match="artefacts must have different folder names"):
        options([artifacts[0], artifacts[0]])


def test_unknown_backend_is_refused(artifacts):
    with pytest.raises(ConfigError, match="unknown backend 'tpu'"):
        options(artifacts, backends=("tpu",))


def test_changed_graph_is_refused(artifacts, copied):
    changed = copied("changed")
    with (changed.path / MODEL).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ArtifactError, match=r"model\.onnx was changed"):
        bench(options([artifacts[0], changed]))


def test_sweep_has_a_row_for_each_point(artifacts):
    protocol = BenchProtocol(rounds=2, runs_per_round=1, warmup_seconds=0)
    rows = bench(options(artifacts, protocol, batches=(1, 2, 2), threads=(1, 2)))["results"]
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
    row = bench(options(artifacts[:1], protocol, batches=(1,), skip=()))["results"][0]
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
    classifier = Classifier(artifacts[0], open_session(artifacts[0], "onnxruntime", 1))
    pictures = list(np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8))
    step_by_step = classifier.decode(classifier.session.compute(classifier.prepare(pictures)))
    for a, b in zip(step_by_step, classifier.predict(pictures), strict=True):
        assert (a.label, a.probability) == (b.label, b.probability)


def test_the_published_variant_works_on_every_patch(artifacts):
    published = preset("gft_base_published")
    manifest = SimpleNamespace(model=published, budget=published.budget)
    assert mean_tokens(SimpleNamespace(manifest=manifest)) == 197
    assert mean_tokens(artifacts[0]) == pytest.approx((13 + 7 + 1) / 3)


def test_a_device_bounds_no_figure_of_this_processor(artifacts):
    with pytest.raises(ConfigError, match="leave --target out"):
        options(artifacts, target=device("orin-nano-8gb"))


@pytest.mark.parametrize(("machine", "count"), [("x86_64", 1), ("aarch64", 0)])
def test_fp16_on_a_processor_without_it_is_told(artifacts, monkeypatch, machine, count):
    """The manifest decides: the second one says that its graph, of float32 here, is in FP16."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    first, second = artifacts
    half = replace(second, manifest=replace(second.manifest, precision="fp16", rest="fp16"))
    found = bench(options((first, half), PROTOCOL))["warnings"]
    assert [line for line in found if "fp16" in line] == [
        line for line in found if line.startswith("second: exported with")
    ]
    assert len([line for line in found if "--precision fp32" in line]) == count


def test_a_figure_below_its_bound_is_called_implausible(artifacts):
    found = bound_of(artifacts[0], device("orin-nano-8gb"), 1, 1e-6)
    assert "bound" in found["implausible"]
    assert found["roofline"]["kind"] == "bound"
    assert bound_of(artifacts[0], device("orin-nano-8gb"), 1, 1.0)["implausible"] is None


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"skip": ("lunch",)}, "'lunch'"),
        ({"power": "coal"}, "'coal'"),
        ({"backends": ("onnxruntime", "tpu")}, "'tpu'"),
        ({"batches": (1, 99)}, "99"),
        ({"threads": (1, -2)}, "threads"),
    ],
)
def test_options_are_checked_before_anything_runs(artifacts, changes, fact):
    with pytest.raises(ConfigError, match=fact):
        options(artifacts, **changes)
    with pytest.raises(ConfigError, match="no artefact"):
        options(())
