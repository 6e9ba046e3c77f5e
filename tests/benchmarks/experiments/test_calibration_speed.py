from __future__ import annotations

import pytest

from gft_edge.benchmarks.experiments.calibration_speed import HISTOGRAM, INFERENCE, MAX, page, whole_run
from gft_edge.benchmarks.measuring.protocol import Latency
from gft_edge.calibration.observing.collect import Collector


@pytest.fixture
def latencies():
    ms = {INFERENCE: 100.0, MAX: 101.0, HISTOGRAM: 105.0, "max": 0.0, "entropy": 8.0}
    return {name: Latency.of([[value + 1], [value + 2]]) for name, value in ms.items()}


def test_a_run_is_its_batches_and_the_ranges_of_its_curve(latencies):
    assert whole_run(latencies, None, 256).rounds_ms == ((16 * 101,), (16 * 102,))
    assert whole_run(latencies, "max", 256).rounds_ms[0] == (16 * 102 + 5 * 1,)
    assert whole_run(latencies, "entropy", 256).rounds_ms[0] == (16 * 106 + 5 * 9,)


def test_the_curve_of_a_run_has_as_many_points():
    collector = Collector([])
    for _ in range(16):
        collector.end_batch(16)
    assert len(collector.convergence()[0]) == 5


def test_the_page_says_which_ratios_miss_the_target():
    found = {
        "inference_images_per_second": 99.6,
        "ranges_ms": dict.fromkeys(("max", "percentile", "entropy", "mse"), 1.0),
    }
    found |= {"max": (0.98, 0.97, 0.99), "percentile": (0.9, 0.9, 0.9), "entropy": (0.89, 0.8, 0.95), "mse": (1, 1, 1)}
    run = {
        "machine": {"cpu": {"model": "C"}, "load_average": [0.5, 1, 1]},
        "threads": 1,
        "images": 256,
        "ratios": {"m": found},
    }
    lines = page([run]).splitlines()
    assert "| m | 1 | 100 | percentile | 1.0 | 0.90x | 0.90 to 0.90 | met |" in lines
    assert [line.endswith("**missed** |") for line in lines if line.startswith("| m |")] == [False, False, True, False]
