from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.calibration.sensitivity.effects import Effect, LayerEffect, Sensitivity
from gft_edge.calibration.sensitivity.mixed import (
    ATTEMPTS,
    AccuracyLimit,
    LossModel,
    knapsack,
    mixed_policy,
    search_mixed,
)
from gft_edge.errors import ConfigError
from gft_edge.quant.policy import QuantPolicy, read_policy
from gft_edge.stats.paired import paired_top1


def brute_force(noise, saved, limit):
    """The largest sum of savings within the limit, and the least noise that reaches it, over all subsets."""
    best = (0.0, 0.0)
    for size in range(len(noise) + 1):
        for items in itertools.combinations(range(len(noise)), size):
            total = sum(noise[i] for i in items)
            if total <= limit:
                best = max(best, (sum(saved[i] for i in items), -total))
    return best[0], -best[1]


ITEMS = st.lists(st.tuples(st.integers(0, 30), st.integers(-3, 30)), max_size=10)


@given(ITEMS, st.integers(0, 150))
def test_knapsack_is_what_trying_every_subset_finds(items, limit):
    noise, saved = [float(n) for n, _ in items], [float(s) for _, s in items]
    chosen = knapsack(noise, saved, limit)
    assert list(chosen) == sorted(set(chosen))
    assert all(saved[i] > 0 for i in chosen)
    assert (sum(saved[i] for i in chosen), sum(noise[i] for i in chosen)) == brute_force(noise, saved, limit)


@given(st.lists(st.tuples(st.floats(1e-9, 1e3), st.floats(1e-6, 10)), min_size=1, max_size=9), st.floats(0, 1))
def test_knapsack_of_any_floats(items, share):
    noise, saved = zip(*items)
    limit = share * sum(noise)
    chosen = knapsack(noise, saved, limit)
    assert math.fsum(noise[i] for i in chosen) <= limit * (1 + 1e-12)
    assert math.fsum(saved[i] for i in chosen) >= brute_force(noise, saved, limit * (1 - 1e-12))[0] * (1 - 1e-9)


def table(noise, saved, limit):
    """Classic dynamic programming over integer noise, as a second opinion on sizes that no one tries out."""
    best = [0] * (limit + 1)
    for n, s in zip(noise, saved):
        best = [max(best[room], best[room - n] + s if n <= room else 0) for room in range(limit + 1)]
    return best[limit]


@pytest.mark.parametrize("kind", ["independent", "alike", "proportional"])
def test_knapsack_of_sixty_layers(kind):
    rng = np.random.default_rng(5)
    noise = rng.integers(1, 200, 60)
    saved = {
        "independent": rng.integers(1, 200, 60),
        "alike": np.repeat(rng.integers(1, 50, 12), 5),  # five blocks of the same shapes
        "proportional": noise + 10,
    }[kind]
    for limit in (7, 500, 3000, int(noise.sum()) - 1):
        chosen = list(knapsack(noise.astype(float), saved.astype(float), limit))
        assert noise[chosen].sum() <= limit
        assert saved[chosen].sum() == table(noise.tolist(), saved.tolist(), limit)


def test_knapsack_edges():
    assert knapsack([], [], 1) == ()
    assert knapsack([1, 2], [-1, 0], math.inf) == (), "what saves nothing stays out"
    assert knapsack([1, 2, 3], [1, -1, 1], math.inf) == (0, 2)
    assert knapsack([5, 6], [1, 1], 4) == ()
    assert knapsack([0, 0, 9], [1, 2, 3], 0) == (0, 1)
    assert knapsack([3, 3], [1, 1], 3) == (0,), "of equal ones the first"


IMAGES, CLASSES = 400, 5


def effect(noise, lost, signal):
    labels = np.zeros(IMAGES, np.int64)
    wrong = labels.copy()
    wrong[:lost] = 1
    sqnr = None if noise == 0 else 10 * math.log10(signal / noise)
    return Effect(noise, sqnr, 1 - lost / IMAGES, paired_top1(labels, wrong, labels), (1.0,))


def sensitivity(noise, total=None, lost=0):
    """Layers of those noises; together they have ``total``, or the sum."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((IMAGES, CLASSES))
    signal = float(np.square(logits.astype(np.float32).astype(np.float64)).mean())
    total = sum(noise) if total is None else total
    error = rng.standard_normal((IMAGES, CLASSES))
    quantized = logits + error * math.sqrt(total / np.square(error).mean())
    layers = tuple(
        LayerEffect(f"l{i}", effect(n, 0, signal), effect(total - n, 0, signal)) for i, n in enumerate(noise)
    )
    floats = [x.astype(np.float32) for x in (logits, quantized)]
    return Sensitivity(IMAGES, layers, effect(total, lost, signal), *floats, logits.argmax(axis=1))


NOISE = [0.001 * (1 + i % 4) * (1 + i) for i in range(10)]
SAVED = {f"l{i}": 1.0 + (i * 7 % 5) for i in range(10)}


def searched(limit, factor, lost=lambda share: 0, noise=NOISE, saved=SAVED):
    """A search of layers whose true noise is ``factor`` times the sum; and what it ran."""
    whole = sum(noise)
    found = sensitivity(noise, factor * whole, lost(1.0))
    ran = []

    def run(int8):
        ran.append(int8)
        power = sum(noise[int(name[1:])] for name in int8)
        return effect(factor * power, lost(power / whole), found.signal)

    return search_mixed(found, saved, limit, run), found, ran


def limit_at(share, found):
    return AccuracyLimit(min_sqnr_db=10 * math.log10(found.signal / (share * sum(NOISE))))


def test_all_layers_when_that_is_within_the_limit():
    result, _, ran = searched(AccuracyLimit(min_sqnr_db=1), 1.0)
    assert result.best.int8 == tuple(SAVED)
    assert (len(result.attempts), ran) == (1, []), "all in INT8 was measured already"


def test_where_noise_adds_the_first_choice_is_the_best_there_is():
    limit = limit_at(0.4, sensitivity(NOISE))
    result, _, ran = searched(limit, 1.0)
    assert [one.holds for one in result.attempts[:2]] == [False, True]
    assert result.best.saved_ms == brute_force(NOISE, list(SAVED.values()), 0.4 * sum(NOISE))[0]
    assert result.best.sqnr_db == pytest.approx(result.best.observed.sqnr_db)
    assert len(ran) == len({tuple(int8) for int8 in ran}), "nothing is run twice"


@pytest.mark.parametrize("factor", [0.5, 0.7, 3.0, 8.0])
def test_where_noise_does_not_add_it_backs_off_or_goes_on_until_the_limit(factor):
    limit = limit_at(0.4, sensitivity(NOISE))
    result, _, _ = searched(limit, factor)
    assert result.best.holds
    assert limit.holds(result.best.observed)
    possible = brute_force(NOISE, list(SAVED.values()), 0.4 * sum(NOISE) / factor)[0]
    assert 0.9 * possible <= result.best.saved_ms <= possible
    assert result.attempts[1].holds == (factor < 1), "the first set by the sums"
    assert result.best.sqnr_db != pytest.approx(result.best.observed.sqnr_db, abs=1)
    assert len(result.attempts) <= ATTEMPTS


def test_points_of_top1_are_a_limit_of_their_own():
    limit = AccuracyLimit(max_loss=1.0)
    result, _, _ = searched(limit, 1.0, lost=lambda share: int(20 * share))
    assert result.best.observed.lost_points <= 1.0
    assert any(not one.holds for one in result.attempts)
    both = AccuracyLimit(max_loss=1.0, min_sqnr_db=limit_at(0.05, sensitivity(NOISE)).min_sqnr_db)
    assert searched(both, 1.0, lost=lambda share: int(20 * share))[0].best.saved_ms < result.best.saved_ms


def test_a_limit_that_no_layer_meets_alone_is_not_tried():
    result, _, ran = searched(AccuracyLimit(min_sqnr_db=199), 1.0)
    assert (result.best, result.attempts, ran) == (None, (), [])


def test_when_only_one_layer_holds_that_one_is_found():
    saved = dict.fromkeys(SAVED, 1.0)
    least = sensitivity(NOISE)
    limit = AccuracyLimit(min_sqnr_db=10 * math.log10(least.signal / NOISE[0]) - 1e-6)
    result, _, _ = searched(limit, 1.0, saved=saved)
    assert result.best.int8 == ("l0",)


def test_where_nothing_saves_time_nothing_is_chosen():
    result, _, ran = searched(AccuracyLimit(min_sqnr_db=1), 1.0, saved=dict.fromkeys(SAVED, -1.0))
    assert (result.best, ran) == (None, [])


def test_predicted_loss_is_that_of_noise_dealt_out_anew():
    found = sensitivity([0.01] * 10)
    model = LossModel(found)
    assert model.lost_points(0) == 0
    losses = [model.lost_points(power) for power in (0.001, 0.01, 0.1, 1.0)]
    assert losses == sorted(losses)
    observed = 100 * (1 - (found.quantized.argmax(1) == found.labels).mean())
    assert model.lost_points(0.1) == pytest.approx(observed, abs=5)
    allowed = model.noise_limit(5.0, 1.0)
    assert model.lost_points(allowed) <= 5.0 < model.lost_points(allowed * 1.2)
    assert model.noise_limit(99.0, 1.0) == 1.0
    assert LossModel(replace(found, quantized=found.reference)).lost_points(1.0) == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "needs a limit"),
        ({"max_loss": -0.1}, "--max-loss must be points of top-1 from 0 to below 100, found -0.1"),
        ({"max_loss": 100}, "--max-loss must be"),
        ({"max_loss": math.nan}, "--max-loss must be"),
        ({"min_sqnr_db": 0}, "--min-sqnr must be above 0 and at most 200 dB, found 0"),
        ({"min_sqnr_db": math.inf}, "--min-sqnr must be"),
        ({"min_sqnr_db": math.nan}, "--min-sqnr must be"),
    ],
)
def test_limits_out_of_range_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        AccuracyLimit(**values)


def test_policies_say_why(tmp_path):
    found = sensitivity([0.01, 0.02, 0.0, 0.04])
    saved = {"l0": 1.0, "l1": 2.0, "l2": -0.5, "l3": 0.25}
    policy = mixed_policy(found, saved, ["l0", "l1"])
    (tmp_path / "policy.json").write_text(json.dumps(policy.to_json()))
    assert read_policy(tmp_path / "policy.json") == policy == QuantPolicy.from_json(policy.to_json())
    assert [policy.precision_of(name) for name in ("l0", "l1", "l2", "l3", "head")] == ["int8"] * 2 + ["high"] * 3
    sqnr = 10 * math.log10(found.signal / 0.01)
    assert policy.rule_for("l0").reason == f"{sqnr:.1f} dB alone, saves 1.0000 ms"
    assert policy.rule_for("l2").reason == "no error alone in INT8, saves no time (-0.5000 ms)"
    assert policy.rule_for("l3").reason.endswith("alone in INT8, saves 0.2500 ms but is not within the limit")
    assert policy.rule_for("head").reason == "not among the layers that were measured"
