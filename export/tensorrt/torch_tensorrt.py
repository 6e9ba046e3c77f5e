"""Compiles a checkpoint for this machine's GPU with Torch-TensorRT: the same build plan, without ONNX.

``import torch_tensorrt`` asks the GPU for its compute capability and fails without a driver. Only the plan, its settings and
the traced program are tested; the compilation itself is not verified on hardware.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from gft_edge.checkpoint import Checkpoint, load_checkpoint, require_parent
from gft_edge.errors import ConfigError, MissingExtraError
from gft_edge.export.graph.dtypes import torch_dtype
from gft_edge.export.graph.summary import GraphInput, GraphSummary
from gft_edge.export.onnx.plain_modules import exportable
from gft_edge.export.tensorrt.build_plan import TORCH_TENSORRT, BuildPlan, engine_key
from gft_edge.export.tensorrt.builders import timing_cache_file
from gft_edge.export.tensorrt.options import BuildOptions
from gft_edge.export.tensorrt.planning import make_plan
from gft_edge.export.tensorrt.registration import installed_tensorrt
from gft_edge.files import replacing, write_json
from gft_edge.hardware.devices import Device, device
from gft_edge.hardware.environment import has_nvidia_driver
from gft_edge.hardware.tensorrt_versions import assumed_version, generation
from gft_edge.hardware.this_device import device_here
from gft_edge.manifest import MODEL, Artifact, FileInfo, HighPrecision, load_artifact, register_files
from gft_edge.runtime.backends.engine_files import engine_files
from gft_edge.runtime.backends.torch_program import require_plain
from gft_edge.storage.locks import locked

ASSUMED_DEVICE = "h100"
"""Device of plans that are printed on a machine without a GPU."""
UNVERIFIED = "Torch-TensorRT builds are not verified on hardware"


def plan_torch(checkpoint: Checkpoint, precision: HighPrecision, options: BuildOptions) -> BuildPlan:
    """Plans a Torch-TensorRT build for this machine's GPU; without one, for an H100.

    Args:
        checkpoint: to compile.
        precision: type of the whole model but the importance.
        options: as for an engine.

    Raises:
        ConfigError: an impossible combination, or one that Torch-TensorRT cannot follow.
    """
    config, quantization = checkpoint.info.model, checkpoint.info.quantization
    low, _, high = options.batch
    side = config.image_size
    image = GraphInput("image", precision, (None if high > low else low, 3, side, side))
    quantized = precision if quantization is None else str(quantization["precision"])
    summary = GraphSummary(0, quantized, precision, (precision,), (image,), {}, None, False)
    target, notes = _this_gpu()
    if options.tensorrt is None and (here := installed_tensorrt()) is not None:
        options = replace(options, tensorrt=here)
    elif options.tensorrt is None:
        notes += (assumed_version(target),)
    meaning = f"{precision.upper()}, the importance in FP32"
    plan = make_plan(summary, target, options)
    plan = replace(plan, module=TORCH_TENSORRT, meaning=meaning, notes=(*notes, UNVERIFIED))
    settings(plan)
    return plan


def _this_gpu() -> tuple[Device, tuple[str, ...]]:
    try:
        return device_here().profile, ()
    except ConfigError:
        assumed = device(ASSUMED_DEVICE)
        return assumed, (f"this machine has no NVIDIA GPU; the plan is for {assumed.title}",)


def build_torch(
    checkpoint: str | Path, precision: HighPrecision, options: BuildOptions, out: Path | None = None
) -> dict[str, Any]:
    """Compiles a checkpoint and writes the program, which ``torch.export.load`` reads after ``import torch_tensorrt``.

    Args:
        checkpoint: folder, or ``"builtin"``.
        precision: type of the whole model but the importance.
        options: as for an engine.
        out: file, by default one in the current folder, named by checkpoint and plan; or an artefact of this checkpoint, which
            the program is entered in, so that ``--backend torch-tensorrt`` runs it.

    Returns:
        the file, the plan and the evidence.

    Raises:
        ConfigError: no driver, a plan that Torch-TensorRT cannot follow, or an artefact with another interface.
        ArtifactError: ``out`` is an artefact of another checkpoint.
        MissingExtraError: torch-tensorrt is not installed.
    """
    loaded = load_checkpoint(checkpoint)
    plan = plan_torch(loaded, precision, options)
    artifact = _receiver(loaded, out)
    library = _library()
    compiled, inputs = compile_torch(library, loaded.model, plan)
    key = engine_key(plan, str(plan.tensorrt))
    record = {"plan": plan.to_json(), "torch_tensorrt": settings(plan), "evidence": UNVERIFIED}
    with contextlib.nullcontext() if artifact is None else locked(artifact.path):
        file = out or Path(f"{loaded.path.name}-{key}.ep")
        if artifact is not None:
            file = artifact.path / engine_files(key)[0]
            file.parent.mkdir(exist_ok=True)
        with replacing(file) as temporary:
            library.save(compiled, str(temporary), output_format="exported_program", arg_inputs=inputs)
        if artifact is not None:
            enter_program(artifact, plan, key, record)
    return {"file": str(file), **record}


def _receiver(checkpoint: Checkpoint, out: Path | None) -> Artifact | None:
    """Returns the artefact that the program is entered in, if ``out`` is a folder."""
    if out is None or not out.is_dir():
        return None
    artifact = load_artifact(out)
    require_parent(artifact, checkpoint)
    if checkpoint.info.model.budget != artifact.manifest.budget:
        raise ConfigError(
            f"artefact {out} has budget {artifact.manifest.budget.id}; a program is compiled at the checkpoint's own, "
            f"{checkpoint.info.model.budget.id}"
        )
    require_plain(artifact.manifest, artifact)
    return artifact


def enter_program(artifact: Artifact, plan: BuildPlan, key: str, more: Mapping[str, Any]) -> Artifact:
    """Writes the record of a program that lies in the artefact's ``engines`` folder, and enters both in its manifest."""
    program, record_file = engine_files(key)
    record = {
        "key": key,
        "module": plan.module,
        "version": plan.tensorrt,
        "device": plan.target,
        "compute_capabilities": list(plan.compute_capabilities),
        "precision": plan.precision,
        "batch": list(plan.batch),
        "engine_sha256": FileInfo.of(artifact.path / program).sha256,
        "model_sha256": artifact.manifest.files[MODEL].sha256,
        **more,
    }
    write_json(artifact.path / record_file, record)
    return register_files(artifact, [program, record_file])


def settings(plan: BuildPlan) -> dict[str, Any]:
    """Returns a plan as arguments of ``torch_tensorrt.dynamo.compile`` (2.14: the model decides the precision).

    Raises:
        ConfigError: the plan has something that Torch-TensorRT lacks.
    """
    if plan.precision not in ("fp32", "fp16", "bf16"):
        raise ConfigError(
            f"Torch-TensorRT: {plan.precision.upper()} ranges are in the ONNX graph; export, then gft-edge build"
        )
    if plan.rtx or generation(plan.generation).typing == "weak" or {"FP16", "INT8"} & set(plan.builder_flags):
        raise ConfigError("Torch-TensorRT: needs a strongly typed plan for TensorRT 10 or 11")
    if plan.dla_core is not None or plan.hardware_compatibility == "SAME_COMPUTE_CAPABILITY":
        raise ConfigError(
            "Torch-TensorRT: DLA and same-capability engines need an artefact; export, then gft-edge build"
        )
    return {
        "disable_tf32": "TF32" in plan.cleared_flags,
        "workspace_size": plan.workspace_bytes,
        "optimization_level": plan.optimization_level,
        "max_aux_streams": plan.max_aux_streams,
        "version_compatible": "VERSION_COMPATIBLE" in plan.builder_flags,
        "hardware_compatible": plan.hardware_compatibility == "AMPERE_PLUS",
        "immutable_weights": "REFIT" not in plan.builder_flags,
        "strip_engine_weights": "STRIP_PLAN" in plan.builder_flags,
        "timing_cache_path": str(timing_cache_file(plan.timing_cache or "timing.cache")),
        "require_full_compilation": True,
    }


def _library() -> ModuleType:
    if not has_nvidia_driver():
        raise ConfigError(
            "--target torch-tensorrt: importing torch-tensorrt asks the GPU for its compute capability, and there is no "
            "NVIDIA driver here; --plan prints the build"
        )
    try:
        import torch_tensorrt
    except ImportError:
        raise MissingExtraError("torch-tensorrt", "torch-trt") from None
    module: ModuleType = torch_tensorrt
    return module


def traced(model: nn.Module, plan: BuildPlan, device: str = "cuda") -> ExportedProgram:
    """Traces a model in the plan's type and batch sizes.

    Args:
        model: in eval mode, full precision; it is copied, its importance stays FP32.
        plan: strongly typed, FP32, FP16 or BF16.
        device: of PyTorch.
    """
    dtype = torch_dtype(plan.precision)
    low, usual, high = plan.batch
    config: Any = model.config
    side = config.image_size
    # A dynamic axis is traced with two images: one would be taken for a constant.
    example = torch.zeros(max(usual, 2) if high > low else usual, 3, side, side, dtype=dtype, device=device)
    shapes = ({0: Dim("batch", min=low, max=high)},) if high > low else None
    return torch.export.export(exportable(model, dtype).to(device).eval(), (example,), dynamic_shapes=shapes)


def compile_torch(library: ModuleType, model: nn.Module, plan: BuildPlan) -> tuple[Any, list[Any]]:
    """Compiles a model for this machine's GPU; not verified on hardware.

    Args:
        library: ``torch_tensorrt``.
        model: in eval mode, full precision.
        plan: strongly typed, FP32, FP16 or BF16.

    Returns:
        the compiled module, which is called like the model, and its inputs.
    """
    arguments = settings(plan)
    Path(arguments["timing_cache_path"]).parent.mkdir(parents=True, exist_ok=True)
    program = traced(model, plan)
    sides = tuple(program.example_inputs[0][0].shape[1:])
    low, usual, high = ((size, *sides) for size in plan.batch)
    image = library.Input(min_shape=low, opt_shape=usual, max_shape=high, dtype=torch_dtype(plan.precision))
    return library.dynamo.compile(program, inputs=[image], **arguments), [image]
