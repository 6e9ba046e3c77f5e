from __future__ import annotations

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.budget import TokenBudget
from gft_edge.runtime.maps import importance_maps, kept_masks, stage_positions

sizes = st.integers(1, 6)
seeds = st.integers(0, 2**32 - 1)


def _positions(rng, batch, cells, k):
    return np.stack([np.sort(rng.choice(cells, k, replace=False)) for _ in range(batch)])


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
