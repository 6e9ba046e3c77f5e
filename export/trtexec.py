"""The trtexec (or tensorrt_rtx) command that does what a build plan says, with the flags of its generation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gft_edge.export.plan import BuildPlan

_COMPATIBILITY = {"AMPERE_PLUS": "ampere+", "SAME_COMPUTE_CAPABILITY": "sameComputeCapability"}


def build_command(plan: BuildPlan, model: str, engine: str) -> tuple[str, ...] | None:
    """The command's words; None where trtexec would build something else.

    trtexec reads a calibration cache as one of entropy calibration whatever its header says, and ignores it silently.
    """
    if plan.calibrator is not None and plan.calibrator != "IInt8EntropyCalibrator2":
        return None
    rtx = plan.module == "tensorrt_rtx"
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
