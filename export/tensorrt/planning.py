"""Build plans: everything a TensorRT build will do, as data, decided without a GPU."""

from __future__ import annotations

from gft_edge.errors import ConfigError
from gft_edge.export.graph.summary import GraphSummary, slow_types
from gft_edge.export.tensorrt.build_plan import BuildPlan
from gft_edge.export.tensorrt.options import (
    HARDWARE_COMPATIBILITY,
    BuildOptions,
    calibrator_class,
    require_options,
    require_types,
    workspace_bytes,
)
from gft_edge.hardware.devices import Device, device
from gft_edge.hardware.tensorrt_versions import (
    RTX,
    RTX_CAPABILITIES,
    Generation,
    assumed_version,
    default_version,
    generation,
    require_rtx_capability,
    require_together,
)

DLA_OPERATORS = frozenset(
    [
        "Conv",
        "ConvTranspose",
        "MatMul",
        "Gemm",
        "Add",
        "Mul",
        "Sub",
        "Max",
        "Min",
        "Sum",
        "Clip",
        "Relu",
        "Sigmoid",
        "Tanh",
        "Softmax",
        "Slice",
        "Reshape",
        "Transpose",
        "Concat",
        "Resize",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Identity",
        "QuantizeLinear",
        "DequantizeLinear",
    ]
)
"""Operators of NVIDIA's table in Deep-Learning-Accelerator-SW; MatMul with a constant second operand only."""


def make_plan(graph: GraphSummary, target: str | Device, options: BuildOptions | None = None) -> BuildPlan:
    """Plans a build.

    Args:
        graph: of the artefact.
        target: ``"rtx"``, the name of a device, or a device found here.
        options: of the user.

    Raises:
        ConfigError: the combination is impossible, with the reason.
    """
    options = options or BuildOptions()
    if target == RTX:
        profile, version = None, RTX
        capabilities = options.compute_capabilities or RTX_CAPABILITIES
        if options.tensorrt is not None:
            raise ConfigError("--tensorrt: an RTX engine is built by the installed TensorRT-RTX")
        for capability in capabilities:
            require_rtx_capability(capability, f"--compute-capability {capability}")
    else:
        if options.compute_capabilities is not None:
            raise ConfigError("--compute-capability: for --target rtx only; a device has its own")
        profile = device(target) if isinstance(target, str) else target
        version = options.tensorrt or default_version(profile)
        require_together(version, profile)
        capabilities = (profile.compute_capability,)
    known = generation(version)
    require_types(graph, version, capabilities)
    require_options(graph, known, version, profile, options)
    weak = known.typing == "weak" or options.weak
    calibrator = calibrator_class(graph, known, version, options)
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
        dialect=known.dialect,
        meaning=_meaning(graph, known, weak, calibrator is not None, options.weak),
        network_flags=known.network_flags[0 if weak else 1],
        builder_flags=tuple(sorted(flags)),
        cleared_flags=("TF32",) if exact else (),
        profile=_profile(graph, options.batch),
        batch=options.batch,
        workspace_bytes=workspace_bytes(profile, options),
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
        notes=_notes(graph, known, version, profile, flags, options),
    )


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


def _timing_cache(version: str, profile: Device, options: BuildOptions) -> str:
    capability = profile.compute_capability.replace(".", "")
    mode = f"_{options.power_mode}" if options.power_mode else ""
    return f"timing_trt{version}_sm{capability}_{profile.name}{mode}.cache"


def _dla_fallback(graph: GraphSummary) -> dict[str, int]:
    return {name: count for name, count in graph.operators.items() if name not in DLA_OPERATORS}


def _meaning(graph: GraphSummary, known: Generation, weak: bool, calibrated: bool, allow_fp16: bool) -> str:
    rest = graph.rest.upper()
    linears = "linears and attention products" if graph.quantized_attention else "linears"
    if calibrated:
        return "INT8 where the calibrator's ranges allow and INT8 is faster, else FP16 or FP32"
    if graph.precision == "int8" and weak:
        return f"{linears} in INT8; TensorRT picks FP16 or FP32 for the rest, so logits differ from ONNX Runtime's"
    if graph.precision == "int8" and known.name == RTX:
        return (
            f"weights and inputs of {linears} quantized to INT8, rest {rest}; NVIDIA lists INT8 as weight-only on RTX"
        )
    if graph.precision in ("int8", "fp8"):
        return f"{linears} in {graph.precision.upper()}, everything else in {rest} exactly as the graph says"
    if weak:
        fp16 = known.typing == "both" or allow_fp16
        return "FP16 where TensorRT finds it faster, else FP32" if fp16 else "FP32; with --weak FP16 where it is faster"
    return f"{rest} exactly as the graph says"


def _notes(
    graph: GraphSummary,
    known: Generation,
    version: str,
    profile: Device | None,
    flags: set[str],
    options: BuildOptions,
) -> tuple[str, ...]:
    notes = []
    weak = known.typing == "weak" or options.weak
    if profile is not None and options.tensorrt is None:
        notes.append(assumed_version(profile))
    slow = slow_types(graph, half_allowed="FP16" in flags, has_flag=known.typing != "strong")
    if slow is not None:
        notes.append(slow)
    if weak and known.deprecates_weak:
        notes.append("TensorRT warns that weak typing is deprecated since 10.12; 11 has none")
    if graph.precision == "fp8" and graph.quantized_attention and len(set(options.batch)) > 1:
        notes.append("FP8 attention fuses with static shapes only; build one engine per batch size")
    if options.dla is not None:
        count, total = sum(_dla_fallback(graph).values()), sum(graph.operators.values())
        notes.append(
            f"{count} of {total} operators fall back to the GPU, with a copy through memory at every change, which "
            "makes a transformer slower than on the GPU alone"
        )
    if options.hardware_compatibility == "ampere+":
        notes.append("AMPERE_PLUS forbids kernels of newer GPUs: slower than an engine for this GPU")
    if options.version_compatible:
        notes.append("the engine contains a lean runtime: loading it executes code from the file")
    if profile is not None and profile.is_jetson:
        notes.append("build on the board, in the power mode it will run in: engines do not move between GPU models")
    if known.name == RTX:
        notes.append("compiled ahead of time; the GPU's driver compiles the rest when the engine first runs")
    return tuple(notes)
