from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.calibration.observing.histogram import BINS, Activation, TensorStats, bin_edges, bin_of
from gft_edge.calibration.observing.thresholds import LINEAR_BINS, linear_histogram, threshold
from gft_edge.calibration.options import METHODS
from gft_edge.errors import ConfigError, DataError


def _count(x):
    return sum(torch.bincount(part, minlength=BINS) for part in Activation(x, "x", True).bins)


def _add(stats, x):
    stats.see(Activation(x, "x", True))
    stats.count(_count(x))


def _stats(values, parts=1):
    stats = TensorStats()
    for part in np.array_split(np.asarray(values, dtype=np.float32).ravel(), parts):
        _add(stats, torch.from_numpy(part))
    return stats


def _range(values, method, share=99.99):
    stats = _stats(values)
    return threshold(stats.magnitudes, stats.largest, method, share)


def _data(kind):
    rng = np.random.default_rng(3)
    normal = rng.standard_normal(60_000)
    return {
        "normal": normal,
        "laplace": rng.laplace(size=60_000),
        "gelu": np.maximum(normal, 0) * 1.7 + np.minimum(normal, 0) * 0.05,
        "channels": normal.reshape(100, 600) * np.exp(rng.standard_normal(600)),
        "heavy": rng.standard_t(3, 60_000),
        "uniform": rng.uniform(-2, 2, 60_000),
    }[kind].astype(np.float32)


KINDS = ("normal", "laplace", "gelu", "channels", "heavy", "uniform")


def _slow_entropy(hist, beyond, width):
    """pytorch-quantization's algorithm, range by range."""
    hist = hist.copy()
    hist[0] = hist[1]
    divergences = []
    for stop in range(128, len(hist) + 1):
        filled = np.flatnonzero(hist[:stop])
        group = filled * 128 // stop
        mass, members = np.bincount(group, hist[filled], 128), np.bincount(group, minlength=128)
        expressed = np.zeros(stop)
        expressed[filled] = mass[group] / members[group]
        reference = hist[:stop].copy()
        reference[-1] += hist[stop:].sum() + beyond
        p, q = reference / reference.sum(), expressed / max(expressed.sum(), 1e-300)
        with np.errstate(divide="ignore"):
            divergences.append(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))
    best = max(i for i, d in enumerate(divergences) if d <= min(divergences) + 1e-12)
    return (best + 128) * width


@given(st.lists(st.floats(-1e5, 1e5, width=32), min_size=1, max_size=40))
def test_each_value_is_in_the_bin_of_its_magnitude(values):
    counts = _count(torch.tensor(values, dtype=torch.float32))
    edges, total = bin_edges(), np.zeros(BINS, np.int64)
    for value in np.abs(np.asarray(values, dtype=np.float32)):
        with np.errstate(over="ignore"):
            place = int(np.float16(value).view(np.uint16))
        assert edges[place] <= value <= edges[place + 1]
        total[place] += 1
    np.testing.assert_array_equal(counts, total)
    assert all(total[bin_of(np.abs(np.asarray(values, dtype=np.float64)))])


def test_bins_are_at_most_one_part_in_1024_wide():
    edges = bin_edges()[1025:-1]
    assert edges[0] == pytest.approx(2.0**-14, rel=1e-3)
    assert edges[-1] == 65520
    assert (np.diff(edges) / edges[:-1]).max() <= 1 / 1023


@pytest.mark.parametrize("parts", [2, 7])
def test_statistics_do_not_depend_on_order_or_batches(parts):
    values = _data("heavy")
    whole, apart = _stats(values), _stats(np.random.default_rng(0).permutation(values), parts)
    assert torch.equal(whole.counts, apart.counts)
    assert whole.largest == apart.largest


def test_memory_does_not_grow():
    stats = _stats(_data("normal"))
    before = stats.counts.numel()
    _add(stats, torch.full((10,), 1e30))
    assert stats.counts.numel() == before == BINS


@pytest.mark.parametrize("kind", KINDS)
def test_max_is_exact(kind):
    assert _range(_data(kind), "max") == float(np.abs(_data(kind)).max())


@pytest.mark.parametrize("share", [50, 99, 99.9, 99.99, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_percentile_is_that_of_numpy(kind, share):
    values = np.abs(_data(kind))
    exact = np.percentile(values, share, method="inverted_cdf")
    assert exact * (1 - 1 / 1023) <= _range(values, "percentile", share) <= exact * (1 + 1 / 1023)


@pytest.mark.parametrize("kind", ["laplace", "gelu", "heavy"])
def test_entropy_is_that_of_the_slow_algorithm(kind):
    stats = _stats(_data(kind))
    span = min(stats.largest, 4 * threshold(stats.magnitudes, stats.largest, "percentile"))
    hist = linear_histogram(stats.magnitudes, stats.largest, span)
    expected = _slow_entropy(hist[:-1], hist[-1], span / LINEAR_BINS)
    assert _range(_data(kind), "entropy") == pytest.approx(expected, rel=1e-9)


def test_entropy_on_an_exact_histogram_is_close():
    values = np.abs(_data("laplace"))
    hist, _ = np.histogram(values, LINEAR_BINS, (0, values.max()))
    expected = _slow_entropy(hist.astype(float), 0.0, values.max() / LINEAR_BINS)
    assert _range(values, "entropy") == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("kind", ["channels", "gelu", "heavy"])
def test_entropy_is_not_the_maximum_in_disguise(kind):
    values = _data(kind)
    assert _range(values, "entropy") < 0.9 * np.abs(values).max()


def _squared_errors(values, limit):
    step = limit / 127
    return np.square(values - np.clip(np.rint(values / step), -127, 127) * step)


def _int8_error(values, limit):
    return _squared_errors(values, limit).mean()


def _slow_mse(counts, largest):
    """Every range, value by value of the bins' centres."""
    places = np.flatnonzero(counts)
    edges = np.minimum(bin_edges(), largest)
    centers = (edges[places] + edges[places + 1]) / 2
    lowest = threshold(counts, largest, "percentile", 90)
    ranges = np.geomspace(max(lowest, largest / BINS), largest, 120)
    return min(ranges, key=lambda limit: np.dot(counts[places], _squared_errors(centers, limit)))


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_that_of_the_slow_search(kind):
    stats = _stats(_data(kind))
    assert _range(_data(kind), "mse") == pytest.approx(_slow_mse(stats.magnitudes, stats.largest), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_the_best_of_a_fine_search(kind):
    values = _data(kind).astype(np.float64).ravel()
    largest = np.abs(values).max()
    best = min(_int8_error(values, limit) for limit in np.linspace(0.1 * largest, largest, 400))
    assert _int8_error(values, _range(values, "mse")) <= 1.01 * best


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_one_outlier_does_not_decide(method):
    values = _data("normal")
    spoilt = np.append(values, np.float32(900))
    assert _range(spoilt, method) == pytest.approx(_range(values, method), rel=0.15)
    assert _range(spoilt, "max") == 900


def test_mse_gives_up_some_of_an_outlier():
    assert _range(np.append(_data("normal"), np.float32(100)), "mse") < 80


@pytest.mark.parametrize("method", METHODS)
def test_dead_constant_and_tiny_tensors_have_sensible_ranges(method):
    assert _range(np.zeros(100), method) == 0
    assert _range(np.full(100, -3.0), method) == pytest.approx(3, rel=1e-3)
    assert _range(np.full(5, 1e-7), method) == pytest.approx(1e-7, rel=0.5)
    assert 65504 < _range(np.array([1e6]), method) <= 1e6
    assert 0 < _range(np.append(np.zeros(10_000), 1.0), method) <= 1


@pytest.mark.parametrize("histogram", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(value, histogram):
    with pytest.raises(DataError, match="calibration: input of blocks.0 is not finite"):
        Activation(torch.tensor([1.0, value]), "blocks.0", histogram)


def test_tensors_that_are_not_contiguous_count_all_their_values():
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)).t()[::2]
    assert torch.equal(_count(x), _count(x.contiguous()))
    assert Activation(x, "x", True).largest() == float(x.abs().max())


def test_half_precision_tensors_keep_their_values():
    x = torch.tensor([-1.0, 2.0], dtype=torch.float16)
    assert _count(x)[bin_of(np.array([1.0, 2.0]))].tolist() == [1, 1]
    assert x.tolist() == [-1, 2]


@pytest.mark.parametrize(("method", "share"), [("best", 99.0), ("percentile", 0.0), ("percentile", 101.0)])
def test_unknown_method_or_share_is_refused(method, share):
    with pytest.raises(ConfigError, match="calibration: (method|percentile) must be"):
        threshold(np.zeros(BINS, dtype=np.int64), 1.0, method, share)
