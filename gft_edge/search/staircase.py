"""Tokens against milliseconds: the staircase of a backend, and the counts of tokens that cost nothing more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gft_edge.benchmarks.measuring.artifact_facts import architecture
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, conditions
from gft_edge.budget import MIN_TOKENS, TokenBudget
from gft_edge.checkpoint import Checkpoint
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ConfigError
from gft_edge.hardware.environment import versions
from gft_edge.model.macs import count_macs
from gft_edge.progress import Track, silent
from gft_edge.search.latency import require_stages
from gft_edge.search.measuring import (
    PROTOCOL,
    TILE,
    BudgetGraphs,
    measure_budgets,
    precision_model,
    require_measurable,
)

SCHEMA = 1
UNIFORM: Literal["uniform"] = "uniform"


@dataclass(frozen=True)
class SweepOptions:
    """Options of :func:`sweep`.

    Args:
        stage: that is swept, counted from 1; the stages before it keep the budget's counts, those after it at most these.
            ``"uniform"`` keeps the same count in every stage.
        backend: ``"onnxruntime"``.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        threads: intra-op; 0 takes one per core.
        points: most counts to measure.
        budget: the configuration's own by default.
        protocol: how to measure.

    Raises:
        ConfigError: an unknown backend, or fewer than two points.
    """

    stage: int | Literal["uniform"] = UNIFORM
    backend: str = "onnxruntime"
    precision: str = "fp32"
    threads: int = 1
    points: int = 40
    budget: TokenBudget | None = None
    protocol: BenchProtocol = PROTOCOL

    def __post_init__(self) -> None:
        require_measurable(self.backend)
        if self.points < 2:
            raise ConfigError(f"points must be at least 2, found {self.points}")


def sweep_budgets(config: GFTConfig, options: SweepOptions) -> dict[int, TokenBudget]:
    """Returns budgets by the patches that the swept stage keeps: whole tiles of tokens, and one token more than each.

    Raises:
        ConfigError: no such stage, or a model whose latency does not depend on a budget.
    """
    require_stages(config)
    own, stages = options.budget or config.budget, len(config.stages)
    if options.stage == UNIFORM:
        place, most = 0, config.num_patches
    else:
        if not 1 <= options.stage <= stages:
            raise ConfigError(f"stage must be 1 to {stages} or uniform, found {options.stage}")
        place = options.stage - 1
        most = own.stage_inputs[place]
    prefix = config.num_prefix_tokens
    tiles = (most + prefix) // TILE
    step = max(1, -(-2 * tiles // options.points))
    ends = [TILE * tile - prefix for tile in range(1, tiles + 1, step)]
    counts = sorted({count for end in ends for count in (end, end + 1) if MIN_TOKENS <= count <= most} | {most})
    if len(counts) < 2:
        counts = list(range(MIN_TOKENS, most + 1))
    return {count: _with_count(own, place, count, options.stage == UNIFORM) for count in counts}


def _with_count(own: TokenBudget, place: int, count: int, uniform: bool) -> TokenBudget:
    before = () if uniform else own.keep[:place]
    after = (count if uniform else min(count, kept) for kept in own.keep[place + 1 :])
    return TokenBudget((*before, count, *after), own.num_patches)


def free_tokens(ms: Mapping[int, float], margin: float = 0.0) -> dict[int, int]:
    """Returns each count of tokens that costs no more than a smaller one, and the smallest such count.

    Args:
        ms: milliseconds by count.
        margin: relative difference that counts as none, of the order of the measurement's noise.
    """
    counts = sorted(ms)
    found = {}
    for place, count in enumerate(counts):
        smaller = [other for other in counts[:place] if ms[count] <= ms[other] * (1 + margin)]
        if smaller:
            found[count] = smaller[0]
    return found


def sweep(checkpoint: Checkpoint, options: SweepOptions, track: Track = silent) -> dict[str, Any]:
    """Measures the latency of one backend over the tokens of one stage, or of all.

    Args:
        checkpoint: focal.
        options: which tokens, and how.
        track: progress callback.

    Returns:
        plain JSON values, the content of sweep.json: the conditions, ``points`` (``patches``, ``tokens``, ``budget``, ``ms``,
        ``variation``, ``gmac``) and ``free`` (``tokens`` that cost no more than ``than``).

    Raises:
        ConfigError: a stage, precision or model that cannot be swept.
    """
    config = checkpoint.info.model
    budgets = sweep_budgets(config, options)
    model = precision_model(checkpoint, options.precision, {})
    graphs = BudgetGraphs(checkpoint, model, options.precision)
    before = conditions()
    found = measure_budgets(graphs, list(budgets.values()), options.threads, options.protocol, track)
    prefix = config.num_prefix_tokens
    points = [
        {
            "patches": count,
            "tokens": count + prefix,
            "budget": budget.id,
            "ms": found[budget].ms,
            "variation": found[budget].variation,
            "gmac": count_macs(config, budget) / 1e9,
        }
        for count, budget in budgets.items()
    ]
    free = free_tokens({count + prefix: found[budget].ms for count, budget in budgets.items()})
    return {
        "schema": SCHEMA,
        "source": "gft-edge sweep",
        "machine": before,
        "model": architecture(config),
        "checkpoint_sha256": checkpoint.sha256,
        "backend": options.backend,
        "backend_version": versions()[options.backend],
        "precision": options.precision,
        "threads": options.threads,
        "stage": options.stage,
        "points": points,
        "free": [{"tokens": count, "than": smaller} for count, smaller in free.items()],
    }


def points_of(data: Mapping[str, Any]) -> tuple[Sequence[int], Sequence[float]]:
    """Returns tokens and milliseconds of a sweep."""
    return [point["tokens"] for point in data["points"]], [point["ms"] for point in data["points"]]
