"""Compile an artefact's graph into a TensorRT engine and enter it in the artefact's manifest, or print what would be done."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gft_edge.export.lint.linter import LintReport
    from gft_edge.export.tensorrt.build_plan import BuildPlan
    from gft_edge.export.tensorrt.builders import Watch
    from gft_edge.export.tensorrt.options import BuildOptions
    from gft_edge.hardware.devices import Device
    from gft_edge.manifest import Artifact

EXAMPLE = "gft-edge build runs/artifact --target orin-nano --tensorrt 10.3 --plan"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="artefact folder")
    parser.add_argument(
        "--target",
        required=True,
        metavar="rtx|this-gpu|DEVICE",
        help="rtx: TensorRT-RTX, ahead of time, needs no GPU; this-gpu: the TensorRT and GPU of this machine; DEVICE: a "
        "profile such as orin-nano, agx-orin, thor or h100, to plan for, or to build for when this machine is one",
    )
    parser.add_argument("--plan", action="store_true", help="print what would be done, without a GPU; build nothing")
    parser.add_argument(
        "--tensorrt", metavar="VERSION", help="TensorRT to plan for (the device's newest; here: installed)"
    )
    parser.add_argument("--compute-capability", metavar="X.Y[,X.Y...]", help="GPUs of --target rtx (8.0,8.6,8.9,12.0)")
    parser.add_argument("--batch", metavar="N|MIN:OPT:MAX", help="batch sizes (those it was exported for)")
    parser.add_argument("--workspace", type=int, metavar="MIB", help="scratch memory (an eighth of the device's)")
    parser.add_argument("--optimization-level", type=int, default=3, metavar="0-5", help="5 takes longest (3)")
    parser.add_argument("--weak", action="store_true", help="8.6, 10.x: FP32 layers may run in FP16 where it is faster")
    parser.add_argument("--tf32", action="store_true", help="keep TF32 products in an FP32 engine")
    parser.add_argument("--dla", type=int, metavar="CORE", help="run on a DLA core what can run there")
    parser.add_argument("--refit", action="store_true", help="weights can be changed later")
    parser.add_argument("--strip", action="store_true", help="leave the weights out of the engine")
    parser.add_argument("--hardware-compatibility", metavar="ampere+|same-capability", help="run on other GPUs too")
    parser.add_argument("--version-compatible", action="store_true", help="load in the next major TensorRT too")
    parser.add_argument(
        "--calibration-cache", type=Path, metavar="FILE", help="ranges for a graph without Q/DQ (8.6, 10.x)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.console import result, say
    from gft_edge.errors import EXIT_CHECK_FAILED, EXIT_OK
    from gft_edge.export.graph.loading import load_graph
    from gft_edge.export.graph.summary import summarize
    from gft_edge.export.lint.linter import lint
    from gft_edge.export.tensorrt.builders import build_engine, require_dialect
    from gft_edge.manifest import MODEL, load_artifact

    artifact = load_artifact(args.artifact)
    graph = load_graph(artifact.file(MODEL))
    if args.batch is None:
        args.batch = ":".join(map(str, artifact.manifest.batch))
    plan = _plan(args, summarize(graph))
    for note in _check_cache(args.calibration_cache, artifact, graph, plan.tensorrt):
        say(f"build: {note}")
    require_dialect(artifact, plan)
    if args.plan:
        report = lint(graph, plan.platform)
        data = {"plan": plan.to_json(), "lint": [vars(finding) for finding in report.findings]}
        result(args, data, _show(plan, report))
        return EXIT_CHECK_FAILED if report.errors else EXIT_OK
    with _watching() as watch:
        record = build_engine(artifact, plan, watch)
    text = (
        f"{args.artifact}/engines/{record['key']}.engine: {record['engine_bytes'] / 1e6:.2f} MB for compute capability "
        f"{', '.join(record['compute_capabilities'])} ({record['evidence']})"
    )
    result(args, record, text)
    return EXIT_OK


def _check_cache(path: Path | None, artifact: Artifact, graph: Any, version: str | None) -> tuple[str, ...]:
    """What a cache leaves out; refuses one of another graph, which TensorRT would take without a word."""
    if path is None:
        return ()
    from gft_edge.calibration.cache import load_cache, read_cache, require_fit, sidecar
    from gft_edge.manifest import MODEL

    cache = load_cache(path)
    if sidecar(path).is_file():
        read_cache(path, graph_sha256=artifact.manifest.files[MODEL].sha256)
    constants = {name for node in graph.graph.node if node.op_type == "Constant" for name in node.output}
    tensors = {value.name for value in graph.graph.input} | {name for node in graph.graph.node for name in node.output}
    tensors -= constants | {value.name for value in graph.graph.initializer} | {""}
    return require_fit(cache, tensors, version, f"TensorRT cache {path}")


def _plan(args: argparse.Namespace, summary: Any) -> BuildPlan:
    from gft_edge.errors import ConfigError
    from gft_edge.export.tensorrt.planning import make_plan
    from gft_edge.hardware.devices import device
    from gft_edge.hardware.environment import missing_extra
    from gft_edge.hardware.tensorrt_versions import RTX
    from gft_edge.hardware.this_device import device_here, power_mode, same_module

    if args.target == RTX:
        return make_plan(summary, RTX, _options(args, None))
    if args.compute_capability is not None:
        raise ConfigError("--compute-capability: for --target rtx only; a device has its own")
    wanted = None if args.target == "this-gpu" else device(args.target)
    if args.plan and wanted is not None:
        return make_plan(summary, wanted, _options(args, args.tensorrt))
    try:
        import tensorrt
    except (ImportError, OSError):
        if wanted is not None:
            _require_here(wanted, args.artifact)
        if args.tensorrt is None or not args.plan:
            raise missing_extra("tensorrt", "trt") from None
    here = device_here()
    if wanted is not None and not same_module(wanted, here):
        raise ConfigError(
            f"engines do not move between GPU models: this is {here.title}; build on {wanted.title}, or --plan"
        )
    version = args.tensorrt or ".".join(tensorrt.__version__.split(".")[:3])
    return make_plan(summary, here, replace(_options(args, version), power_mode=power_mode()))


def _require_here(wanted: Device, artifact: Path) -> None:
    """Refuses to build for a device that this machine is not: no package installed here would help.

    Raises:
        ConfigError: with what to do where.
    """
    from gft_edge.errors import ConfigError
    from gft_edge.hardware.this_device import device_here, same_module

    try:
        here = device_here()
    except ConfigError:
        here = None
    if here is None or not same_module(wanted, here):
        what = "this machine has no NVIDIA GPU" if here is None else f"this machine has {here.title}"
        raise ConfigError(
            f"an engine for {wanted.title} is built on it, by its own TensorRT, and {what}: copy the artefact there and run "
            f"gft-edge build {artifact} --target this-gpu; here --plan prints what that will do"
        )


def _options(args: argparse.Namespace, version: str | None) -> BuildOptions:
    from gft_edge.cli.common import parse_batch_range, parse_compute_capabilities
    from gft_edge.export.tensorrt.options import BuildOptions
    from gft_edge.hardware.tensorrt_versions import RTX_CAPABILITIES

    text, header = args.compute_capability, None
    if args.calibration_cache is not None:
        from gft_edge.calibration.cache import load_cache

        header = load_cache(args.calibration_cache).header
    return BuildOptions(
        batch=parse_batch_range(args.batch),
        compute_capabilities=RTX_CAPABILITIES if text is None else parse_compute_capabilities(text),
        tensorrt=version or args.tensorrt,
        workspace_mib=args.workspace,
        weak=args.weak,
        tf32=args.tf32,
        dla=args.dla,
        refit=args.refit,
        strip=args.strip,
        hardware_compatibility=args.hardware_compatibility,
        version_compatible=args.version_compatible,
        calibration_cache=None if args.calibration_cache is None else str(args.calibration_cache),
        calibration_header=header,
        optimization_level=args.optimization_level,
    )


def _show(plan: BuildPlan, report: LintReport) -> str:
    """A plan for reading."""
    from gft_edge.cli.console import table

    shapes = "; ".join(
        f"{name} {' : '.join('x'.join(map(str, s)) for s in sizes)}" for name, sizes in plan.profile.items()
    )
    rest = "" if plan.precision == plan.rest else f", rest {plan.rest.upper()}"
    fallback = ", ".join(f"{count} {name}" for name, count in plan.dla_fallback.items())
    rows = [
        ("target", f"{plan.target}, compute capability {', '.join(plan.compute_capabilities)}"),
        (
            "TensorRT",
            f"{plan.tensorrt or 'installed TensorRT-RTX'} (generation {plan.generation}, import {plan.module})",
        ),
        ("graph", f"opset {plan.opset}, {plan.precision.upper()}{rest}"),
        ("dialect", plan.dialect),
        ("meaning", plan.meaning),
        ("network flags", ", ".join(plan.network_flags) or "none"),
        ("builder flags", ", ".join([*plan.builder_flags, *(f"not {name}" for name in plan.cleared_flags)]) or "none"),
        ("profile", shapes or "none, shapes are static"),
        ("workspace", f"{plan.workspace_bytes >> 20} MiB"),
        ("level", f"{plan.optimization_level}, auxiliary streams {plan.max_aux_streams}, {plan.profiling_verbosity}"),
        (
            "compatibility",
            plan.hardware_compatibility or ("as listed" if plan.rtx else "this GPU model and TensorRT only"),
        ),
        ("timing cache", plan.timing_cache or "none, nothing is timed"),
        ("DLA", "no" if plan.dla_core is None else f"core {plan.dla_core}; on the GPU: {fallback or 'nothing'}"),
        ("calibrator", f"{plan.calibrator} reading {plan.calibration_cache}" if plan.calibrator else "none"),
        ("progress", "shown" if plan.progress else "this generation cannot tell"),
    ]
    lines = [table(("what", "how"), rows), ""]
    found = {finding.message for finding in report.findings}  # what lint says too is said once, with its rule
    lines += [f"note: {note}" for note in plan.notes if note not in found]
    lines += [f"{f.severity}: {f.rule} {f.node}: {f.message}" for f in report.findings]
    lines.append(plan.command() or "no trtexec command does the same")
    return "\n".join(lines)


class _Lines:
    """Says on stderr which phase begins."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        from gft_edge.cli.console import say

        if parent is None:
            say(f"build: {phase} ({steps} steps)")

    def step(self, phase: str, step: int) -> None:
        pass

    def finish(self, phase: str) -> None:
        pass


class _Bars:
    """One progress bar for each open phase."""

    def __init__(self, progress: Any) -> None:
        self.progress = progress
        self.tasks: dict[str, Any] = {}

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        self.tasks[phase] = self.progress.add_task(phase if parent is None else f"  {phase}", total=steps)

    def step(self, phase: str, step: int) -> None:
        self.progress.update(self.tasks[phase], completed=step + 1)

    def finish(self, phase: str) -> None:
        self.progress.remove_task(self.tasks.pop(phase))


@contextlib.contextmanager
def _watching() -> Iterator[Watch]:
    """Bars on a terminal with rich, lines elsewhere."""
    if sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import Progress

            with Progress(console=Console(stderr=True), transient=True) as progress:
                yield _Bars(progress)
            return
        except ImportError:
            pass
    yield _Lines()
