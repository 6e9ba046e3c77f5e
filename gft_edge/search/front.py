"""The Pareto front: points of which no other is cheaper and at least as accurate."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def pareto(costs: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> list[int]:
    """Returns the numbers of the points that no other point dominates, by rising cost.

    A point dominates another if it costs no more, is worth no less, and differs in one of the two. Of equal points the first is
    on the front.

    Args:
        costs: the lower the better, (N,).
        values: the higher the better, (N,).
    """
    order = np.lexsort((np.arange(len(costs)), -values, costs))
    front: list[int] = []
    best = -np.inf
    for number in order.tolist():
        if values[number] > best:
            front.append(number)
            best = values[number]
    return front


def strata(costs: npt.NDArray[np.float64], number: int) -> npt.NDArray[np.int64]:
    """Returns the stratum of each point, (N,): intervals of equal ratio from the lowest cost to the highest."""
    low, high = float(costs.min()), float(costs.max())
    if not high > low > 0:
        return np.zeros(len(costs), np.int64)
    place = np.log(costs / low) / np.log(high / low)
    found: npt.NDArray[np.int64] = np.minimum((place * number).astype(np.int64), number - 1)
    return found


def over_strata(
    costs: npt.NDArray[np.float64],
    worth: npt.NDArray[np.float64],
    number: int,
    taken: npt.NDArray[np.bool_],
) -> list[int]:
    """Returns so many points over all strata of cost: of each the one of the highest worth that is not taken, in rounds.

    Args:
        costs: (N,).
        worth: what ranks the points of a stratum, (N,).
        number: of points, if there are so many.
        taken: points that are not returned, (N,).
    """
    left = np.flatnonzero(~taken)
    if not len(left) or number < 1:
        return []
    stratum = strata(costs[left], number)
    order = np.lexsort((-worth[left], stratum))
    queues = [left[order[stratum[order] == name]].tolist() for name in np.unique(stratum)]
    chosen: list[int] = []
    depth = 0
    while len(chosen) < number and any(len(queue) > depth for queue in queues):
        chosen += [queue[depth] for queue in queues if len(queue) > depth]
        depth += 1
    return chosen[:number]


def coarse(counts: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.int64]:
    """Returns at most so many of the counts, with about equal ratios, the lowest and the highest among them."""
    options = np.unique(counts)
    wanted = np.geomspace(options[0], options[-1], number)
    return np.unique(options[np.abs(np.log(options)[:, None] - np.log(wanted)).argmin(axis=0)])


def predicted(
    chains: npt.NDArray[np.int64], known: npt.NDArray[np.int64], values: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Returns what the values of all chains (M, S) may be: a quadratic form of the logarithms of their counts, ridge fitted.

    It only says which budgets are worth measuring; no figure of the result comes from it.

    Args:
        chains: patches kept, (M, S).
        known: rows whose values are known, (K,).
        values: of these, (K,).
    """
    logs = np.log(chains)
    logs = (logs - logs.mean(axis=0)) / np.maximum(logs.std(axis=0), 1e-9)
    i, j = np.triu_indices(chains.shape[1])
    features = np.concatenate([np.ones((len(chains), 1)), logs, logs[:, i] * logs[:, j]], axis=1)
    a = features[known]
    weights = np.linalg.solve(a.T @ a + 1e-2 * np.eye(a.shape[1]), a.T @ values)
    found: npt.NDArray[np.float64] = features @ weights
    return found
