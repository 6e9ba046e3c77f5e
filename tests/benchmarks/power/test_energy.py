from __future__ import annotations

import dataclasses
import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.benchmarks.power.energy import (
    MAX_GAP,
    MIN_SAMPLES,
    PowerTrace,
    WindowPower,
    clock_drops,
    energy_of,
    mean_power,
    throttling,
)
from gft_edge.errors import ConfigError


def trace(times, power, interval=0.1, clocks=()):
    return PowerTrace("ina3221", ("VDD_IN",), interval, tuple(times), tuple(power), tuple(clocks))


def every(interval, seconds, power):
    times = [i * interval for i in range(round(seconds / interval) + 1)]
    return trace(times, [power(t) for t in times], interval)


def exact_energy(trace, start, end):
    """Integral of the line through the samples, in rational numbers, piece by piece."""
    start, end = Fraction(start), Fraction(end)
    total = Fraction(0)
    points = [(Fraction(t), Fraction(p)) for t, p in zip(trace.times_s, trace.power_mw)]
    for (t0, p0), (t1, p1) in itertools.pairwise(points):
        a, b = max(t0, start), min(t1, end)
        if a < b:
            power_a, power_b = (p0 + (p1 - p0) * (t - t0) / (t1 - t0) for t in (a, b))
            total += (power_a + power_b) / 2 * (b - a)
    return float(total)


def test_constant_power():
    window = mean_power(every(0.1, 10, lambda t: 5000.0), 1.234, 7.891)
    assert window.mean_mw == pytest.approx(5000, rel=1e-12)
    assert (window.coverage, window.refused) == (pytest.approx(1), None)
    assert window.num_samples == 66


def test_power_is_interpolated_at_the_edges_of_the_window():
    ramp = every(0.1, 4, lambda t: 1000 * t)
    for start, end in ((0.55, 1.95), (1.01, 3.99), (0.0, 4.0)):
        window = mean_power(ramp, start, end)
        assert window.mean_mw == pytest.approx(1000 * (start + end) / 2, rel=1e-9)


samples = st.lists(
    st.tuples(st.floats(0.001, 0.4), st.floats(0, 60_000)),
    min_size=30,
    max_size=60,
)


@given(samples, st.floats(0.05, 0.3), st.floats(0.5, 0.95))
def test_agrees_with_rational_arithmetic(steps, first, last):
    times = np.cumsum([step for step, _ in steps])
    measured = trace(times.tolist(), [p for _, p in steps])
    start, end = (times[0] + share * (times[-1] - times[0]) for share in (first, last))
    window = mean_power(measured, start, end)
    if window.refused:
        assert window.num_samples < MIN_SAMPLES
        return
    assert window.mean_mw * window.duration_s == pytest.approx(exact_energy(measured, start, end), rel=1e-9, abs=1e-6)


@given(samples)
def test_windows_add_up(steps):
    times = np.cumsum([step for step, _ in steps])
    measured = trace(times.tolist(), [p for _, p in steps])
    whole = mean_power(measured, times[0], times[-1])
    middle = times[len(times) // 2]
    halves = [mean_power(measured, times[0], middle), mean_power(measured, middle, times[-1])]
    assert whole.mean_mw * whole.duration_s == pytest.approx(
        sum(h.mean_mw * h.duration_s for h in halves), rel=1e-9, abs=1e-6
    )


@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=30), st.floats(), st.floats(), st.floats(0.01, 1))
def test_nonsense_is_refused_not_computed(points, start, end, interval):
    window = mean_power(trace([t for t, _ in points], [p for _, p in points], interval), start, end)
    assert (window.mean_mw is None) == (window.refused is not None)
    if window.mean_mw is not None:
        assert math.isfinite(window.mean_mw)
        assert window.duration_s > 0
    json.dumps(dataclasses.asdict(window), allow_nan=False)


STEADY = every(0.1, 10, lambda t: 5000.0)


@pytest.mark.parametrize(
    ("measured", "start", "end", "reason"),
    [
        (STEADY, 3, 3, "the timed window lasts 0 s"),
        (STEADY, 4, 3, "the timed window lasts -1 s"),
        (STEADY, 3, float("nan"), "the timed window lasts nan s"),
        (STEADY, 3, 3.5, "6 samples in the window of 0.5 s; measure for 1 s or more"),
        (STEADY, 20, 30, "0 samples in the window of 10 s"),
        (STEADY, 5, 15, "samples cover 50% of the window of 10 s, 95% are needed"),
        (trace([0, 1, 2, 1.5, 3], [1] * 5), 0, 3, "the clock of the samples goes backwards after sample 2"),
        (trace([0, 1], [1, float("nan")]), 0, 1, "not finite numbers"),
        (trace([0, 1], [1]), 0, 1, "not finite numbers of the same count"),
        (trace([], []), 0, 1, "0 samples in the window of 1 s"),
    ],
)
def test_refusals(measured, start, end, reason):
    window = mean_power(measured, start, end)
    assert window.mean_mw is None
    assert reason in window.refused


def test_gaps_are_not_filled_in():
    times = [i * 0.1 for i in range(101) if not 30 < i < 50]
    window = mean_power(trace(times, [5000.0] * len(times)), 0, 10)
    assert window.coverage == pytest.approx(0.8)
    assert "samples cover 80% of the window" in window.refused
    within = [i * 0.1 for i in range(101) if not 30 < i < 30 + MAX_GAP]
    assert mean_power(trace(within, [5000.0] * len(within)), 0, 10).coverage == pytest.approx(1)


def test_what_is_not_covered_takes_the_mean_of_the_rest():
    times = [i * 0.01 for i in range(1001) if not 300 < i < 330]
    window = mean_power(trace(times, [5000.0] * len(times), 0.01), 0, 10)
    assert window.coverage == pytest.approx(0.97)
    assert window.mean_mw == pytest.approx(5000)


def test_samples_at_the_same_time_count_once():
    times = [i * 0.1 for i in range(21)]
    doubled = trace(sorted(times + times[5:8]), [100.0] * 24)
    assert mean_power(doubled, 0, 2).mean_mw == pytest.approx(100)


def test_energy_per_image_and_per_correct_image():
    load, idle = mean_power(STEADY, 1, 9), WindowPower(2.0, 20, 1.0, 3000.0)
    energy = energy_of(STEADY, load, 400, idle, accuracy=0.8)
    assert energy.energy_mj == pytest.approx(40_000)
    assert energy.mj_per_image == pytest.approx(100)
    assert energy.mj_per_correct_image == pytest.approx(125)
    assert energy.idle_mw == 3000
    assert energy.net_mj_per_image == pytest.approx(40)
    assert energy.refused is energy.idle_refused is None
    assert json.loads(json.dumps(energy.to_json()))["rails"] == ["VDD_IN"]


def test_energy_without_idle_or_accuracy():
    energy = energy_of(STEADY, mean_power(STEADY, 1, 9), 400)
    assert energy.mj_per_image == pytest.approx(100)
    assert energy.mj_per_correct_image is energy.net_mj_per_image is energy.idle_mw is None
    assert energy.idle_refused == "idle power was not measured"
    assert energy_of(STEADY, mean_power(STEADY, 1, 9), 400, accuracy=0.0).mj_per_correct_image is None


def test_idle_above_the_load_gives_no_net_energy():
    energy = energy_of(STEADY, mean_power(STEADY, 1, 9), 400, WindowPower(2.0, 20, 1.0, 5100.0))
    assert energy.net_mj_per_image is None
    assert "idle power (5100 mW) is above the load's (5000 mW)" in energy.idle_refused
    assert energy.mj_per_image == pytest.approx(100)


def test_refused_window_gives_no_energy():
    energy = energy_of(STEADY, mean_power(STEADY, 3, 3), 400, WindowPower(2.0, 20, 1.0, 3000.0), 0.9)
    figures = (
        energy.mean_mw,
        energy.energy_mj,
        energy.mj_per_image,
        energy.mj_per_correct_image,
        energy.net_mj_per_image,
    )
    assert figures == (None,) * 5
    assert energy.refused == "the timed window lasts 0 s"


def test_impossible_arguments():
    load = mean_power(STEADY, 1, 9)
    with pytest.raises(ConfigError, match="at least one image in the window, found 0"):
        energy_of(STEADY, load, 0)
    with pytest.raises(ConfigError, match="accuracy must be 0 to 1, found 80"):
        energy_of(STEADY, load, 1, accuracy=80)


def test_reasons_of_the_driver_are_counted_in_the_window():
    why = ("held down by the power limit",)
    trace = PowerTrace("nvml", ("board",), 0.1, (0.0, 1.0, 2.0, 3.0), (1.0,) * 4, (900.0,) * 4, (why, why, (), why))
    assert throttling(trace, 0.5, 3) == ["GPU held down by the power limit in 2 of 3 samples"]
    assert throttling(trace, 2, 2) == []
    assert throttling(trace, 0.5, 3, 1000)[0].startswith("GPU below its locked 1000 MHz in 3 of 3 samples")


def test_clocks_below_the_lock():
    clocks = [1020.0] * 50 + [None] * 10 + [765.0, 1010.0] + [1020.0] * 39
    measured = dataclasses.replace(STEADY, gpu_mhz=tuple(clocks))
    assert clock_drops(measured, 0, 10, 1020) == (
        "GPU below its locked 1020 MHz in 1 of 91 samples, down to 765 MHz: it was throttled"
    )
    assert clock_drops(measured, 0, 5, 1020) is None
    assert clock_drops(STEADY, 0, 10, 1020) is None
