from __future__ import annotations

import json
import subprocess
from dataclasses import asdict

import numpy as np
import pytest

from gft_edge.benchmarks.measuring.protocol import BenchProtocol, Latency, Warmup, commit, conditions, ratio_interval
from gft_edge.errors import ConfigError, DataError


@pytest.mark.parametrize("name", ["batch", "rounds", "runs_per_round", "in_flight", "throughput_windows", "processes"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_below_one_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, found {value}"):
        BenchProtocol(**{name: value})


@pytest.mark.parametrize("name", ["threads", "warmup_seconds"])
def test_negative_values_are_refused(name):
    with pytest.raises(ConfigError, match="threads and warm-up must not be negative"):
        BenchProtocol(**{name: -1})
    BenchProtocol(**{name: 0})


def test_figures_are_those_of_all_samples():
    latency = Latency.of([[float(i) for i in range(first, 101, 2)] for first in (1, 2)])
    assert latency.p50_ms == pytest.approx(50.5)
    assert latency.p90_ms == pytest.approx(90.1)
    assert latency.p95_ms == pytest.approx(95.05)
    assert latency.p99_ms == pytest.approx(99.01)
    assert latency.min_ms == 1
    assert latency.mean_ms == pytest.approx(50.5)
    assert [len(r) for r in latency.rounds_ms] == [50, 50]


def test_percentiles_are_in_order():
    latency = Latency.of(np.random.default_rng(0).lognormal(size=(20, 5)).tolist())
    assert (
        latency.min_ms < latency.p50_ms < latency.p90_ms < latency.p95_ms < latency.p99_ms < np.max(latency.rounds_ms)
    )


def test_variation_is_that_of_the_rounds_medians():
    assert Latency.of([[1, 1, 9], [3, 3, 3]]).variation == pytest.approx(0.5)
    assert Latency.of([[2, 2, 50], [2, 2, 2]]).variation == 0


def test_raw_samples_are_kept_in_order():
    assert Latency.of([[3.0, 1.0], [2.0, 4.0]]).rounds_ms == ((3.0, 1.0), (2.0, 4.0))


def test_json_holds_figures_and_raw_samples():
    latency = Latency.of([[3.0, 1.0], [2.0, 4.0]], Warmup(0.5, 9, "stable"))
    data = json.loads(json.dumps(asdict(latency)))
    assert data["rounds_ms"] == [[3.0, 1.0], [2.0, 4.0]]
    again = {**data, "rounds_ms": latency.rounds_ms, "warmup": Warmup(**data["warmup"])}
    assert Latency(**again) == latency


def test_constant_ratio_has_an_interval_of_one_point():
    fast, slow = Latency.of([[1.0] * 3] * 5), Latency.of([[2.5] * 3] * 5)
    assert ratio_interval(slow, fast) == (2.5, 2.5, 2.5)
    assert ratio_interval(fast, slow) == (0.4, 0.4, 0.4)
    assert ratio_interval(slow, slow) == (1.0, 1.0, 1.0)


def test_slow_drift_cancels():
    drift = np.geomspace(1, 10, 30)[:, None] * np.ones((30, 3))
    ratio = ratio_interval(Latency.of((3 * drift).tolist()), Latency.of(drift.tolist()))
    assert ratio == pytest.approx((3.0, 3.0, 3.0))


def test_outliers_of_a_few_requests_do_not_move_the_ratio():
    slow, fast = np.full((20, 5), 4.0), np.full((20, 5), 2.0)
    slow[3, 1], fast[7, 4] = 400, 900
    assert ratio_interval(Latency.of(slow.tolist()), Latency.of(fast.tolist())) == (2.0, 2.0, 2.0)


def _noisy(level, seed, rounds=40, spread=0.1):
    return Latency.of((level * np.random.default_rng(seed).lognormal(0, spread, (rounds, 5))).tolist())


def test_interval_covers_the_true_ratio_about_95_times_of_100():
    covered = 0
    for seed in range(100):
        ratio, low, high = ratio_interval(_noisy(3, 2 * seed), _noisy(2, 2 * seed + 1))
        assert low <= ratio <= high
        covered += low <= 1.5 <= high
    assert covered >= 88


def test_interval_shrinks_with_rounds_and_grows_with_noise():
    def width(**how):
        _, low, high = ratio_interval(_noisy(3, 0, **how), _noisy(2, 1, **how))
        return high - low

    assert width(rounds=400) < 0.6 * width(rounds=40)
    assert width(spread=0.4) > 2 * width(spread=0.1)


def test_interval_is_the_same_for_the_same_seed():
    a, b = _noisy(3, 0), _noisy(2, 1)
    assert ratio_interval(a, b, 5) == ratio_interval(a, b, 5)
    assert ratio_interval(a, b, 5)[1:] != ratio_interval(a, b, 6)[1:]


def test_conditions_tell_machine_and_load():
    where = json.loads(json.dumps(conditions()))
    assert where["cpu"]["model"]
    assert where["cpu"]["cores"] >= 1
    assert len(where["load_average"]) == 3
    assert {"governors", "cpu_mhz", "gpu_mhz", "temperatures_c"} == set(where["clocks"])
    assert where["versions"]["numpy"] == np.__version__
    assert where["commit"] is None or len(where["commit"].removesuffix("-dirty")) == 40


def test_commit_is_of_this_source_only(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    package = tmp_path / "site-packages/gft_edge"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert commit(package) is None  # lies in a repository, but is not part of it
    run = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*run, "add", "."], check=True)
    subprocess.run([*run, "commit", "-qm", "x"], check=True)
    found = commit(package)
    assert found and len(found) == 40
    (package / "__init__.py").write_text("changed")
    assert commit(package) == f"{found}-dirty"
    assert commit(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("rounds", "verdict"), [([[1.0], [1.04]], "stable"), ([[1.0], [1.06]], "unstable"), ([[1, 1, 99]], "stable")]
)
def test_above_two_and_a_half_per_cent_between_rounds_is_unstable(rounds, verdict):
    assert Latency.of(rounds).verdict == verdict


def test_variation_of_samples_sees_outliers_that_medians_do_not():
    latency = Latency.of([[1, 1, 99], [1, 1, 1]])
    samples = np.array([1, 1, 99, 1, 1, 1])
    assert latency.variation == 0
    assert latency.sample_variation == pytest.approx(samples.std() / samples.mean())


@pytest.mark.parametrize("rounds", [[], [[]], [[1.0], []]])
def test_a_run_of_zero_length_is_refused(rounds):
    with pytest.raises(DataError, match="zero length"):
        Latency.of(rounds)


def test_a_clock_that_goes_backwards_is_refused():
    with pytest.raises(DataError, match="took -0.5 ms: the clock went backwards"):
        Latency.of([[1.0, -0.5]])


def test_requests_shorter_than_the_clock_tells_are_refused():
    with pytest.raises(DataError, match="clock is too coarse"):
        Latency.of([[0.0, 0.0], [1.0, 1.0]])


@pytest.mark.parametrize("name", ["warmup_seconds", "warmup_cap_seconds", "throughput_seconds"])
def test_endless_times_are_refused(name):
    with pytest.raises(ConfigError, match="finite"):
        BenchProtocol(**{name: float("inf")})
