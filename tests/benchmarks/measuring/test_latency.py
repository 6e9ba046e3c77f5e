from __future__ import annotations

import time

import numpy as np
import pytest

from gft_edge.benchmarks.measuring import latency
from gft_edge.benchmarks.measuring.latency import measure, measure_throughput, warm_up
from gft_edge.benchmarks.measuring.protocol import BenchProtocol
from gft_edge.errors import DataError


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
