"""The comparison of elastic training with one budget alone, in small."""

import numpy as np
import torch

from gft_edge.benchmarks.experiments import fixed_budget as fixed
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import load_checkpoint, read_info, read_weights
from gft_edge.data.datasets import open_images


def test_both_trainings_differ_in_their_budgets_alone(small_builtin, tmp_path, monkeypatch):
    monkeypatch.setattr(fixed, "EVAL_IMAGES", 16)
    data = fixed.run(str(small_builtin), tmp_path, steps=1, num_images=16)
    recipes = [read_info(tmp_path / name).provenance["recipe"] for name in ("elastic", "fixed")]
    assert [recipe["train"].pop("elastic") for recipe in recipes] == [True, False]
    assert recipes[0] == recipes[1]
    assert recipes[0]["model"]["budget"] == data["fixed_budget"] == "18-18-18"
    assert len(data["budgets"]) == len(data["right"]["elastic"]) == 10
    images = [open_images("scenes", "test", 16, 96)[number] for number in range(16)]
    start = read_weights(small_builtin)
    for name in ("elastic", "fixed"):
        checkpoint = load_checkpoint(tmp_path / name)
        trained = {key: value for key, value in read_weights(tmp_path / name).items() if "running" not in key}
        change = max(
            float((value - start[key]).abs().max()) for key, value in trained.items() if value.is_floating_point()
        )
        assert 0 < change < 1e-4, "one step at a rate of 5e-5 from the start"
        pixels = torch.from_numpy(checkpoint.info.preprocess.normalize(np.stack([image for image, _ in images])))
        labels = torch.tensor([label for _, label in images])
        for place in (0, data["budgets"].index("18-18-18")):
            with torch.no_grad():
                found = checkpoint.model(pixels, TokenBudget.parse(data["budgets"][place], 144)).argmax(dim=1)
            assert data["right"][name][place] == int((found == labels).sum())
