"""Values of kept patches on the full grid of patches."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Scalar = TypeVar("Scalar", bound=np.generic)


def scatter(
    values: npt.NDArray[Scalar], positions: npt.NDArray[np.integer[Any]], grid: tuple[int, ...]
) -> npt.NDArray[Scalar]:
    """Puts values (B, k) at positions (B, k) of a grid of zeros and returns it, (B, *grid) in the type of the values.

    Args:
        values: one for each position.
        positions: indices into the flattened grid, none twice in a row.
        grid: its shape, for example (rows, cols) or (patches,).

    Raises:
        IndexError: a position outside the grid.
    """
    flat = np.zeros((len(values), math.prod(grid)), values.dtype)
    np.put_along_axis(flat, positions.astype(np.int64), values, axis=1)
    return flat.reshape(len(values), *grid)


def mask_of(positions: npt.NDArray[np.integer[Any]], grid: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Returns where the positions (B, k) lie on a grid: (B, *grid)."""
    return scatter(np.ones(positions.shape, np.bool_), positions, grid)
