"""The focal model in training: gradients, recomputation, stochastic depth, half precision, compilation."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from gft_edge.budget import TokenBudget
from gft_edge.model.build import build_model
from gft_edge.model.gft import FocalGFT


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def gradients(model, images, budget=None, **options):
    model.zero_grad()
    weights = torch.randn(len(images), model.config.num_classes, generator=torch.Generator().manual_seed(1))
    (model(images, budget, **options) * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("keep", [(12, 6), (16, 16), (16, 9), (2, 2)])
def test_every_parameter_gets_a_gradient(tiny_config, make_model, images, keep):
    model = make_model(tiny_config).train()
    found = gradients(model, images, TokenBudget(keep, 16))
    assert [name for name, _ in model.named_parameters() if name not in found or not found[name].abs().sum() > 0] == []


def test_every_parameter_of_every_family_gets_a_gradient(family, make_model):
    model = make_model(family).train()
    found = gradients(model, torch.randn(2, 3, family.image_size, family.image_size))
    assert [name for name, _ in model.named_parameters() if name not in found or not found[name].abs().sum() > 0] == []


def test_every_parameter_gets_a_gradient_from_its_initial_value(tiny_config, images):
    torch.manual_seed(0)
    model = build_model(tiny_config).train()
    F.cross_entropy(model(images), torch.arange(3)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("keep", [(12, 6), (16, 16)])
def test_recomputed_blocks_have_the_same_logits_and_gradients(tiny_config, make_model, images, keep):
    model, budget = make_model(tiny_config).train(), TokenBudget(keep, 16)
    for module in model.modules():  # a second pass through batch norm would move its averages, not these
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    kept = gradients(model, images, budget)
    logits = model(images, budget)
    model.set_grad_checkpointing()
    assert torch.equal(model(images, budget), logits)
    recomputed = gradients(model, images, budget)
    assert all(torch.equal(recomputed[name], gradient) for name, gradient in kept.items())


def test_one_set_of_weights_learns_at_several_budgets(tiny_config, images):
    """Steps at the largest, a small and a random budget, the small ones from the largest one's logits."""
    torch.manual_seed(0)
    model, labels = build_model(tiny_config).train(), torch.arange(3)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        full = model(images, tiny_config.full_budget)
        loss = F.cross_entropy(full, labels)
        for keep in ((12, 6), (4, 2)):
            small = model(images, TokenBudget(keep, 16))
            loss = loss + F.kl_div(small.log_softmax(1), full.detach().softmax(1), reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    with torch.no_grad():
        for keep in ((16, 16), (12, 6), (4, 2)):
            assert model(images, TokenBudget(keep, 16)).argmax(dim=1).tolist() == [0, 1, 2]


def test_stochastic_depth_drops_branches_in_training_alone(tiny_config, images):
    torch.manual_seed(0)
    config = dataclasses.replace(tiny_config, stem="linear")
    model = FocalGFT(config, drop_path=0.5)
    with torch.no_grad():
        model.train()
        assert not torch.equal(model(images), model(images))
        model.eval()
        assert torch.equal(model(images), model(images))
    assert [block.drop_path1.drop_prob for block in model.blocks if hasattr(block.drop_path1, "drop_prob")][-1] == 0.5


@torch.no_grad()
def test_evaluation_changes_no_weight(tiny_model, images):
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    tiny_model(images, maps=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.state_dict().items())


@pytest.mark.parametrize("score", ["column-mean", "column-gala", "row-gala", "class-row", "random"])
def test_bfloat16_autocast_trains_and_keeps_most_patches(tiny_config, make_model, images, score):
    model = make_model(dataclasses.replace(tiny_config, score=score))
    with torch.no_grad():
        exact = model(images, maps=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(images, maps=True)
    same = sum(len(set(a.tolist()) & set(b.tolist())) for a, b in zip(exact.stages[0].kept, rough.stages[0].kept))
    assert same >= 30, "of 36"
    assert torch.isfinite(rough.logits).all()
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(images).float().square().sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@torch.no_grad()
def test_gala_maps_are_float32_under_autocast(tiny_model, images):
    tokens = tiny_model.embed(images)
    block = tiny_model.blocks[0]
    exact = block(tokens, 16, None, maps=True).importance
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = block(tokens, 16, None, maps=True).importance
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("keep", "maps"), [((12, 6), False), ((12, 6), True), ((16, 16), False)])
@torch.no_grad()
def test_compiled_model_is_one_graph_with_the_same_logits(tiny_model, images, keep, maps):
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    budget = TokenBudget(keep, 16)
    compiled = torch.compile(tiny_model, backend=count, fullgraph=True)
    found, expected = (model(images, budget, maps) for model in (compiled, tiny_model))
    assert len(graphs) == 1
    if maps:
        assert torch.equal(found.logits, expected.logits)
        assert all(torch.equal(a.kept, b.kept) for a, b in zip(found.stages, expected.stages, strict=True))
    else:
        assert torch.equal(found, expected)


def test_compiled_training_step_is_one_graph(tiny_config, make_model, images):
    torch._dynamo.reset()
    model = make_model(tiny_config).train()
    expected = gradients(model, images)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    model.zero_grad()
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    (compiled(images) * weights).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-4, atol=1e-5)
