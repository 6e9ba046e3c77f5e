"""Rules that choose patches follow the places of the original grid through every stage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gft_edge.budget import TokenBudget
from gft_edge.model import places
from gft_edge.model.choices import Following, ranked


@pytest.fixture(scope="module")
def images():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def run(model, images, rank, keep=(12, 6)):
    """Kept places of every stage, and those that the choice believes to be left."""
    choice = Following(rank)
    with torch.no_grad():
        out = model(images, TokenBudget(keep, 16), maps=True, choose=choice)
    return [stage.kept for stage in out.stages], choice.positions


@pytest.mark.parametrize("keep", [(12, 6), (16, 6), (6, 6)])
def test_positions_are_those_that_the_model_traces(tiny_model, images, keep):
    for rank in (ranked(1), ranked(-1), ranked(0, places.centre_first((4, 4))[None, None])):
        kept, positions = run(tiny_model, images, rank, keep)
        assert torch.equal(kept[-1], positions)


def test_own_and_least_important_are_those_of_the_model(tiny_model, images):
    with torch.no_grad():
        expected = tiny_model(images, TokenBudget((12, 6), 16), maps=True)
    kept, _ = run(tiny_model, images, ranked(1))
    assert all(torch.equal(a, b.kept) for a, b in zip(kept, expected.stages))
    first = run(tiny_model, images, ranked(-1))[0][0]
    scores = expected.stages[0].scores
    for row in range(len(images)):
        dropped = sorted(set(range(16)) - set(first[row].tolist()))
        assert scores[row, dropped].min() >= scores[row, first[row]].max()


def test_random_places_depend_on_the_seed_and_the_image_and_not_on_the_batch(tiny_model, images):
    def kept(rows, seed=0):
        rank = ranked(0, places.random_places(rows, 16, seed)[:, None])
        return run(tiny_model, images[rows], rank)[0]

    together = kept([0, 1, 2, 3, 4])
    apart = [torch.cat(parts) for parts in zip(kept([0, 1]), kept([2]), kept([3, 4]))]
    assert all(torch.equal(a, b) for a, b in zip(together, apart))
    assert not torch.equal(together[1], kept([0, 1, 2, 3, 4], seed=1)[1])
    assert len({tuple(row) for row in together[1].tolist()}) > 1
    for before, after in zip(*(stage.tolist() for stage in together)):
        assert set(after) < set(before)


def test_random_places_are_equally_frequent():
    values = torch.from_numpy(places.random_places(range(4000), 16, 7))
    counts = torch.zeros(16).index_add_(0, values.topk(4, dim=1).indices.flatten(), torch.ones(16000))
    assert (counts / 4000 - 0.25).abs().max() < 0.03  # 4.4 standard deviations


def test_each_selection_has_its_own_static_places(tiny_model, images):
    values = np.stack([np.arange(16), -np.arange(16)])[None]
    kept, _ = run(tiny_model, images, ranked(0, values))
    assert kept[0].tolist() == [list(range(4, 16))] * 5
    assert kept[1].tolist() == [list(range(4, 10))] * 5


def test_the_centre_goes_first():
    values = torch.from_numpy(places.centre_first((4, 4)))
    assert sorted(values.topk(4).indices.tolist()) == [5, 6, 9, 10]
    assert sorted(values.topk(12).indices.tolist()) == sorted(set(range(16)) - {0, 3, 12, 15})
    assert sorted(values.tolist()) == list(range(16))


def test_marks_go_first_and_scores_rank_the_rest(tiny_model, images):
    marked = np.zeros((5, 16), bool)
    for row in range(5):
        marked[row, [row, 15 - row]] = True
    kept, _ = run(tiny_model, images, ranked(1, places.marked_first(marked)[:, None]))
    own = run(tiny_model, images, ranked(1))[0]
    for row in range(5):
        assert {row, 15 - row} <= set(kept[1][row].tolist())
        expected = set(own[0][row].tolist())
        assert len(expected - set(kept[0][row].tolist())) <= 2
    few, _ = run(tiny_model, images, ranked(1, places.marked_first(np.ones((5, 16), bool))[:, None]))
    assert all(torch.equal(a, b) for a, b in zip(few, own))


def test_ranks_are_distinct_and_the_first_of_equals_is_higher():
    assert places.distinct(np.array([[1.0, 3.0, 1.0, 2.0]])).tolist() == [[1, 3, 0, 2]]
    noise = np.random.default_rng(0).standard_normal((3, 50))
    assert np.array_equal(places.distinct(noise).argsort(axis=1), noise.argsort(axis=1))


def test_of_equal_scores_the_first_is_higher():
    """As TopK of ONNX takes them, so that an exported graph keeps the same patches."""
    rank = ranked(1, np.zeros((1, 1, 4), np.int64))
    scores, positions = torch.tensor([[2.0, 3.0, 2.0, 2.0]]), torch.arange(4).unsqueeze(0)
    assert rank(scores, positions, 0).tolist() == [[-1, 0, -2, -3]]
