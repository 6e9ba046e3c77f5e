from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.stats.grid import mask_of, scatter

sizes = st.integers(1, 6)
seeds = st.integers(0, 2**32 - 1)


def _positions(rng, batch, cells, k):
    if not batch:
        return np.empty((0, k), int)
    return np.stack([rng.choice(cells, k, replace=False) for _ in range(batch)])


@given(sizes, sizes, st.integers(0, 4), st.data(), seeds, st.sampled_from([np.int32, np.int64]))
def test_scatter_puts_each_value_at_its_position(rows, cols, batch, data, seed, dtype):
    k = data.draw(st.integers(1, rows * cols))
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((batch, k), dtype=np.float32)
    positions = _positions(rng, batch, rows * cols, k)
    expected = np.zeros((batch, rows, cols), np.float32)
    for image in range(batch):
        for value, position in zip(values[image], positions[image]):
            expected[image, int(position) // cols, int(position) % cols] = value
    found = scatter(values, positions.astype(dtype), (rows, cols))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@given(sizes, sizes, st.integers(0, 4), st.data(), seeds, st.sampled_from([np.float32, np.float64, np.bool_, np.int32]))
def test_scatter_is_the_inverse_of_gathering_kept_values(rows, cols, batch, data, seed, dtype):
    """Gather, then scatter: the grid at kept positions, zeros elsewhere. Scatter, then gather: the values."""
    k = data.draw(st.integers(1, rows * cols))
    rng = np.random.default_rng(seed)
    positions = _positions(rng, batch, rows * cols, k)
    grid = (rng.standard_normal((batch, rows * cols)) * 9).astype(dtype)
    values = np.take_along_axis(grid, positions, axis=1)
    found = scatter(values, positions, (rows, cols))
    assert (found.shape, found.dtype) == ((batch, rows, cols), np.dtype(dtype))
    kept = mask_of(positions, (rows, cols))
    np.testing.assert_array_equal(found, np.where(kept, grid.reshape(found.shape), np.zeros((), dtype)))
    assert (kept.reshape(batch, rows * cols).sum(axis=1) == k).all()
    np.testing.assert_array_equal(np.take_along_axis(found.reshape(batch, rows * cols), positions, axis=1), values)


def test_grid_is_rows_by_columns():
    found = scatter(np.array([[5.0]]), np.array([[4]]), (2, 3))
    assert found.tolist() == [[[0, 0, 0], [0, 5, 0]]]


def test_position_outside_the_grid_is_refused():
    with pytest.raises(IndexError):
        scatter(np.ones((1, 1), np.float32), np.array([[6]]), (2, 3))
