"""The place of a fault, and the agreement of two tensors there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gft_edge.stats.metrics import sqnr_db

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
    """Returns the SQNR of two tensors: inf when equal, -inf when shapes differ or values are non-finite on one side only."""
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
