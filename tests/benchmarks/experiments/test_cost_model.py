from __future__ import annotations

import json

from gft_edge.benchmarks.experiments.cost_model import held_out_budgets, main
from gft_edge.config.model import preset
from gft_edge.search.measuring import design


def test_held_out_budgets_are_others_within_the_range():
    config = preset("gft_scenes")
    known, found = design(config), held_out_budgets(config, 20, seed=1)
    assert len(set(found)) == 20
    assert not set(found) & set(known)
    assert all(7 <= count <= 576 for budget in found for count in budget.keep)
    assert found != held_out_budgets(config, 20, seed=2)


def test_the_error_is_measured_and_written(tiny_checkpoint, tmp_path, capsys):
    command = ["--checkpoint", str(tiny_checkpoint), "--precision", "fp32", "--held-out", "3", "--rounds", "1"]
    page = tmp_path / "COSTS.md"
    code = main([*command, "--out", str(tmp_path / "out"), "--page", str(page)])
    data = json.loads((tmp_path / "out/cost_model.json").read_text())
    (one,) = data["results"]
    assert code == (0 if one["median"] <= 0.05 and one["worst"] <= 0.1 else 1)
    row = one["rows"][0]
    assert row["error"] + 1 == (row["predicted"] * one["drift"] / row["measured"])
    assert page.read_text() == (tmp_path / "out/COSTS.md").read_text() == capsys.readouterr().out.rstrip("\n") + "\n"
    assert row["budget"] in page.read_text()
