"""The same build plan through Torch-TensorRT: a PyTorch model compiled without ONNX.

``import torch_tensorrt`` asks the GPU for its compute capability and fails without a driver, so nothing of this was run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from gft_edge.errors import ConfigError, MissingExtraError
from gft_edge.export.tensorrt.build_plan import BuildPlan
from gft_edge.export.tensorrt.builders import timing_cache_file
from gft_edge.hardware.environment import has_nvidia_driver
from gft_edge.hardware.tensorrt_versions import generation

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def settings(plan: BuildPlan) -> dict[str, Any]:
    """A plan as arguments of ``torch_tensorrt.dynamo.compile`` (2.14: precision is the model's own).

    Raises:
        ConfigError: the plan has what Torch-TensorRT cannot do.
    """
    if plan.precision not in DTYPES:
        raise ConfigError(f"Torch-TensorRT: {plan.precision.upper()} ranges are in the ONNX graph; use gft-edge build")
    if plan.rtx or generation(plan.generation).typing == "weak" or {"FP16", "INT8"} & set(plan.builder_flags):
        raise ConfigError("Torch-TensorRT: needs a strongly typed plan for TensorRT 10 or 11")
    if plan.dla_core is not None or plan.hardware_compatibility == "SAME_COMPUTE_CAPABILITY":
        raise ConfigError("Torch-TensorRT: DLA and same-capability engines are built with gft-edge build")
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


def compile_torch(model: nn.Module, plan: BuildPlan, image_size: int) -> Any:
    """Compiles a model for this machine's GPU; the result is called like the model.

    Args:
        model: in eval mode; converted to the plan's type and moved to the GPU.
        plan: strongly typed, FP32, FP16 or BF16.
        image_size: side of the input.

    Raises:
        ConfigError: no driver, or a plan Torch-TensorRT cannot follow.
        MissingExtraError: torch-tensorrt is not installed.
    """
    arguments = settings(plan)
    if not has_nvidia_driver():
        raise ConfigError("Torch-TensorRT: importing it asks the GPU for its compute capability; no NVIDIA driver here")
    try:
        import torch_tensorrt
    except ImportError:
        raise MissingExtraError("torch-tensorrt", "torch-trt") from None
    Path(arguments["timing_cache_path"]).parent.mkdir(parents=True, exist_ok=True)
    dtype = DTYPES[plan.precision]
    low, usual, high = plan.batch
    sides = (3, image_size, image_size)
    example = torch.zeros(max(usual, 2), *sides, dtype=dtype, device="cuda")
    dynamic = {"image": {0: Dim("batch", min=low, max=high)}} if high > low else None
    example = example if high > low else example[:usual]
    program = torch.export.export(
        model.to("cuda", dtype).eval(), (example,), dynamic_shapes=dynamic and (dynamic["image"],)
    )
    image = torch_tensorrt.Input(
        min_shape=(low, *sides), opt_shape=(usual, *sides), max_shape=(high, *sides), dtype=dtype
    )
    return torch_tensorrt.dynamo.compile(program, inputs=[image], **arguments)
