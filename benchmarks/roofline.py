"""Roofline: a lower bound of the time that an artefact takes on a device; never a latency.

Real engines reach 20 to 60 % of it (ViT-B/16 on Orin Nano: 37 % in FP16, 21 % in INT8; on A100 at batch 256: 59 %).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any

from gft_edge.budget import TokenBudget, patches_per_block, rows_per_block
from gft_edge.config.model import GFTConfig, conv_stem_widths
from gft_edge.errors import ConfigError
from gft_edge.hardware.devices import Device, PeakPrecision
from gft_edge.manifest import DeploymentManifest
from gft_edge.model.macs import count_macs

BYTES: dict[str, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
"""Bytes of one weight."""

KERNELS_PER_BLOCK = 5
"""Products that no compiler merges: qkv, attention, output projection, two of the MLP; the rest is fused."""

KERNELS_PER_SELECTION = 3
"""Product of the score, top k, rows gathered; the mean before it and the sums around it may be fused."""

LAUNCH_MS = 0.002
"""Time of one kernel at batch 1, the lower end of the 2 to 4 us measured on data-centre GPUs."""

LEAST_UTILISATION = 0.1
GUARDED_BATCH = 8


@dataclass(frozen=True)
class Roofline:
    """Lower bounds of one request, term by term.

    Attributes:
        device, precision, batch: as given; ``precision`` is that of every product and weight, so layers in a higher one
            only make the true time longer.
        macs: multiply-accumulates of the whole batch.
        weight_bytes: every weight matrix once, at ``precision``.
        io_bytes: inputs and outputs of the whole batch.
        num_kernels: launches that cannot be merged.
        compute_ms: two operations per multiply-accumulate at the dense peak; None if the device has no known peak.
        weight_read_ms: ``weight_bytes`` over the memory bandwidth.
        memory_ms: inputs, outputs, and the weights that the last-level cache cannot keep between requests.
        launch_ms: ``num_kernels`` of 2 us; an engine in a CUDA graph may go a little below it.
    """

    device: str
    precision: PeakPrecision
    batch: int
    macs: int
    weight_bytes: int
    io_bytes: int
    num_kernels: int
    compute_ms: float | None
    weight_read_ms: float
    memory_ms: float
    launch_ms: float

    @property
    def hardware_ms(self) -> float:
        """The bound by the hardware's peaks alone."""
        return max(self.compute_ms or 0.0, self.memory_ms)

    @property
    def bound_ms(self) -> float:
        """The largest term: no engine is expected to take less."""
        return max(self.hardware_ms, self.launch_ms)

    @property
    def limited_by(self) -> str:
        """``"compute"``, ``"memory"`` or ``"launches"``."""
        terms = {"compute": self.compute_ms or 0.0, "memory": self.memory_ms, "launches": self.launch_ms}
        return max(terms, key=lambda name: terms[name])

    def utilisation(self, measured_ms: float) -> float:
        """Returns the share of the bound that a measurement reaches; above 1 is impossible."""
        return self.bound_ms / measured_ms

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values, labelled as a bound."""
        return {"kind": "bound", **asdict(self), "bound_ms": self.bound_ms, "limited_by": self.limited_by}


def roofline(
    manifest: DeploymentManifest, device: Device, batch: int = 1, precision: PeakPrecision | None = None
) -> Roofline:
    """Returns the bound of an artefact.

    Args:
        manifest: of the artefact: model, budget, precision, inputs and outputs.
        device: that runs it.
        batch: images per request.
        precision: of the engine if it is not the artefact's, such as ``"fp16"`` for an FP32 graph built with FP16 on.

    Raises:
        ConfigError: batch below 1, or the device lacks the precision.
    """
    per_image = sum(
        math.prod(d for d in tensor.shape[1:] if isinstance(d, int)) * _itemsize(tensor.dtype)
        for tensor in (*manifest.inputs, *manifest.outputs)
    )
    # INT8 weights alone are multiplied in high precision; the bound of INT8 throughout holds for them too.
    own: PeakPrecision = "int8" if manifest.precision == "int8-weights" else manifest.precision
    return model_roofline(manifest.model, manifest.budget, precision or own, device, batch, io_bytes=batch * per_image)


def model_roofline(
    config: GFTConfig,
    budget: TokenBudget,
    precision: PeakPrecision,
    device: Device,
    batch: int = 1,
    io_bytes: int | None = None,
) -> Roofline:
    """Returns the bound of a model at a budget, before anything is exported.

    Args:
        config, budget, precision, device, batch: as for :func:`roofline`.
        io_bytes: of the whole batch; by default one byte per channel and pixel.

    Raises:
        ConfigError: batch below 1, or the device lacks the precision.
    """
    if batch < 1:
        raise ConfigError(f"roofline: batch must be at least 1, found {batch}")
    peak = device.peak(precision)
    if peak is None and device.fp16_tflops is not None:
        raise ConfigError(f"roofline: {device.title} ({device.compute_capability}) has no {precision.upper()}")
    macs = batch * count_macs(config, budget)
    weight_bytes = BYTES[precision] * count_weights(config)
    if io_bytes is None:
        io_bytes = batch * 3 * config.image_size**2
    per_ms = device.bandwidth_gb_s * 1e6
    num_kernels = 2 + KERNELS_PER_BLOCK * _blocks(config) + KERNELS_PER_SELECTION * _selections(config, budget)
    return Roofline(
        device=device.name,
        precision=precision,
        batch=batch,
        macs=macs,
        weight_bytes=weight_bytes,
        io_bytes=io_bytes,
        num_kernels=num_kernels,
        compute_ms=None if peak is None else 2 * macs / (peak * 1e9),
        weight_read_ms=weight_bytes / per_ms,
        memory_ms=(max(0.0, weight_bytes - device.l2_mb * 2**20) + io_bytes) / per_ms,
        launch_ms=num_kernels * LAUNCH_MS,
    )


def count_weights(config: GFTConfig) -> int:
    """Counts the entries of weight matrices and convolutions that the logits need, without biases and norms.

    The published variant is counted as deployed: without its stages and the blocks after them.
    """
    width = config.embed_dim
    classifiers = 2 if config.is_distilled else 1
    return _embedding_weights(config) + 12 * width**2 * _blocks(config) + classifiers * width * config.num_classes


def _blocks(config: GFTConfig) -> int:
    """Returns the number of blocks that the logits need."""
    return config.stages[0] if config.variant == "published" else config.depth


def _selections(config: GFTConfig, budget: TokenBudget) -> int:
    """Returns the number of blocks in which patches are selected for the logits: those that drop some and keep some."""
    if config.variant == "published":
        return 0
    sizes = config.stages, budget.keep, config.num_patches, config.depth
    return sum(0 < rows < patches for patches, rows in zip(patches_per_block(*sizes), rows_per_block(*sizes)))


def _embedding_weights(config: GFTConfig) -> int:
    width = config.embed_dim
    if config.stem == "linear":
        return 3 * config.patch_size**2 * width
    widths = conv_stem_widths(config.patch_size, width)
    return sum(9 * a * b for a, b in itertools.pairwise(widths)) + width**2


def _itemsize(dtype: str) -> int:
    bits = "".join(c for c in dtype if c.isdigit())
    return int(bits) // 8 if bits else 1


def implausible(measured_ms: float, bound: Roofline) -> str | None:
    """Returns one sentence if a measurement cannot be right or is absurdly slow, else None.

    Args:
        measured_ms: of one request of ``bound.batch`` images, on the device.
        bound: of the same artefact, device, precision and batch.
    """
    what = f"{measured_ms:.4g} ms at batch {bound.batch} on {bound.device} ({bound.precision})"
    if not 0 < measured_ms < math.inf:
        return f"{what} is not a duration"
    if measured_ms < bound.hardware_ms:
        limit = "memory" if bound.memory_ms == bound.hardware_ms else "compute"
        return (
            f"{what} is below the {limit} bound of {bound.hardware_ms:.4g} ms: not all of the work was timed "
            "(is the stream synchronised?), or device, precision or batch differ from those given"
        )
    if measured_ms < bound.launch_ms:
        return (
            f"{what} is below {bound.num_kernels} kernel launches of {LAUNCH_MS * 1e3:g} us ({bound.launch_ms:.4g} ms): "
            "believable only inside a CUDA graph; check that the whole engine was timed"
        )
    share = bound.utilisation(measured_ms)
    if bound.batch >= GUARDED_BATCH and share < LEAST_UTILISATION:
        return (
            f"{what} reaches {share:.1%} of the bound of {bound.bound_ms:.4g} ms ({bound.limited_by}); under "
            f"{LEAST_UTILISATION:.0%} at batch {GUARDED_BATCH} or more something else was timed: "
            "first runs, transfers, low clocks, or layers falling back"
        )
    return None
