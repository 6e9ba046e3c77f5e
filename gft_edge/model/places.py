"""Values of places of the patch grid, for rules that choose patches by their place: by chance, from the centre, by rank.

Needs NumPy alone, so that an artefact is measured without PyTorch. Shape suffixes: B images, P patches of the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Ranks = npt.NDArray[np.int64]


def random_places(indices: Sequence[int], num_patches: int, seed: int) -> Ranks:
    """Returns one random order of the places for each image, (B, P).

    The order depends on the seed and the number of the image alone, not on its batch. The k highest of a random order are a
    random set of k, also after an earlier selection by the same order.

    Args:
        indices: numbers of the images.
        num_patches: P.
        seed: of all orders.
    """
    return np.stack([np.random.default_rng((seed, index)).permutation(num_patches) for index in indices])


def centre_first(grid: tuple[int, int]) -> Ranks:
    """Returns values of places that fall with the distance from the centre of the grid, (P,)."""
    rows, cols = (np.arange(size) - (size - 1) / 2 for size in grid)
    return distinct(-(np.square(rows)[:, None] + np.square(cols)).reshape(-1))


def marked_first(marked: npt.NDArray[np.bool_]) -> Ranks:
    """Returns values of places, P where a part of a mark is and 0 elsewhere: ranks below P decide among the ones and the others.

    Args:
        marked: which places hold a part of the mark, (B, P).
    """
    return marked.shape[1] * marked.astype(np.int64)


def distinct(values: npt.NDArray[Any]) -> Ranks:
    """Returns the ranks of values along the last axis, 0 for the lowest; of equal ones the first place is higher."""
    order = np.argsort(-values, axis=-1, kind="stable")
    ranks: Ranks = values.shape[-1] - 1 - np.argsort(order, axis=-1, kind="stable")
    return ranks
