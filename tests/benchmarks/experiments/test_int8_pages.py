"""Pages of the INT8 studies from stored figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gft_edge.benchmarks.experiments import explanations, int8_faults
from gft_edge.benchmarks.experiments.node_times import added_by_maps
from gft_edge.errors import ConfigError

DOCS = Path(__file__).parents[3] / "docs"


def _latency(compact, dense, batch=1):
    ratios = {"compact": [compact, compact - 0.001, compact + 0.001], "dense": [dense, dense - 0.001, dense + 0.001]}
    return {"precision": "int8", "threads": 1, "batch": batch, "ms": 5.0, "variation": 0.01, "ratios": ratios}


def test_cost_of_maps_is_judged_by_the_median_of_its_runs():
    runs = [_latency(1.005, 1.008), _latency(1.002, 1.002), _latency(1.02, 1.001), _latency(1.02, 1.02, batch=8)]
    cells, met = explanations.costs(runs)
    assert met == 1
    assert [row[-1] for row in cells] == ["met", "**missed**"]
    assert cells[0][4].startswith("+0.5% (+0.4% to +0.6%), +0.2%")


def test_page_of_explanations_has_every_figure():
    curve = {"auc": 0.5}
    side = dict.fromkeys(("insertion", "insertion_random", "deletion", "deletion_random"), curve)
    change = {"mean": 0.001, "interval": [-0.002, 0.004]}
    stage = {"stage": 0, "rank_correlation": 0.99, "kept_overlap": 0.98, "top_overlap": 0.97}
    fidelity = {
        "images": 400,
        "sides": [side, side],
        "auc_change": {"insertion": change, "deletion": change},
        "stages": [stage],
    }
    times = {
        "machine": {"cpu": {"model": "a processor"}, "load_average": [0.1, 0.2, 0.3]},
        "rounds": 60,
        "requests": 8,
        "rows": [_latency(1.001, 1.001)],
    }
    without, with_maps = {"Sub": (1, 2.0), "Add": (3, 5.0)}, {"Sub": (2, 3.5), "Add": (3, 6.0), "Abs": (3, 8.4)}
    operators = {"int8": added_by_maps(without, with_maps)}
    found = {"fidelity": fidelity, "latency": times, "nodes": {"int8-none": 275}, "operators": operators}
    text = explanations.page(found)
    assert "| --- |\n| Abs | 3 | 8 |\n| Sub | 1 | 2 |\n\n" in f"{text}\n\n"
    assert "-0.0020 to +0.0040" in text
    assert "**met**" in text
    assert "0.9900" in text
    assert "int8-none 275" in text


def test_parts_are_put_between_their_markers():
    page = "a\n<!-- speed -->\nold\n<!-- end -->\nb\n"
    assert int8_faults.inserted(page, {"speed": "new"}) == "a\n<!-- speed -->\nnew\n<!-- end -->\nb\n"
    with pytest.raises(ConfigError, match="axis"):
        int8_faults.inserted(page, {"axis": "new"})


def test_the_page_has_a_place_for_every_part():
    text = (DOCS / "int8.md").read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- (\w+) -->", text)) == {*int8_faults.PARTS, "conditions", "end"}
