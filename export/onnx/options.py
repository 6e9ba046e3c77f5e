"""Options of a graph. They need no other library: wrong ones are refused before PyTorch is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from gft_edge.constants import OPSET
from gft_edge.errors import ConfigError
from gft_edge.manifest import (
    Batch,
    DeploymentManifest,
    Dialect,
    HighPrecision,
    InputKind,
    MapsMode,
    Precision,
    batch_problems,
    static_batch,
)

BF16_OPSET = 22
"""First opset whose convolutions take bfloat16."""
TRT8_OPSET = 17
"""Opset of the dialect that TensorRT 8.6 reads."""


def require_trt8(rest: HighPrecision, precision: Precision | None = None) -> None:
    """Refuses precisions that a graph for TensorRT 8.6 cannot have.

    Raises:
        ConfigError: with the reason and a remedy.
    """
    if precision == "fp8":
        raise ConfigError("--dialect trt8: TensorRT 8.6 has no FP8 networks; quantize to int8")
    if precision == "int8-weights":
        raise ConfigError(
            "--dialect trt8: TensorRT 8.6 has no products of INT8 weights with float inputs, it would compute in "
            "FP32; quantize to int8, inputs too"
        )
    if rest != "fp32":
        raise ConfigError(
            f"--dialect trt8: TensorRT 8.6 takes a graph typed FP32, not {rest.upper()}; leave --precision fp32, and "
            "build with --weak for FP16 where it is faster"
        )


@dataclass(frozen=True)
class GraphOptions:
    """Interface, precision and dialect of a graph.

    Args:
        maps: ``"none"``; ``"compact"``: importance and positions of the kept patches per stage; ``"dense"``: importance of
            all stages on the patch grid. With none the graph holds no trace of them.
        rest: precision of everything that is not quantized, except the importance path.
        input: ``"float"``: normalised (batch, 3, H, W) float32; ``"uint8"``: RGB pixels (batch, H, W, 3), normalised inside;
            ``"float255"``: RGB pixels (batch, 3, H, W) float32 of 0 to 255, normalised inside. Pixels are RGB whatever colour
            order the network has learnt: the graph reverses the channels where it must.
        batch: smallest, usual, largest; the batch axis is static where all are the same.
        dialect: ``"trt8"``: the form that TensorRT 8.6 reads.
        probabilities: the softmax is inside, in FP32, and the output ``probabilities`` replaces ``logits``.

    Raises:
        ConfigError: batch sizes are not in ascending order, or the dialect does not have the precision of the rest.
    """

    maps: MapsMode = "none"
    rest: HighPrecision = "fp32"
    input: InputKind = "float"
    batch: Batch = (1, 1, 8)
    dialect: Dialect = "trt10"
    probabilities: bool = False

    def __post_init__(self) -> None:
        if problems := batch_problems(self.batch):
            raise ConfigError(problems[0])
        if self.dialect == "trt8":
            require_trt8(self.rest)

    @classmethod
    def of(cls, manifest: DeploymentManifest) -> GraphOptions:
        """Returns the options that an artefact was exported with."""
        return cls(
            manifest.maps,
            manifest.rest,
            manifest.input_kind,
            manifest.batch,
            manifest.dialect,
            manifest.gives_probabilities,
        )

    @property
    def static_batch(self) -> int | None:
        """Images that the graph takes if its batch axis is static, else None."""
        return static_batch(self.batch)

    @property
    def opset(self) -> int:
        """ONNX operator set of the graph."""
        if self.dialect == "trt8":
            return TRT8_OPSET
        return BF16_OPSET if self.rest == "bf16" else OPSET


DEFAULT_OPTIONS = GraphOptions()
