from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gft_edge.benchmarks.experiments import preprocessing_speed as preprocessing
from gft_edge.benchmarks.experiments.preprocessing_speed import SPECS, run, with_pillow
from gft_edge.benchmarks.measuring.protocol import BenchProtocol


@pytest.mark.parametrize("size", [(224, 224), (300, 250), (100, 333)])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_the_peer_computes_the_same_bits(size, name, order):
    spec = dataclasses.replace(SPECS[name], color_order=order)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    np.testing.assert_array_equal(with_pillow(spec, image), spec(image))


def test_every_size_is_compared(monkeypatch):
    monkeypatch.setattr(preprocessing, "SIZES", ((60, 40), (224, 224)))
    results = run(BenchProtocol(warmup_seconds=0, rounds=2, runs_per_round=1))["results"]
    assert [(row["resize"], row["rows"], row["columns"]) for row in results] == [
        ("stretch", 60, 40),
        ("stretch", 224, 224),
        ("crop", 60, 40),
        ("crop", 224, 224),
    ]
    for row in results:
        low, ratio, high = sorted(row["times_faster"])
        assert 0 < low <= ratio <= high
        assert row["gft_edge_p50_ms"] > 0
        assert row["pillow_p50_ms"] > 0
