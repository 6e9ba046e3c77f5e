"""The front, the choice of points to measure, and the recommendation, on cases whose answer is known."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from gft_edge.search.front import coarse, over_strata, pareto, predicted, strata
from gft_edge.search.recommend import commands, recommend, why


def test_front_against_brute_force():
    rng = np.random.default_rng(0)
    costs, values = rng.integers(1, 9, 60).astype(float), rng.integers(0, 9, 60).astype(float)

    def dominated(n):
        better = (costs <= costs[n]) & (values >= values[n]) & ((costs < costs[n]) | (values > values[n]))
        same = (costs == costs[n]) & (values == values[n])
        return better.any() or same[:n].any()

    found = pareto(costs, values)
    assert sorted(found) == [n for n in range(60) if not dominated(n)]
    assert sorted(costs[found]) == costs[found].tolist()


def test_points_of_all_costs():
    costs = np.geomspace(1, 1000, 200)
    worth = np.tile([0.0, 1.0], 100)
    taken = np.zeros(200, bool)
    taken[-20:] = True
    found = over_strata(costs, worth, 9, taken)
    assert len(set(found)) == 9 and not taken[found].any()
    assert (worth[found] == 1).all()  # every stratum has one of the higher worth
    assert sorted(strata(costs[found], 9)) == list(range(9))
    assert len(over_strata(costs, worth, 500, taken)) == 180
    assert over_strata(costs, worth, 3, ~np.zeros(200, bool)) == []


def test_a_fit_orders_budgets():
    chains = np.array([(a, b) for a in range(7, 120, 8) for b in range(7, 120, 8) if b <= a])
    truth = 0.5 + 0.1 * np.log(chains[:, 0]) + 0.02 * np.log(chains[:, 1])
    found = predicted(chains, np.arange(0, len(chains), 2), truth[::2])
    assert np.corrcoef(found, truth)[0, 1] > 0.99


def rights(wrong, images=1000):
    found = np.ones(images, bool)
    found[:wrong] = False
    return found


@pytest.mark.parametrize(
    ("wrong", "required", "point", "basis", "shown"),
    [
        ((100, 52, 50), None, 1, "margin", True),  # 0.2 points below, shown to be within 1
        ((100, 59, 50), None, 2, "margin", True),  # 0.9 points below: not shown
        ((100, 100, 90), None, 2, "best", False),
        ((100, 59, 50), 0.94, 1, "min-accuracy", False),  # 94.1 %, whose interval reaches below
        ((100, 59, 50), 0.87, 0, "min-accuracy", True),
    ],
)
def test_recommended_point(wrong, required, point, basis, shown):
    found = recommend(np.array([1.0, 2.0, 3.0]), [rights(n) for n in wrong], rights(50), required)
    assert (found.point, found.basis, found.shown) == (point, basis, shown)
    text = why(found, "7-7-7 in FP32", 0.941, "2 ms", required, 1000)
    assert "on 1000 images" in text and "2 ms" in text and "\n" not in text
    assert ("reaches below" in text) == (basis == "min-accuracy" and not shown)


def test_few_images_without_a_loss_show_nothing():
    few = [rights(0, 16), rights(1, 16)]
    assert recommend(np.array([1.0, 2.0]), few, rights(1, 16), None).basis == "best"
    assert recommend(np.array([1.0]), [rights(0)], rights(1), None).basis == "margin"


def test_no_point_is_accurate_enough():
    assert recommend(np.array([1.0]), [rights(10)], rights(0), 0.999) is None


def test_commands_of_each_precision():
    folder = Path("runs/a b")
    lines = commands("ck", "int8:mixed", "7-7", "scenes", 64, Path("p.json"), folder)
    assert [shlex.split(line)[1] for line in lines] == ["quantize", "export"]
    assert "--policy p.json" in lines[0] and "--images 64" in lines[0]
    assert shlex.split(lines[0])[-1] == shlex.split(lines[1])[2] == "runs/a b/chosen-int8"
    assert len(commands("ck", "fp32", "7-7", "scenes", 64, None, folder)) == 1
    assert "--precision fp16" in commands("ck", "fp16", "7-7", "scenes", 64, None, folder)[0]


def test_coarse_counts():
    found = coarse(np.arange(7, 600, 8), 6)
    assert found[0] == 7 and found[-1] == 599 and len(found) == 6
    ratios = found[1:] / found[:-1]
    assert ratios.max() / ratios.min() < 2
    assert coarse(np.array([[4, 4], [8, 4]]), 6).tolist() == [4, 8]
