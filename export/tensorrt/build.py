"""Builds the TensorRT engine of an artefact, from plan to registration; the command line and notebooks call these functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from gft_edge.calibration.cache import load_cache, read_cache, require_fit, sidecar
from gft_edge.errors import CheckFailed, ConfigError
from gft_edge.export.graph.loading import load_graph
from gft_edge.export.graph.summary import GraphSummary, summary_of
from gft_edge.export.graph.view import GraphView, view
from gft_edge.export.lint.linter import LintReport, lint_view
from gft_edge.export.onnx.dialects import export_command
from gft_edge.export.tensorrt.build_plan import BuildPlan, for_version
from gft_edge.export.tensorrt.builders import BuildProgress, compile_plan, load_module
from gft_edge.export.tensorrt.options import BuildOptions
from gft_edge.export.tensorrt.planning import make_plan
from gft_edge.export.tensorrt.registration import (
    artifact_engine_key,
    installed_tensorrt,
    record_engine,
)
from gft_edge.files import replacing, require_writable
from gft_edge.hardware.devices import Device, device
from gft_edge.hardware.environment import missing_extra
from gft_edge.hardware.jetson import power_mode_mark
from gft_edge.hardware.tensorrt_versions import RTX, generation, require_rtx_capability
from gft_edge.hardware.this_device import device_here, same_module
from gft_edge.manifest import MANIFEST, MODEL, Artifact
from gft_edge.runtime.backends.table import backend_of_module
from gft_edge.runtime.engine_files import engine_files
from gft_edge.storage.locks import locked

THIS_GPU = "this-gpu"
"""Target: the TensorRT and the GPU of this machine."""


@dataclass(frozen=True)
class PlannedBuild:
    """A build before it runs.

    Args:
        artifact: its model.onnx gets compiled.
        plan: of the build.
        graph: of the artefact.
        report: of lint for the plan's platform.
    """

    artifact: Artifact
    plan: BuildPlan
    graph: GraphView
    report: LintReport


def plan_build(
    artifact: Artifact,
    target: str,
    options: BuildOptions | None = None,
    problem: Callable[[str], None] | None = None,
) -> PlannedBuild:
    """Plans a build and lints the graph for it, without a GPU unless the target is this machine's.

    Args:
        artifact: its model.onnx gets compiled.
        target: ``"rtx"``, ``"this-gpu"`` or the name of a device.
        options: by default those of :class:`BuildOptions` with the batch sizes of the export.
        problem: receives a sentence on each gap of the calibration cache.

    Raises:
        ConfigError: an impossible combination, or a graph in another dialect than TensorRT reads.
        ArtifactError: a damaged graph, or a calibration cache of another graph.
        MissingExtraError: the target is this GPU and TensorRT is not installed.
    """
    graph, plan = _planned(artifact, target, options, problem, plan_only=True)
    require_dialect(artifact, plan)
    return PlannedBuild(artifact, plan, graph, lint_view(graph, plan.platform))


def build(
    artifact: Artifact,
    target: str,
    options: BuildOptions | None = None,
    progress: BuildProgress | None = None,
    problem: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Plans a build and runs it: :func:`plan_build`, then :func:`build_engine`.

    A device is built for on itself alone, since engines do not move between GPU models.

    Returns:
        the record of the engine, as in KEY.json.
    """
    graph, plan = _planned(artifact, target, options, problem, plan_only=False)
    return build_engine(artifact, plan, progress, graph)


def build_engine(
    artifact: Artifact, plan: BuildPlan, progress: BuildProgress | None = None, graph: GraphView | None = None
) -> dict[str, Any]:
    """Builds an engine into the artefact's ``engines`` folder and enters it in the manifest.

    Args:
        artifact: its model.onnx gets compiled.
        plan: of the build.
        progress: receives the steps of the compiler.
        graph: of the artefact, where it is read already.

    Returns:
        the record in KEY.json: key, versions, plan, sizes, hashes.

    Raises:
        MissingExtraError: TensorRT is not installed.
        ConfigError: the installed TensorRT is not of the plan's generation, needs another dialect of the graph, there is
            no driver, or the artefact cannot be written to (found before the compiler runs).
        KeyboardInterrupt: Ctrl-C; nothing is written then.
        CheckFailed: lint finds errors in the graph for this target.
        ArtifactError: the compiler refused the graph (with its messages).
    """
    require_dialect(artifact, plan)
    for capability in plan.compute_capabilities if plan.rtx else ():
        require_rtx_capability(capability, f"artefact {artifact.path}: plan of an RTX engine")
    trt = load_module(plan)
    plan = for_version(plan, trt.__version__)
    model = artifact.file(MODEL)
    require_clean(model, graph or view(load_graph(model)), plan)
    key = artifact_engine_key(artifact, plan, trt.__version__)
    for name in (*engine_files(key), MANIFEST):
        require_writable(artifact.path / name)
    blob, layers = compile_plan(trt, model, plan, progress)
    with locked(artifact.path):  # another build of this engine must not change the file between its hash and its record
        return _store(artifact, plan, key, blob, layers)


def _store(artifact: Artifact, plan: BuildPlan, key: str, blob: bytes, layers: int) -> dict[str, Any]:
    with replacing(artifact.path / engine_files(key)[0]) as temporary:
        temporary.write_bytes(blob)
    return record_engine(artifact, plan, key, layers=layers, evidence="compiled; not yet run on a GPU")


def require_clean(model: Path, graph: GraphView, plan: BuildPlan) -> None:
    """Raises CheckFailed when lint finds errors in a graph for the plan's platform."""
    errors = lint_view(graph, plan.platform).errors
    if errors:
        more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
        raise CheckFailed(
            f"build {model}: {errors[0].rule} {errors[0].node}: {errors[0].message}{more}; reasons: gft-edge lint {model}"
        )


def require_dialect(artifact: Artifact, plan: BuildPlan) -> None:
    """Refuses to build for an old TensorRT a graph that its parser does not read; newer ones read both dialects.

    Raises:
        ConfigError: with the command that exports the checkpoint in the dialect needed.
    """
    if plan.tensorrt is not None:
        require_dialect_of(artifact, plan.tensorrt, plan.opset)


def require_dialect_of(artifact: Artifact, version: str, opset: int | None = None) -> None:
    """As :func:`require_dialect`, before there is a plan.

    Args:
        artifact: with the graph.
        version: of TensorRT.
        opset: of the graph, None for what the manifest says.

    Raises:
        ConfigError: with the command that exports the checkpoint in the dialect needed.
    """
    known = generation(".".join(version.split(".")[:3]))
    (low, high), there = known.opsets, artifact.manifest.dialect
    opset = artifact.manifest.opset if opset is None else opset
    if known.dialect == "trt10" or (there == known.dialect and opset <= high):
        return
    raise ConfigError(
        f"build {artifact.path}: TensorRT {version} needs dialect {known.dialect} (opset {low} to {high}), this graph is of "
        f"{there} (opset {opset}); export it again: {export_command(artifact, known.dialect)}"
    )


def _planned(
    artifact: Artifact,
    target: str,
    options: BuildOptions | None,
    problem: Callable[[str], None] | None,
    *,
    plan_only: bool,
) -> tuple[GraphView, BuildPlan]:
    model = load_graph(artifact.file(MODEL))
    graph = view(model)
    options = options or BuildOptions(batch=artifact.manifest.batch)
    if options.calibration_cache is not None:
        options = replace(options, calibration_header=load_cache(Path(options.calibration_cache)).header)
    plan = plan_for(artifact.path, summary_of(graph), target, options, plan_only=plan_only)
    if options.calibration_cache is not None:
        for gap in _cache_gaps(Path(options.calibration_cache), artifact, model, plan.tensorrt):
            if problem is not None:
                problem(gap)
    return graph, plan


def _cache_gaps(path: Path, artifact: Artifact, model: onnx.ModelProto, version: str | None) -> tuple[str, ...]:
    """Returns a sentence on each gap; refuses the cache of another graph, which TensorRT would use silently."""
    cache = load_cache(path)
    if sidecar(path).is_file():
        read_cache(path, graph_sha256=artifact.manifest.files[MODEL].sha256)
    graph = model.graph
    constants = {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    tensors = {value.name for value in graph.input} | {name for node in graph.node for name in node.output}
    tensors -= constants | {tensor.name for tensor in graph.initializer} | {""}
    return require_fit(cache, tensors, version, f"TensorRT cache {path}")


def plan_for(model: Path, summary: GraphSummary, target: str, options: BuildOptions, *, plan_only: bool) -> BuildPlan:
    """Plans a build of a graph.

    Args:
        model: artefact or ONNX file, for the command that builds it elsewhere.
        summary: of the graph.
        target, options: as for :func:`plan_build`.
        plan_only: nothing is built here, so the target may be any device.

    Raises:
        ConfigError: an impossible combination, or another machine than the target.
        MissingExtraError: the target is this GPU and TensorRT is not installed.
    """
    if target == RTX or options.compute_capabilities is not None or (plan_only and target != THIS_GPU):
        return make_plan(summary, target, options)
    wanted = None if target == THIS_GPU else device(target)
    version = installed_tensorrt()
    if version is None:
        if wanted is not None:
            _require_here(wanted, model)
        if options.tensorrt is None or not plan_only:
            raise missing_extra("tensorrt", backend_of_module("tensorrt").extra)
    here = device_here()
    if wanted is not None and not same_module(wanted, here.profile):
        raise ConfigError(
            f"engines do not move between GPU models: this is {here.profile.title} ({here.evidence}); build on {wanted.title}, "
            "or --plan"
        )
    mode = options.power_mode or power_mode_mark()
    return make_plan(summary, here.profile, replace(options, tensorrt=options.tensorrt or version, power_mode=mode))


def _require_here(wanted: Device, model: Path) -> None:
    """Refuses to build for a device that this machine is not: no package installed here would help.

    Raises:
        ConfigError: with the command for the device.
    """
    try:
        here = device_here()
    except ConfigError:
        here = None
    if here is None or not same_module(wanted, here.profile):
        there = "this machine has no NVIDIA GPU"
        if here is not None:
            there = f"this machine has {here.profile.title} ({here.evidence})"
        what = "the file" if model.is_file() else "the artefact"
        raise ConfigError(
            f"an engine for {wanted.title} is built on it, by its own TensorRT, and {there}: copy {what} there and run "
            f"gft-edge build {model} --target {THIS_GPU}; here --plan prints the build"
        )
