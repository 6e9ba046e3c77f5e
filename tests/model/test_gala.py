from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.model import gala


def _randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _slow_standardized(m, kernel):
    """Steps 2 to 5 image by image: (B, N, H) and (3,) to (B, N)."""
    rows = []
    for image in m:
        g = np.abs(np.gradient(image, axis=0)).mean(axis=1)
        padded = np.concatenate(([0.0], g, [0.0]))
        s = np.array([sum(kernel[j] * padded[i + j] for j in range(3)) for i in range(len(g))])
        rows.append((s - s.mean()) / (s.std(ddof=1) + 1e-6))
    return np.array(rows)


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 4), st.integers(1, 6), st.integers(0, 99))
def test_mean_scores_are_the_mean_of_the_attention_matrix(batch, num_patches, heads, head_dim, seed):
    width = heads * head_dim
    x = _randn(batch, num_patches, width, seed=seed)
    q_weight, k_weight = _randn(2, width, width, seed=seed + 100)
    k_bias = _randn(width, seed=seed + 200)
    for bias in (None, k_bias):
        keys = x @ k_weight.T + (0 if bias is None else bias)
        q, k = (t.reshape(batch, num_patches, heads, head_dim).transpose(1, 2) for t in (x @ q_weight.T, keys))
        matrix = q @ k.transpose(2, 3) / head_dim**0.5
        result = gala.mean_scores(x, q_weight, k_weight, heads, bias)
        torch.testing.assert_close(result, matrix.mean(dim=3).transpose(1, 2), rtol=0, atol=1e-10)


@given(st.integers(2, 40), st.integers(0, 99))
def test_bias_of_the_queries_is_removed_by_the_gradient(num_patches, seed):
    x, bias = _randn(2, num_patches, 12, seed=seed), _randn(12, seed=seed + 1)
    q_weight, k_weight = _randn(2, 12, 12, seed=seed + 2)
    means = []
    for q in (x @ q_weight.T, x @ q_weight.T + bias):
        q, k = (t.reshape(2, num_patches, 3, 4).transpose(1, 2) for t in (q, x @ k_weight.T))
        means.append((q @ k.transpose(2, 3)).mean(dim=3).transpose(1, 2))
    torch.testing.assert_close(*(gala.spatial_gradient(m) for m in means), rtol=1e-10, atol=1e-10)


@given(st.integers(1, 3), st.integers(2, 40), st.integers(1, 4), st.integers(0, 99))
def test_spatial_gradient_is_torch_gradient(batch, num_patches, heads, seed):
    m = _randn(batch, num_patches, heads, seed=seed)
    (expected,) = torch.gradient(m, dim=1)
    torch.testing.assert_close(gala.spatial_gradient(m), expected, rtol=0, atol=1e-14)


@given(st.integers(1, 3), st.integers(2, 40), st.integers(1, 4), st.integers(0, 99))
def test_standardized_scores_are_the_slow_form(batch, num_patches, heads, seed):
    m, kernel = _randn(batch, num_patches, heads, seed=seed), _randn(3, seed=seed + 100)
    result = gala.standardized_scores(m, kernel.reshape(1, 1, 3))
    # With two patches the standard deviation may be as small as the difference of two equal sums.
    np.testing.assert_allclose(result, _slow_standardized(m.numpy(), kernel.numpy()), atol=1e-8)


def test_scores_are_standardized_per_image():
    scores = gala.standardized_scores(
        _randn(3, 50, 4) * torch.tensor([1e-3, 1, 1e3]).reshape(3, 1, 1), torch.ones(1, 1, 3).double()
    )
    torch.testing.assert_close(scores.mean(dim=1), torch.zeros(3).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(scores.std(dim=1), torch.ones(3).double(), rtol=0, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mean_scores_of_half_precision_are_computed_in_float32(dtype):
    x, (q_weight, k_weight) = _randn(2, 30, 12).to(dtype), _randn(2, 12, 12).to(dtype)
    result = gala.mean_scores(x, q_weight, k_weight, 3)
    assert result.dtype == torch.float32
    exact = gala.mean_scores(x.double(), q_weight.double(), k_weight.double(), 3)
    torch.testing.assert_close(result.double(), exact, rtol=1e-4, atol=1e-4)


def test_constant_images_have_finite_scores_and_gradients():
    m = torch.ones(2, 20, 4, requires_grad=True)
    kernel = torch.tensor([[[0.0, 1.0, 0.0]]], requires_grad=True)
    scores = gala.standardized_scores(m, kernel)
    scores.square().sum().backward()
    assert torch.equal(scores, torch.zeros(2, 20))
    assert torch.isfinite(m.grad).all()
    assert torch.isfinite(kernel.grad).all()


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_importance_is_a_distribution_at_temperature_a_tenth(size):
    scores = _randn(3, 30) * size
    result = gala.importance(scores)
    torch.testing.assert_close(result.sum(dim=1), torch.ones(3).double())
    assert (result >= 0).all()
    shifted = np.exp((scores - scores.max(dim=1, keepdim=True).values).numpy() * 10)
    np.testing.assert_allclose(result, shifted / shifted.sum(axis=1, keepdims=True), atol=1e-12)
