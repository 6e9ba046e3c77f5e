"""The comparison of elastic training with one budget alone, in small."""

from gft_edge.benchmarks.experiments import fixed_budget as fixed
from gft_edge.checkpoint import read_info


def test_both_trainings_differ_in_their_budgets_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(fixed, "EVAL_IMAGES", 16)
    data = fixed.run("builtin", tmp_path, steps=1, num_images=16)
    recipes = [read_info(tmp_path / name).provenance["recipe"] for name in ("elastic", "fixed")]
    assert [recipe["train"].pop("elastic") for recipe in recipes] == [True, False]
    assert recipes[0] == recipes[1]
    assert recipes[0]["model"]["budget"] == data["fixed_budget"] == "72-72-72"
    assert len(data["budgets"]) == len(data["right"]["elastic"]) == 10
    assert all(12 <= right <= 16 for right in data["right"]["fixed"]), (
        "a step from a trained checkpoint unlearns little"
    )
