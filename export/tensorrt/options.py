"""Options of a build, and the checks that refuse impossible ones."""

from __future__ import annotations

from dataclasses import dataclass

from gft_edge.constants import MAX_FUSED_INT8_TOKENS
from gft_edge.errors import ConfigError
from gft_edge.export.graph.summary import GraphSummary
from gft_edge.hardware.devices import Device
from gft_edge.hardware.tensorrt_versions import (
    GENERATIONS,
    RTX,
    Generation,
    dla_refusal,
    dtype_refusal,
    generation,
)
from gft_edge.manifest import batch_problems

MIB = 1 << 20
HARDWARE_COMPATIBILITY = {"ampere+": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}
CALIBRATORS = {"EntropyCalibration2": "IInt8EntropyCalibrator2", "MinMaxCalibration": "IInt8MinMaxCalibrator"}
"""Algorithm in the header of a calibration cache, and the class that reads it."""


@dataclass(frozen=True)
class BuildOptions:
    """Choices of the user.

    Args:
        batch: smallest, usual and largest batch size.
        compute_capabilities: of the GPUs that run an RTX engine, its default where None; a device has its own.
        tensorrt: version to plan for; the device's newest by default.
        workspace_mib: scratch memory of the build; by the device's memory by default.
        weak: let TensorRT run layers of an FP32 graph in FP16 (8.6 and 10.x).
        tf32: keep TF32 products in an FP32 engine.
        dla: core to use.
        refit: weights can be changed later.
        strip: a plan without weights.
        hardware_compatibility: ``"ampere+"`` or ``"same-capability"``.
        version_compatible: the engine also loads in the next major version.
        calibration_cache: file with ranges for a graph without Q/DQ (8.6 and 10.x), and ``calibration_header``: its
            first line.
        optimization_level: 0 to 5; 5 takes longest to build.
        power_mode: mark of the board's mode in the name of the timing cache.

    Raises:
        ConfigError: batch sizes out of order, a malformed capability, a level out of range.
    """

    batch: tuple[int, int, int] = (1, 1, 8)
    compute_capabilities: tuple[str, ...] | None = None
    tensorrt: str | None = None
    workspace_mib: int | None = None
    weak: bool = False
    tf32: bool = False
    dla: int | None = None
    refit: bool = False
    strip: bool = False
    hardware_compatibility: str | None = None
    version_compatible: bool = False
    calibration_cache: str | None = None
    calibration_header: str | None = None
    optimization_level: int = 3
    power_mode: str | None = None

    def __post_init__(self) -> None:
        if problems := batch_problems(self.batch):
            raise ConfigError(problems[0])
        if self.compute_capabilities == ():
            raise ConfigError("needs at least one compute capability, for example 8.6")
        for capability in self.compute_capabilities or ():
            major, dot, minor = capability.partition(".")
            if not (major.isdigit() and dot and minor.isdigit()):
                raise ConfigError(f"compute capability {capability!r}: expected two numbers, for example 8.6")
        if not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"optimization level {self.optimization_level}: expected 0 to 5")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ConfigError(f"workspace {self.workspace_mib} MiB: expected at least 1")
        if self.hardware_compatibility not in (None, *HARDWARE_COMPATIBILITY):
            known = ", ".join(HARDWARE_COMPATIBILITY)
            raise ConfigError(f"hardware compatibility {self.hardware_compatibility!r}: there are {known}")


def require_types(graph: GraphSummary, version: str, capabilities: tuple[str, ...]) -> None:
    """Refuses types that a compute capability or generation lacks.

    Raises:
        ConfigError: with the reason.
    """
    for capability in capabilities:
        for dtype in sorted({graph.precision, graph.rest, *graph.products}):
            reason = dtype_refusal(dtype, version, capability)
            if reason is not None:
                raise ConfigError(reason)


def require_options(
    graph: GraphSummary, known: Generation, version: str, profile: Device | None, options: BuildOptions
) -> None:
    """Refuses options that do not fit the graph, the generation or the device.

    Raises:
        ConfigError: with the reason.
    """
    where = "TensorRT-RTX" if known.name == RTX else f"TensorRT {version}"
    if known.typing == "weak" and graph.rest != "fp32":
        raise ConfigError(f"{where} takes a graph typed FP32 and a flag: export with --dialect trt8, build with --weak")
    if options.weak and known.typing == "strong":
        raise ConfigError(f"--weak: {where} has no precision flags, the graph decides; export with --precision fp16")
    if options.weak and graph.precision in ("fp8", "bf16"):
        raise ConfigError(f"--weak: {graph.precision.upper()} graphs are built strongly typed")
    if graph.precision == "int8" and (graph.quantized_tokens or 0) > MAX_FUSED_INT8_TOKENS:
        raise ConfigError(
            f"INT8 attention over {graph.quantized_tokens} tokens: no TensorRT fuses it above {MAX_FUSED_INT8_TOKENS}; leave "
            "attention unquantized or keep fewer patches"
        )
    static = [i for i in graph.inputs if None not in i.shape]
    if any(i.shape and i.shape[0] != size for i in static for size in options.batch):
        raise ConfigError(f"batch {options.batch[2]}: the graph is exported for batch {static[0].shape[0]} only")
    if options.dla is not None:
        _require_dla(graph, version, profile, options)
    if options.strip and not known.has_strip:
        raise ConfigError(f"--strip: {where} cannot build plans without weights here")
    if known.name == RTX and (options.refit or options.version_compatible):
        raise ConfigError("--refit, --version-compatible: TensorRT-RTX cannot build these without a GPU")
    if options.hardware_compatibility is None:
        return
    if profile is None or profile.is_jetson:
        name = (
            "TensorRT-RTX names its GPUs with --compute-capability" if profile is None else "it does not cover JetPack"
        )
        raise ConfigError(f"--hardware-compatibility: {name}")
    if options.hardware_compatibility == "ampere+" and float(profile.compute_capability) < 8:
        raise ConfigError(f"--hardware-compatibility ampere+: {profile.title} is older than Ampere")
    if options.hardware_compatibility == "same-capability" and not known.has_same_capability:
        first = next(row.name for row in GENERATIONS if row.has_same_capability)
        raise ConfigError(f"--hardware-compatibility same-capability: needs TensorRT {first}, this is {version}")


def _require_dla(graph: GraphSummary, version: str, profile: Device | None, options: BuildOptions) -> None:
    reason = dla_refusal(version, profile)
    if reason is not None:
        raise ConfigError(f"--dla: {reason}")
    if profile is not None and not 0 <= (options.dla or 0) < profile.num_dla_cores:
        raise ConfigError(f"--dla {options.dla}: {profile.title} has cores 0 to {profile.num_dla_cores - 1}")
    if graph.precision not in ("fp16", "int8") and not options.weak:
        raise ConfigError(f"--dla: the DLA computes FP16 and INT8, this graph is {graph.precision.upper()}")
    if graph.rest != "fp16" and not (options.weak or generation(version).typing == "weak"):
        raise ConfigError(f"--dla: the DLA computes FP16 and INT8, the rest of this graph is {graph.rest.upper()}")
    if len(set(options.batch)) > 1:
        raise ConfigError("--dla: the DLA takes one batch size; give --batch 1")


def calibrator_class(graph: GraphSummary, known: Generation, version: str, options: BuildOptions) -> str | None:
    """Returns the class that reads the calibration cache, None without one.

    Raises:
        ConfigError: the generation has no calibrators, or the graph needs none.
    """
    if options.calibration_cache is None:
        return None
    if known.typing == "strong":
        raise ConfigError(
            f"--calibration-cache: TensorRT {version} has no calibrators; quantize the checkpoint, Q/DQ hold the ranges"
        )
    if graph.precision in ("int8", "fp8"):
        raise ConfigError("--calibration-cache: the graph has Q/DQ, which TensorRT follows and ignores the cache")
    if known.typing == "both" and not options.weak:
        raise ConfigError("--calibration-cache: needs --weak, strongly typed networks have no calibrator")
    if graph.rest != "fp32":
        raise ConfigError("--calibration-cache: needs an FP32 graph")
    algorithm = (options.calibration_header or "").rpartition("-")[2]
    if algorithm not in CALIBRATORS:
        raise ConfigError(
            f"--calibration-cache {options.calibration_cache}: first line {options.calibration_header!r}, expected "
            f"TRT-VERSION-ALGORITHM with {' or '.join(CALIBRATORS)}"
        )
    return CALIBRATORS[algorithm]


def workspace_bytes(profile: Device | None, options: BuildOptions) -> int:
    """Returns the workspace: an eighth of the memory, 512 MiB to 4 GiB (a Jetson shares it with the CPU); 1 GiB for RTX.

    Raises:
        ConfigError: more than half of the memory.
    """
    if options.workspace_mib is not None:
        wanted = options.workspace_mib * MIB
        if profile is not None and wanted > profile.memory_gb * 1024 * MIB // 2:
            raise ConfigError(
                f"--workspace {options.workspace_mib}: more than half of the {profile.memory_gb} GB of {profile.title}"
            )
        return wanted
    return 1024 * MIB if profile is None else min(4096, max(512, profile.memory_gb * 128)) * MIB
