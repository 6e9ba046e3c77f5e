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
from gft_edge.distill.losses import standardised
from gft_edge.model.choices import Following, most_important
from gft_edge.preprocess import PreprocessSpec

HEADS, D, GRID, PREFIX = 2, 5, (4, 5), 1
PLACES = np.array([[0, 1, 2, 4, 5, 7, 8, 11, 13, 14, 16, 19], [0, 2, 3, 4, 6, 7, 9, 10, 12, 15, 17, 18]])
"""Patches that are still there: some have no neighbour in a line, some one, some two."""


@pytest.fixture(scope="module")
def block():
    """Tokens of two images with 12 patches left of 20, float64."""
    generator = torch.Generator().manual_seed(3)
    z, q, k, v = (torch.randn(2, PREFIX + 12, HEADS * D, generator=generator, dtype=torch.float64) for _ in range(4))
    depths = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    return (z, q, k, v), State(3, 1, GRID, torch.from_numpy(PLACES), depths)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def spread(x):
    return (x - x.mean()) / x.std()


def gala_2d(column, places):
    """Place by place, with the neighbours that are there."""
    rows, cols = GRID
    edges = {}
    for place in places:
        row, col = divmod(place, cols)
        total = 0.0
        for head in column:
            value = dict(zip(places, head))
            slopes = []
            for step, at in ((cols, row), (1, col)):
                size = rows if step == cols else cols
                ahead = place + step if at + 1 < size and place + step in value else None
                behind = place - step if at > 0 and place - step in value else None
                if ahead is not None and behind is not None:
                    slopes.append((value[ahead] - value[behind]) / 2)
                elif ahead is not None:
                    slopes.append(value[ahead] - value[place])
                elif behind is not None:
                    slopes.append(value[place] - value[behind])
                else:
                    slopes.append(0.0)
            total += np.hypot(*slopes) / HEADS
        edges[place] = total

    def near(place):
        row, col = divmod(place, cols)
        around = [(row + i) * cols + col + j for i in (-1, 0, 1) for j in (-1, 0, 1) if 0 <= col + j < cols]
        return [edges[other] for other in around if other in edges]

    return np.array([np.mean(near(place)) for place in places])


def slow(name, q, k, v, state, image):
    """The scores of one image by head-wise whole matrices; None if the shape of the score is tested elsewhere."""
    heads = [tuple(t[image].numpy()[:, h * D : (h + 1) * D] for t in (q, k, v)) for h in range(HEADS)]
    whole = [a @ b.T / np.sqrt(D) for a, b, _ in heads]
    inner = [m[PREFIX:, PREFIX:] for m in whole]
    to_all = [m[PREFIX:].mean(axis=0) for m in whole]
    norms = [np.linalg.norm(c, axis=1) for _, _, c in heads]
    column = np.array([m.mean(axis=0) for m in inner])
    if name in ("column-mean", "column-mean, fused"):
        return column.mean(axis=0)
    if name == "row-mean":
        return np.mean([m.mean(axis=1) for m in inner], axis=0)
    if name == "class-row":
        return np.mean([softmax(m)[0] for m in whole], axis=0)[PREFIX:]
    if name == "softmax-column":
        return np.mean([softmax(row) for row in to_all], axis=0)[PREFIX:]
    if name == "softmax-received":
        return np.mean([softmax(m)[PREFIX:].mean(axis=0) for m in whole], axis=0)[PREFIX:]
    if name == "column x value":
        return np.mean([softmax(row) * n for row, n in zip(to_all, norms)], axis=0)[PREFIX:]
    if name == "class x value":
        return np.mean([softmax(m)[0] * n for m, n in zip(whole, norms)], axis=0)[PREFIX:]
    if name == "column-gala-2d":
        return gala_2d(column, PLACES[image])
    if name == "several depths":
        return (state.depths[image].numpy() + spread(column.mean(axis=0))) / 3
    gradient = {"column-gala": column, "row-gala": np.array([m.mean(axis=1) for m in inner])}[name]
    g = np.pad(np.mean([np.abs(np.gradient(row)) for row in gradient], axis=0), 1)
    return g[:-2] + g[1:-1] + g[2:]


@pytest.mark.parametrize("candidate", STUDIED, ids=lambda candidate: candidate.name)
def test_score_is_that_of_the_whole_matrix(candidate, block):
    (z, q, k, v), state = block
    found = candidate.score(z, q, k, v, HEADS, PREFIX, state)
    assert found.shape == (2, 12) and found.dtype == torch.float64
    for image in range(2):
        expected, own = slow(candidate.name, q, k, v, state, image), found[image].numpy()
        if candidate.name.startswith(("column-mean", "column-gala", "row")):  # constant factors are left out
            expected, own = expected / np.abs(expected).max(), own / np.abs(own).max()
        assert np.abs(own - expected).max() < 1e-12
        assert np.unique(expected).size > 8  # patches without neighbours may tie


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
    setting, choice = Setting(stages, model.config.budget), Following(most_important)
    candidate = next(candidate for candidate in STUDIED if candidate.name == score)
    with torch.no_grad():
        entries, full = full_pass(four_blocks, images, [stages[0]])
        tokens, positions = pruned_pass(four_blocks, entries[stages[0]], setting, candidate)
        assert torch.allclose(model.head(full), model(images, model.config.full_budget), atol=1e-5)
        assert torch.equal(model.head(tokens), model(images, choose=choice))
    assert torch.equal(positions, choice.positions)


@pytest.mark.parametrize("blocks", [[1], [2, 3]])
def test_depths_are_the_sum_over_the_blocks_before(blocks, four_blocks, images):
    with torch.no_grad():
        entries, _ = full_pass(four_blocks, images, blocks)
        stages = rebuilt(four_blocks, stages=(1, 2, 3, 4), budget=TokenBudget((25,) * 4, 25))(images, maps=True).stages
    for number, entry in entries.items():
        expected = sum((standardised(stage.scores) for stage in stages[: number - 1]), torch.zeros(3, 25))
        assert torch.allclose(entry.depths, expected, atol=1e-5)


def test_depths_follow_the_patches_that_stay(four_blocks, images):
    seen = []

    def spy(z, q, k, v, heads, prefix, state):
        seen.append((state, standardised(table.column_mean(z, q, k, v, heads, prefix, state))))
        return seen[-1][1]

    setting = Setting((1, 3), TokenBudget((12, 6), 25))
    with torch.no_grad():
        entries, _ = full_pass(four_blocks, images, [1])
        pruned_pass(four_blocks, entries[1], setting, Candidate("spy", spy, reads_depths=True))
    (first, means), (second, _) = seen
    assert (first.block, first.number, second.block, second.number) == (1, 0, 3, 1)
    assert torch.equal(first.depths, torch.zeros(3, 25))
    assert torch.equal(second.positions, second.positions.sort(dim=1).values)
    between = second.depths - means.gather(1, second.positions)  # of block 2 alone
    assert torch.allclose(between.mean(dim=1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(between.square().mean(dim=1), torch.ones(3), atol=1e-4)


def test_fused_token_is_the_mean_of_what_is_dropped(four_blocks, images):
    """By hand for one selection in block 2: attention of the mean query to the dropped, and one more row."""
    setting = Setting((2,), TokenBudget((6,), 25))
    candidate = next(candidate for candidate in STUDIED if candidate.fuses)
    with torch.no_grad():
        entries, _ = full_pass(four_blocks, images, [2])
        found, positions = pruned_pass(four_blocks, entries[2], setting, candidate)
        for image in range(3):
            x = entries[2].x[image]
            _, q, k, v = (t[image] for t in entries[2].projected)
            kept = positions[image] + 1
            dropped = torch.tensor([i for i in range(1, 26) if i not in kept])
            share = torch.zeros(26)
            for h in range(2):
                part = slice(16 * h, 16 * h + 16)
                share += (k[:, part] @ q[1:, part].mean(dim=0) / 4).softmax(dim=0) / 2
            weights = share[dropped] / share[dropped].sum()
            rows = [torch.cat((t[:1], (weights @ t[dropped])[None], t[kept])) for t in (x, q)]
            block = four_blocks.blocks[1]
            y = rows[0] + block.attn.proj(block.attn.attend(rows[1][None], k[None], v[None]))[0]
            y = (y + block.mlp(block.norm2(y)))[None]
            for later in four_blocks.blocks[2:]:
                y = later(y)
            assert torch.allclose(found[image], four_blocks.norm(y)[0, 0], atol=1e-4)


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
    assert torch.equal(torch.stack(list(places.ranks().values())), expected)


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
