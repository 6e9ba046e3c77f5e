from __future__ import annotations

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.budget import TokenBudget
from gft_edge.runtime.maps import importance_maps, kept_masks, scatter, stage_positions

sizes = st.integers(1, 6)
seeds = st.integers(0, 2**32 - 1)


def _positions(rng, batch, cells, k):
    return np.stack([np.sort(rng.choice(cells, k, replace=False)) for _ in range(batch)])


@given(sizes, sizes, st.integers(0, 4), st.data(), seeds, st.sampled_from([np.int32, np.int64]))
def test_scatter_puts_each_value_at_its_position(rows, cols, batch, data, seed, dtype):
    k = data.draw(st.integers(1, rows * cols))
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((batch, k), dtype=np.float32)
    positions = np.empty((0, k)) if batch == 0 else _positions(rng, batch, rows * cols, k)
    expected = np.zeros((batch, rows, cols), np.float32)
    for image in range(batch):
        for value, position in zip(values[image], positions[image]):
            expected[image, int(position) // cols, int(position) % cols] = value
    found = scatter(values, positions.astype(dtype), (rows, cols))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@given(sizes, sizes, st.data(), seeds)
def test_kept_masks_are_true_exactly_where_patches_are_kept(rows, cols, data, seed):
    counts = data.draw(st.lists(st.integers(1, rows * cols), min_size=1, max_size=3))
    rng = np.random.default_rng(seed)
    kept = [_positions(rng, 2, rows * cols, k).astype(np.int32) for k in counts]
    masks = kept_masks(kept, (rows, cols))
    assert len(masks) == len(kept)
    for mask, positions in zip(masks, kept):
        assert mask.dtype == bool
        for image in range(2):
            found = {(int(r), int(c)) for r, c in np.argwhere(mask[image])}
            assert found == {(int(p) // cols, int(p) % cols) for p in positions[image]}


@pytest.fixture(scope="module")
def manifest():
    model = types.SimpleNamespace(num_patches=12, grid=(3, 4))
    return types.SimpleNamespace(maps="compact", model=model, budget=TokenBudget((8, 5, 2), 12))


@given(seeds, st.integers(1, 3))
def test_importance_maps_follow_what_earlier_stages_kept(manifest, seed, batch):
    rng = np.random.default_rng(seed)
    outputs = {"logits": np.zeros((batch, 2), np.float32)}
    positions = np.broadcast_to(np.arange(12), (batch, 12))
    expected = []
    for stage, keep in enumerate(manifest.budget.keep):
        importance = rng.random(positions.shape, dtype=np.float32)
        grid = np.zeros((batch, 3, 4), np.float32)
        for image in range(batch):
            for value, position in zip(importance[image], positions[image]):
                grid[image, position // 4, position % 4] = value
        expected.append(grid)
        chosen = _positions(rng, batch, positions.shape[1], keep)
        positions = np.take_along_axis(positions, chosen, axis=1)
        outputs |= {f"importance_{stage}": importance, f"kept_{stage}": positions.astype(np.int32)}
    found = importance_maps(outputs, manifest)
    assert [m.shape for m in found] == [(batch, 3, 4)] * 3
    for a, b in zip(found, expected):
        np.testing.assert_array_equal(a, b)
    entering = stage_positions(outputs, manifest)
    assert [p.shape for p in entering] == [(batch, n) for n in manifest.budget.stage_inputs]
    np.testing.assert_array_equal(entering[2], outputs["kept_1"])


def test_grid_is_rows_by_columns():
    found = scatter(np.array([[5.0]]), np.array([[4]]), (2, 3))
    assert found.tolist() == [[[0, 0, 0], [0, 5, 0]]]


def test_position_outside_the_grid_is_refused():
    with pytest.raises(IndexError):
        scatter(np.ones((1, 1), np.float32), np.array([[6]]), (2, 3))
