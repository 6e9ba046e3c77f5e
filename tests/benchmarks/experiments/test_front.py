"""Points of a front against their twins: which points, and a run that goes on where it stopped."""

import json
import shutil

import pytest

from gft_edge.benchmarks.experiments import front as module
from gft_edge.checkpoint import builtin_path
from gft_edge.errors import ConfigError

POINT = {"checkpoint": 0, "precision": "fp32", "gmac": 1.0, "is_within": True, "is_front": True, "is_reference": False}


def record(*budgets, **changes):
    points = [{**POINT, "budget": budget, "top1": 0.9, "interval": [0.8, 1.0], **changes} for budget in budgets]
    return {
        "checkpoints": [{"name": "builtin", "sha256": "0", "image_size": 192, "budget": "144-72-72"}],
        "data": "scenes",
        "split": "val",
        "images": 9,
        "subset": 9,
        "cost": {"axis": "gmac", "kind": "macs", "source": "multiply-accumulates"},
        "limits": {},
        "min_accuracy": None,
        "candidates": [],
        "points": points,
        "recommended": None,
    }


def test_twins_of_three_points(tmp_path, monkeypatch):
    file = tmp_path / "front.json"
    file.write_text(json.dumps(record("23-15-7", "39-23-7", "71-71-71", "143-71-71", "575-575-575")))
    trained = []

    def train(recipe, folder, resume, track):
        trained.append((recipe.model.budget, recipe.train.elastic, recipe.train.steps, resume))
        shutil.copytree(builtin_path(), folder, dirs_exist_ok=True)

    monkeypatch.setattr(module, "train", train)
    (tmp_path / "out" / "71-71-71").mkdir(parents=True)
    found = module.run(file, tmp_path / "out", steps=7, num_images=8)
    assert trained == [
        ("23-15-7", True, 7, False),
        *(("23-15-7", False, 7, False), ("71-71-71", False, 7, True), ("575-575-575", False, 7, False)),
    ]
    for row in found["rows"]:
        assert row["as_found"]["right"] == row["trained"]["right"] == row["twin"]
    assert not found["rows"][0]["trained"]["is_non_inferior"]  # eight images show nothing
    page = module.page(found)
    assert "71-71-71" in page and "trained further" in page and "not shown" in page
    module.run(file, tmp_path / "out", steps=7, num_images=8)
    assert len(trained) == 4


def test_a_front_without_points_to_compare(tmp_path):
    file = tmp_path / "front.json"
    file.write_text(json.dumps(record("71-71-71", precision="int8")))
    with pytest.raises(ConfigError, match="no FP32 point"):
        module.chosen_budgets(file)
