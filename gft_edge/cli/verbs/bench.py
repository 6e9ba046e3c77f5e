"""Measure artefacts, or ONNX files of other programs, against each other, interleaved in one process, or read what trtexec
measured.

The first model is what the others are compared with. Besides the latency of inference: its stages, throughput with
several requests in flight, cold start and peak memory in fresh processes, and energy where the machine measures power.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gft_edge.cli.common import add_result_argument, positive
from gft_edge.runtime.backends.table import names_text

if TYPE_CHECKING:
    from gft_edge.benchmarks.measuring.accuracy import AccuracyOf
    from gft_edge.benchmarks.measuring.bench import BenchOptions
    from gft_edge.benchmarks.trtexec.ingest import EngineRun, RecordedRun
    from gft_edge.hardware.devices import Device
    from gft_edge.manifest import Artifact

EXAMPLE = "gft-edge bench runs/fp32 runs/int8 --batch 1 8 --threads 1 2 --out runs/bench.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "artifacts",
        nargs="*",
        type=Path,
        metavar="ARTIFACT|MODEL.onnx",
        help="artefact folders, bundles, ONNX files of other programs, or folders that quantize wrote for them",
    )
    parser.add_argument(
        "--backend",
        nargs="+",
        default=["onnxruntime"],
        metavar="B",
        help=f"one or several of {names_text()}",
    )
    parser.add_argument(
        "--batch",
        nargs="+",
        type=positive,
        metavar="N",
        help="images per request, one or several (1; with --trtexec-log that of the log)",
    )
    parser.add_argument(
        "--threads", nargs="+", type=int, default=[1], metavar="N", help="threads, one or several; 0: one per core (1)"
    )
    parser.add_argument(
        "--rounds",
        type=positive,
        default=40,
        metavar="N",
        help="rounds of the interleaving; a single one has no spread (40)",
    )
    parser.add_argument(
        "--runs", type=positive, default=5, metavar="N", help="requests of each artefact in a round (5)"
    )
    parser.add_argument(
        "--warmup",
        type=float,
        default=0.5,
        metavar="S",
        help="least seconds of warm-up for each; continues until stable (0.5)",
    )
    parser.add_argument(
        "--in-flight", type=positive, default=2, metavar="N", help="requests at a time for throughput (2)"
    )
    parser.add_argument(
        "--skip", nargs="+", default=[], choices=("stages", "throughput", "process"), help="parts to leave out"
    )
    parser.add_argument(
        "--power",
        default="auto",
        metavar="auto|none|ina3221|tegrastats|nvml|FILE",
        help="source of power for the energy (auto); with --trtexec-log a log of tegrastats that was recorded while "
        "trtexec measured, and no longer",
    )
    parser.add_argument(
        "--power-interval",
        type=float,
        default=0.1,
        metavar="S",
        help="interval that tegrastats was started with for that log (0.1)",
    )
    parser.add_argument(
        "--data",
        metavar="D",
        help="labelled images to measure the accuracy on, also for the energy per correct image, which by default is of the "
        "accuracy that verify recorded",
    )
    parser.add_argument("--lock-clocks", action="store_true", help="lock a Jetson's clocks at their maximum meanwhile")
    parser.add_argument("--target", metavar="DEVICE", help="compare figures of a GPU with this device's roofline")
    add_result_argument(parser, "figures and raw samples as JSON")
    trt = parser.add_argument_group("trtexec", "read what trtexec measured; an ARTIFACT then says what was measured")
    trt.add_argument("--trtexec-log", type=Path, metavar="FILE", help="output of trtexec")
    trt.add_argument("--times", type=Path, metavar="FILE", help="file of its --exportTimes")
    trt.add_argument("--layers", type=Path, metavar="FILE", help="file of its --exportLayerInfo")
    trt.add_argument("--profile", type=Path, metavar="FILE", help="file of its --exportProfile")
    trt.add_argument("--trtexec-engine", metavar="KEY", help="run trtexec on engines/KEY.engine of the ARTIFACT")
    trt.add_argument("--trtexec", type=Path, metavar="PATH", help="the trtexec binary, if not in a usual place")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.benchmarks.measuring.bench import bench
    from gft_edge.benchmarks.trtexec.ingest import ingest, run_engine
    from gft_edge.cli.console import result, track
    from gft_edge.cli.early import require_data, require_file, require_result_file
    from gft_edge.storage.seals import sealed

    require_result_file(args.out, "results")
    require_data(args.data)
    for name in ("times", "layers", "profile") if args.trtexec_log else ():
        require_file(getattr(args, name), f"--{name}")
    if args.trtexec_engine:
        data = run_engine(_engine_run(args))
    elif args.trtexec_log:
        data = ingest(_recorded_run(args))
    else:
        data = bench(_options(args), track)
    result(args, sealed(data), text(data), args.out)
    return 0


def _options(args: argparse.Namespace) -> BenchOptions:
    from gft_edge.benchmarks.measuring.bench import BenchOptions
    from gft_edge.benchmarks.measuring.protocol import BenchProtocol
    from gft_edge.errors import ConfigError
    from gft_edge.export.foreign.images import opened

    for name in ("times", "layers", "profile", "trtexec"):
        if getattr(args, name):
            raise ConfigError(f"--{name} goes with --trtexec-log or --trtexec-engine; see gft-edge bench --help")
    if not args.artifacts:
        raise ConfigError("give at least one ARTIFACT, or --trtexec-log FILE; see gft-edge bench --help")
    if Path(args.power).is_file():
        raise ConfigError("a log given to --power is of a finished run; it goes with --trtexec-log")
    return BenchOptions(
        artifacts=opened(args.artifacts),
        protocol=BenchProtocol(
            warmup_seconds=args.warmup, rounds=args.rounds, runs_per_round=args.runs, in_flight=args.in_flight
        ),
        backends=tuple(args.backend),
        batches=tuple(args.batch or (1,)),
        threads=tuple(args.threads),
        skip=tuple(args.skip),
        power=args.power,
        target=_target(args),
        accuracy=_accuracy(args),
        lock_clocks=args.lock_clocks,
    )


def _recorded_run(args: argparse.Namespace) -> RecordedRun:
    from gft_edge.benchmarks.power.meter import CHOICES
    from gft_edge.benchmarks.trtexec.ingest import RecordedRun

    artifact, batch = _one_run(args)
    return RecordedRun(
        log=args.trtexec_log,
        times=args.times,
        layers=args.layers,
        profile=args.profile,
        artifact=artifact,
        batch=batch,
        target=_target(args),
        power_log=None if args.power in CHOICES else Path(args.power),
        power_interval_s=args.power_interval,
        accuracy=_accuracy(args),
    )


def _engine_run(args: argparse.Namespace) -> EngineRun:
    from gft_edge.benchmarks.trtexec.ingest import EngineRun
    from gft_edge.errors import ConfigError

    if args.trtexec_log:
        raise ConfigError("give --trtexec-log or --trtexec-engine, not both")
    artifact, batch = _one_run(args)
    if artifact is None:
        raise ConfigError("--trtexec-engine needs the ARTIFACT that holds the engine")
    return EngineRun(artifact, args.trtexec_engine, args.trtexec, batch, _target(args), lock_clocks=args.lock_clocks)


def _one_run(args: argparse.Namespace) -> tuple[Artifact | None, int | None]:
    """Returns the only artefact and the only batch of a run of trtexec."""
    from gft_edge.bundle import open_artifact
    from gft_edge.errors import ConfigError

    if len(args.artifacts) > 1:
        raise ConfigError("a run of trtexec is of one ARTIFACT; read one at a time and merge them with report")
    if args.batch and len(args.batch) > 1:
        raise ConfigError("a run of trtexec has one batch")
    artifact = open_artifact(args.artifacts[0]) if args.artifacts else None
    return artifact, args.batch[0] if args.batch else None


def _target(args: argparse.Namespace) -> Device | None:
    from gft_edge.hardware.devices import device

    return device(args.target) if args.target else None


def _accuracy(args: argparse.Namespace) -> AccuracyOf:
    from gft_edge.benchmarks.measuring.accuracy import measured_accuracy, recorded_accuracy
    from gft_edge.cli.console import say

    return measured_accuracy(args.data, say) if args.data else recorded_accuracy


def text(data: dict[str, Any]) -> str:
    """Returns the tables and remarks of a bench file."""
    from gft_edge.benchmarks.measuring.tables import point_tables, remarks
    from gft_edge.cli.console import table

    parts: list[str] = []
    for point in point_tables(data):
        titles = [column.title for column in point.columns]
        parts += [point.heading, table(titles, zip(*(column.cells for column in point.columns)))]
    return "\n".join([*parts, *remarks(data)])
