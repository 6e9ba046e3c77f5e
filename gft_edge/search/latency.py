"""Latency of a focal model as a sum over its blocks, fitted to measured budgets.

A block with T tokens entering, of which R attend, costs a T + b R + c R T, and a block that selects d + e T more: queries, keys
and values of every token; projection and MLP of the rows; attention; score, top k and gathered rows. Stem and classifier are fixed.
As every term depends on two neighbouring counts, a search over budgets is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gft_edge.budget import TokenBudget, patches_per_block, rows_per_block
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ConfigError

TERMS = ("constant", "tokens", "rows", "pairs", "selections", "scored")
FEWEST = 4
"""Measured budgets from which others are interpolated."""

Array = npt.NDArray[np.float64]


def require_stages(config: GFTConfig) -> None:
    """Raises ConfigError unless the latency of a model depends on its budget."""
    if config.variant != "focal":
        raise ConfigError(
            f"the latency of a model of variant {config.variant!r} does not depend on a token budget; give a focal model"
        )


def block_terms(config: GFTConfig, budget: TokenBudget) -> Array:
    """Returns the sums over the blocks that the terms multiply, (6,), each in units of the model with every patch."""
    prefix, full = config.num_prefix_tokens, config.num_patches + config.num_prefix_tokens
    sizes = config.stages, budget.keep, config.num_patches, config.depth
    entering = np.array(patches_per_block(*sizes), np.float64)
    rows = np.array(rows_per_block(*sizes), np.float64)
    selects = (rows > 0) & (rows < entering)
    t, r = (entering + prefix) / full, (rows + prefix) / full
    return np.array([1.0, t.sum(), r.sum(), (r * t).sum(), selects.sum(), (selects * t).sum()])


@dataclass(frozen=True)
class Fit:
    """Coefficients of :data:`TERMS`, milliseconds, none negative."""

    coefficients: tuple[float, ...]

    def predict(self, config: GFTConfig, budget: TokenBudget) -> float:
        """Returns milliseconds of one image."""
        return float(block_terms(config, budget) @ np.array(self.coefficients))


def fit_latencies(config: GFTConfig, measured: Mapping[TokenBudget, float]) -> Fit:
    """Fits the terms to measured values by least squares of relative errors, without negative coefficients.

    Terms that so few budgets cannot tell apart are left out, the least important first.

    Args:
        config: of the model.
        measured: milliseconds (or millijoules), of at least :data:`FEWEST` budgets.

    Raises:
        ConfigError: there are fewer.
    """
    if len(measured) < FEWEST:
        raise ConfigError(f"interpolation needs {FEWEST} measured budgets or more, found {len(measured)}")
    budgets = sorted(measured, key=lambda budget: budget.keep)  # the order changes the last digits of a sum
    values = np.array([measured[budget] for budget in budgets], np.float64)
    terms = np.stack([block_terms(config, budget) for budget in budgets]) / values[:, None]
    order = [0, 1, 3, 2, 4, 5][: len(values) - 1]  # a term fewer than budgets: one must be able to disagree
    coefficients = np.zeros(len(TERMS))
    coefficients[order] = not_negative(terms[:, order], np.ones(len(values)))
    return Fit(tuple(float(value) for value in coefficients))


def not_negative(a: Array, b: Array) -> Array:
    """Returns x >= 0 that minimises |a x - b|: the active-set method of Lawson and Hanson (1974), chapter 23.

    Args:
        a: (M, N).
        b: (M,).
    """
    x = np.zeros(a.shape[1])
    free = np.zeros(a.shape[1], bool)
    scale = np.linalg.norm(a, axis=0) + 1e-300
    for _ in range(10 * len(x)):
        slope = (a.T @ (b - a @ x)) / scale
        slope[free] = -np.inf
        if free.all() or slope.max() <= 1e-10 * np.linalg.norm(b):
            break
        free[int(slope.argmax())] = True
        while True:
            trial = np.zeros_like(x)
            trial[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            wrong = free & (trial <= 0)
            if not wrong.any():
                x = trial
                break
            step = float(np.min(x[wrong] / (x[wrong] - trial[wrong] + 1e-300)))
            x = x + step * (trial - x)
            free &= x > 1e-12 * (np.abs(x).max() + 1e-300)
            x[~free] = 0
    return x
