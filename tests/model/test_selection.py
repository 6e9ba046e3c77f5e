from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.model.selection import gather_all, gather_tokens, select_patches, select_unordered, token_indices


@st.composite
def scores_and_k(draw):
    batch, num_patches = draw(st.integers(1, 4)), draw(st.integers(2, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    return torch.randn(batch, num_patches, generator=generator), draw(st.integers(1, num_patches))


@given(scores_and_k())
def test_the_k_highest_scores_are_kept_in_raster_order(case):
    scores, k = case
    kept = select_patches(scores, k)
    assert kept.dtype == torch.int64
    for row, indices in zip(scores.tolist(), kept.tolist()):
        ranked = sorted(range(len(row)), key=lambda i: -row[i])
        assert indices == sorted(ranked[:k])


@given(scores_and_k())
def test_without_order_the_same_patches_are_kept(case):
    scores, k = case
    kept = select_unordered(scores, k)
    assert kept.dtype == torch.int64
    assert torch.equal(kept.sort(dim=1).values, select_patches(scores, k))


@given(scores_and_k())
def test_gathered_tokens_are_the_rows_at_the_indices(case):
    scores, k = case
    kept = select_patches(scores, k)
    x = torch.arange(scores.numel() * 3).reshape(*scores.shape, 3)
    expected = torch.stack([image[indices] for image, indices in zip(x, kept)])
    assert torch.equal(gather_tokens(x, kept), expected)


@given(scores_and_k(), st.integers(1, 6))
def test_token_indices_begin_with_every_prefix_token(case, prefix):
    kept = select_unordered(*case)
    rows = token_indices(kept, prefix)
    assert rows.dtype == torch.int64
    assert [row[:prefix] for row in rows.tolist()] == [list(range(prefix))] * len(kept)
    assert [[r - prefix for r in row[prefix:]] for row in rows.tolist()] == kept.tolist()


class OnGPU(torch.Tensor):
    """A tensor that says it is on a GPU, so that a CPU runs what a GPU runs."""

    is_cuda = True


@given(scores_and_k())
def test_rows_copied_on_a_gpu_are_the_gathered_ones(case):
    scores, k = case
    kept = select_unordered(scores, k)
    tensors = [torch.randn(*scores.shape, width) for width in (3, 5)]
    copied = gather_all(tensors, kept.as_subclass(OnGPU))
    for x, found, gathered in zip(tensors, copied, gather_all(tensors, kept), strict=True):
        expected = torch.stack([image[indices] for image, indices in zip(x, kept)])
        assert torch.equal(found.as_subclass(torch.Tensor), expected)
        assert torch.equal(gathered, expected)
