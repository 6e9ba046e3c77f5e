"""A build plan as data, the file name of its engine, and the equivalent trtexec (or tensorrt_rtx) command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.hardware.tensorrt_versions import RTX, Dialect, Platform, generation

TORCH_TENSORRT = "torch_tensorrt"
"""Module of plans that compile a PyTorch model without ONNX."""
_COMPATIBILITY = {"AMPERE_PLUS": "ampere+", "SAME_COMPUTE_CAPABILITY": "sameComputeCapability"}


@dataclass(frozen=True)
class BuildPlan:
    """Everything that a build does.

    Args:
        target: ``"rtx"`` or the device's name.
        generation: row of the table of TensorRT versions.
        tensorrt: version planned for; None for RTX, where the installed one builds.
        module: Python module.
        compute_capabilities: of the GPUs that run the engine.
        precision, rest, opset: of the graph.
        dialect: form of the graph that this generation reads.
        meaning: the arithmetic of the engine, in a sentence.
        network_flags: members of NetworkDefinitionCreationFlag.
        builder_flags, cleared_flags: members of BuilderFlag set and cleared.
        profile: for each dynamic input its smallest, usual and largest shape.
        batch: smallest, usual and largest batch size.
        workspace_bytes: limit of the workspace pool.
        optimization_level, max_aux_streams, profiling_verbosity: of the builder configuration.
        hardware_compatibility: member of HardwareCompatibilityLevel, None for this GPU model alone.
        timing_cache: file name with everything that timings depend on; None for RTX, which measures nothing.
        dla_core: DLA core, None for the GPU.
        dla_fallback: number of each operator that runs on the GPU nevertheless.
        calibrator: class that reads ``calibration_cache``; None where the graph holds the ranges.
        progress: the build reports its progress.
        notes: consequences of these choices, one sentence each.
    """

    target: str
    generation: str
    tensorrt: str | None
    module: str
    compute_capabilities: tuple[str, ...]
    precision: str
    rest: str
    opset: int
    dialect: Dialect
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
        """True for TensorRT-RTX, whose builder takes compute capabilities."""
        return self.module == "tensorrt_rtx"

    @property
    def is_weak(self) -> bool:
        """True if builder flags decide the types of layers."""
        typing = generation(self.generation).typing
        return typing == "weak" or (typing == "both" and "STRONGLY_TYPED" not in self.network_flags)

    @property
    def graph_form(self) -> str:
        """The form of the graph for this plan, as text: the dialect, its opsets, types and Q/DQ."""
        low, high = generation(self.generation).opsets
        start = f"{self.dialect}: {'FP32 types' if self.is_weak else 'types as they are to be computed'}, opset {low} to {high}"
        if self.dialect == "trt8":
            return f"{start}, Q/DQ with FP32 scales and INT8 zero points of 0, Gelu as Erf"
        if self.is_weak:
            return f"{start}, Q/DQ with FP32 scales; flags choose the types"
        return f"{start}, Q/DQ with scales of the type of the rest, no Cast behind them"

    @property
    def platform(self) -> Platform:
        """The platform for lint: the oldest GPU of the plan."""
        lowest = min(self.compute_capabilities, key=float)
        if self.rtx:
            return Platform(RTX, lowest, "TensorRT-RTX", RTX)
        title = f"TensorRT {self.tensorrt} on {self.target}"
        return Platform(self.tensorrt, lowest, title, self.target, weak="FP16" in self.builder_flags)

    def command(self, model: str = "model.onnx", engine: str = "model.engine") -> str | None:
        """Returns the equivalent command line of this generation for a shell, None where there is none."""
        words = build_command(self, model, engine)
        return None if words is None else shlex.join(words)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values, with the command beside them."""
        return {
            **{name: _plain(value) for name, value in asdict(self).items()},
            "trtexec": self.command(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BuildPlan:
        """Reads the values of :meth:`to_json`.

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


def build_command(plan: BuildPlan, model: str, engine: str) -> tuple[str, ...] | None:
    """Returns the words of the command; None where trtexec would build something else.

    trtexec reads any calibration cache as one of entropy calibration and ignores its header silently.
    """
    if plan.module == TORCH_TENSORRT:
        return None
    if plan.calibrator is not None and plan.calibrator != "IInt8EntropyCalibrator2":
        return None
    rtx = plan.rtx
    words = ["tensorrt_rtx" if rtx else "trtexec", f"--onnx={model}", f"--saveEngine={engine}"]
    if rtx:
        words.append("--computeCapabilities=" + ",".join(c.replace(".", "") for c in plan.compute_capabilities))
    elif "STRONGLY_TYPED" in plan.network_flags:
        words.append("--stronglyTyped")
    words += [f"--{flag.lower()}" for flag in ("FP16", "INT8") if flag in plan.builder_flags]
    for kind, index in (("min", 0), ("opt", 1), ("max", 2)):
        if plan.profile:
            shapes = ",".join(f"{name}:{'x'.join(map(str, sizes[index]))}" for name, sizes in plan.profile.items())
            words.append(f"--{kind}Shapes={shapes}")
    if rtx:
        return (*words, "--skipInference")
    words.append(f"--memPoolSize=workspace:{plan.workspace_bytes >> 20}")
    words.append(f"--builderOptimizationLevel={plan.optimization_level}")
    words.append(f"--maxAuxStreams={plan.max_aux_streams}")
    words.append(f"--profilingVerbosity={plan.profiling_verbosity.lower()}")
    if plan.timing_cache is not None:
        words.append(f"--timingCacheFile={plan.timing_cache}")
    if "TF32" in plan.cleared_flags:
        words.append("--noTF32")
    if plan.hardware_compatibility is not None:
        words.append(f"--hardwareCompatibilityLevel={_COMPATIBILITY[plan.hardware_compatibility]}")
    flags = {"VERSION_COMPATIBLE": "--versionCompatible", "REFIT": "--refit", "STRIP_PLAN": "--stripWeights"}
    words += [word for flag, word in flags.items() if flag in plan.builder_flags]
    if plan.dla_core is not None:
        words += [f"--useDLACore={plan.dla_core}", "--allowGPUFallback"]
    if plan.calibration_cache is not None:
        words.append(f"--calib={plan.calibration_cache}")
    return (*words, "--skipInference")


def engine_key(plan: BuildPlan, version: str) -> str:
    """Returns the file name of an engine: everything that it depends on."""
    capabilities = "-".join(f"sm{c.replace('.', '')}" for c in plan.compute_capabilities)
    flavour = "rtx" if plan.rtx else "torch" if plan.module == TORCH_TENSORRT else "trt"
    device = "" if plan.rtx else f"_{plan.target}"
    marks = [flag.lower().replace("_", "") for flag in plan.builder_flags]
    marks += [f"dla{plan.dla_core}"] if plan.dla_core is not None else []
    marks += [plan.hardware_compatibility.lower().replace("_", "")] if plan.hardware_compatibility else []
    extra = "".join(f"_{mark}" for mark in marks)
    low, usual, high = plan.batch
    return f"{flavour}{version}_{capabilities}{device}_{plan.precision}{extra}_b{low}-{usual}-{high}"


def for_version(plan: BuildPlan, version: str) -> BuildPlan:
    """Returns the plan with the installed version, which must be of the planned generation.

    Raises:
        ConfigError: another generation.
    """
    if plan.rtx:
        return replace(plan, tensorrt=version)
    if plan.tensorrt is None or generation(".".join(version.split(".")[:3])).name != plan.generation:
        raise ConfigError(
            f"planned for TensorRT {plan.tensorrt}, but {version} is installed; give --tensorrt {version}"
        )
    return replace(plan, tensorrt=version)
