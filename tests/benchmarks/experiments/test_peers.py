"""What is measured against computes what it stands for."""

import itertools

import torch

from gft_edge.benchmarks.experiments.elastic import budgets, run
from gft_edge.benchmarks.experiments.peers.models import PlainPublishedGFT
from gft_edge.benchmarks.experiments.training_speed import importance_calls
from gft_edge.config.model import preset
from gft_edge.model.build import build_model


@torch.no_grad()
def test_plain_published_model_equals_the_published_variant():
    config = preset("gft_base_published")
    plain, published = PlainPublishedGFT(config.budget).eval(), build_model(config).eval()
    names = {"stages": "hierarchical_blocks"}
    state = {
        ".".join([names.get(first := name.split(".")[0], first), *name.split(".")[1:]]): tensor
        for name, tensor in plain.state_dict().items()
    }
    published.load_state_dict(state)
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(plain(images), published(images))
    x = torch.randn(2, 49, 768)
    tokens, importance = plain.stages[0](x)
    stage = published.hierarchical_blocks[0]
    torch.testing.assert_close(stage(x), tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stage.importance(x), importance, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_both_ways_to_the_importance_agree():
    fast, slow = (call() for call in importance_calls(196).values())
    torch.testing.assert_close(fast, slow.transpose(1, 2), rtol=1e-3, atol=1e-5)


def test_ten_budgets_fall_from_all_patches_to_15_per_cent():
    found = budgets(3, 144)
    assert len(found) == 10
    assert set(found[0].keep) == {found[0].num_patches}
    assert found[-1].keep[-1] == int(144 * 0.05)
    assert all(a.keep > b.keep for a, b in itertools.pairwise(found))


def test_accuracy_falls_gracefully_from_one_checkpoint():
    rows = run("builtin", num_images=32)["rows"]
    assert [row["macs"] for row in rows] == sorted((row["macs"] for row in rows), reverse=True)
    top1 = [row["top1"] for row in rows]
    assert top1[0] >= 0.8
    assert min(top1[:6]) >= top1[0] - 0.07
    assert top1[-1] > 0.3
