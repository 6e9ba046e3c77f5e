"""Measure artefacts against each other, interleaved in one process, or take in what trtexec measured.

The first artefact is what the others are compared with. Besides the latency of inference: its stages, throughput with
several requests in flight, cold start and peak memory in fresh processes, and energy where the machine measures power.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from gft_edge.cli.common import positive
from gft_edge.runtime.backends import names_text

if TYPE_CHECKING:
    from gft_edge.benchmarks.measuring.latency import AccuracyOf
    from gft_edge.hardware.devices import Device
    from gft_edge.manifest import Artifact

EXAMPLE = "gft-edge bench runs/fp32 runs/int8 --batch 1 8 --threads 1 2 --out runs/bench.json"
ACCURACY_IMAGES = 2000
"""At most so many of ``--data``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("artifacts", nargs="*", type=Path, metavar="ARTIFACT", help="artefact folders")
    parser.add_argument(
        "--backend",
        nargs="+",
        default=["onnxruntime"],
        metavar="B",
        help=f"what runs them: {names_text()}",
    )
    parser.add_argument(
        "--batch",
        nargs="+",
        type=positive,
        metavar="N",
        help="images per request, one or several (1; with --trtexec-log what the log tells)",
    )
    parser.add_argument(
        "--threads", nargs="+", type=int, default=[1], metavar="N", help="threads, one or several; 0: one per core (1)"
    )
    parser.add_argument(
        "--rounds",
        type=positive,
        default=40,
        metavar="N",
        help="rounds of the interleaving; one alone has no spread (40)",
    )
    parser.add_argument(
        "--runs", type=positive, default=5, metavar="N", help="requests of each artefact in a round (5)"
    )
    parser.add_argument(
        "--warmup",
        type=float,
        default=0.5,
        metavar="S",
        help="least seconds of warm-up for each; goes on until stable (0.5)",
    )
    parser.add_argument(
        "--in-flight", type=positive, default=2, metavar="N", help="requests at a time for throughput (2)"
    )
    parser.add_argument(
        "--skip", nargs="+", default=[], choices=("stages", "throughput", "process"), help="what to leave out"
    )
    parser.add_argument(
        "--power",
        default="auto",
        metavar="auto|none|FILE",
        help="where to read power for the energy (auto); with --trtexec-log a log of tegrastats, recorded while trtexec "
        "measured and no longer",
    )
    parser.add_argument(
        "--power-interval", type=float, default=0.1, metavar="S", help="what tegrastats was told for that log (0.1)"
    )
    parser.add_argument(
        "--data",
        metavar="D",
        help="labelled images to find the accuracy on, for the energy per correct image; "
        "by default it is what verify recorded",
    )
    parser.add_argument("--lock-clocks", action="store_true", help="hold a Jetson's clocks at their maximum meanwhile")
    parser.add_argument("--target", metavar="DEVICE", help="hold figures of a GPU against this device's roofline")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write figures and raw samples as JSON")
    trt = parser.add_argument_group("trtexec", "take in what trtexec measured; an ARTIFACT then says what it was")
    trt.add_argument("--trtexec-log", type=Path, metavar="FILE", help="what trtexec printed")
    trt.add_argument("--times", type=Path, metavar="FILE", help="its --exportTimes")
    trt.add_argument("--layers", type=Path, metavar="FILE", help="its --exportLayerInfo")
    trt.add_argument("--profile", type=Path, metavar="FILE", help="its --exportProfile")
    trt.add_argument("--trtexec-engine", metavar="KEY", help="run trtexec on engines/KEY.engine of the ARTIFACT")
    trt.add_argument("--trtexec", type=Path, metavar="PATH", help="the trtexec binary, if not in a usual place")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.cli.console import result
    from gft_edge.files import require_writable
    from gft_edge.seals import sealed

    if args.out:
        require_writable(args.out)
    data = _trtexec(args) if args.trtexec_log or args.trtexec_engine else _artifacts(args)
    result(args, sealed(data), text(data), args.out)
    return 0


def _artifacts(args: argparse.Namespace) -> dict[str, Any]:
    """Measures here."""
    from gft_edge.benchmarks.measuring.latency import bench_artifacts
    from gft_edge.benchmarks.measuring.protocol import BenchProtocol
    from gft_edge.cli.console import track
    from gft_edge.errors import ConfigError
    from gft_edge.hardware.clocks import locked_clocks
    from gft_edge.manifest import load_artifact

    for name in ("times", "layers", "profile", "trtexec"):
        if getattr(args, name):
            raise ConfigError(f"bench: --{name} goes with --trtexec-log or --trtexec-engine; see gft-edge bench --help")
    if not args.artifacts:
        raise ConfigError("bench: give at least one ARTIFACT, or --trtexec-log FILE; see gft-edge bench --help")
    if Path(args.power).is_file():
        raise ConfigError("bench: a log given to --power is of a run that is over; it goes with --trtexec-log")
    batches = args.batch or [1]
    protocols = [
        BenchProtocol(batch, count, args.warmup, args.rounds, args.runs, in_flight=args.in_flight)
        for batch in batches
        for count in args.threads
    ]
    artifacts = [load_artifact(path) for path in args.artifacts]
    with locked_clocks() if args.lock_clocks else contextlib.nullcontext():
        data = bench_artifacts(
            artifacts,
            protocols[0],
            args.backend,
            track,
            batches,
            args.threads,
            args.skip,
            args.power,
            _target(args),
            _accuracy(args),
        )
    data["machine"]["clocks_locked"] = args.lock_clocks
    return data


def _target(args: argparse.Namespace) -> Device | None:
    from gft_edge.hardware.devices import device

    return device(args.target) if args.target else None


def _trtexec(args: argparse.Namespace) -> dict[str, Any]:
    """Takes in a log of trtexec with what was exported beside it, or runs trtexec first."""
    from gft_edge.benchmarks.measuring.recorded_accuracy import Accuracy
    from gft_edge.benchmarks.power.meter import PowerSource, log_energy
    from gft_edge.benchmarks.trtexec.runs import ingest, run_engine
    from gft_edge.errors import ConfigError
    from gft_edge.manifest import load_artifact

    if args.trtexec_log and args.trtexec_engine:
        raise ConfigError("bench: give --trtexec-log or --trtexec-engine, not both")
    if len(args.artifacts) > 1:
        raise ConfigError(
            "bench: a run of trtexec is of one ARTIFACT; take in one at a time and put them together with report"
        )
    if args.batch and len(args.batch) > 1:
        raise ConfigError("bench: a run of trtexec has one batch")
    batch = args.batch[0] if args.batch else None
    artifact = load_artifact(args.artifacts[0]) if args.artifacts else None
    if args.trtexec_engine:
        if artifact is None:
            raise ConfigError("bench: --trtexec-engine needs the ARTIFACT that holds the engine")
        return run_engine(artifact, args.trtexec_engine, args.trtexec, batch, _target(args))
    data = ingest(args.trtexec_log, args.times, args.layers, args.profile, artifact, batch, _target(args))
    if args.power not in get_args(PowerSource):
        if len(data["results"]) > 1:
            raise ConfigError("bench: a log given to --power is of one run, the log of trtexec holds several")
        row = data["results"][0]
        known = _accuracy(args)(artifact, "tensorrt") if artifact else Accuracy(None, refused="no ARTIFACT was given")
        rate = row["throughput"]["images_per_s"] or 0.0
        energy = log_energy(Path(args.power), args.power_interval, rate, known.top1)
        row["energy"] = {**energy.to_json(), "accuracy": asdict(known)}
        data["warnings"] += [f"{Path(args.power).name}: {note}" for note in energy.notes]
    return data


def _accuracy(args: argparse.Namespace) -> AccuracyOf:
    """Measured on ``--data`` once for each artefact and backend, or as verify recorded it."""
    from gft_edge.benchmarks.measuring.recorded_accuracy import Accuracy, recorded_accuracy
    from gft_edge.cli.common import labelled_batches
    from gft_edge.data.datasets import held_out_split
    from gft_edge.errors import DataError
    from gft_edge.manifest import load_artifact
    from gft_edge.runtime.finite import require_finite
    from gft_edge.runtime.sessions import open_session

    if not args.data:
        return recorded_accuracy

    @functools.cache
    def measured(artifact: str, backend: str) -> Accuracy:
        loaded = load_artifact(artifact)
        manifest = loaded.manifest
        session = open_session(loaded, backend)
        split = held_out_split(args.data)
        _, batches = labelled_batches(
            args.data,
            split,
            ACCURACY_IMAGES,
            manifest.model,
            manifest.labels,
            manifest.preprocess,
            model=loaded.path,
        )
        right = count = 0
        for images, labels in batches:
            logits = session(images)["logits"]
            require_finite(logits, f"artefact {artifact}")
            right += int((logits.argmax(axis=1) == labels).sum())
            count += len(labels)
        if not count:
            raise DataError(f"bench: {args.data} has no image that can be read")
        return Accuracy(right / count, f"{count} {split} images of {args.data}")

    def of(artifact: Artifact, backend: str) -> Accuracy:
        member = f"@{artifact.member}" if artifact.member else ""
        return measured(f"{artifact.path}{member}", backend)

    return of


def text(data: dict[str, Any]) -> str:
    """The tables of a bench file: one per batch and number of threads."""
    from gft_edge.benchmarks.measuring.bench_files import machine_label
    from gft_edge.benchmarks.measuring.protocol import ONE_ROUND
    from gft_edge.benchmarks.measuring.tables import columns
    from gft_edge.cli.console import table

    parts: list[str] = []
    points: dict[tuple[object, object], list[dict[str, Any]]] = {}
    for row in data["results"]:
        points.setdefault((row["batch"], row["threads"]), []).append(row)
    for (batch, threads), rows in points.items():
        backends = ", ".join(dict.fromkeys(row["backend"] for row in rows))
        count = "" if threads is None else f", {threads or 'all'} thread(s)"
        parts.append(f"{backends}, batch {batch}{count}, {machine_label(data)}")
        found = columns(rows)
        parts.append(table([column.title for column in found], zip(*(column.cells for column in found))))
    for row in data["results"]:
        if "layers" in row:
            parts.append(f"{row['name']}: {row['layers']['int8']}")
        if row.get("implausible"):
            parts.append(f"{row['name']}: {row['implausible']}")
    if any(row.get("verdict") == ONE_ROUND for row in data["results"]):
        parts.append("one round: no spread and no interval are known; give --rounds 5 or more")
    refused = {row["energy"]["refused"] for row in data["results"] if row.get("energy", {}).get("refused")}
    parts += [f"energy: none, {reason}" for reason in sorted(refused) if "not asked for" not in reason]
    measured = [row["energy"] for row in data["results"] if row.get("energy", {}).get("mj_per_image") is not None]
    accuracies = [energy.get("accuracy") or {} for energy in measured]
    unknown = {accuracy["refused"] for accuracy in accuracies if accuracy.get("refused")}
    parts += [f"energy per correct image: none, {reason}" for reason in sorted(unknown)]
    return "\n".join([*parts, *data.get("warnings", [])])
