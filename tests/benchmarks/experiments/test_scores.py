"""Every score against a slow form in float64 with the whole attention matrix, and the passes against the model itself."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from gft_edge.benchmarks.experiments.scores import candidates as table
from gft_edge.benchmarks.experiments.scores.candidates import NOTES, STUDIED, Candidate, Learned, State, candidates
from gft_edge.benchmarks.experiments.scores.learned import Places, Ridge, taylor
from gft_edge.benchmarks.experiments.scores.passes import Setting, full_pass, pruned_pass
from gft_edge.budget import TokenBudget
from gft_edge.config.model import SCORES, preset
from gft_edge.control_checkpoint import learn_places
from gft_edge.control_results import CENTRE, LEAST, ORACLE, RANDOM, STATIC
from gft_edge.data.datasets import open_images
from gft_edge.model.choices import Following, ranked
from gft_edge.preprocess import PreprocessSpec

HEADS, D, GRID, PREFIX = 2, 5, (4, 5), 1
PLACES = np.array([[0, 1, 2, 4, 5, 7, 8, 11, 13, 14, 16, 19], [0, 2, 3, 4, 6, 7, 9, 10, 12, 15, 17, 18]])
"""Patches that are still there."""


@pytest.fixture(scope="module")
def block():
    """Tokens of two images with 12 patches left of 20, float64."""
    generator = torch.Generator().manual_seed(3)
    z, q, k, v = (torch.randn(2, PREFIX + 12, HEADS * D, generator=generator, dtype=torch.float64) for _ in range(4))
    return (z, q, k, v), State(3, 1, GRID, torch.from_numpy(PLACES))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def spread(x):
    return (x - x.mean()) / x.std()


def order(x):
    """Numbers of the patches, the highest score first."""
    return sorted(range(len(x)), key=lambda place: -x[place])


def slow(name, q, k, state, image):
    """The scores of one image by head-wise whole matrices; for orders, the negative turn of each patch."""
    heads = [tuple(t[image].numpy()[:, h * D : (h + 1) * D] for t in (q, k)) for h in range(HEADS)]
    whole = [a @ b.T / np.sqrt(D) for a, b in heads]
    inner = [m[PREFIX:, PREFIX:] for m in whole]
    to_all = [m[PREFIX:].mean(axis=0) for m in whole]
    column = np.array([m.mean(axis=0) for m in inner])
    keys = [b[PREFIX:] - b[PREFIX:].mean(axis=0) for _, b in heads]
    if name == "column-mean":
        return column.mean(axis=0)
    if name == "row-mean":
        return np.mean([m.mean(axis=1) for m in inner], axis=0)
    if name == "class-row":
        return np.mean([softmax(m)[0] for m in whole], axis=0)[PREFIX:]
    received = np.mean([softmax(row) for row in to_all], axis=0)[PREFIX:]
    if name.startswith("softmax-column"):
        return received
    if name == "softmax-received":
        return np.mean([softmax(m)[PREFIX:].mean(axis=0) for m in whole], axis=0)[PREFIX:]
    if name == "standardised heads":
        return np.mean([spread(row) for row in column], axis=0)
    if name == "normalised keys":
        queries = [a[PREFIX:].mean(axis=0) for a, _ in heads]
        return np.mean([[a @ b / np.linalg.norm(b) for b in rows] for a, rows in zip(queries, keys)], axis=0)
    if name == "key distance":
        return np.sqrt(sum((rows**2).sum(axis=1) for rows in keys))
    if name in ("each cell", "half spread"):
        turns = {"each cell": by_cells, "half spread": in_turn}[name](order(received), PLACES[image])
        return -np.array([turns.index(patch) for patch in range(12)])
    gradient = {"column-gala": column, "row-gala": np.array([m.mean(axis=1) for m in inner])}[name]
    g = np.pad(np.mean([np.abs(np.gradient(row)) for row in gradient], axis=0), 1)
    return g[:-2] + g[1:-1] + g[2:]


def by_cells(best, places):
    """The best of every cell of 4 x 4 places, then the second of every cell, and so on."""
    cells = {}
    for patch in best:
        row, col = divmod(int(places[patch]), GRID[1])
        cells.setdefault((row // 4, col // 4), []).append(patch)
    rounds = [[cell[turn] for cell in cells.values() if turn < len(cell)] for turn in range(12)]
    return [patch for of_one in rounds for patch in sorted(of_one, key=best.index)]


def in_turn(best, places):
    """The best, the first of the spread places, the second best, ... without those that were taken."""
    turn = table.spread_places(GRID)
    spread_order = sorted(range(12), key=lambda patch: turn[places[patch]])
    return list(dict.fromkeys(patch for pair in zip(best, spread_order) for patch in pair))


@pytest.mark.parametrize("candidate", STUDIED, ids=lambda candidate: candidate.name)
def test_score_is_that_of_the_whole_matrix(candidate, block):
    (z, q, k, v), state = block
    found = candidate.score(z, q, k, v, HEADS, PREFIX, state)
    assert found.shape == (2, 12) and found.dtype == torch.float64
    for image in range(2):
        expected, own = slow(candidate.name, q, k, state, image), found[image].numpy()
        if candidate.name in ("each cell", "half spread"):  # orders: only the ranking counts
            assert order(own) == order(expected)
            continue
        if candidate.name.startswith(("column-mean", "column-gala", "row", "normalised")):  # factors are left out
            expected, own = expected / np.abs(expected).max(), own / np.abs(own).max()
        assert np.abs(own - expected).max() < 1e-12
        assert np.unique(expected).size > 8


def test_columns_do_not_see_what_attention_does_not_see(block):
    """A vector added to every key changes no attention: columns rank as before, rows do not."""
    (z, q, k, v), state = block
    shifted = k + 3 * torch.randn(1, 1, HEADS * D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moved = {
        candidate.name
        for candidate in STUDIED
        if not torch.equal(
            candidate.score(z, q, k, v, HEADS, PREFIX, state).argsort(dim=1),
            candidate.score(z, q, shifted, v, HEADS, PREFIX, state).argsort(dim=1),
        )
    }
    assert moved == {"row-mean", "row-gala"}


def test_every_score_of_the_product_is_compared():
    assert [c.name for c in STUDIED if c.kind == "product"] == [name for name in SCORES if name != "random"]


# --- passes


@pytest.fixture(scope="module")
def four_blocks(make_model):
    """Six blocks would be the built-in one's; four are enough: 1, 2, 3 select."""
    config = preset(
        "gft_typeface",
        image_size=40,
        num_classes=4,
        embed_dim=32,
        depth=4,
        num_heads=2,
        stages=(1, 2, 3),
        budget=TokenBudget((18, 12, 6), 25),
    )
    return make_model(config, seed=5)


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(2))


def rebuilt(model, **changes):
    other = type(model)(dataclasses.replace(model.config, **changes)).eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("score", [name for name in SCORES if name != "random"])
@pytest.mark.parametrize("stages", [(1, 2, 3), (2, 3, 4)])
def test_pass_is_that_of_the_model(score, stages, four_blocks, images):
    model = rebuilt(four_blocks, score=score, stages=stages)
    setting, choice = Setting(stages, model.config.budget), Following(ranked(1))
    candidate = next(candidate for candidate in STUDIED if candidate.name == score)
    with torch.no_grad():
        entries, full = full_pass(four_blocks, images, [stages[0]])
        tokens, positions = pruned_pass(four_blocks, entries[stages[0]], setting, candidate)
        assert torch.allclose(model.head(full), model(images, model.config.full_budget), atol=1e-5)
        assert torch.equal(model.head(tokens), model(images, choose=choice))
    assert torch.equal(positions, choice.positions)


def test_score_knows_which_patches_are_there(four_blocks, images):
    seen = []

    def spy(z, q, k, v, heads, prefix, state):
        seen.append(state)
        return table.column_mean(z, q, k, v, heads, prefix, state)

    with torch.no_grad():
        entries, _ = full_pass(four_blocks, images, [1])
        pruned_pass(four_blocks, entries[1], Setting((1, 3), TokenBudget((12, 6), 25)), Candidate("spy", spy))
    first, second = seen
    assert (first.block, first.number, second.block, second.number) == (1, 0, 3, 1)
    assert torch.equal(first.positions, torch.arange(25).expand(3, -1))
    assert second.positions.shape == (3, 12) and torch.equal(second.positions, second.positions.sort(dim=1).values)


def test_weighted_patch_counts_as_equal_ones(four_blocks, images):
    """With 5 of 25 patches kept in block 2, blocks 3 and 4 compute what they do with each patch five times."""
    setting, plain = Setting((2,), TokenBudget((5,), 25)), STUDIED[0]
    with torch.no_grad():
        entries, _ = full_pass(four_blocks, images, [2])
        found, positions = pruned_pass(four_blocks, entries[2], setting, dataclasses.replace(plain, weighs=True))
        assert torch.equal(positions, pruned_pass(four_blocks, entries[2], setting, plain)[1])
        rows = torch.cat((torch.zeros(3, 1, dtype=torch.long), positions + 1), dim=1)
        x = four_blocks.blocks[1](entries[2].x).gather(1, rows.unsqueeze(2).expand(-1, -1, 32))
        x = torch.cat((x[:, :1], x[:, 1:].repeat_interleave(5, dim=1)), dim=1)
        for block in four_blocks.blocks[2:]:
            x = block(x)
        assert torch.allclose(found, four_blocks.norm(x)[:, 0], atol=1e-5)


def test_spread_places_begin_with_a_regular_grid():
    turn = table.spread_places((8, 12)).reshape(8, 12)
    assert sorted(turn.flatten().tolist()) == list(range(96))
    assert sorted(turn[::4, ::4].flatten().tolist()) == list(range(6))
    assert sorted(turn[::2, ::2].flatten().tolist()) == list(range(24))


# --- what is learned, and the controls


def test_ridge_finds_the_query():
    generator = torch.Generator().manual_seed(4)
    keys = torch.randn(6, 40, 10, generator=generator) + 5
    query = torch.randn(10, generator=generator)
    fit = Ridge(10)
    for start in (0, 3):
        fit.add(keys[start : start + 3], keys[start : start + 3] @ query)
    centred = (keys - keys.mean(dim=1, keepdim=True)).double().flatten(0, 1).numpy()
    target = np.concatenate([spread((keys[i].double() @ query.double()).numpy()) for i in range(6)])
    gram = centred.T @ centred
    expected = np.linalg.solve(gram + 0.01 * np.trace(gram) / 10 * np.eye(10), centred.T @ target)
    assert np.abs(fit.solve().numpy() - expected).max() < 1e-5
    cosine = torch.nn.functional.cosine_similarity(fit.solve(), query, dim=0)
    assert cosine > 0.95
    no_target = Ridge(10)
    no_target.add(keys, torch.ones(6, 40))
    assert torch.equal(no_target.solve(), torch.zeros(10))


@pytest.mark.parametrize("frozen", [True, False])
def test_taylor_is_the_change_of_the_loss(frozen, make_model, four_blocks, images):
    """By finite differences in float64: the loss with a patch's token shortened by a millionth."""
    model = rebuilt(four_blocks).double().requires_grad_(not frozen)
    labels = torch.tensor([0, 1, 2])
    with torch.no_grad():
        found = taylor(model, images.double(), labels, [1, 3], model.head)
    x = model.embed(images.double()).detach()
    with torch.no_grad():
        for number in range(1, 5):
            if number in found:

                def loss(start, first=number):
                    for block in model.blocks[first - 1 :]:
                        start = block(start)
                    logits = model.head(model.norm(start)[:, 0])
                    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

                effects = []
                for patch in range(25):
                    shorter, longer = x.clone(), x.clone()
                    shorter[:, patch + 1] *= 1 - 1e-6
                    longer[:, patch + 1] *= 1 + 1e-6
                    effects.append((loss(longer) - loss(shorter)).abs())
                expected = torch.stack(effects, dim=1).argsort(dim=1).argsort(dim=1)
                keys, ranks = found[number]
                assert (ranks - expected).abs().max() <= 1 and (ranks == expected).float().mean() > 0.9
                block = model.blocks[number - 1]
                assert torch.equal(keys, block.attn.project(block.norm1(x))[1][:, 1:]) and not keys.requires_grad
            x = model.blocks[number - 1](x)


def test_places_are_those_of_the_controls(four_blocks):
    images, spec = open_images("typefaces", "train", 20, 40), PreprocessSpec(40, 40)
    model = rebuilt(four_blocks, num_classes=4)
    expected, count = learn_places(model, model.config, images, spec)
    places = Places(25, [1, 2, 3])
    for start in (0, 8, 16):
        pixels = np.stack([spec.geometry(images[i][0]) for i in range(start, min(start + 8, 20))])
        with torch.no_grad():
            entries, _ = full_pass(model, torch.from_numpy(spec.normalize(pixels)), [1, 2, 3])
        places.add(entries, 2, 1)
    assert count == 20
    assert np.array_equal(torch.stack(list(places.ranks().values())).numpy(), expected)


def test_controls_choose_by_their_rule(four_blocks, images):
    places = {block: torch.randperm(25, generator=torch.Generator().manual_seed(block)) for block in (1, 2, 3)}
    query = torch.randn(32, generator=torch.Generator().manual_seed(9))
    learned = Learned({"mine": {1: query, 2: query, 3: -query}}, places)
    marked = torch.zeros(3, 25, dtype=torch.bool)
    marked[:, [7, 8]] = True
    found = candidates(learned, (5, 5), [4, 5, 6], marked)
    without = candidates(learned, (5, 5), [4, 5, 6], None)
    assert [c.name for c in found] == [c.name for c in without] + [ORACLE]
    names = [c.name for c in found if c.kind == "control"]
    assert names == [RANDOM] * 3 + [LEAST, STATIC, CENTRE, ORACLE]
    assert {c.name for c in found} - {"mine"} <= NOTES.keys()
    setting = Setting((1, 2, 3), TokenBudget((18, 12, 6), 25))
    with torch.no_grad():
        entries, _ = full_pass(four_blocks, images, [1])
        kept = [pruned_pass(four_blocks, entries[1], setting, candidate)[1] for candidate in found]
    by_name = dict(zip([c.name for c in found], kept))
    draws = [k for c, k in zip(found, kept) if c.name == RANDOM]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(draws))
    assert not torch.equal(draws[0][0], draws[0][1])
    assert all({7, 8} <= set(row) for row in by_name[ORACLE].tolist())
    assert torch.equal(by_name[CENTRE][0], by_name[CENTRE][2]) and 12 in by_name[CENTRE][0]
    first = places[1].topk(18).indices
    second = first[places[2][first].topk(12).indices]
    third = second[places[3][second].topk(6).indices].sort().values
    assert torch.equal(by_name[STATIC], third.expand(3, -1))
    assert not torch.equal(by_name[LEAST], by_name["column-mean"])
