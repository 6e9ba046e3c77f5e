"""Recorded and fresh runs of trtexec as bench files."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gft_edge.benchmarks.logs import read_log_text
from gft_edge.benchmarks.measuring.accuracy import AccuracyFigure, AccuracyOf, recorded_accuracy
from gft_edge.benchmarks.measuring.artifact_facts import bound_of, identity
from gft_edge.benchmarks.power.recorded_log import log_energy
from gft_edge.benchmarks.trtexec.engine_layers import LayerSummary, parse_layers, parse_profile, with_times
from gft_edge.benchmarks.trtexec.output import TrtexecLog, parse_runs, version_or_none
from gft_edge.benchmarks.trtexec.program import (
    DEFAULT,
    Timing,
    find_trtexec,
    profile_arguments,
    run_trtexec,
    timing_arguments,
)
from gft_edge.benchmarks.trtexec.rows import bench_file, file_of, result_row
from gft_edge.benchmarks.trtexec.times import parse_times
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.files import parse_json
from gft_edge.hardware.clocks import locked_clocks
from gft_edge.hardware.devices import Device
from gft_edge.hardware.gpu_names import other_gpu
from gft_edge.hardware.this_device import device_here
from gft_edge.manifest import Artifact
from gft_edge.runtime.backends.engine_files import EngineHost, check_engine


@dataclass(frozen=True)
class RecordedRun:
    """Files of a run of trtexec, and what they are of.

    Args:
        log: output of trtexec.
        times, layers, profile: files of --exportTimes, --exportLayerInfo and --exportProfile.
        artifact: the measured one; without it the row has the log's file name.
        batch: images per query; None takes that of the log, else the artefact's static batch, else 1.
        target: device to compare the figures with; needs an artefact. There is no bound if the log is of another GPU.
        power_log: log of tegrastats that was recorded while trtexec measured, and no longer.
        power_interval_s: interval that tegrastats was started with.
        accuracy: for the energy per correct image; called only with a power log.

    Raises:
        ConfigError: a target without an artefact.
    """

    log: Path
    times: Path | None = None
    layers: Path | None = None
    profile: Path | None = None
    artifact: Artifact | None = None
    batch: int | None = None
    target: Device | None = None
    power_log: Path | None = None
    power_interval_s: float = 0.1
    accuracy: AccuracyOf = recorded_accuracy

    def __post_init__(self) -> None:
        if self.target and not self.artifact:
            raise ConfigError("--target needs the ARTIFACT that was measured, for its bound")


def ingest(run: RecordedRun) -> dict[str, Any]:
    """Converts files of trtexec to the content of a bench file: one row, or one per complete run of a log of several.

    Raises:
        ConfigError: a batch that is not the log's, or an artefact, exported files or a power log with a log of several runs.
        ArtifactError: a file is missing, damaged, cut off, of a failed run, not of trtexec, or of another batch than the
            artefact's.
        DataError: the power log cannot be used.
    """
    where = f"trtexec log {run.log}"
    logs = parse_runs(read_log_text(run.log, "trtexec log", ArtifactError), where)
    if len(logs) > 1:
        _require_log_alone(run, logs, where)
        return _several(logs, run.log.stem, run.batch, where)
    (log,) = logs
    images, notes = _batch(log, run.artifact, run.batch, where)
    if run.artifact and (problem := _other_input(log, run.artifact)):
        notes.append(problem)
    other = other_gpu(log.device, run.target) if run.target else None
    if other:
        notes.append(other)
    log = replace(log, warnings=(*log.warnings, *notes))
    queries = parse_times(_read(run.times), f"times {run.times}") if run.times else None
    known: dict[str, Any] = identity(run.artifact) if run.artifact else {}
    data = bench_file(log, known.get("name", run.log.stem), known, queries, _layers(run), images)
    row = data["results"][0]
    if run.target and run.artifact and not other:
        row |= bound_of(run.artifact, run.target, images, row["p50_ms"])
    if run.power_log:
        row["energy"] = _energy(run, run.power_log, row["throughput"]["images_per_s"] or 0.0)
        data["warnings"] += [f"{run.power_log.name}: {note}" for note in row["energy"]["notes"]]
    return data


def _require_log_alone(run: RecordedRun, logs: Sequence[TrtexecLog], where: str) -> None:
    if run.artifact or run.times or run.layers or run.profile:
        commands = "; ".join(f"{number}: {log.command or 'no command'}" for number, log in enumerate(logs, 1))
        raise ConfigError(
            f"{where}: holds {len(logs)} runs ({commands}), and an ARTIFACT or exported file is of one; copy that run "
            "into its own file"
        )
    if run.power_log:
        raise ConfigError("a log given to --power is of one run, the log of trtexec holds several")


def _energy(run: RecordedRun, log: Path, images_per_s: float) -> dict[str, Any]:
    missing = AccuracyFigure(None, refused="no ARTIFACT was given")
    known = run.accuracy(run.artifact, "tensorrt") if run.artifact else missing
    energy = log_energy(log, run.power_interval_s, images_per_s, known.top1)
    return {**energy.to_json(), "accuracy": asdict(known)}


def _several(runs: Sequence[TrtexecLog], name: str, batch: int | None, where: str) -> dict[str, Any]:
    """Returns one row per run, compared with the first one of the same batch."""
    rows: list[dict[str, Any]] = []
    names = sorted({run.device["device"] for run in runs if "device" in run.device})
    if len(names) > 1:
        raise ArtifactError(f"{where}: holds runs of several GPUs ({', '.join(names)}); write one log per GPU")
    for number, run in enumerate(runs, start=1):
        images, notes = _batch(run, None, batch, f"{where}: run {number}")
        row = result_row(replace(run, warnings=(*run.warnings, *notes)), f"{name} run {number}", {}, None, images)
        first = next((known for known in rows if known["batch"] == images), row)
        rows.append(row | {"baseline": first["name"], "speedup": first["p50_ms"] / row["p50_ms"]})
    return file_of(rows, runs[0])


def _batch(log: TrtexecLog, artifact: Artifact | None, given: int | None, where: str) -> tuple[int, list[str]]:
    """Returns images per query, and remarks about it."""
    static = artifact.manifest.static_batch if artifact else None
    measured = log.settings.batch(artifact.manifest.inputs[0].name if artifact and artifact.manifest.inputs else None)
    if measured is not None and given is not None and measured != given:
        raise ConfigError(f"{where}: was measured at batch {measured}, --batch says {given}; leave --batch out")
    found = measured or given
    if found is not None and static is not None and found != static:
        source = "was measured at batch" if measured else "--batch says"
        raise ArtifactError(
            f"{where}: {source} {found}, artefact {artifact.path if artifact else ''} takes batch {static} only: "
            "the log is of another artefact"
        )
    if found is None and static is None:
        return 1, ["the log does not contain the batch, 1 is assumed; give --batch"]
    return found or static or 1, []


def _other_input(log: TrtexecLog, artifact: Artifact) -> str | None:
    """Returns the reason why the log is of another model, if the shapes of the inputs differ."""
    for info in artifact.manifest.inputs:
        shape = log.settings.shapes.get(info.name)
        if shape is None and len(log.settings.shapes) == 1:
            (shape,) = log.settings.shapes.values()
        if shape is not None and tuple(shape[1:]) != tuple(info.shape[1:]):
            texts = ("x".join(map(str, part[1:])) for part in (shape, info.shape))
            return "an image of the log is {}, of the artefact {}: the log is of another model".format(*texts)
    return None


def _layers(run: RecordedRun) -> dict[str, Any] | None:
    if not run.layers and not run.profile:
        return None
    model = run.artifact.manifest.model if run.artifact else None
    tokens = model.num_patches + model.num_prefix_tokens if model else None
    found = parse_layers(_read(run.layers), f"layers {run.layers}") if run.layers else []
    if run.profile:
        found = with_times(found, parse_profile(_read(run.profile), f"profile {run.profile}"))
    return LayerSummary.of(found, tokens).to_json(found)


def _read(path: Path) -> object:
    try:
        data: object = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read as JSON ({error})") from None
    return data


@dataclass(frozen=True)
class EngineRun:
    """An engine of an artefact that trtexec is to run.

    Args:
        artifact: with the engine in its manifest.
        key: of the engine.
        binary: trtexec, if it is not in a usual place.
        batch: images per query; None takes that of trtexec, else the artefact's static batch, else 1.
        target: device to compare the figures with.
        timing: how to time.
        device: that trtexec runs on, this machine's by default.
        lock_clocks: hold a Jetson's clocks at their maximum meanwhile.
    """

    artifact: Artifact
    key: str
    binary: Path | None = None
    batch: int | None = None
    target: Device | None = None
    timing: Timing = DEFAULT
    device: Device | None = None
    lock_clocks: bool = False


def run_engine(run: EngineRun) -> dict[str, Any]:
    """Runs trtexec twice on an engine, for its latency and for its layers; not verified on hardware.

    Raises:
        ConfigError: trtexec is not found, there is no GPU, or the clocks cannot be locked.
        ArtifactError: the engine is not in the manifest, was changed or is for another machine (an engine is native code,
            so it is then not loaded), or trtexec failed.
    """
    trtexec = find_trtexec(run.binary)
    device = run.device or device_here().profile
    # trtexec reports its version only when it runs, and refuses engines of another one itself.
    host = EngineHost("tensorrt", None, device.compute_capability, device.name)
    engine, record = check_engine(run.artifact, run.key, host)
    version = version_or_none(str(record["version"]))
    if version is None:
        raise ArtifactError(f"engine {engine}: made by TensorRT {record['version']}, which is not a known version")
    with tempfile.TemporaryDirectory() as folder, locked_clocks() if run.lock_clocks else contextlib.nullcontext():
        times, layers, profile, log = (
            Path(folder) / name for name in ("times.json", "layers.json", "profile.json", "log")
        )
        log.write_text(run_trtexec(trtexec, timing_arguments(engine, version, run.timing, times)), encoding="utf-8")
        run_trtexec(trtexec, profile_arguments(engine, version, profile, layers))
        return ingest(RecordedRun(log, times, layers, profile, run.artifact, run.batch, run.target))
