"""Each score against the whole attention matrix in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.config import model as configuration
from gft_edge.model.scores import SCORES

LEARNED = ("column-mean", "column-gala", "row-gala", "class-row")


@st.composite
def projections(draw):
    """Normalised tokens (B, T, C), a joint projection with a bias, heads, and the number of tokens before the patches."""
    heads, head_dim = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    patches, prefix = draw(st.integers(2, 30)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    width = heads * head_dim
    z, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((draw(st.integers(1, 3)), prefix + patches, width), (3 * width, width), (3 * width,))
    )
    return z, weight, bias, heads, prefix


def factor_of(name: str, heads: int, width: int) -> float:
    """What a score leaves out, since it is the same for all patches: scale and mean over heads, or a sum over three."""
    if name == "column-mean":
        return heads * (width / heads) ** 0.5
    return 1.0 if name == "class-row" else 1 / 3


def expected(slow, q, k, heads, prefix):
    rows = []
    for image in range(len(q)):
        parts = (np.split(tokens[image].numpy(), heads, axis=1) for tokens in (q, k))
        rows.append(slow(list(zip(*parts)), prefix))
    return torch.from_numpy(np.array(rows))


def queries_and_keys(z, weight, bias):
    q, k, _ = F.linear(z, weight, bias).chunk(3, dim=2)
    return q, k


@pytest.mark.parametrize("name", LEARNED)
@given(case=projections())
def test_score_is_that_of_the_attention_matrix(slow_scores, name, case):
    z, weight, bias, heads, prefix = case
    q, k = queries_and_keys(z, weight, bias)
    found = SCORES[name](q, k, heads, prefix)
    slow = expected(slow_scores[name], q, k, heads, prefix) * factor_of(name, heads, z.shape[2])
    torch.testing.assert_close(found, slow, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("name", LEARNED)
@given(case=projections())
def test_score_through_the_weights_is_that_of_the_attention_matrix(slow_scores, name, has_bias, case):
    z, weight, bias, heads, prefix = case
    bias = bias if has_bias else None
    found = SCORES[name].folded(z, weight, bias, heads, prefix)
    q, k = queries_and_keys(z, weight, bias)
    slow = expected(slow_scores[name], q, k, heads, prefix) * factor_of(name, heads, z.shape[2])
    if name == "column-mean":  # the keys' bias adds the same to all patches
        found, slow = (scores - scores.mean(dim=1, keepdim=True) for scores in (found, slow))
    torch.testing.assert_close(found, slow, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("has_bias", [True, False])
@given(case=projections())
def test_score_by_one_matrix_is_that_of_the_attention_matrix(slow_scores, has_bias, case):
    z, weight, bias, heads, prefix = case
    score, bias = SCORES["column-mean"], bias if has_bias else None
    found = score.by_matrix(z, *score.matrix(weight, bias), prefix)
    slow = expected(slow_scores["column-mean"], *queries_and_keys(z, weight, bias), heads, prefix)
    slow *= factor_of("column-mean", heads, z.shape[2])
    found, slow = (scores - scores.mean(dim=1, keepdim=True) for scores in (found, slow))  # without the keys' bias
    torch.testing.assert_close(found, slow, rtol=1e-10, atol=1e-10)


def test_matrix_of_half_precision_weights_is_not_computed_in_half_precision():
    weight, bias = torch.randn(24, 8).half(), torch.randn(24).half()
    matrix, offset = SCORES["column-mean"].matrix(weight, bias)
    assert torch.equal(matrix, weight[8:16].double().T @ weight[:8].double())
    assert torch.equal(offset, weight[8:16].double().T @ bias[:8].double())


@pytest.mark.parametrize("name", [name for name in SCORES if SCORES[name].by_head])
def test_scores_that_read_the_heads_apart_have_no_single_matrix(name):
    with pytest.raises(ValueError, match="no single matrix"):
        SCORES[name].matrix(torch.randn(24, 8), None)


def _noise(found, exact):
    """Largest change of a difference of two scores of an image, as a share of their standard deviation."""
    error = found.double() - exact
    return float(((error.amax(dim=1) - error.amin(dim=1)) / exact.std(dim=1)).max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LEARNED)
def test_scores_of_half_precision_tokens_are_not_rounded_to_it(name, dtype):
    """Tokens lie far from zero, so that the scores do too: in half precision most of them would be equal."""
    generator = torch.Generator().manual_seed(0)
    z = (torch.randn(2, 197, 48, generator=generator) + 4).to(dtype)
    weight = (torch.randn(144, 48, generator=generator) / 48**0.5).to(dtype)
    bias = torch.randn(144, generator=generator).to(dtype)
    score, least = SCORES[name], torch.finfo(dtype).eps
    q, k = queries_and_keys(z, weight, bias)
    found, exact = score(q, k, 4, 1), score(q.double(), k.double(), 4, 1)
    assert found.dtype is torch.float32
    assert _noise(found, exact) < 3 * least
    exact = score.folded(z.double(), weight.double(), bias.double(), 4, 1)
    assert _noise(score.folded(z, weight, bias, 4, 1), exact) < (12 if name == "class-row" else 4.5) * least
    if not score.by_head:
        matrix, offset = (constant.to(dtype) for constant in score.matrix(weight, bias))
        assert _noise(score.by_matrix(z, matrix, offset, 1), exact) < 3 * least


def test_scores_under_autocast_stay_in_half_precision():
    """It would turn the operands back, and a training would launch the casts for nothing."""
    q, k = torch.randn(2, 2, 9, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert SCORES["column-gala"](q, k, 2, 1).dtype is torch.bfloat16


def test_folded_float32_scores_of_half_precision_weights():
    """Scores of tokens in float32 are not computed in the weights' half precision."""
    z, weight = torch.randn(2, 9, 8), torch.randn(24, 8).half()
    for name in LEARNED:
        assert SCORES[name].folded(z, weight, None, 2, 1).dtype == torch.float32


@given(case=projections())
def test_vector_added_to_every_key_changes_neither_attention_nor_columns_but_rows(case):
    z, weight, bias, heads, prefix = case
    q, k = queries_and_keys(z, weight, bias)
    shifted = k + 5 * torch.randn(k.shape[2], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    split = [t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, shifted)]
    attention, moved = ((split[0] @ keys.transpose(2, 3) / split[0].shape[3] ** 0.5).softmax(3) for keys in split[1:])
    torch.testing.assert_close(attention, moved, rtol=0, atol=1e-10)
    for name in ("column-gala", "class-row"):
        torch.testing.assert_close(
            *(SCORES[name](q, keys, heads, prefix) for keys in (k, shifted)), rtol=1e-9, atol=1e-9
        )
    before, after = (SCORES["column-mean"](q, keys, heads, prefix) for keys in (k, shifted))
    difference = after - before
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), rtol=1e-9, atol=1e-9)
    rows, *others = (SCORES["row-gala"](q, keys, heads, prefix) for keys in (k, shifted, 2 * shifted - k))
    assert not all(
        torch.allclose(rows, other, rtol=1e-3) for other in others
    )  # with one channel one shift may only flip signs


def test_vector_added_to_every_key_changes_the_ranking_of_rows_alone():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 50, 24, dtype=torch.float64, generator=generator) for _ in range(2))
    shifted = k + torch.randn(24, dtype=torch.float64, generator=generator)
    for name in LEARNED:
        orders = [SCORES[name](q, keys, 3, 1).argsort(dim=1) for keys in (k, shifted)]
        assert torch.equal(*orders) == (name != "row-gala"), name


def test_tokens_before_the_patches_do_not_count_unless_the_score_reads_them():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 20, 12, dtype=torch.float64, generator=generator) for _ in range(2))
    others = [
        torch.cat((torch.randn(2, 5, 12, dtype=torch.float64, generator=generator), t[:, 5:]), dim=1) for t in (q, k)
    ]
    for name in SCORES:
        same = torch.equal(SCORES[name](q, k, 3, 5), SCORES[name](*others, 3, 5))
        assert same == (name != "class-row"), name


@pytest.mark.parametrize("patches", [16, 144, 196, 784, 3136])
def test_random_is_one_order_of_distinct_values_for_every_image(patches):
    q = torch.randn(3, patches + 1, 8)
    scores = SCORES["random"](q, q, 2, 1)
    assert scores.shape == (3, patches)
    assert scores.dtype == torch.float32
    assert len(scores[0].unique()) == patches
    assert torch.equal(scores, scores[:1].expand(3, -1))
    other = torch.randn(1, patches + 5, 8, dtype=torch.float64)
    assert torch.equal(SCORES["random"](other, other, 4, 5), scores[:1]), "of the position alone"
    assert torch.equal(SCORES["random"].folded(other, torch.randn(24, 8), None, 4, 5), scores[:1])


def test_random_spreads_over_the_grid():
    """Kept patches fill rows, columns and quarters of the grid as draws without replacement do."""
    q = torch.zeros(1, 28 * 28 + 1, 4)
    scores = SCORES["random"](q, q, 1, 1)[0]
    places = torch.arange(784, dtype=torch.float32)
    assert abs(torch.corrcoef(torch.stack((places, scores)))[0, 1]) < 3 / 784**0.5
    assert abs(torch.corrcoef(torch.stack((scores[1:], scores[:-1])))[0, 1]) < 3 / 784**0.5
    mask = torch.zeros(784)
    mask[scores.topk(196).indices] = 1
    grid = mask.reshape(28, 28)
    quarters = grid.unflatten(0, (2, 14)).unflatten(2, (2, 14)).sum(dim=(1, 3))
    assert ((quarters > 30) & (quarters < 68)).all(), quarters  # 49 each; five standard deviations are 26
    for lines in (grid.sum(dim=0), grid.sum(dim=1)):
        assert lines.min() >= 0
        assert lines.max() <= 16, lines  # 7 each


@given(st.integers(2, 300), st.integers(1, 5), st.integers(0, 99))
def test_scores_that_do_not_read_neighbours_follow_a_permutation(patches, prefix, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, prefix + patches, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    order = torch.cat((torch.arange(prefix), prefix + torch.randperm(patches, generator=generator)))
    for name in ("column-mean", "class-row"):
        score = SCORES[name]
        assert not score.reads_neighbours
        moved = score(q, k, 2, prefix)[:, order[prefix:] - prefix]
        torch.testing.assert_close(score(q[:, order], k[:, order], 2, prefix), moved, rtol=1e-9, atol=1e-9)
    assert all(SCORES[name].reads_neighbours for name in ("column-gala", "row-gala"))


def test_names_and_default():
    assert tuple(SCORES) == configuration.SCORES
    assert configuration.SCORES[0] == configuration.preset("gft_base").score == "column-mean"
