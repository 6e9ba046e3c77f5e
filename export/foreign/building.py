"""Builds the TensorRT engine of a foreign ONNX file: the plan from the graph alone, engine and record beside the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.export.foreign.model import ForeignModel
from gft_edge.export.foreign.opening import ANY_BATCH, viewed
from gft_edge.export.graph.summary import summary_of
from gft_edge.export.graph.view import GraphView
from gft_edge.export.lint.linter import LintReport, lint_view
from gft_edge.export.tensorrt.build import plan_for, require_clean
from gft_edge.export.tensorrt.build_plan import BuildPlan, engine_key, for_version
from gft_edge.export.tensorrt.builders import BuildProgress, compile_plan, load_module
from gft_edge.export.tensorrt.options import BuildOptions
from gft_edge.export.tensorrt.registration import engine_record
from gft_edge.files import replacing, require_writable
from gft_edge.hardware.tensorrt_versions import generation, require_rtx_capability
from gft_edge.manifest import Batch, FileInfo
from gft_edge.runtime.backends.engine_files import engine_beside
from gft_edge.storage.seals import write_sealed


@dataclass(frozen=True)
class ForeignBuild:
    """A build of a foreign model before it runs.

    Attributes:
        model: gets compiled.
        plan: of the build.
        graph: of the model.
        report: of lint for the plan's platform.
    """

    model: ForeignModel
    plan: BuildPlan
    graph: GraphView
    report: LintReport


def build_batch(model: ForeignModel) -> Batch:
    """Returns the batch sizes of a build that names none: the graph's own, or 1 to 8."""
    return ANY_BATCH if model.batch is None else (model.batch,) * 3


def plan_foreign(model: ForeignModel, target: str, options: BuildOptions, *, plan_only: bool = True) -> ForeignBuild:
    """Plans a build of a foreign model and lints its graph for it.

    Args:
        model: gets compiled.
        target, plan_only: as for :func:`gft_edge.export.tensorrt.build.plan_for`.
        options: with the batch sizes of the dynamic axis.

    Raises:
        ConfigError: an impossible combination, an opset that the TensorRT of the plan does not read, or a calibration cache,
            which names the tensors of artefacts.
        ArtifactError: a damaged graph, or one with dynamic axes besides the batch.
    """
    if options.calibration_cache is not None:
        raise ConfigError(
            f"--calibration-cache: the ranges of {model.path} belong into its graph; gft-edge quantize {model.path}"
        )
    graph = viewed(model)
    try:
        summary = summary_of(graph)
    except ArtifactError as error:
        raise ArtifactError(f"graph {model.file}: {error}") from None
    plan = plan_for(model.path, summary, target, options, plan_only=plan_only)
    low, high = generation(plan.generation).opsets
    if not low <= plan.opset <= high and plan.dialect == "trt8":
        raise ConfigError(
            f"build {model.path}: TensorRT {plan.tensorrt} reads opset {low} to {high}, this graph has {plan.opset}; export it "
            f"with opset {high}"
        )
    return ForeignBuild(model, plan, graph, lint_view(graph, plan.platform))


def build_foreign(
    model: ForeignModel,
    target: str,
    options: BuildOptions,
    out: Path | None = None,
    progress: BuildProgress | None = None,
) -> dict[str, Any]:
    """Compiles a foreign model; writes ``STEM_KEY.engine`` and its record ``STEM_KEY.json``.

    No manifest lists such an engine. The record is sealed and holds the sha256 of graph and engine, which
    :func:`gft_edge.runtime.backends.engine_files.check_engine_beside` compares before the engine is loaded.

    Args:
        model: gets compiled.
        target, options: as for :func:`plan_foreign`.
        out: folder for the two; beside the file by default, where backends find them.
        progress: receives the steps of the compiler.

    Returns:
        the record, and ``file``: the path of the engine.

    Raises:
        MissingExtraError, ConfigError, CheckFailed, ArtifactError: as :func:`gft_edge.export.tensorrt.build.build_engine`.
    """
    planned = plan_foreign(model, target, options, plan_only=False)
    for capability in planned.plan.compute_capabilities if planned.plan.rtx else ():
        require_rtx_capability(capability, f"build {model.path}: plan of an RTX engine")
    trt = load_module(planned.plan)
    plan = for_version(planned.plan, trt.__version__)
    require_clean(model.file, planned.graph, plan)
    key = engine_key(plan, trt.__version__)
    if out is not None and out.is_file():
        raise ConfigError(f"--out {out}: is a file; give a folder for the engine and its record")
    beside = model.file if out is None else out / model.file.name
    engine, sidecar = engine_beside(beside, key)
    for path in (engine, sidecar):
        require_writable(path)
    blob, layers = compile_plan(trt, model.file, plan, progress)
    with replacing(engine) as temporary:
        temporary.write_bytes(blob)
    evidence = "compiled; not yet run on a GPU"
    record = engine_record(plan, key, model.sha256, FileInfo.of(engine), layers=layers, evidence=evidence)
    write_sealed(sidecar, record)
    return {**record, "file": str(engine)}
