from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.errors import DataError
from gft_edge.runtime.backends.batching import run_in_batches


@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 5))
def test_every_image_has_its_own_output(count, smallest, more):
    sizes = []

    def run(images):
        sizes.append(len(images))
        return [images * 2, images.sum(axis=1)]

    images = np.arange(count * 3).reshape(count, 3)
    doubled, sums = run_in_batches(run, images, smallest, smallest + more)
    np.testing.assert_array_equal(doubled, images * 2)
    np.testing.assert_array_equal(sums, images.sum(axis=1))
    assert all(smallest <= size <= smallest + more for size in sizes)
    assert len(sizes) == -(-count // (smallest + more))


def test_no_images_are_a_data_error():
    with pytest.raises(DataError, match=r"\(0, 3\)"):
        run_in_batches(lambda images: [images], np.zeros((0, 3)), 1, 4)
