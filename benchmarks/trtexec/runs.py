"""trtexec: commands that time alike in every TensorRT generation, and its runs as bench files."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gft_edge import __version__
from gft_edge.benchmarks.logs import read_log_text
from gft_edge.benchmarks.measuring.bench_files import SCHEMA
from gft_edge.benchmarks.measuring.latency import bound_of, identity
from gft_edge.benchmarks.measuring.protocol import UNSTABLE, commit
from gft_edge.benchmarks.trtexec.engine_layers import LayerSummary, parse_layers, parse_profile, with_times
from gft_edge.benchmarks.trtexec.failure import cause_of_failure
from gft_edge.benchmarks.trtexec.output import TrtexecLog, parse_runs, version_or_none
from gft_edge.benchmarks.trtexec.times import latency_of, parse_times
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.files import parse_json
from gft_edge.hardware.devices import Device
from gft_edge.hardware.gpu_names import other_gpu
from gft_edge.hardware.tensorrt_versions import row_of
from gft_edge.hardware.this_device import device_here
from gft_edge.manifest import Artifact
from gft_edge.runtime.engine_files import EngineHost, check_engine

PLACES = (Path("/usr/src/tensorrt/bin"), Path("/opt/tensorrt/bin"), Path("/usr/local/tensorrt/bin"))
"""Where trtexec lies on JetPack and in containers, none of it on PATH."""


@dataclass(frozen=True)
class Timing:
    """How trtexec times, told the same way for every generation.

    Args:
        cuda_graph: launch the whole engine at once; without it a ViT of many small kernels is bound by the CPU.
        spin_wait: poll for the end of a query instead of sleeping.
        transfers: copy inputs and outputs for every query.
        warmup_ms, duration_s: before and of the measurement.
        streams: queries in flight.
        shapes: of the inputs, ``"image:1x3x224x224"``, for engines with a dynamic batch.
    """

    cuda_graph: bool = True
    spin_wait: bool = True
    transfers: bool = False
    warmup_ms: int = 1000
    duration_s: int = 10
    streams: int = 1
    shapes: str | None = None


DEFAULT = Timing()


def timing_arguments(
    engine: Path, version: tuple[int, int], timing: Timing = DEFAULT, times: Path | None = None
) -> list[str]:
    """Arguments that time an engine, alike in TensorRT 8.5, 8.6, 10 and 11.

    TensorRT 11 turned three defaults round: CUDA graph on, spin wait on, transfers off.
    """
    arguments = [f"--loadEngine={engine}"]
    if row_of(version).inverted_trtexec:
        arguments += [] if timing.cuda_graph else ["--noCudaGraph"]
        arguments += [] if timing.spin_wait else ["--noSpinWait"]
        arguments += ["--includeDataTransfers"] if timing.transfers else []
    else:
        arguments += ["--useCudaGraph"] if timing.cuda_graph else []
        arguments += ["--useSpinWait"] if timing.spin_wait else []
        arguments += [] if timing.transfers else ["--noDataTransfers"]
    arguments += [f"--warmUp={timing.warmup_ms}", f"--duration={timing.duration_s}", "--percentile=50,90,95,99"]
    arguments += [f"--infStreams={timing.streams}"] if timing.streams != 1 else []
    arguments += [f"--shapes={timing.shapes}"] if timing.shapes else []
    return arguments + ([f"--exportTimes={times}"] if times else [])


def profile_arguments(engine: Path, version: tuple[int, int], profile: Path, layers: Path) -> list[str]:
    """Arguments that export times and descriptions of the layers; its times are inflated and never a latency.

    Descriptions need an engine built with ``--profilingVerbosity=detailed``.
    """
    apart = [] if row_of(version).inverted_trtexec else ["--separateProfileRun"]
    return [
        f"--loadEngine={engine}",
        "--dumpProfile",
        *apart,
        f"--exportProfile={profile}",
        f"--exportLayerInfo={layers}",
    ]


def find_trtexec(given: Path | None = None, places: Sequence[Path] = PLACES) -> Path:
    """The trtexec binary: as given, on PATH, or where JetPack and the containers have it.

    Raises:
        ConfigError: not there.
    """
    if given is not None:
        if not given.is_file():
            raise ConfigError(f"trtexec {given}: no such file")
        return given
    found = shutil.which("trtexec")
    candidates = [Path(found)] if found else [place / "trtexec" for place in places]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    where = ", ".join(["PATH", *map(str, places)])
    raise ConfigError(
        f"trtexec is not in {where}; give its place with --trtexec, or a log made elsewhere with --trtexec-log"
    )


def run_trtexec(binary: Path, arguments: Sequence[str], timeout_s: float = 600) -> str:
    """Runs trtexec and returns what it printed; not verified on hardware.

    Raises:
        ArtifactError: it failed or did not end; the message has the error line that tells why.
    """
    try:
        done = subprocess.run(
            [str(binary), *arguments], capture_output=True, text=True, errors="replace", timeout=timeout_s
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ArtifactError(f"{binary}: {error}") from None
    text = done.stdout + done.stderr
    if done.returncode:
        raise ArtifactError(f"{binary}: ended with code {done.returncode}: {cause_of_failure(text)}")
    return text


def bench_file(
    log: TrtexecLog,
    name: str,
    known: Mapping[str, Any],
    queries: Sequence[Mapping[str, float]] | None = None,
    layers: Mapping[str, Any] | None = None,
    batch: int = 1,
) -> dict[str, Any]:
    """One run of trtexec as the content of a bench file.

    Args:
        log: what it printed.
        name: of the row.
        known: identity of the artefact, empty if there is none.
        queries: its --exportTimes; without them there are no raw samples and no interval.
        layers: summary of its layer files.
        batch: images per query; images/s is qps times batch.
    """
    row = _row(log, name, known, queries, batch)
    if layers is not None:
        row["layers"] = dict(layers)
    return _file([row], log)


def _file(rows: list[dict[str, Any]], log: TrtexecLog) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "source": "trtexec",
        "machine": {**log.device, "versions": {"tensorrt": _version_text(log)}},
        "read_by": {"gft_edge": __version__, "commit": commit()},
        "results": rows,
        "warnings": [f"{row['name']}: {warning}" for row in rows for warning in row["warnings"]],
    }


def _version_text(log: TrtexecLog) -> str | None:
    return ".".join(map(str, log.version)) if log.version else None


def _row(
    log: TrtexecLog,
    name: str,
    known: Mapping[str, Any],
    queries: Sequence[Mapping[str, float]] | None,
    batch: int,
) -> dict[str, Any]:
    transfers = {"h2d": "H2D Latency", "d2h": "D2H Latency"}
    stages = {
        stage: {"p50_ms": log.metrics[metric]["median"]}
        for stage, metric in {**transfers, "inference": "GPU Compute Time"}.items()
        if log.metrics.get(metric, {}).get("max", 0) > 0  # with transfers off trtexec prints 0 ms: absent, not zero
    }
    settings = log.settings
    meaning = "one query enqueued ahead of time: host work is hidden, this is no request latency"
    if settings.streams > 1:
        meaning = f"one query while {settings.streams} streams run at a time; {meaning}"
    rate = log.numbers["throughput_qps"] * (1 if settings.implicit_batch else batch)
    return {
        "name": name,
        **known,
        "backend": "trtexec",
        "options": {
            "version": _version_text(log),
            "command": log.command,
            "timing": None if log.timing is None else dict(log.timing),
            "streams": settings.streams,
            "shapes": {name: list(shape) for name, shape in settings.shapes.items()},
            **log.numbers,
        },
        "batch": batch,
        "threads": None,
        **_figures_of(log, queries),
        "meaning": meaning,
        "stages": stages,
        "throughput": {
            "images_per_s": rate if rate > 0 else None,
            "in_flight": settings.streams if settings.streams > 1 else None,
        },
        "baseline": name,
        "speedup": 1.0,
        "speedup_interval": [1.0, 1.0] if queries else None,
        "warnings": list(log.warnings),
    }


def _figures_of(log: TrtexecLog, queries: Sequence[Mapping[str, float]] | None) -> dict[str, Any]:
    if queries:
        latency = latency_of(queries)
        return {**latency.__dict__, "rounds_ms": [list(r) for r in latency.rounds_ms], "verdict": latency.verdict}
    figures = log.metrics["Latency"]
    return {
        "rounds_ms": [],
        "p50_ms": figures["median"],
        **{f"p{p}_ms": figures.get(str(p)) for p in (90, 95, 99)},
        "min_ms": figures["min"],
        "mean_ms": figures["mean"],
        "variation": log.variance,
        "sample_variation": log.variance,
        "warmup": None,
        "verdict": "unstable" if (log.variance or 0) > UNSTABLE else "stable",
    }


def ingest(
    log: Path,
    times: Path | None = None,
    layers: Path | None = None,
    profile: Path | None = None,
    artifact: Artifact | None = None,
    batch: int | None = None,
    target: Device | None = None,
) -> dict[str, Any]:
    """Files of trtexec to the content of a bench file: one row, or one for each complete run of a log of several.

    Args:
        log: what trtexec printed.
        times, layers, profile: what --exportTimes, --exportLayerInfo and --exportProfile wrote.
        artifact: what was measured; without it the row carries the log's file name.
        batch: images per query; None takes what the log tells, else what the artefact's static batch is, else 1.
        target: device to hold the figures against; needs an artefact. There is no bound where the log is of another GPU.

    Raises:
        ConfigError: a target without an artefact, a batch that is not the log's, or an artefact or exported files with
            a log of several runs.
        ArtifactError: a file is missing, damaged, cut off, of a failed run, of no run at all, or of another batch than the
            artefact's.
    """
    if target and not artifact:
        raise ConfigError("bench: --target needs the ARTIFACT that was measured, for its bound")
    where = f"trtexec log {log}"
    runs = parse_runs(read_log_text(log, "trtexec log", ArtifactError), where)
    if len(runs) > 1:
        if artifact or times or layers or profile:
            commands = "; ".join(f"{number}: {run.command or 'no command'}" for number, run in enumerate(runs, 1))
            raise ConfigError(
                f"{where}: holds {len(runs)} runs ({commands}), and an ARTIFACT or exported file is of one; cut that run "
                "into a file of its own"
            )
        return _several(runs, log.stem, batch, where)
    (parsed,) = runs
    images, notes = _batch(parsed, artifact, batch, where)
    if artifact and (problem := _other_input(parsed, artifact)):
        notes.append(problem)
    other = other_gpu(parsed.device, target) if target else None
    if other:
        notes.append(other)
    parsed = replace(parsed, warnings=(*parsed.warnings, *notes))
    queries = parse_times(_read(times), f"times {times}") if times else None
    known: dict[str, Any] = identity(artifact) if artifact else {}
    model = artifact.manifest.model if artifact else None
    tokens = model.num_patches + model.num_prefix_tokens if model else None
    data = bench_file(parsed, known.get("name", log.stem), known, queries, _layers(layers, profile, tokens), images)
    if target and artifact and not other:
        row = data["results"][0]
        row |= bound_of(artifact, target, images, row["p50_ms"])
    return data


def _several(runs: Sequence[TrtexecLog], name: str, batch: int | None, where: str) -> dict[str, Any]:
    """A row for each run, compared with the first one of the same batch."""
    rows: list[dict[str, Any]] = []
    names = sorted({run.device["device"] for run in runs if "device" in run.device})
    if len(names) > 1:
        raise ArtifactError(
            f"{where}: holds runs of several GPUs ({', '.join(names)}); cut them into files of their own"
        )
    for number, run in enumerate(runs, start=1):
        images, notes = _batch(run, None, batch, f"{where}: run {number}")
        row = _row(replace(run, warnings=(*run.warnings, *notes)), f"{name} run {number}", {}, None, images)
        first = next((known for known in rows if known["batch"] == images), row)
        rows.append(row | {"baseline": first["name"], "speedup": first["p50_ms"] / row["p50_ms"]})
    return _file(rows, runs[0])


def _batch(log: TrtexecLog, artifact: Artifact | None, given: int | None, where: str) -> tuple[int, list[str]]:
    """Images per query, and what to say about it."""
    static = artifact.manifest.static_batch if artifact else None
    measured = log.settings.batch(artifact.manifest.inputs[0].name if artifact and artifact.manifest.inputs else None)
    if measured is not None and given is not None and measured != given:
        raise ConfigError(f"{where}: was measured at batch {measured}, --batch says {given}; leave --batch out")
    found = measured or given
    if found is not None and static is not None and found != static:
        by = "was measured" if measured else "is, by --batch,"
        raise ArtifactError(
            f"{where}: {by} at batch {found}, artefact {artifact.path if artifact else ''} takes batch {static} only: "
            "it is no run of this artefact"
        )
    if found is None and static is None:
        return 1, ["the log does not tell the batch, 1 is taken; give --batch"]
    return found or static or 1, []


def _other_input(log: TrtexecLog, artifact: Artifact) -> str | None:
    """Why the log's input is not the artefact's."""
    for info in artifact.manifest.inputs:
        shape = log.settings.shapes.get(info.name)
        if shape is None and len(log.settings.shapes) == 1:
            (shape,) = log.settings.shapes.values()
        if shape is not None and tuple(shape[1:]) != tuple(info.shape[1:]):
            texts = ("x".join(map(str, part[1:])) for part in (shape, info.shape))
            return "an image of the log is {}, of the artefact {}: it was another model".format(*texts)
    return None


def _layers(layers: Path | None, profile: Path | None, tokens: int | None) -> dict[str, Any] | None:
    if not layers and not profile:
        return None
    found = parse_layers(_read(layers), f"layers {layers}") if layers else []
    if profile:
        found = with_times(found, parse_profile(_read(profile), f"profile {profile}"))
    return LayerSummary.of(found, tokens).to_json(found)


def _read(path: Path) -> object:
    try:
        data: object = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read as JSON ({error})") from None
    return data


def run_engine(
    artifact: Artifact,
    key: str,
    binary: Path | None,
    batch: int | None,
    target: Device | None = None,
    timing: Timing = DEFAULT,
    device: Device | None = None,
) -> dict[str, Any]:
    """Runs trtexec twice on an engine of an artefact, for its latency and for its layers; not verified on hardware.

    Args:
        artifact: with the engine in its manifest.
        key: of the engine.
        binary: trtexec, where it is in no usual place.
        batch: images per query; None takes what trtexec tells, else the artefact's static batch, else 1.
        target: device to hold the figures against.
        timing: how to time.
        device: that trtexec runs on, this machine's by default.

    Raises:
        ConfigError: trtexec is not there, or no GPU.
        ArtifactError: the engine is not in the manifest, was changed or is for another machine (it is native code and is then
            not loaded), or trtexec failed.
    """
    trtexec = find_trtexec(binary)
    device = device or device_here().profile
    # trtexec tells its version only when it runs, and refuses engines of another one itself.
    host = EngineHost("tensorrt", None, device.compute_capability, device.name)
    engine, record = check_engine(artifact, key, host)
    version = version_or_none(str(record["version"]))
    if version is None:
        raise ArtifactError(f"engine {engine}: made by TensorRT {record['version']}, which is no version")
    with tempfile.TemporaryDirectory() as folder:
        times, layers, profile, log = (
            Path(folder) / name for name in ("times.json", "layers.json", "profile.json", "log")
        )
        log.write_text(run_trtexec(trtexec, timing_arguments(engine, version, timing, times)), encoding="utf-8")
        run_trtexec(trtexec, profile_arguments(engine, version, profile, layers))
        return ingest(log, times, layers, profile, artifact, batch, target)
