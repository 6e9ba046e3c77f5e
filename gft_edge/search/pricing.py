"""The cost model that a search is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gft_edge.checkpoint import Checkpoint
from gft_edge.model.macs import count_macs
from gft_edge.progress import Track, silent
from gft_edge.search.options import SearchOptions
from gft_edge.search.point import Cost, OperatingPoint
from gft_edge.search.search import Pricing


def mac_costs(point: OperatingPoint) -> Cost:
    """Returns the multiply-accumulates of a point; its latency is not known and NaN."""
    return Cost(float("nan"), count_macs(point.config, point.budget) / 1e9, "bound")


def pricing(
    names: Sequence[str],
    checkpoints: Sequence[Checkpoint],
    options: SearchOptions,
    track: Track = silent,
    note: Callable[[str], None] | None = None,
) -> Pricing:
    """Returns the cost model of a search."""
    return Pricing(mac_costs, "multiply-accumulates, no latency", "macs")
