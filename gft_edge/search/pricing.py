"""The cost model that a search is asked for: latencies measured here or on a board, a roofline, or multiply-accumulates alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import Checkpoint
from gft_edge.errors import ConfigError
from gft_edge.hardware.devices import device
from gft_edge.model.macs import count_macs
from gft_edge.progress import Track, silent
from gft_edge.quant.policy import QuantPolicy
from gft_edge.search.costs import bench_costs, bound_costs, measured_costs
from gft_edge.search.options import SearchOptions
from gft_edge.search.point import Cost, CostModel, OperatingPoint


@dataclass(frozen=True)
class Pricing:
    """A cost model and what it is, in words.

    Attributes:
        model: of points of any checkpoint of the search.
        source: for example the backend and its machine.
        kind: ``"measured"``, ``"bound"``, or ``"macs"`` where no latency is known.
        measured: budgets with a figure of their own, which are candidates whatever their counts.
    """

    model: CostModel
    source: str
    kind: Literal["measured", "bound", "macs"]
    measured: tuple[TokenBudget, ...] = ()


def mac_costs(point: OperatingPoint) -> Cost:
    """Returns the multiply-accumulates of a point; its latency is not known and NaN."""
    return Cost(math.nan, count_macs(point.config, point.budget) / 1e9, "bound")


def pricing(
    names: Sequence[str],
    checkpoints: Sequence[Checkpoint],
    options: SearchOptions,
    policies: Mapping[str, QuantPolicy],
    track: Track = silent,
) -> Pricing:
    """Returns the cost model of a search; latencies of a backend are measured now.

    Args:
        names: of the checkpoints, as points name them.
        checkpoints: focal, in full precision.
        options: which source.
        policies: by precision.
        track: shows progress.

    Raises:
        ConfigError: unknown device or backend; a bench file of another model, or several checkpoints for one.
        ArtifactError: a damaged bench file.
    """
    if options.costs is not None:
        if len(checkpoints) > 1:
            raise ConfigError(f"--costs {options.costs}: a bench file is of one model; search one checkpoint with it")
        found = bench_costs(options.costs, checkpoints[0].info.model)
        budgets = tuple(dict.fromkeys(budget for table in found.tables.values() for budget in table.ms))
        where = next(iter(found.tables.values())).where
        return Pricing(found, f"latency in {where}", "measured", budgets)
    if options.target is not None:
        return Pricing(bound_costs(options.target), f"roofline of {device(options.target).title}", "bound")
    if options.backend is not None:
        threads = max(1, options.threads)
        mixed = {name: policy for name, policy in policies.items() if ":" in name}
        models = {
            name: measured_costs(each, options.all_precisions, options.backend, threads, None, track, mixed)
            for name, each in zip(names, checkpoints)
        }
        words = f"latency measured here on {options.backend}, {threads} thread{'s' * (threads > 1)}"
        return Pricing(lambda point: models[point.checkpoint](point), words, "measured")
    return Pricing(mac_costs, "multiply-accumulates, no latency", "macs")
