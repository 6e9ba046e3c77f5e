"""Build plans: everything a TensorRT build will do, as data, decided without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from gft_edge.benchmarks.devices import Device, device
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export import trtexec
from gft_edge.export.generations import (
    RTX,
    RTX_CAPABILITIES,
    Generation,
    default_version,
    dla_refusal,
    dtype_refusal,
    generation,
    require_together,
)
from gft_edge.export.graph_summary import GraphSummary
from gft_edge.export.lint_checks import MAX_FUSED_INT8_TOKENS

MIB = 1 << 20
HARDWARE_COMPATIBILITY = {"ampere+": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}
CALIBRATORS = {"EntropyCalibration2": "IInt8EntropyCalibrator2", "MinMaxCalibration": "IInt8MinMaxCalibrator"}
"""Algorithm in the header of a calibration cache, and the class that reads it."""

DLA_OPERATORS = frozenset(
    "Conv ConvTranspose MatMul Gemm Add Mul Sub Max Min Sum Clip Relu Sigmoid Tanh Softmax Slice Reshape Transpose Concat "
    "Resize Squeeze Unsqueeze Flatten Identity QuantizeLinear DequantizeLinear".split()
)
"""What NVIDIA's table of Deep-Learning-Accelerator-SW names; MatMul with a constant second operand only."""


@dataclass(frozen=True)
class BuildOptions:
    """What a user may choose.

    Args:
        batch: smallest, usual and largest batch size.
        compute_capabilities: of the GPUs an RTX engine must run on.
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
        power_mode: of the board, for the timing cache's name.

    Raises:
        ConfigError: batch sizes out of order, a malformed capability, a level out of range.
    """

    batch: tuple[int, int, int] = (1, 1, 8)
    compute_capabilities: tuple[str, ...] = RTX_CAPABILITIES
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
        low, usual, high = self.batch
        if not 1 <= low <= usual <= high:
            raise ConfigError(f"batch {low}:{usual}:{high}: expected 1 <= smallest <= usual <= largest")
        if not self.compute_capabilities:
            raise ConfigError("build: needs at least one compute capability, for example 8.6")
        for capability in self.compute_capabilities:
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


@dataclass(frozen=True)
class BuildPlan:
    """A build, decided.

    Args:
        target: ``"rtx"`` or the device's name.
        generation: row of the generation table.
        tensorrt: version planned for; None for RTX, where the installed one builds.
        module: what Python imports.
        compute_capabilities: of the GPUs the engine will run on.
        precision, rest, opset: what the graph is.
        dialect: the graph this generation wants.
        meaning: what the graph's precision comes to there.
        network_flags: members of NetworkDefinitionCreationFlag.
        builder_flags, cleared_flags: members of BuilderFlag set and cleared.
        profile: for each dynamic input its smallest, usual and largest shape.
        batch: smallest, usual and largest batch size.
        workspace_bytes: limit of the workspace pool.
        optimization_level, max_aux_streams, profiling_verbosity: of the builder configuration.
        hardware_compatibility: member of HardwareCompatibilityLevel, None for this GPU model alone.
        timing_cache: file name that holds everything measured timings depend on; None for RTX, which measures nothing.
        dla_core: DLA core, None for the GPU.
        dla_fallback: operators that run on the GPU nevertheless, and how many of each.
        calibrator: class that reads ``calibration_cache``; None where the graph holds the ranges.
        progress: whether the build can be watched.
        notes: what else to know.
    """

    target: str
    generation: str
    tensorrt: str | None
    module: str
    compute_capabilities: tuple[str, ...]
    precision: str
    rest: str
    opset: int
    dialect: str
    meaning: str
    network_flags: tuple[str, ...]
    builder_flags: tuple[str, ...]
    cleared_flags: tuple[str, ...]
    profile: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
    batch: tuple[int, int, int]
    workspace_bytes: int
    optimization_level: int
    max_aux_streams: int
    profiling_verbosity: str
    hardware_compatibility: str | None
    timing_cache: str | None
    dla_core: int | None
    dla_fallback: dict[str, int]
    calibrator: str | None
    calibration_cache: str | None
    progress: bool
    notes: tuple[str, ...]

    @property
    def rtx(self) -> bool:
        """Whether compute capabilities are named to the builder."""
        return self.module == "tensorrt_rtx"

    def command(self, model: str = "model.onnx", engine: str = "model.engine") -> str | None:
        """The equivalent command line of this generation, None where there is none."""
        words = trtexec.build_command(self, model, engine)
        return None if words is None else " ".join(words)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the command beside them."""
        return {
            **{name: _plain(value) for name, value in asdict(self).items()},
            "trtexec": self.command(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BuildPlan:
        """The inverse of :meth:`to_json`.

        Raises:
            ArtifactError: entries missing, unknown or malformed.
        """
        values = {name: value for name, value in data.items() if name != "trtexec"}
        expected = {field.name for field in fields(cls)}
        if set(values) != expected:
            odd = ", ".join(sorted(expected ^ set(values)))
            raise ArtifactError(f"build plan: missing or unknown entries {odd}")
        try:
            profile = {name: tuple(tuple(s) for s in shapes) for name, shapes in values["profile"].items()}
            lists = {name: tuple(v) for name, v in values.items() if isinstance(v, list)}
            return cls(**{**values, **lists, "profile": profile})
        except (TypeError, AttributeError) as error:
            raise ArtifactError(f"build plan: malformed ({error})") from None


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def make_plan(graph: GraphSummary, target: str | Device, options: BuildOptions | None = None) -> BuildPlan:
    """Decides a build.

    Args:
        graph: of the artefact.
        target: ``"rtx"``, the name of a device, or a device found here.
        options: what the user chose.

    Raises:
        ConfigError: the combination is impossible, with the reason.
    """
    options = options or BuildOptions()
    if target == RTX:
        profile, version = None, RTX
        capabilities = options.compute_capabilities
        if options.tensorrt is not None:
            raise ConfigError("--tensorrt: an RTX engine is built by the installed TensorRT-RTX")
    else:
        profile = device(target) if isinstance(target, str) else target
        version = options.tensorrt or default_version(profile)
        require_together(version, profile)
        capabilities = (profile.compute_capability,)
    known = generation(version)
    _require_types(graph, version, capabilities)
    _require_options(graph, known, version, profile, options)
    weak = known.typing == "weak" or options.weak
    calibrator = _calibrator(graph, known, version, options)
    flags = _builder_flags(graph, weak, calibrator is not None, options)
    exact = graph.precision == "fp32" and not options.tf32 and not flags.intersection(("FP16", "INT8"))
    return BuildPlan(
        target=RTX if profile is None else profile.name,
        generation=known.name,
        tensorrt=None if profile is None else version,
        module=known.module,
        compute_capabilities=capabilities,
        precision=graph.precision,
        rest=graph.rest,
        opset=graph.opset,
        dialect=_dialect(known, weak),
        meaning=_meaning(graph, known, weak, calibrator is not None),
        network_flags=known.network_flags[0 if weak else 1],
        builder_flags=tuple(sorted(flags)),
        cleared_flags=("TF32",) if exact else (),
        profile=_profile(graph, options.batch),
        batch=options.batch,
        workspace_bytes=_workspace(profile, options),
        optimization_level=options.optimization_level,
        max_aux_streams=0,
        profiling_verbosity="DETAILED",
        hardware_compatibility=HARDWARE_COMPATIBILITY.get(options.hardware_compatibility or ""),
        timing_cache=None if profile is None else _timing_cache(version, profile, options),
        dla_core=options.dla,
        dla_fallback={} if options.dla is None else _dla_fallback(graph),
        calibrator=calibrator,
        calibration_cache=options.calibration_cache,
        progress=known.has_progress_monitor,
        notes=_notes(graph, known, version, profile, weak, options),
    )


def _require_types(graph: GraphSummary, version: str, capabilities: tuple[str, ...]) -> None:
    for capability in capabilities:
        for dtype in sorted({graph.precision, graph.rest, *graph.products}):
            reason = dtype_refusal(dtype, version, capability)
            if reason is not None:
                raise ConfigError(f"build: {reason}")


def _require_options(
    graph: GraphSummary, known: Generation, version: str, profile: Device | None, options: BuildOptions
) -> None:
    where = "TensorRT-RTX" if known.name == RTX else f"TensorRT {version}"
    if known.name == "8.6" and graph.rest != "fp32":
        raise ConfigError(
            f"{where} takes a graph typed FP32 and a flag: export with --precision fp32, build with --weak"
        )
    if options.weak and known.typing == "strong":
        raise ConfigError(f"--weak: {where} has no precision flags, the graph decides; export with --precision fp16")
    if options.weak and graph.precision in ("fp8", "bf16"):
        raise ConfigError(f"--weak: {graph.precision.upper()} graphs are built strongly typed")
    if graph.precision == "int8" and graph.quantized_attention and (graph.tokens or 0) > MAX_FUSED_INT8_TOKENS:
        raise ConfigError(
            f"INT8 attention over {graph.tokens} tokens: no TensorRT fuses it above {MAX_FUSED_INT8_TOKENS}; leave attention "
            "unquantized or keep fewer patches"
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
        raise ConfigError(f"--hardware-compatibility same-capability: needs TensorRT 10.13, this is {version}")


def _require_dla(graph: GraphSummary, version: str, profile: Device | None, options: BuildOptions) -> None:
    reason = dla_refusal(version, profile)
    if reason is not None:
        raise ConfigError(f"--dla: {reason}")
    if profile is not None and not 0 <= (options.dla or 0) < profile.num_dla_cores:
        raise ConfigError(f"--dla {options.dla}: {profile.title} has cores 0 to {profile.num_dla_cores - 1}")
    if graph.precision not in ("fp16", "int8") and not options.weak:
        raise ConfigError(f"--dla: the DLA computes FP16 and INT8, this graph is {graph.precision.upper()}")
    if len(set(options.batch)) > 1:
        raise ConfigError("--dla: the DLA takes one batch size; give --batch 1")


def _calibrator(graph: GraphSummary, known: Generation, version: str, options: BuildOptions) -> str | None:
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


def _builder_flags(graph: GraphSummary, weak: bool, calibrated: bool, options: BuildOptions) -> set[str]:
    flags = set()
    quantized = graph.precision == "int8" or calibrated
    if weak and (options.weak or quantized):
        flags.add("FP16")
    if weak and quantized:
        flags.add("INT8")
    if options.dla is not None:
        flags.add("GPU_FALLBACK")
    if options.refit:
        flags.add("REFIT")
    if options.strip:
        flags.add("STRIP_PLAN")
    if options.version_compatible:
        flags.add("VERSION_COMPATIBLE")
    return flags


def _profile(
    graph: GraphSummary, batch: tuple[int, int, int]
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    def shape(sizes: tuple[int | None, ...], number: int) -> tuple[int, ...]:
        return tuple(number if size is None else size for size in sizes)

    low, usual, high = batch
    dynamic = [i for i in graph.inputs if None in i.shape]
    return {i.name: (shape(i.shape, low), shape(i.shape, usual), shape(i.shape, high)) for i in dynamic}


def _workspace(profile: Device | None, options: BuildOptions) -> int:
    """An eighth of the memory, 512 MiB to 4 GiB: on a Jetson it is the CPU's memory too; RTX compiles within 1 GiB."""
    if options.workspace_mib is not None:
        wanted = options.workspace_mib * MIB
        if profile is not None and wanted > profile.memory_gb * 1024 * MIB // 2:
            raise ConfigError(
                f"--workspace {options.workspace_mib}: more than half of the {profile.memory_gb} GB of {profile.title}"
            )
        return wanted
    return 1024 * MIB if profile is None else min(4096, max(512, profile.memory_gb * 128)) * MIB


def _timing_cache(version: str, profile: Device, options: BuildOptions) -> str:
    capability = profile.compute_capability.replace(".", "")
    mode = f"_{options.power_mode}" if options.power_mode else ""
    return f"timing_trt{version}_sm{capability}_{profile.name}{mode}.cache"


def _dla_fallback(graph: GraphSummary) -> dict[str, int]:
    return {name: count for name, count in graph.operators.items() if name not in DLA_OPERATORS}


def _dialect(known: Generation, weak: bool) -> str:
    low, high = known.opsets
    opsets = f"opset {low} to {high}"
    if known.name == "8.6":
        return f"FP32 types, {opsets}, Q/DQ with FP32 scales and INT8 zero points of 0, Gelu as Erf"
    if weak:
        return f"FP32 types, {opsets}, Q/DQ with FP32 scales; flags choose the types"
    return f"types as they are to be computed, {opsets}, Q/DQ with scales of the type of the rest, no Cast behind them"


def _meaning(graph: GraphSummary, known: Generation, weak: bool, calibrated: bool) -> str:
    rest = graph.rest.upper()
    if calibrated:
        return "INT8 where the calibrator's ranges allow and INT8 is faster, else FP16 or FP32"
    if graph.precision == "int8" and weak:
        return "linears in INT8; TensorRT picks FP16 or FP32 for the rest, so logits differ from ONNX Runtime's"
    if graph.precision == "int8" and known.name == RTX:
        return f"weights and inputs of linears quantized to INT8, rest {rest}; NVIDIA lists INT8 as weight-only on RTX"
    if graph.precision in ("int8", "fp8"):
        return f"linears in {graph.precision.upper()}, everything else in {rest} exactly as the graph says"
    if weak and known.typing == "weak":
        return "FP32, TF32 off; with --weak FP16 where TensorRT finds it faster"
    return f"{rest} exactly as the graph says"


def _notes(
    graph: GraphSummary,
    known: Generation,
    version: str,
    profile: Device | None,
    weak: bool,
    options: BuildOptions,
) -> tuple[str, ...]:
    notes = []
    quantized = graph.precision in ("int8", "fp8")
    if quantized and graph.rest == "fp32" and not weak:
        notes.append(
            "the rest of this graph is FP32: attention, softmax and LayerNorm run at half the rate of FP16 or less and "
            "do not use FP16 attention kernels; measure against a plain FP16 engine"
            + ("" if known.typing == "strong" else ", or build with --weak")
        )
    if weak and known.typing == "both" and version != RTX and known.name in ("10.13", "10.16"):
        notes.append("TensorRT warns that weak typing is deprecated since 10.12; 11 has none")
    if graph.precision == "fp8" and graph.quantized_attention and len(set(options.batch)) > 1:
        notes.append("FP8 attention fuses with static shapes only; build one engine per batch size")
    if options.dla is not None:
        count, total = sum(_dla_fallback(graph).values()), sum(graph.operators.values())
        notes.append(
            f"{count} of {total} operators fall back to the GPU, with a copy through memory at every change: a "
            "transformer is slower so than on the GPU alone"
        )
    if options.hardware_compatibility == "ampere+":
        notes.append("AMPERE_PLUS forbids kernels of newer GPUs: slower than an engine for this GPU")
    if options.version_compatible:
        notes.append("the engine carries a lean runtime: loading it executes code from the file")
    if profile is not None and profile.is_jetson:
        notes.append("build on the board, in the power mode it will run in: engines do not move between GPU models")
    if known.name == RTX:
        notes.append("compiled ahead of time; the GPU's driver compiles the rest when the engine first runs")
    return tuple(notes)


def for_version(plan: BuildPlan, version: str) -> BuildPlan:
    """The plan with the version that is installed, which must be of the generation planned for.

    Raises:
        ConfigError: another generation.
    """
    if plan.rtx:
        return replace(plan, tensorrt=version)
    if plan.tensorrt is None or generation(".".join(version.split(".")[:3])).name != plan.generation:
        raise ConfigError(f"planned for TensorRT {plan.tensorrt}, here is {version}; give --tensorrt {version}")
    return replace(plan, tensorrt=version)
