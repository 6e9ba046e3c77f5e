"""Measures the latency of a checkpoint at many token budgets in ONNX Runtime, interleaved, from few traced graphs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from torch import nn

from gft_edge.benchmarks.measuring.latency import measure
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, Latency
from gft_edge.budget import MIN_TOKENS, TokenBudget
from gft_edge.calibration.ptq import quantize_int8
from gft_edge.checkpoint import Checkpoint
from gft_edge.config.model import GFTConfig
from gft_edge.errors import ConfigError, did_you_mean
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.export.onnx.tracing import export_graph
from gft_edge.progress import Track, silent
from gft_edge.quant.policy import DEFAULT_POLICY, QuantPolicy
from gft_edge.runtime.backends.sessions import onnxruntime_session
from gft_edge.runtime.backends.table import BACKENDS
from gft_edge.search.graphs import Pattern, at_budget, pattern_of, traced_budget
from gft_edge.search.latency import require_stages

PROTOCOL = BenchProtocol(warmup_seconds=0.04, warmup_cap_seconds=0.5, rounds=20, runs_per_round=4)
"""The first request of a round finds the caches cold, after other budgets' requests; the fastest of four leaves it out, and
requests that another process interrupted."""
LEVELS = 6
CHAINS = 16
TILE = 8
SEED = 0


@dataclass(frozen=True)
class MeasuredBudget:
    """One measured budget.

    Attributes:
        ms: of one image, see :func:`without_drift`.
        variation: of the rounds' medians, as :class:`~gft_edge.benchmarks.measuring.protocol.Latency` has it.
    """

    ms: float
    variation: float


def precision_model(checkpoint: Checkpoint, precision: str, policies: Mapping[str, QuantPolicy]) -> nn.Module:
    """Returns the model to time at a precision; of an INT8 one the ranges come from noise, which the time does not depend on.

    Args:
        checkpoint: in full precision, or quantized to just this precision.
        precision: of an operating point.
        policies: of the precisions ``"int8:NAME"``.

    Raises:
        ConfigError: an unknown precision, or the checkpoint is quantized to another one.
    """
    own = checkpoint.info.quantization
    if own is not None:
        if precision != own["precision"]:
            raise ConfigError(f"checkpoint {checkpoint.path} is quantized to {own['precision']}, not {precision}")
        return checkpoint.model
    if precision in ("fp32", "fp16"):
        return checkpoint.model
    if precision == "int8":
        policy = DEFAULT_POLICY
    elif precision in policies:
        policy = policies[precision]
    else:
        known = ["fp32", "fp16", "int8", *policies]
        raise ConfigError(
            f"unknown precision {precision!r}{did_you_mean(precision, known)}; there are: {', '.join(known)}"
        )
    size = checkpoint.info.model.image_size
    noise = np.random.default_rng(SEED).standard_normal((2, 3, size, size), dtype=np.float32)
    return quantize_int8(checkpoint.model, [noise], policy).model


class BudgetGraphs:
    """Graphs of a model at any budget; each pattern of dropping stages is traced once.

    Args:
        checkpoint: of the model.
        model: to trace, of :func:`precision_model`.
        precision: ``"fp16"`` computes the rest in half precision.
    """

    def __init__(self, checkpoint: Checkpoint, model: nn.Module, precision: str) -> None:
        require_stages(checkpoint.info.model)
        self.config, self.spec, self.model = checkpoint.info.model, checkpoint.info.preprocess, model
        self.options = GraphOptions(rest="fp16" if precision == "fp16" else "fp32")
        self.is_quantized = precision.startswith("int8")
        self._traced: dict[Pattern, tuple[TokenBudget, onnx.ModelProto]] = {}

    def at(self, budget: TokenBudget) -> bytes:
        """Returns the serialized graph of a budget."""
        pattern = pattern_of(budget)
        if pattern not in self._traced:
            logging.getLogger("onnxslim").setLevel(logging.ERROR)
            traced = traced_budget(self.config, pattern)
            self._traced[pattern] = traced, export_graph(self.model, self.spec, traced, self.options)
        traced, graph = self._traced[pattern]
        changed = at_budget(graph, traced, budget, self.config.num_prefix_tokens)
        content: bytes = changed.SerializeToString()
        return content


def measure_budgets(
    graphs: BudgetGraphs,
    budgets: Sequence[TokenBudget],
    threads: int = 1,
    protocol: BenchProtocol = PROTOCOL,
    track: Track = silent,
) -> dict[TokenBudget, MeasuredBudget]:
    """Times budgets against each other in ONNX Runtime, one image per request, interleaved.

    Args:
        graphs: of the model.
        budgets: each once.
        threads: intra-op; 0 takes one per core.
        protocol: how often.
        track: progress callback.

    Raises:
        ConfigError: a negative number of threads, or a budget that does not fit the model.
    """
    side = graphs.config.image_size
    image = np.random.default_rng(protocol.seed).standard_normal((1, 3, side, side), dtype=np.float32)
    by_id = {budget.id: budget for budget in budgets}
    candidates = {}
    for name, budget in track(list(by_id.items()), "graphs", len(by_id)):
        session = onnxruntime_session(graphs.at(budget), graphs.is_quantized, threads)
        candidates[name] = lambda session=session: session(image)
    found = measure(candidates, protocol, track)
    medians = without_drift(found)
    return {budget: MeasuredBudget(medians[name], found[name].variation) for name, budget in by_id.items()}


def without_drift(found: Mapping[str, Latency]) -> dict[str, float]:
    """Returns the latency of each candidate: of the fastest request of a round, the median over the rounds without their drift.

    A round slows all by one factor: log t = candidate + round, solved by median polish (Tukey, 1977, chapter 11).
    """
    times = np.log([[min(samples) for samples in latency.rounds_ms] for latency in found.values()])
    level = np.median(times, axis=1)
    for _ in range(10):
        drift = np.median(times - level[:, None], axis=0)
        level = np.median(times - (drift - np.median(drift))[None, :], axis=1)
    return {name: float(np.exp(value)) for name, value in zip(found, level)}


def design(config: GFTConfig) -> tuple[TokenBudget, ...]:
    """Returns the budgets of a measurement: the same few counts in every stage, and seeded chains of falling counts between.

    Together they span the smallest whole tile to every patch in each stage.
    """
    require_stages(config)
    patches, stages = config.num_patches, len(config.stages)
    smallest = max(MIN_TOKENS, min(TILE - config.num_prefix_tokens, patches // 8))
    ratio = (patches / smallest) ** (1 / (LEVELS - 1))
    levels = [smallest, *(min(patches, round(smallest * ratio**n)) for n in range(1, LEVELS - 1)), patches]
    keeps = [(level,) * stages for level in levels]
    if stages > 1:
        rng = np.random.default_rng(SEED)
        for number in range(CHAINS):
            # Even steps of the logarithm on both ends; the seed moves what lies between.
            share: npt.NDArray[np.float64] = np.sort(rng.random(stages))[::-1]
            share[0] = (number + 0.5) / CHAINS
            share[1:] *= share[0]
            counts = [min(patches, round(smallest * (patches / smallest) ** s)) for s in np.sqrt(share)]
            keeps.append(tuple(np.minimum.accumulate(counts).tolist()))
    return tuple(dict.fromkeys(TokenBudget(keep, patches) for keep in keeps))


def require_measurable(backend: str) -> None:
    """Raises ConfigError for a backend that budgets cannot be measured on without building engines."""
    names = [row.name for row in BACKENDS if row.measures_budgets]
    if backend not in names:
        near = did_you_mean(backend, names)
        raise ConfigError(
            f"budgets are measured on {', '.join(names)} here, not {backend!r}{near}; for engines run gft-edge bench on artefacts "
            "of several budgets and give its file as --costs"
        )
