"""The place of a fault, and the agreement of two tensors there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gft_edge.config.model import GFTConfig
from gft_edge.stats.agreement import Comparison
from gft_edge.stats.metrics import sqnr_db
from gft_edge.stats.verdict import DEFAULT_LIMITS

PlaceKind = Literal[
    "preprocess", "labels", "model", "quantization", "manifest", "golden", "node", "graph", "module", "stage"
]


@dataclass(frozen=True)
class Place:
    """The place of a fault.

    Attributes:
        kind: ``"preprocess"``, ``"labels"``, ``"model"``, ``"quantization"`` (manifest against checkpoint), ``"manifest"``
            (against its graph), ``"golden"``, ``"node"`` (of the graph), ``"graph"`` (belongs to no node), ``"module"``
            (exporter or runtime against PyTorch), ``"stage"`` (all that can be located without the checkpoint).
        name: node name, module path, or field.
        text: one sentence.
        op_type: of the node.
        module: path of the module the node belongs to; empty for the model itself.
        tensor: the first bad tensor.
        sqnr_db: of that tensor; None when it has another shape, is not finite, or could not be computed.
        sqnr_before_db: smallest of the tensors the node reads; None when they are bit-identical.
        differences: of the node from that of a fresh export.
    """

    kind: PlaceKind
    name: str
    text: str
    op_type: str = ""
    module: str = ""
    tensor: str = ""
    sqnr_db: float | None = None
    sqnr_before_db: float | None = None
    differences: tuple[str, ...] = ()


def agreement_db(expected: npt.NDArray[Any], value: npt.NDArray[Any]) -> float:
    """Returns the SQNR of two tensors in dB: inf when equal, -inf when shape, type or the places of non-finite values differ."""
    if expected.shape != value.shape or expected.dtype != value.dtype:
        return -math.inf
    if np.array_equal(expected, value, equal_nan=expected.dtype.kind == "f"):
        return math.inf
    if not np.array_equal(np.isfinite(expected), np.isfinite(value)):
        return -math.inf
    with np.errstate(divide="ignore"):
        return sqnr_db(np.nan_to_num(expected.astype(np.float64)), np.nan_to_num(value.astype(np.float64)))


def decibels(value: float) -> str:
    """Describes an SQNR for messages."""
    if math.isinf(value):
        return "exact agreement" if value > 0 else "no agreement"
    return f"SQNR {value:.1f} dB"


def finite(value: float | None) -> float | None:
    """Returns the value, or None if JSON has no number for it."""
    return None if value is None or math.isinf(value) else value


def stage_place(comparisons: Sequence[Comparison], config: GFTConfig) -> Place:
    """Returns the place of a fault as precisely as golden outputs of a model show it."""
    hint = "give --checkpoint to have the node named"
    stages = comparisons[0].stages if comparisons else ()
    for s in stages:
        known = [sqnr for sqnr in (s.importance_sqnr_db, s.score_sqnr_db) if sqnr is not None]
        sqnr = min(known, default=None)
        if s.identical + s.ties < s.images or (sqnr is not None and sqnr < DEFAULT_LIMITS.fp32_importance_sqnr_db):
            module = stage_module(config, s.stage)
            text = f"stage {s.stage + 1} ({module}) is the first whose patches, scores or importance differ"
            return Place(
                "stage", module, f"{text}: the fault is in it or before it; {hint}", module=module, sqnr_db=sqnr
            )
    where = "all stages agree: the fault is after patch selection" if stages else "only the logits are compared"
    return Place("stage", "logits", f"{where}; {hint}", tensor="logits")


def stage_module(config: GFTConfig, stage: int) -> str:
    """Returns the path of the module that selects patches in a stage."""
    return f"hierarchical_blocks.{stage}" if config.variant == "published" else f"blocks.{config.stages[stage] - 1}"
