from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from gft_edge.calibration.observing import collect as observe_module
from gft_edge.calibration.observing import histogram
from gft_edge.calibration.observing.collect import Collector, collect, observe
from gft_edge.calibration.options import METHODS
from gft_edge.calibration.ranges import Convergence, Ranges, read_ranges
from gft_edge.errors import ArtifactError, ConfigError, DataError
from gft_edge.quant.modules import quantized_names
from gft_edge.quant.policy import DEFAULT_POLICY

IDENTITY = {"model": "m" * 64, "card": "c" * 64}


@pytest.fixture(scope="module")
def names(tiny_model):
    return quantized_names(tiny_model, DEFAULT_POLICY)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((40, 3, 32, 32)).astype(np.float32)


def _batches(images, size):
    return [images[start : start + size] for start in range(0, len(images), size)]


def _found(model, names, batches, method="max"):
    collector = Collector(names, method)
    return collect(collector, observe(model, collector, batches))


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_and_resumed_is_the_same_to_the_last_bit(tiny_model, names, images, tmp_path, method):
    batches = _batches(images, 8)
    whole = _found(tiny_model, names, batches, method)
    first = _found(tiny_model, names, batches[:2], method)
    first.save(tmp_path / "state.safetensors", IDENTITY)
    second = Collector(names, method)
    second.restore(tmp_path / "state.safetensors", IDENTITY)
    assert second.images == 16
    collect(second, observe(tiny_model, second, batches[2:]))
    assert second.ranges() == whole.ranges()
    assert second.convergence() == whole.convergence()
    assert [s.to_json() for s in second.stats.values()] == [s.to_json() for s in whole.stats.values()]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_and_the_values_that_wait_do_not_change_the_counts(two_threads, monkeypatch):
    batches = [torch.randn(3, 50_000, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    expected = Collector(["a", "b"], "mse")
    waiting = Collector(["a", "b"], "mse")
    counted_early = Collector(["a", "b"], "mse")
    monkeypatch.setattr(histogram, "_CHUNK", 7_000)
    for batch in batches:
        torch.set_num_threads(1)
        _add_both(expected, batch)
        torch.set_num_threads(2)
        _add_both(waiting, batch)
        with monkeypatch.context() as patched:
            patched.setattr(observe_module, "WAITING", 20_000)
            _add_both(counted_early, batch)
    assert torch.get_num_threads() == 2
    for name in ("a", "b"):
        counts = [c.stats[name].counts for c in (expected, waiting, counted_early)]
        assert int(counts[0].sum()) == 300_000
        assert torch.equal(counts[0], counts[1]) and torch.equal(counts[0], counts[2])
    assert expected.ranges() == waiting.ranges() == counted_early.ranges()


def _add_both(collector, x):
    collector.add("a", x)
    collector.add("b", 2 * x)
    collector.end_batch(len(x))


def test_a_batch_that_has_not_ended_is_saved_too(two_threads, tmp_path):
    collector = Collector(["a"], "mse")
    collector.add("a", torch.ones(10))
    collector.save(tmp_path / "state", IDENTITY)
    restored = Collector(["a"], "mse")
    restored.restore(tmp_path / "state", IDENTITY)
    assert int(restored.stats["a"].counts.sum()) == 10


@pytest.mark.parametrize(
    ("names_of", "method", "identity", "differs"),
    [
        (slice(None), "mse", IDENTITY, "method"),
        (slice(None), "max", {**IDENTITY, "card": "x"}, "card"),
        (slice(None), "max", {**IDENTITY, "model": "x"}, "model"),
        (slice(3), "max", IDENTITY, "tensors"),
    ],
)
def test_state_of_something_else_is_refused(tiny_model, names, images, tmp_path, names_of, method, identity, differs):
    file = tmp_path / "state.safetensors"
    _found(tiny_model, names, [images[:2]]).save(file, IDENTITY)
    with pytest.raises(ArtifactError, match=f"belongs to another {differs}; remove it"):
        Collector(names[names_of], method).restore(file, identity)


@pytest.mark.parametrize("content", [b"", b"{}", b"x" * 100])
def test_damaged_state_is_refused(tmp_path, names, content):
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged"):
        Collector(names).restore(tmp_path / "state", IDENTITY)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 16, 16), (3, 32, 32), (0, 3, 32, 32)])
def test_images_of_another_size_are_refused(tiny_model, names, shape):
    with pytest.raises(DataError, match=r"the model takes \(B, 3, 32, 32\) float32"):
        _found(tiny_model, names, [np.zeros(shape, np.float32)])


def test_images_of_another_type_are_refused(tiny_model, names):
    with pytest.raises(DataError, match="uint8, the model takes"):
        _found(tiny_model, names, [np.zeros((2, 3, 32, 32), np.uint8)])


def test_a_module_that_is_never_run_is_named(tiny_model, names, images):
    collector = Collector(names)
    collector.add(names[0], torch.zeros(1))
    with pytest.raises(DataError, match=f"{names[1]} was never computed"):
        collector.end_batch(1)


def test_unknown_method_is_refused():
    with pytest.raises(ConfigError, match="method must be one of max, percentile, entropy, mse"):
        Collector(["a"], "median")


def test_ranges_file_round_trip(tiny_model, names, images, tmp_path):
    found = Ranges.of(_found(tiny_model, names, _batches(images, 4), "percentile"), "module inputs", "m", "c", "p")
    found.write(tmp_path / "ranges.json")
    assert read_ranges(tmp_path / "ranges.json") == found
    data = json.loads((tmp_path / "ranges.json").read_text())
    assert (data["images"], data["percentile"], data["card_id"], data["model_sha256"]) == (40, 99.99, "c", "m")
    tensor = data["tensors"]["blocks.0.mlp.fc1"]
    assert 0 < tensor["p50"] < tensor["p99"] < tensor["range"] <= tensor["largest"]
    assert data["convergence"]["images"][-1] == 40


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 9},
        {"tensors": {"a": {}}},
        {"tensors": {"a": {"range": -1}}},
        {"tensors": {"a": {"range": None}}},
        {"tensors": {"a": {"range": True}}},
        {"tensors": 5},
        {"convergence": {"images": [1], "ranges": {"a": []}}},
    ],
    ids=str,
)
def test_malformed_ranges_are_refused(change):
    good = Ranges({"a": 1.0}, "module inputs", "max", 1, "m", None, None).to_json()
    assert Ranges.from_json(good).values == {"a": 1.0}
    with pytest.raises(ArtifactError, match="ranges"):
        Ranges.from_json({**good, **change})


def test_ranges_of_another_model_are_refused():
    with pytest.raises(ArtifactError, match="found on the model aaaa.*checkpoint c is bbbb"):
        Ranges({}, "module inputs", "max", 1, "aaaa", None, None).require_model("bbbb", "checkpoint c")


def test_convergence_names_the_number_after_which_nothing_changes():
    curve = Convergence.of(
        (16, 32, 64, 128), {"a": (5.0, 9.9, 10.05, 10.0), "b": (1.0, 1.0, 1.0, 1.0), "c": (0.0,) * 4}
    )
    assert curve.settled_after == {"a": 32, "b": 16, "c": 16}
    assert (curve.images_needed, curve.settled) == (32, True)
    assert not Convergence.of((16, 32), {"a": (1.0, 2.0)}).settled
    assert Convergence.of((16, 32, 64), {"a": (10.0, 5.0, 10.0)}).settled_after == {"a": 64}
