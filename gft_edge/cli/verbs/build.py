"""Compile an artefact's graph into a TensorRT engine and enter it in the artefact's manifest, or print the plan of the build.

The engine of an ONNX file of another program stands beside the file, with a record of the hashes of graph and engine.

With --engine, enter an engine that trtexec built on this machine."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gft_edge.export.foreign.model import ForeignModel
    from gft_edge.export.lint.linter import Finding, LintReport
    from gft_edge.export.tensorrt.build_plan import BuildPlan
    from gft_edge.export.tensorrt.options import BuildOptions
    from gft_edge.manifest import Artifact, HighPrecision

EXAMPLE = "gft-edge build runs/artifact --target orin-nano --tensorrt 10.3 --plan"
TORCH = "torch-tensorrt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "artifact",
        type=Path,
        metavar="ARTIFACT|MODEL.onnx|CKPT",
        help="artefact folder, ONNX file of another program or the folder that quantize wrote for one; for --target "
        f"{TORCH} a checkpoint folder or 'builtin'",
    )
    parser.add_argument(
        "--target",
        metavar=f"rtx|this-gpu|{TORCH}|DEVICE",
        help="rtx: TensorRT-RTX, ahead of time, needs no GPU; this-gpu: the TensorRT and GPU of this machine; DEVICE: a "
        "profile such as orin-nano, agx-orin, thor or h100, to plan for, or to build for when this machine is one; "
        f"{TORCH}: a checkpoint without ONNX for this machine's GPU, not verified on hardware",
    )
    parser.add_argument("--plan", action="store_true", help="print the build, without a GPU; build nothing")
    parser.add_argument(
        "--tensorrt", metavar="VERSION", help="TensorRT to plan for (the device's newest; here: installed)"
    )
    parser.add_argument("--compute-capability", metavar="X.Y[,X.Y...]", help="GPUs of --target rtx (8.0,8.6,8.9,12.0)")
    parser.add_argument("--batch", metavar="N|MIN:OPT:MAX", help="batch sizes (those of the export)")
    parser.add_argument("--workspace", type=int, metavar="MIB", help="scratch memory (an eighth of the device's)")
    parser.add_argument("--optimization-level", type=int, default=3, metavar="0-5", help="5 takes longest (3)")
    parser.add_argument("--weak", action="store_true", help="8.6, 10.x: FP32 layers may run in FP16 where it is faster")
    parser.add_argument("--tf32", action="store_true", help="keep TF32 products in an FP32 engine")
    parser.add_argument("--dla", type=int, metavar="CORE", help="run supported operators on a DLA core")
    parser.add_argument("--refit", action="store_true", help="weights can be changed later")
    parser.add_argument("--strip", action="store_true", help="leave the weights out of the engine")
    parser.add_argument("--hardware-compatibility", metavar="ampere+|same-capability", help="run on other GPUs too")
    parser.add_argument("--version-compatible", action="store_true", help="load in the next major TensorRT too")
    parser.add_argument(
        "--calibration-cache", type=Path, metavar="FILE", help="ranges for a graph without Q/DQ (8.6, 10.x)"
    )
    parser.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), help=f"--target {TORCH}: type of the model (fp32)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.ep|ARTIFACT|DIR",
        help=f"--target {TORCH}: the compiled program, or the artefact to enter it in; of an ONNX file of another program: "
        "folder for the engine and its record (beside the file)",
    )
    ready = parser.add_argument_group(
        "trtexec", "enter an engine that trtexec built here from the ARTIFACT; needs numpy alone"
    )
    ready.add_argument("--engine", type=Path, metavar="FILE", help="file of trtexec's --saveEngine")
    ready.add_argument(
        "--plan-file", type=Path, metavar="JSON", help="its plan: plan.json of a bundle, or output of --plan --json"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.errors import ConfigError

    if args.engine is not None or args.plan_file is not None:
        return _register(args)
    if args.target is None:
        raise ConfigError("--target is missing: rtx, this-gpu or the name of a device; see gft-edge build --help")
    return _build(args)


def _build(args: argparse.Namespace) -> int:
    from gft_edge.cli.console import result, say
    from gft_edge.errors import EXIT_OK, ConfigError
    from gft_edge.export.foreign.model import ForeignModel
    from gft_edge.export.foreign.opening import open_model
    from gft_edge.export.tensorrt.build import build, plan_build

    if args.target == TORCH:
        return _run_torch(args)
    if args.precision is not None:
        raise ConfigError(f"--precision: for --target {TORCH} only; a graph has its precision")
    artifact = open_model(args.artifact)
    if isinstance(artifact, ForeignModel):
        return _build_foreign(args, artifact)
    if args.out is not None:
        raise ConfigError(f"--out: for --target {TORCH} and ONNX files of other programs; an artefact has its engines")
    options = _options(args, artifact.manifest.batch)

    def problem(text: str) -> None:
        say(f"build: {text}")

    if args.plan:
        planned = plan_build(artifact, args.target, options, problem)
        return _show_plan(args, planned.plan, planned.report, _plan_files(artifact))
    with _progress() as progress:
        record = build(artifact, args.target, options, progress, problem)
    result(args, record, _built(_engine(artifact, record), record))
    return EXIT_OK


def _plan_files(artifact: Artifact) -> tuple[Path, Path]:
    """Returns the graph, and a file beside the folder for the engine: inside it, --engine alone puts engines."""
    from gft_edge.manifest import MODEL

    folder = artifact.path.resolve() if artifact.path.name in ("", "..") else artifact.path
    member = f"@{artifact.member}" if artifact.member else ""
    return artifact.file(MODEL), folder.parent / f"{folder.name}{member}.engine"


def _show_plan(args: argparse.Namespace, plan: BuildPlan, report: LintReport, files: tuple[Path, Path]) -> int:
    from gft_edge.cli.console import result
    from gft_edge.errors import EXIT_CHECK_FAILED, EXIT_OK

    data = {"plan": plan.to_json(), "lint": [vars(finding) for finding in report.findings]}
    result(args, data, _show(plan, report.findings, files))
    return EXIT_CHECK_FAILED if report.errors else EXIT_OK


def _build_foreign(args: argparse.Namespace, model: ForeignModel) -> int:
    """Builds for an ONNX file of another program, or prints the plan."""
    from gft_edge.cli.console import result
    from gft_edge.errors import EXIT_OK
    from gft_edge.export.foreign.building import build_batch, build_foreign, plan_foreign

    options = _options(args, build_batch(model))
    if args.plan:
        planned = plan_foreign(model, args.target, options)
        return _show_plan(args, planned.plan, planned.report, (model.file, model.file.with_suffix(".engine")))
    with _progress() as progress:
        record = build_foreign(model, args.target, options, args.out, progress)
    text = (
        f"{_built(Path(record['file']), record)}\nits record {Path(record['file']).with_suffix('.json').name} holds the sha256 of "
        "graph and engine, which are compared before the engine is loaded"
    )
    result(args, record, text)
    return EXIT_OK


def _register(args: argparse.Namespace) -> int:
    from gft_edge.bundle import open_artifact
    from gft_edge.cli.console import result
    from gft_edge.errors import EXIT_OK, ConfigError
    from gft_edge.export.tensorrt.registration import read_plan, register_engine

    if None in (args.engine, args.plan_file, args.tensorrt):
        raise ConfigError(
            "--engine, --plan-file and --tensorrt go together: the engine, the plan whose command built it, and the version "
            "that trtexec printed"
        )
    if args.target is not None or args.plan:
        raise ConfigError("--engine: the plan file names the target; leave --target and --plan out")
    artifact = open_artifact(args.artifact)
    record = register_engine(artifact, args.engine, read_plan(args.plan_file), args.tensorrt)
    result(args, record, _built(_engine(artifact, record), record))
    return EXIT_OK


def _engine(artifact: Artifact, record: dict[str, Any]) -> Path:
    return artifact.path / f"engines/{record['key']}.engine"


def _built(engine: Path, record: dict[str, Any]) -> str:
    return (
        f"{engine}: {record['engine_bytes'] / 1e6:.2f} MB for compute capability "
        f"{', '.join(record['compute_capabilities'])} ({record['evidence']})"
    )


def _run_torch(args: argparse.Namespace) -> int:
    from gft_edge.checkpoint import load_checkpoint
    from gft_edge.cli.console import result
    from gft_edge.cli.early import checkpoint_info
    from gft_edge.errors import EXIT_OK

    options = _options(args, (1, 1, 8))
    checkpoint_info(args.artifact)
    from gft_edge.export.tensorrt.torch_tensorrt import build_torch, plan_torch, settings

    precision: HighPrecision = "fp32" if args.precision is None else args.precision
    if args.plan:
        plan = plan_torch(load_checkpoint(args.artifact), precision, options)
        result(args, {"plan": plan.to_json(), "lint": [], "torch_tensorrt": settings(plan)}, _show(plan, ()))
        return EXIT_OK
    record = build_torch(args.artifact, precision, options, args.out)
    result(args, record, f"{record['file']} ({record['evidence']})")
    return EXIT_OK


def _options(args: argparse.Namespace, batch: tuple[int, int, int]) -> BuildOptions:
    from gft_edge.cli.common import parse_batch_range, parse_compute_capabilities
    from gft_edge.export.tensorrt.options import BuildOptions

    capabilities, cache = args.compute_capability, args.calibration_cache
    return BuildOptions(
        batch=batch if args.batch is None else parse_batch_range(args.batch),
        compute_capabilities=None if capabilities is None else parse_compute_capabilities(capabilities),
        tensorrt=args.tensorrt,
        workspace_mib=args.workspace,
        weak=args.weak,
        tf32=args.tf32,
        dla=args.dla,
        refit=args.refit,
        strip=args.strip,
        hardware_compatibility=args.hardware_compatibility,
        version_compatible=args.version_compatible,
        calibration_cache=None if cache is None else str(cache),
        optimization_level=args.optimization_level,
    )


def _show(plan: BuildPlan, findings: tuple[Finding, ...], files: tuple[Path, ...] = ()) -> str:
    """Returns a plan for reading; its command reads and writes ``files``, graph and engine."""
    from gft_edge.cli.console import table
    from gft_edge.export.tensorrt.build_plan import TORCH_TENSORRT

    is_torch = plan.module == TORCH_TENSORRT
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
        ("graph", f"{'PyTorch program' if is_torch else f'opset {plan.opset}'}, {plan.precision.upper()}{rest}"),
        *([] if is_torch else [("dialect", plan.graph_form)]),
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
        ("progress", "shown" if plan.progress and not is_torch else "not available"),
    ]
    lines = [table(("what", "how"), rows), ""]
    found = {finding.message for finding in findings}  # a note that lint repeats is printed once, with its rule
    lines += [f"note: {note}" for note in plan.notes if note not in found]
    lines += [f"{f.severity}: {f.rule} {f.node}: {f.message}" for f in findings]
    lines.append(plan.command(*map(str, files)) or "no trtexec command does the same")
    return "\n".join(lines)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yields a callback that shows the steps of a build: bars on a terminal with rich, elsewhere a line every ten seconds."""
    if sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import Progress

            with Progress(console=Console(stderr=True), transient=True) as progress:
                yield _bars(progress)
            return
        except ImportError:
            pass
    yield _lines()


def _bars(progress: Any) -> Callable[[str, int, int], None]:
    tasks: dict[str, Any] = {}

    def show(step: str, done: int, total: int) -> None:
        if step not in tasks:
            tasks[step] = progress.add_task(step, total=total)
        progress.update(tasks[step], completed=done)
        if done >= total:
            progress.remove_task(tasks.pop(step))

    return show


def _lines() -> Callable[[str, int, int], None]:
    from gft_edge.cli.console import say

    printed: list[float] = []

    def show(step: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not printed or now - printed[0] >= 10:
            printed[:] = [now]
            say(f"build: {step}, {done} of {total} steps")

    return show
