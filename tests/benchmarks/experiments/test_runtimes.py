"""The comparison of runtimes: which flips are explained, a run that goes on where it stopped, and its page."""

from __future__ import annotations

import numpy as np
import pytest

from gft_edge.benchmarks.experiments import runtimes as module
from gft_edge.benchmarks.experiments.runtimes import agreement, page


def sides():
    """Forty images of three classes and eight patches, of which four stay; the candidate's logits have noise of 1e-5."""
    rng = np.random.default_rng(0)
    logits = np.tile(np.array([[2.0, 0.0, -1.0]]), (40, 1))
    scores = np.tile(np.arange(8.0)[::-1], (40, 1))
    kept = np.tile(np.arange(4), (40, 1))
    reference = {"logits": logits, "scores_0": scores, "kept_0": kept}
    noise = rng.uniform(-1e-5, 1e-5, logits.shape)
    return reference, {"logits": logits + noise + 7, "kept_0": kept.copy()}  # a softmax does not see the 7


def test_without_flips_it_passes_whatever_is_added_to_a_row():
    found = agreement(*sides())
    assert (found.flips, found.other_patches, found.passed) == ((), 0, True)
    assert 5e-6 < found.noise < 2e-5


@pytest.mark.parametrize(("margin", "cause"), [(1e-5, "rounding"), (1e-2, "")])
def test_a_flip_is_explained_by_a_margin_within_the_noise(margin, cause):
    reference, candidate = sides()
    reference["logits"][5, 1] = 2 - margin
    candidate["logits"][5] = [2, 2 + margin / 2, -1]
    (flip,) = agreement(reference, candidate).flips
    assert (flip.image, flip.cause) == (5, cause)
    assert flip.margin == pytest.approx(margin)


@pytest.mark.parametrize(("score", "cause"), [(4 + 1e-5, "tie"), (3.0, "")])
def test_a_flip_with_other_patches_is_explained_by_a_tie_alone(score, cause):
    reference, candidate = sides()
    reference["scores_0"][5, 4] = score  # patch 3, the last one kept, has 4
    reference["scores_0"][5, 3] = 4
    candidate["kept_0"][5] = [0, 1, 2, 4]
    candidate["logits"][5] = [0, 1, 0]
    found = agreement(reference, candidate)
    assert (found.other_patches, found.ties, [flip.cause for flip in found.flips]) == (1, int(cause == "tie"), [cause])
    assert not found.passed, "one of forty is more than the limit"


def test_run_goes_on_and_the_page_has_every_flip(tmp_path, monkeypatch):
    calls = []
    sizes = (576, 144, 72)

    def reference(images):
        calls.append(len(images))
        kept = {f"kept_{i}": np.tile(np.arange(k), (len(images), 1)) for i, k in enumerate(sizes[1:])}
        scores = {f"scores_{i}": np.ones((len(images), n), np.float32) for i, n in enumerate(sizes[:2])}
        return {"logits": np.tile(np.arange(16.0), (len(images), 1)), **kept, **scores}

    def other(images):
        outputs = reference(images)
        outputs["logits"][0, 3] = 99
        return {name: values for name, values in outputs.items() if not name.startswith("scores")}

    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "artifacts", lambda checkpoint, folder: {})
    runners = {"PyTorch": reference, "other": other, "few": lambda images: reference(images[: module.SUBSET])}
    monkeypatch.setattr(module, "runners", lambda checkpoint, exported, out: runners)
    monkeypatch.setattr(module, "SUBSET", 1)
    data = module.run(tmp_path, 3)
    assert [(row["runtime"], row["images"], len(row["flips"])) for row in data["rows"]] == [
        ("other", 3, 2),
        ("few", 2, 0),
    ]
    assert [row["passed"] for row in data["rows"]] == [False, True]
    before = len(calls)
    (tmp_path / "parts/001.npz").unlink()
    assert module.run(tmp_path, 3) == data
    assert len(calls) == before + 3, "one batch of three runtimes"
    text = page(data)
    assert "| other | 3 | 2 (66.667%) |" in text and text.count("**not explained**") == 2 and "**missed**" in text
