"""The governor on simulated traces: latency = base x slowdown x noise, with every budget slowed alike."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gft_edge.errors import ConfigError
from gft_edge.runtime.governor import LONGEST_WAIT, Governor, GovernorOptions

BASE = {"147-98-49": 12.0, "98-49-24": 8.0, "49-24-12": 5.0, "24-12-6": 3.5}
NOISE, GROWTH = 0.04, 0.02
OPTIONS = GovernorOptions(dwell=10, margin=0.12, hysteresis=0.1)
"""Margin and hysteresis that the noise and the growth ask for: 1.02 * 1.04 / 0.96 = 1.105 and 1.04 / 0.96 = 1.083."""


def simulate(governor, slowdown, noise, deadline_ms=16.0, temperatures=None, modes=None, true_ms=None):
    """Levels and latencies of a trace."""
    levels, latencies = [], []
    for frame, (slow, factor) in enumerate(zip(slowdown, noise)):
        temperature = temperatures[frame] if temperatures else None
        budget = governor.choose(deadline_ms, temperature, modes[frame] if modes else None)
        latencies.append((true_ms or BASE)[budget] * slow * factor)
        governor.observe(budget, latencies[-1])
        levels.append(governor.level)
    return levels, latencies


def changes(levels):
    return [frame for frame in range(1, len(levels)) if levels[frame] != levels[frame - 1]]


def random_floats(low, high, count):
    """Strategy of lists; from a seed, because hypothesis draws single floats slowly."""
    return st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).uniform(low, high, count).tolist())


noises = random_floats(1 - NOISE, 1 + NOISE, 240)


@st.composite
def loads(draw, frames=120):
    """Slowdown between 1 and 6: rises at most by GROWTH in any window of frames, falls at will."""
    window = OPTIONS.window
    step, value, trace = (1 + GROWTH) ** (1 / window), 1.0, []
    while len(trace) < frames:
        goal, length = draw(st.floats(1, 6)), draw(st.integers(5, 60))
        for _ in range(length):
            value = max(1.0, goal if goal < value else min(goal, value * step))
            trace.append(value)
    return trace[:frames]


@given(loads(), noises, st.sampled_from([4.5, 9.0, 16.0]), st.sampled_from([0.3, 0.8, 1.0]))
@settings(max_examples=40)
def test_no_frame_is_late_in_which_the_smallest_budget_is_on_time(load, noise, deadline, quantile):
    governor = Governor(dataclasses.replace(OPTIONS, quantile=quantile), BASE)
    _, latencies = simulate(governor, load, noise, deadline)
    for slow, factor, ms in zip(load, noise, latencies):
        assert ms <= deadline or BASE["24-12-6"] * slow * factor > deadline


def test_a_step_of_the_load_costs_few_frames():
    load = [1.0] * 20 + [2.5] * 80
    for quantile, late in ((1.0, 1), (0.8, 2)):
        _, latencies = simulate(Governor(dataclasses.replace(OPTIONS, quantile=quantile), BASE), load, [1.0] * 100)
        assert sum(ms > 16 for ms in latencies) == late


@given(loads(), noises, random_floats(70, 100, 120))
@settings(max_examples=40)
def test_within_the_dwell_time_only_downwards(load, noise, temperatures):
    levels, _ = simulate(Governor(OPTIONS, BASE), load, noise, temperatures=temperatures)
    before = 0
    for frame in changes(levels):
        if levels[frame] < levels[frame - 1]:
            assert frame - before >= OPTIONS.dwell
            assert levels[frame] == levels[frame - 1] - 1
        before = frame


@given(noises, st.integers(10, 60), st.floats(1.5, 6))
@settings(max_examples=25)
def test_recovers_when_the_load_ends(noise, length, slow):
    load = [slow] * length + [1.0] * 120
    deadline = 1.01 * BASE["147-98-49"] * (1 + NOISE) * (1 + OPTIONS.margin) * (1 + OPTIONS.hysteresis)
    levels, _ = simulate(Governor(OPTIONS, BASE), load, noise, deadline)
    assert levels[length - 1] > 0
    within = OPTIONS.window + (OPTIONS.dwell + 1) * (len(BASE) - 1)
    assert set(levels[length + within :]) == {0}


@given(noises, st.floats(1, 3.9), st.floats(5, 15))
@settings(max_examples=40)
def test_steady_load_settles(noise, slow, deadline):
    levels, _ = simulate(Governor(OPTIONS, BASE), [slow] * 120, noise, deadline)
    settled = levels[OPTIONS.window :]
    climbs = [frame for frame in changes(settled) if settled[frame] < settled[frame - 1]]
    assert not climbs or settled[climbs[0] :] == sorted(settled[climbs[0] :], reverse=True)


@given(noises, random_floats(70, 100, 60), random_floats(0, 5, 60), st.floats(1, 2))
@settings(max_examples=40)
def test_hotter_is_never_larger(noise, cool, more, slow):
    hot = [temperature + extra for temperature, extra in zip(cool, more)]
    steady = [1.0] * 60
    small, _ = simulate(Governor(OPTIONS, BASE), steady, steady, temperatures=hot)
    large, _ = simulate(Governor(OPTIONS, BASE), steady, steady, temperatures=cool)
    assert all(first >= second for first, second in zip(small, large))
    twins = Governor(OPTIONS, BASE), Governor(OPTIONS, BASE)
    for twin in twins:
        simulate(twin, [slow] * 60, noise, temperatures=cool)
    twins[0].choose(14, cool[-1] + more[-1])
    twins[1].choose(14, cool[-1])
    assert twins[0].level >= twins[1].level


def test_a_sensor_that_trembles_at_a_limit_changes_nothing():
    trembling = [84.5, 85.5] * 60
    levels, _ = simulate(Governor(OPTIONS, BASE), [1.0] * 120, [1.0] * 120, temperatures=trembling)
    assert changes(levels) == [1]
    levels, _ = simulate(
        Governor(OPTIONS, BASE), [1.0] * 40, [1.0] * 40, temperatures=[90.5, *[85.0] * 19, *[81.9] * 20]
    )
    assert levels[:10] == [2] * 10
    assert levels[-1] == 0


def test_limits_lie_evenly_between_warm_and_hot():
    for temperature, level in ((84.9, 0), (85, 1), (89.9, 1), (90, 2), (94.9, 2), (95, 3), (120, 3)):
        governor = Governor(OPTIONS, BASE)
        governor.choose(100, temperature)
        assert governor.level == level
    two = Governor(OPTIONS, {"8-4": 2.0, "4-2": 1.0})
    assert [two.choose(100, t) for t in (84, 85)] == ["8-4", "4-2"]
    assert Governor(OPTIONS, {"8-4": 2.0}).choose(100, 120) == "8-4"


def test_a_sleeping_sensor_keeps_the_limit():
    governor = Governor(OPTIONS, BASE)
    governor.choose(100, 120)
    assert {governor.choose(100) for _ in range(50)} == {"24-12-6"}
    assert [governor.choose(100, 60) for _ in range(50)][-1] == "147-98-49"


def test_power_mode_limits_by_name():
    governor = Governor(dataclasses.replace(OPTIONS, power_limits={"15W": "49-24-12"}), BASE)
    assert governor.choose(100, power_mode="MAXN") == "147-98-49"
    assert governor.choose(100, power_mode="15W") == "49-24-12"
    assert {governor.choose(100, power_mode="15W") for _ in range(30)} == {"49-24-12"}
    assert [governor.choose(100, power_mode="MAXN") for _ in range(30)][-1] == "147-98-49"


def test_a_single_slow_frame_is_ignored():
    noise = [1.0] * 100
    noise[50] = 10.0
    levels, _ = simulate(Governor(OPTIONS, BASE), [1.0] * 100, noise)
    assert set(levels) == {0}


def test_a_budget_slower_than_stated_is_tried_more_and_more_rarely():
    true_ms = {**BASE, "147-98-49": 40.0}
    governor = Governor(dataclasses.replace(OPTIONS, quantile=1.0), BASE)
    levels, _ = simulate(governor, [1.0] * 2000, [1.0] * 2000, true_ms=true_ms)
    tries = [frame for frame in changes(levels) if levels[frame] == 0]
    gaps = np.diff(tries).tolist()
    assert gaps[0] < 80
    assert gaps == sorted(gaps)
    assert gaps[-1] >= LONGEST_WAIT * OPTIONS.dwell
    levels, _ = simulate(governor, [1.0] * 1000, [1.0] * 1000)  # as stated again
    assert levels[-1] == 0
    assert governor.expected_ms("98-49-24") == pytest.approx(8)


@pytest.mark.parametrize(("deadline", "budget"), [(14.7, "98-49-24"), (14.9, "147-98-49")])
def test_a_larger_budget_needs_room_for_margin_and_hysteresis(deadline, budget):
    """12 ms with both are 14.784 ms; with the margin alone they are 13.44 ms, within which a running budget stays."""
    governor = Governor(OPTIONS, BASE)
    assert {governor.choose(13.5) for _ in range(50)} == {"147-98-49"}
    assert governor.choose(9.5) == "98-49-24"
    assert [governor.choose(deadline) for _ in range(50)][-1] == budget


def test_deadlines_may_differ_from_frame_to_frame():
    governor = Governor(OPTIONS, BASE)
    assert [governor.choose(ms) for ms in (14, 9.5, 14, 6, 1)] == [
        *("147-98-49", "98-49-24", "98-49-24", "49-24-12", "24-12-6")
    ]


def test_a_smaller_budget_that_seems_slower_does_not_hide_a_larger_one():
    governor = Governor(OPTIONS, {"8-4": 5.0, "4-2": 6.0})
    assert governor.expected_ms("8-4") == 6
    assert governor.choose(7) == "8-4"
    assert governor.choose(6) == "4-2"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dwell": 0}, "dwell"),
        ({"window": 2.5}, "window"),
        ({"margin": -0.1}, "margin"),
        ({"hysteresis": float("nan")}, "hysteresis"),
        ({"cool_by_c": float("inf")}, "cool_by_c"),
        ({"quantile": 0.0}, "quantile"),
        ({"warm_c": 96.0}, "warm_c"),
    ],
)
def test_options_out_of_range(change, said):
    with pytest.raises(ConfigError, match=said):
        GovernorOptions(**change)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Governor(OPTIONS, {}), "latency of one budget"),
        (lambda: Governor(OPTIONS, {"8-4": 0.0}), "budget 8-4"),
        (lambda: Governor(dataclasses.replace(OPTIONS, power_limits={"15W": "9-9"}), BASE), "'9-9'"),
        (lambda: Governor(OPTIONS, BASE).observe("98-49-42", 3.0), "did you mean '98-49-24'"),
        (lambda: Governor(OPTIONS, BASE).observe("98-49-24", float("nan")), "positive number"),
        (lambda: Governor(OPTIONS, BASE).choose(-1), "deadline"),
        (lambda: Governor(OPTIONS, BASE).choose(10, float("nan")), "temperature"),
    ],
)
def test_bad_calls(call, said):
    with pytest.raises(ConfigError, match=said):
        call()
